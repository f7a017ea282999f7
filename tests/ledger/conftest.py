"""A PostgreSQL of this package's own, which may be killed, and a clone of a template for each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.ledger import findings
from tests.ledger.server import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own, with the schema in it."""
    with server.database() as url:
        yield url


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Which layer found which mutant."""
    if findings.FOUND:
        terminalreporter.section("mutants of the ledger")
        for line in findings.table():
            terminalreporter.write_line(line)

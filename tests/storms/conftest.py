"""The fixtures of the acceptance tests."""

from tests.acceptance.conftest import account, bank, proxy, pytest_terminal_summary, running, upstream

__all__ = ["account", "bank", "proxy", "pytest_terminal_summary", "running", "upstream"]

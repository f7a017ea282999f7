"""Users' own keys are seen by their own provider only, whatever happens to their calls; `canaries` has more."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.acceptance import canaries
from tests.acceptance.bank import Bank
from tests.acceptance.canaries import Findings, Run
from tests.acceptance.conftest import clone
from uc_litellm_plugin.settings import Settings

USERS, CALLS = 10, 160
# What LiteLLM has stopped reading early is garbage until it is collected.
MOST_IN_MEMORY = 0.1
# aiohttp has the headers of the last answer on each idle connection, and some providers here repeat keys there.
OF_CONNECTIONS = "aiohttp._http_parser.HttpResponseParser"
LOOKED_AT = {
    *("async_pre_call_hook", "async_pre_call_deployment_hook", "async_filter_deployments", "log_pre_api_call"),
    *("async_log_success_event", "async_log_failure_event", "async_logging_hook", "async_post_call_success_hook"),
    *("async_post_call_failure_hook", "async_post_call_success_deployment_hook"),
    *("async_post_call_failure_deployment_hook", "async_post_call_streaming_deployment_hook"),
}


@pytest.fixture(scope="module")
def run(server_url: str, template: str) -> Iterator[Run]:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    with canaries.running(Bank(clone(server_url, template)), seed, USERS) as run:
        run.calls(CALLS)
        yield run


@pytest.fixture(scope="module")
def findings(run: Run, server: Settings) -> Findings:
    found = canaries.search(run, run.outbox(), server.state_dir)
    print(*canaries.shown(run, found), sep="\n")
    return found


def test_nowhere_else(findings: Findings) -> None:
    """No key is in an answer, a log at DEBUG, the database, the outbox, a file, or another callback's data, and every
    provider got its own callers' keys as often as the usage rows say."""
    assert findings.leaks == []
    assert not findings.through_objects


def test_everything_was_looked_at(run: Run, findings: Findings) -> None:
    """What was searched was there: own keys and faults at the providers, waiting settlements, and every hook."""
    assert set(findings.searched) >= {"the proxy's log", "the database", "the outbox", "the answer", "the"}
    assert min(findings.searched.values()) > 100
    assert findings.hooks.keys() >= LOOKED_AT
    assert all(findings.hooks[hook] for hook in LOOKED_AT)
    calls = [call for each in run.books().values() for call in each]
    assert sum(call["api_key"] in run.canaries for call in calls) > CALLS / 2
    assert {call["fault"] for call in calls} >= {"echo-json", "echo-header", "echo-event", "429", "500", "cut"}


def test_memory(findings: Findings) -> None:
    """When all calls have ended the worker's memory has next to no key, and none after a garbage collection but where a
    provider repeated it in a header of the last answer on an idle connection."""
    assert sum(findings.in_memory.values()) <= CALLS * MOST_IN_MEMORY
    assert [holder for holder in findings.kept if OF_CONNECTIONS not in holder] == []

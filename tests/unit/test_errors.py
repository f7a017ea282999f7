from __future__ import annotations

import json

import pytest

from uc_litellm_plugin import errors
from uc_litellm_plugin.errors import (
    BadRequest,
    Forbidden,
    InsufficientCredits,
    LedgerUnavailable,
    Refusal,
    Unauthorized,
    Unexpected,
)

REFUSALS = [
    (BadRequest("m"), 400, "invalid_request_error", "invalid_request"),
    (Unauthorized("m"), 401, "authentication_error", "invalid_api_key"),
    (InsufficientCredits("m"), 402, "insufficient_credits", "insufficient_credits"),
    (Forbidden("m"), 403, "permission_error", "forbidden"),
    (Unexpected(), 500, "internal_error", "internal_error"),
    (LedgerUnavailable("m"), 503, "service_unavailable", "ledger_unavailable"),
]


@pytest.mark.parametrize(("refusal", "status", "kind", "code"), REFUSALS)
def test_each_refusal_has_its_status_and_code(refusal: Refusal, status: int, kind: str, code: str) -> None:
    """Status, type and code are what the design promises, and the body is JSON."""
    error = refusal.error()
    assert (refusal.status, error["type"], error["code"], error["param"]) == (status, kind, code, None)
    assert "metadata" not in error
    assert json.loads(json.dumps(error)) == error


@pytest.mark.parametrize(("refusal", "status"), [(each[0], each[1]) for each in REFUSALS])
def test_only_the_unavailable_is_worth_a_retry(refusal: Refusal, status: int) -> None:
    """The official clients are told to come again at a 503 only."""
    assert refusal.headers["x-should-retry"] == ("true" if status == 503 else "false")
    assert ("retry-after" in refusal.headers) is (status == 503)


def test_details_travel() -> None:
    """Code, field, facts and headers that a refusal is given come out again."""
    refusal = InsufficientCredits("m", code="in_debt", param="p", metadata={"a": "1"}, headers={"retry-after": "5"})
    assert refusal.error() == {
        "message": "m", "type": "insufficient_credits", "code": "in_debt", "param": "p", "metadata": {"a": "1"}
    }  # fmt: skip
    assert refusal.headers == {"x-should-retry": "false", "retry-after": "5"}
    assert str(refusal) == "m"


def test_all_errors_have_one_root() -> None:
    """Whatever this package raises on purpose can be caught by one name."""
    raised = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    assert all(issubclass(each, errors.UcError) for each in raised)
    assert len(raised) >= 11


def test_a_fault_of_ours_tells_nothing() -> None:
    """An internal error's message says that nothing was charged, and no more."""
    assert "nothing was sent or charged" in Unexpected().message

"""Every error of the plugin, with the HTTP status and the body a client gets for it.

UcError
├── SettingsError        a setting is missing or wrong (at start)
├── DatabaseError        PostgreSQL said no, or its schema is not as needed; the same again fails again
│   └── DatabaseUnavailable  PostgreSQL could not be asked, or its answer was lost; worth a retry
├── StreamBroken         a provider's stream broke off
├── CommandRefused       an operator's command is turned away
├── VaultError           a sealed provider key does not open
│   ├── UnknownSealingKey    the sealing key that sealed it is missing
│   └── DamagedKey           it was altered, or belongs to another row
└── Refusal              a client's request is turned away
    ├── BadRequest           400
    ├── Unauthorized         401
    ├── InsufficientCredits  402
    ├── Forbidden            403
    ├── TooManyRequests      429
    ├── Unexpected           500
    ├── LedgerUnavailable    503
    └── IssuerUnavailable    503
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

# Anthropic's error types by status: https://docs.anthropic.com/en/api/errors
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class UcError(Exception):
    """The root of all errors this package raises on purpose."""


class SettingsError(UcError):
    """A setting is missing or wrong; the message names the file, the key and the fix."""


class DatabaseError(UcError):
    """The database is not what this code needs, or refused a statement; the same again fails again.

    Parameters
    ----------
    message
        What is wrong and how to mend it.
    sqlstate
        PostgreSQL's five-character code, where the server gave one.
    constraint
        The name of the violated constraint, where one was.
    """

    def __init__(self, message: str, *, sqlstate: str | None = None, constraint: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.constraint = constraint


class DatabaseUnavailable(DatabaseError):
    """PostgreSQL could not be asked, or its answer was lost.

    Attributes
    ----------
    in_doubt
        Whether the statement may have been committed, now or when PostgreSQL gets to read it; else it was not, and
        will not be.
    """

    in_doubt: bool = True


class CommandRefused(UcError):
    """An operator's command that was not carried out; nothing has changed.

    Parameters
    ----------
    message
        What is wrong and the way out.
    code
        A word programs can switch on.
    """

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class StreamBroken(UcError):
    """A provider's stream that broke off."""

    status_code = 502


class VaultError(UcError):
    """A sealed provider key that does not open; nothing is lost, its row stays as it is."""

    code: ClassVar[str] = "vault"


class UnknownSealingKey(VaultError):
    """The sealing key that sealed it is not, or no longer, among the sealing keys.

    Parameters
    ----------
    key_id
        The fingerprint of the missing sealing key.
    """

    code = "unknown_sealing_key"

    def __init__(self, key_id: str) -> None:
        super().__init__(
            f"Sealed with the sealing key {key_id!r}, which is not among the configured ones: put it back into "
            "UC_SEALING_KEYS and run `uc-litellm vault rotate` before it is removed."
        )
        self.key_id = key_id


class DamagedKey(VaultError):
    """The row was altered or cut, or holds what was sealed for another user, provider or purpose."""

    code = "damaged_key"

    def __init__(self) -> None:
        super().__init__(
            "The sealed provider key does not open: it was altered, or sealed for another user or provider. Restore "
            "its row from a backup, or delete the key and have it added again."
        )


class Refusal(UcError):
    """A request that is turned away before anything is sent to a provider.

    Parameters
    ----------
    message
        For the caller: what is wrong and the way out. It must hold no secret.
    code
        A word programs can switch on; defaults to the class's.
    param
        The body field at fault, if one is.
    metadata
        Facts for programs, as JSON; amounts are decimal strings in credits.
    headers
        HTTP headers to send along.
    """

    status: ClassVar[int] = 400
    type: ClassVar[str] = "invalid_request_error"
    default_code: ClassVar[str] = "invalid_request"
    # What the official clients read to decide whether to try again: openai/_base_client.py, anthropic/_base_client.py.
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.metadata = dict(metadata or {})
        self.headers = {"x-should-retry": str(self.retryable).lower(), **(headers or {})}

    def error(self) -> dict[str, Any]:
        """The `error` object of the OpenAI envelope."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "code": self.code,
            "param": self.param,
        }
        return {**error, "metadata": self.metadata} if self.metadata else error

    def anthropic_body(self) -> dict[str, Any]:
        """The whole body in Anthropic's shape, for `/v1/messages`; our code and metadata ride along."""
        return {"type": "error", "error": {**self.error(), "type": _ANTHROPIC_TYPES.get(self.status, "api_error")}}


class BadRequest(Refusal):
    """400: the body cannot be priced, or holds what is not allowed."""


class Unauthorized(Refusal):
    """401: nobody knows this key."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class InsufficientCredits(Refusal):
    """402: the worst case of this call does not fit into what is available."""

    status = 402
    type = "insufficient_credits"
    default_code = "insufficient_credits"


class Forbidden(Refusal):
    """403: a known caller may not do this."""

    status = 403
    type = "permission_error"
    default_code = "forbidden"


class NotFound(Refusal):
    """404: there is no such thing, or it is not the caller's."""

    status = 404
    type = "not_found_error"
    default_code = "not_found"


class Conflict(Refusal):
    """409: the idempotency key belongs to another call."""

    status = 409
    type = "idempotency_error"
    default_code = "idempotency_conflict"


class Taken(Refusal):
    """409: what was to be made is there already, or as many as may be."""

    status = 409
    type = "conflict_error"
    default_code = "taken"


class Unexpected(Refusal):
    """500: a fault of ours; the log has it, the client does not."""

    status = 500
    type = "internal_error"
    default_code = "internal_error"

    def __init__(self) -> None:
        super().__init__("The request could not be checked because of an internal error; nothing was sent or charged.")


class TooManyRequests(Refusal):
    """429: too many requests, or too many wrong keys; its `retry-after` says when the next one is let through."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    retryable = True


class _Unavailable(Refusal):
    status = 503
    type = "service_unavailable"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, headers={"retry-after": str(retry_after_s)})


class LedgerUnavailable(_Unavailable):
    """503: PostgreSQL did not answer, so nothing could be held; nothing was sent."""

    default_code = "ledger_unavailable"


class IssuerUnavailable(_Unavailable):
    """503: the issuer of access tokens has never been reached, so nobody can say whether they are genuine."""

    default_code = "issuer_unavailable"


def status_of(error: Exception, unknown: int = 500) -> int:
    """The HTTP status that a failure of LiteLLM or of a provider ends in; `unknown` when it does not say."""
    if "No deployments available" in str(error):  # As LiteLLM answers it: litellm/proxy/_types.py, `ProxyException`.
        return 429
    code = getattr(error, "status_code", None) or getattr(error, "code", None)
    try:
        return int(code)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return unknown


def kind_of(error: Exception) -> str:
    """The class and status of an error, for rows and logs; never its text, which may echo a key."""
    return f"{type(error).__name__} ({status_of(error)})"

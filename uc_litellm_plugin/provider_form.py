"""The forms of provider keys, and what their owners may write beside them; no message repeats what was written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from .errors import BadRequest
from .vault import Secret

FALLBACKS = ("never", "credits")
NAME_MAX = 100
MOST_USD = Decimal(1_000_000_000)

# A key travels in an HTTP header. A short one could be a word, and is taken out of everybody's logs while it is in use.
_KEY = re.compile(r"[!-~]{8,512}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# The literal characters that a pattern such as ^sk-ant-[A-Za-z0-9_-]{20,}$ begins with.
_PREFIX = re.compile(r"\^([A-Za-z0-9_-]*)(?![*+?{])")
# Four characters of a short key would be too much of it.
_SHORTEST_WITH_HINT = 20


@dataclass(frozen=True)
class Provider:
    """A row of `providers`, of which a key can be.

    Attributes
    ----------
    test_url
        Where a key can be tried for nothing; None where the provider has no such address.
    """

    name: str
    display_name: str
    key_pattern: str | None
    test_url: str | None
    allows_api_base: bool

    @property
    def key_prefix(self) -> str:
        """What every key of this provider begins with; may be empty."""
        found = _PREFIX.match(self.key_pattern or "")
        return found[1] if found else ""

    def has_form(self, key: Secret) -> bool:
        """Whether a key has the form of this provider's."""
        return self.key_pattern is None or re.fullmatch(self.key_pattern, key.reveal()) is not None


def check_key(key: Secret, provider: Provider, providers: Iterable[Provider]) -> None:
    """Refuse what cannot be a key of this provider, or is one of another's by its beginning (`sk-ant-…` at OpenAI).

    Raises
    ------
    BadRequest
        Code `invalid_api_key`.
    """
    if not _KEY.fullmatch(key.reveal()):
        raise _bad_key("8 to 512 characters of ASCII without spaces")
    if not provider.has_form(key):
        raise _bad_key(f"a key of {provider.display_name}, which matches {provider.key_pattern}")
    if provider.allows_api_base:
        return
    for other in providers:
        longer = len(other.key_prefix) > len(provider.key_prefix)
        if longer and key.reveal().startswith(other.key_prefix) and other.has_form(key):
            raise _bad_key(f"a key of {provider.display_name}; this one has the form of {other.display_name}'s")


def hint(key: Secret) -> str:
    """The last four characters of a key, by which its owner knows it; nothing of a short one."""
    return key.reveal()[-4:] if len(key.reveal()) >= _SHORTEST_WITH_HINT else ""


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse names, times, caps and fallbacks that cannot be; what is not there is not looked at.

    Raises
    ------
    BadRequest
        `param` names the value.
    """
    for name, is_fine, rule in _RULES:
        if name in values and not is_fine(values[name]):
            raise BadRequest(f"{name} must be {rule}.", code=f"invalid_{name}", param=name)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= NAME_MAX and not _CONTROL.search(value)


def _is_cap(value: Any) -> bool:
    if value is None:
        return True
    finite = isinstance(value, Decimal) and value.is_finite()
    return finite and 0 <= value <= MOST_USD and value == value.quantize(Decimal("0.000001"))


def _is_moment(value: Any) -> bool:
    return value is None or (isinstance(value, datetime) and value.tzinfo is not None)


def _is_to_come(value: Any) -> bool:
    return _is_moment(value) and (value is None or value > datetime.now(timezone.utc))


_RULES = (
    ("key_name", _is_name, f"1 to {NAME_MAX} characters, none of them a control character"),
    ("fallback", lambda value: value in FALLBACKS, f"one of {', '.join(FALLBACKS)}"),
    ("is_active", lambda value: isinstance(value, bool), "true or false"),
    ("is_default", lambda value: isinstance(value, bool), "true or false"),
    ("monthly_cap_usd", _is_cap, f"null or US dollars from 0 to {MOST_USD:,}, with at most 6 decimals"),
    ("expires_at", _is_to_come, "null or a time in the future, with its time zone"),
    ("rotation_reminder", _is_moment, "null or a time with its time zone"),
)


def _bad_key(wanted: str) -> BadRequest:
    return BadRequest(f"The key must be {wanted}.", code="invalid_api_key", param="api_key")

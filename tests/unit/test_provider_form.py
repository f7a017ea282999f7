"""Forms of provider keys, and of what stands beside them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from uc_litellm_plugin.errors import BadRequest
from uc_litellm_plugin.provider_form import Provider, check_key, check_values, hint
from uc_litellm_plugin.vault import Secret

# As seeded; a test against the database keeps these the same.
PATTERNS = {
    "openai": r"^sk-[A-Za-z0-9_-]{20,}$",
    "anthropic": r"^sk-ant-[A-Za-z0-9_-]{20,}$",
    "openrouter": r"^sk-or-[A-Za-z0-9_-]{20,}$",
    "google": r"^(AIza[A-Za-z0-9_-]{35}|AQ[.][A-Za-z0-9_-]{20,})$",
    "cohere": r"^[A-Za-z0-9_-]{32,}$",
    "groq": r"^gsk_[A-Za-z0-9]{20,}$",
    "huggingface": r"^hf_[A-Za-z0-9]{20,}$",
    "custom": r"^[!-~]{1,512}$",
    "free": None,
}
PROVIDERS = {name: Provider(name, name.title(), pattern, None, name == "custom") for name, pattern in PATTERNS.items()}
TAIL = "abcDEF0123456789abcDEF0123456789"


def refusal(provider: str, key: str) -> BadRequest:
    with pytest.raises(BadRequest) as refused:
        check_key(Secret(key), PROVIDERS[provider], PROVIDERS.values())
    assert not key or key not in refused.value.message
    assert (refused.value.code, refused.value.param) == ("invalid_api_key", "api_key")
    return refused.value


@pytest.mark.parametrize(
    ("provider", "key"),
    [
        ("openai", f"sk-{TAIL}"),
        ("openai", f"sk-proj-{TAIL}"),
        ("anthropic", f"sk-ant-api03-{TAIL}"),
        ("openrouter", f"sk-or-v1-{TAIL}"),
        ("google", f"AIza{TAIL}abc"),
        ("google", f"AQ.{TAIL}"),
        ("cohere", TAIL),
        ("groq", f"gsk_{TAIL}"),
        ("custom", "~" * 8),
        ("custom", f"sk-ant-api03-{TAIL}"),
        ("custom", "~" * 512),
        ("free", f"anything-{TAIL}"),
    ],
)
def test_keys_of_the_right_form(provider: str, key: str) -> None:
    """Keys as providers give them out are taken; a custom endpoint's may look like anybody's."""
    check_key(Secret(key), PROVIDERS[provider], PROVIDERS.values())


@pytest.mark.parametrize(
    ("provider", "key"),
    [
        ("openai", ""),
        ("openai", "sk-short"),
        ("openai", f"Bearer sk-{TAIL}"),
        ("openai", f"sk-{TAIL} "),
        ("openai", f"sk-{TAIL}\n"),
        ("openai", f"sk-{TAIL}\r\nx-evil: 1"),
        ("openai", f"sk-{TAIL}\x00"),
        ("openai", f"sk-{TAIL}é"),
        ("openai", f"sk-{'a' * 600}"),
        ("custom", "sevenof"),
        ("custom", "two words"),
        ("custom", "~" * 513),
        ("free", "ключ"),
    ],
)
def test_keys_of_no_form(provider: str, key: str) -> None:
    """What cannot be this provider's key, or cannot travel in a header, is refused without being repeated."""
    refusal(provider, key)


@pytest.mark.parametrize(
    ("provider", "key", "owner"),
    [
        ("openai", f"sk-ant-api03-{TAIL}", "Anthropic"),
        ("openai", f"sk-or-v1-{TAIL}", "Openrouter"),
        ("cohere", f"sk-{TAIL}", "Openai"),
        ("cohere", f"hf_{TAIL}", "Huggingface"),
    ],
)
def test_a_key_for_another_provider(provider: str, key: str, owner: str) -> None:
    """A key that by its beginning is another provider's is not stored for this one; the message says whose it is."""
    assert owner in refusal(provider, key).message


@pytest.mark.parametrize(("key", "shown"), [("x", ""), ("a" * 19, ""), (f"sk-{TAIL}", "6789")])
def test_hints(key: str, shown: str) -> None:
    """Of a key its last four characters are shown, of a short one nothing."""
    assert hint(Secret(key)) == shown


LATER = datetime.now(timezone.utc) + timedelta(days=1)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"key_name": "x"},
        {"key_name": "работа ✓"},
        {"fallback": "credits"},
        {"monthly_cap_usd": None, "expires_at": None, "rotation_reminder": None},
        {"monthly_cap_usd": Decimal("0.000001"), "expires_at": LATER, "rotation_reminder": LATER - timedelta(days=9)},
        {"monthly_cap_usd": Decimal("1E+9"), "is_active": False, "is_default": True},
    ],
)
def test_values_that_can_be(values: dict[str, Any]) -> None:
    """What an owner may write is taken."""
    check_values(values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key_name", ""),
        ("key_name", "a" * 101),
        ("key_name", "a\nb"),
        ("key_name", "a\u2028b"),
        ("key_name", "a\x00"),
        ("key_name", "\ud800"),
        ("key_name", None),
        ("fallback", "always"),
        ("fallback", None),
        ("is_active", None),
        ("is_default", "yes"),
        ("monthly_cap_usd", Decimal(-1)),
        ("monthly_cap_usd", Decimal("NaN")),
        ("monthly_cap_usd", Decimal("Infinity")),
        ("monthly_cap_usd", Decimal("0.0000001")),
        ("monthly_cap_usd", Decimal("1e9") + 1),
        ("monthly_cap_usd", Decimal("1e999999")),
        ("monthly_cap_usd", 5.0),
        ("expires_at", datetime.now(timezone.utc)),
        ("expires_at", LATER.replace(tzinfo=None)),
        ("rotation_reminder", "tomorrow"),
    ],
)
def test_values_that_cannot_be(name: str, value: Any) -> None:
    """What cannot be stored or used is refused by its name."""
    with pytest.raises(BadRequest) as refused:
        check_values({name: value})
    assert (refused.value.code, refused.value.param) == (f"invalid_{name}", name)

"""`uc-litellm provider-keys`: users' own keys for providers."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, TypeVar

import typer

from . import migrations
from .cli_accounts import parse_time
from .console import REFUSED, AsJson, UserId, print_facts, print_rows, say, with_settings
from .database import Database
from .errors import CommandRefused
from .office import Office
from .provider_key import UNSET, KeyChanges, NewKey, Unset
from .provider_keys import ProviderKeys
from .settings import Settings
from .vault import Secret, Vault

T = TypeVar("T")

provider_keys = typer.Typer(help="Users' own keys for providers, sealed.", no_args_is_help=True)

_COLUMNS = ("id", "provider", "key_name", "key_hint", "is_active", "is_default", "fallback", "monthly_cap_usd",
            "expires_at", "last_used", "last_error")  # fmt: skip
_NONE = "none"

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `provider-keys list` shows it.")]
Expires = Annotated[str | None, typer.Option(metavar="TIME|none", help="ISO 8601, UTC unless it says otherwise.")]
Remind = Annotated[str | None, typer.Option(metavar="TIME|none", help="When its owner is reminded to replace it.")]
Cap = Annotated[str | None, typer.Option(metavar="USD|none", help="Most that calls may cost at the provider a month.")]
FallBack = Annotated[str | None, typer.Option(help="never, or credits: whether a call may go on with the platform's.")]


@provider_keys.command("add")
def add(
    user: UserId,
    provider: Annotated[str, typer.Argument(help="openai, anthropic, … or custom.")],
    name: Annotated[str, typer.Option(help="The owner's name for it.")] = "default",
    default: Annotated[bool, typer.Option("--default", help="The first of several to be used.")] = False,
    fallback: FallBack = "never",
    cap: Cap = None,
    api_base: Annotated[str | None, typer.Option(help="Address of a custom endpoint: https://host/v1.")] = None,
    expires: Expires = None,
    remind: Remind = None,
    test: Annotated[
        bool, typer.Option("--test", help="Try it first; it is stored only if the provider takes it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Store a key, read from stdin or asked for without an echo; it is never an argument, which others could see."""
    times = {"expires_at": _time(expires), "rotation_reminder": _time(remind)}
    # What cannot be is refused where the key is stored, in one place for all who store keys.
    given: dict[str, Any] = {"fallback": fallback, "monthly_cap_usd": _usd(cap), **times}
    values = {field: value for field, value in given.items() if value is not UNSET}
    new = NewKey(provider, _read_key(), name, is_default=default, api_base=api_base, **values)
    print_facts(_ask(user, lambda keys: keys.add(user, new, tested=test)), as_json)


@provider_keys.command("list")
def list_keys(user: UserId, as_json: AsJson = False) -> None:
    """List a user's keys; of each its last four characters."""
    print_rows(_ask(user, lambda keys: keys.all(user)), _COLUMNS, as_json)


@provider_keys.command("set")
def set_key(
    user: UserId,
    key_id: KeyId,
    name: Annotated[str | None, typer.Option(help="The owner's name for it.")] = None,
    active: Annotated[bool | None, typer.Option("--active/--inactive", help="Whether it may be used.")] = None,
    default: Annotated[bool | None, typer.Option("--default/--no-default", help="The first of several.")] = None,
    fallback: FallBack = None,
    cap: Cap = None,
    expires: Expires = None,
    remind: Remind = None,
    as_json: AsJson = False,
) -> None:
    """Change a key; workers follow at once. The key itself is replaced by adding another and deleting this one."""
    given: dict[str, Any] = {"key_name": name, "is_active": active, "is_default": default, "fallback": fallback}
    named = {field: value for field, value in given.items() if value is not None}
    changes = KeyChanges(**named, monthly_cap_usd=_usd(cap), expires_at=_time(expires), rotation_reminder=_time(remind))
    print_facts(_ask(user, lambda keys: keys.change(user, key_id, changes)), as_json)


@provider_keys.command("test")
def try_key(user: UserId, key_id: KeyId, as_json: AsJson = False) -> None:
    """Try a key by one free call to its provider; exit code 1 unless it is taken."""
    outcome = _ask(user, lambda keys: keys.test(user, key_id))
    print_facts(asdict(outcome), as_json)
    if outcome.result != "ok":
        raise typer.Exit(REFUSED)


@provider_keys.command("delete")
def delete_key(user: UserId, key_id: KeyId, as_json: AsJson = False) -> None:
    """Delete a key; usage rows of its calls stay."""
    key = _ask(user, lambda keys: keys.delete(user, key_id))
    print_facts(key, as_json)
    if not as_json:
        say("Deleted here. Whoever has a copy can still use it: revoke it at the provider.")


def _ask(user: str, work: Callable[[ProviderKeys], Awaitable[T]]) -> T:
    async def connected(configured: Settings) -> T:
        vault = Vault(configured.sealing_keys)
        await migrations.require_current(configured)
        async with Database(configured) as database:
            await Office(database).show(user)
            return await work(ProviderKeys(database, vault, configured.byok))

    return with_settings(connected)


def _read_key() -> Secret:
    if sys.stdin.isatty():
        return Secret(typer.prompt("Provider key", hide_input=True, err=True))
    key = Secret(sys.stdin.readline().strip())
    if not key.reveal():
        raise CommandRefused("No key came: write it to stdin, or run this in a terminal to be asked.", code="no_key")
    return key


def _usd(text: str | None) -> Decimal | Unset | None:
    if text is None or text == _NONE:
        return UNSET if text is None else None
    try:
        return Decimal(text)
    except ArithmeticError:
        message = f"{text[:40]!r} is no amount of US dollars: write a decimal such as 20 or 0.50, or none."
        raise CommandRefused(message, code="invalid_monthly_cap_usd") from None


def _time(text: str | None) -> datetime | Unset | None:
    if text is None:
        return UNSET
    return None if text == _NONE else parse_time(text)

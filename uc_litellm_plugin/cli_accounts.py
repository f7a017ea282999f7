"""`uc-litellm users`, `uc-litellm credits` and `uc-litellm keys`."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, get_args

import typer

from . import office
from .console import AsJson, UserId, ask, print_facts, print_rows, say
from .errors import CommandRefused
from .settings import TIERS, Tier

users = typer.Typer(help="Accounts.", no_args_is_help=True)
credits = typer.Typer(help="Credits of an account.", no_args_is_help=True)
keys = typer.Typer(help="API keys, with which apps call the proxy.", no_args_is_help=True)

_BALANCE = ("user_id", "credits_remaining", "credits_held", "credits_available", "credits_debt", "credits_lifetime",
            "tier", "power_level")  # fmt: skip
_HISTORY = ("created_at", "transaction_type", "amount", "held_delta", "balance_after", "held_after", "debt_after",
            "model", "notes", "admin_user_id")  # fmt: skip
_KEYS = ("id", "name", "role", "key_hint", "is_active", "expires_at", "last_used", "created_at")
_NEW_KEY = ("id", "user_id", "api_key", "key_hint", "name", "role", "expires_at")


@users.command("add")
def add_user(
    user: UserId,
    tier: Annotated[str | None, typer.Option(help=f"One of {', '.join(TIERS)}.")] = None,
    power_level: Annotated[str | None, typer.Option(help="A power level, such as eco, balanced or precision.")] = None,
    as_json: AsJson = False,
) -> None:
    """Open an account without credits."""
    chosen = _tier(tier)
    account = ask(lambda at: at.open(user, chosen, power_level))
    if not account["created"] and not as_json:
        say(f"{user} exists already; nothing was changed.")
    print_facts(account, as_json)


@users.command("show")
def show_user(user: UserId, as_json: AsJson = False) -> None:
    """Show an account."""
    print_facts(ask(lambda at: at.show(user)), as_json)


@users.command("set")
def set_user(
    user: UserId,
    tier: Annotated[str | None, typer.Option(help=f"One of {', '.join(TIERS)}.")] = None,
    power_level: Annotated[str | None, typer.Option(help="A power level, such as eco, balanced or precision.")] = None,
    monthly_cap: Annotated[str | None, typer.Option(metavar="AMOUNT|none", help="Credits per month, UTC.")] = None,
    status: Annotated[str | None, typer.Option(help=f"One of {', '.join(office.STATUSES)}.")] = None,
    downgrade: Annotated[
        bool | None, typer.Option("--downgrade/--no-downgrade", help="Try cheaper levels before a call is refused.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change an account; workers follow at once, and calls under way end on the terms they were held with."""
    cap = monthly_cap if monthly_cap in (None, office.NO_CAP) else office.parse_amount(monthly_cap)
    changes = office.Changes(_tier(tier), power_level, cap, status, downgrade)
    account = ask(lambda at: at.change(user, changes))
    if as_json:
        print_facts(account, as_json)
        return
    changed = [{"setting": name, **change} for name, change in account["changed"].items()]
    print_rows(changed, ("setting", "before", "after"), as_json) if changed else say("It was so before.")


# A negative amount would be taken for an option without this.
@credits.command("add", context_settings={"ignore_unknown_options": True})
def add_credits(
    user: UserId,
    amount: Annotated[str, typer.Argument(help="Credits, with up to 6 decimals; a refund may be negative.")],
    kind: Annotated[str, typer.Option("--type", help=f"One of {', '.join(office.ADDITIONS)}.")] = "bonus",
    notes: Annotated[str | None, typer.Option(help="Why; a refund or an adjustment needs it.")] = None,
    by: Annotated[str | None, typer.Option(help="Who; the system user if left out.")] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key adds once.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add credits to an account."""
    parsed = office.parse_amount(amount)
    who = by or office.system_user()
    print_facts(ask(lambda at: at.add_credits(user, parsed, kind, notes, key, who)), as_json)


@credits.command("balance")
def balance(user: UserId, as_json: AsJson = False) -> None:
    """Show what an account has."""
    account = ask(lambda at: at.show(user))
    print_facts({name: account[name] for name in _BALANCE}, as_json)


@credits.command("history")
def history(
    user: UserId,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Newest rows to show.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show an account's ledger, newest first."""
    print_rows(ask(lambda at: at.history(user, limit)), _HISTORY, as_json)


@keys.command("create")
def create_key(
    user: UserId,
    role: Annotated[str, typer.Option(help="user, service (pays for the user it names) or admin.")] = "user",
    name: Annotated[str, typer.Option(help="What the key is for; it becomes the app_id of its calls.")] = "default",
    expires: Annotated[str | None, typer.Option(help="ISO 8601 time, UTC unless it says otherwise.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and show it, this once."""
    until = parse_time(expires)
    key = ask(lambda at: at.create_key(user, role, name, until))
    print_facts({field: key[field] for field in _NEW_KEY}, as_json)
    if not as_json:
        say("Keep the key now: it is stored nowhere and cannot be shown again.")


@keys.command("list")
def list_keys(user: UserId, as_json: AsJson = False) -> None:
    """List an account's API keys."""
    print_rows(ask(lambda at: at.keys(user)), _KEYS, as_json)


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `keys list` shows it.")],
    as_json: AsJson = False,
) -> None:
    """Switch an API key off."""
    key = ask(lambda at: at.revoke_key(key_id))
    if not key["was_active"] and not as_json:
        say("The key was switched off before.")
    print_facts(key, as_json)


def _tier(name: str | None) -> Tier | None:
    if name is None:
        return None
    if (tier := next((tier for tier in get_args(Tier) if tier == name), None)) is None:
        raise CommandRefused(f"{name!r} is no tier; use one of {', '.join(TIERS)}.", code="invalid_tier")
    return tier  # type: ignore[no-any-return]


def parse_time(text: str | None) -> datetime | None:
    """An option's ISO 8601 time, UTC unless it says otherwise."""
    if text is None:
        return None
    try:
        # Python 3.10 does not know the Z.
        time = datetime.fromisoformat(text.removesuffix("Z") + ("+00:00" if text.endswith("Z") else ""))
    except ValueError:
        raise CommandRefused(
            f"{text[:40]!r} is no time; write it as 2030-01-31 or 2030-01-31T12:00:00Z.", code="invalid_time"
        ) from None
    try:
        return time.astimezone(timezone.utc) if time.tzinfo else time.replace(tzinfo=timezone.utc)
    except OverflowError:
        raise CommandRefused(f"{text[:40]!r} is before or after all times there are.", code="invalid_time") from None

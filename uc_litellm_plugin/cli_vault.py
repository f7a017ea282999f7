"""`uc-litellm vault`: the sealing keys, and what they seal."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from . import env_file, migrations, rotation, sealing_keys
from .console import REFUSED, AsJson, print_facts, print_json, print_rows, say, with_settings
from .database import Database
from .errors import CommandRefused
from .settings import Settings
from .vault import Vault

T = TypeVar("T")

vault = typer.Typer(help="The vault of users' provider keys.", no_args_is_help=True)

_FINDINGS = ("key_id", "is_newest", "state", "keys")
_IN_USE = "SELECT count(*) FROM user_provider_keys WHERE key_id = $1"

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="Its id, as `vault verify` shows it.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--file", dir_okay=False, help="A .env file or one with keys only; else UC_SEALING_KEYS_FILE, else .env."
    ),
]


@vault.command("key")
def make_key(
    file: KeyFile = None,
    last: Annotated[
        bool, typer.Option("--last", help="After the others: it opens, and does not seal yet (several hosts).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a sealing key and write it into a file, first in the list; it is never printed."""
    environ = env_file.environment()
    target = sealing_keys.configured_file(environ, file)
    made = target.add(sealing_keys.configured_keys(environ), last=last)
    print_facts(_written(target, made), as_json)
    _warn_of_environment()
    if not as_json:
        say("Keep a copy of that file apart from the database's backups. Restart the proxy everywhere with it, then")
        say("run `uc-litellm vault rotate`." if not last else f"`vault promote {made.key_ids[-1]}`: docs/byok.md.")


@vault.command("promote")
def promote_key(key_id: KeyId, file: KeyFile = None, as_json: AsJson = False) -> None:
    """Put a sealing key first in the file, so that it seals after the next restart."""
    target = sealing_keys.configured_file(env_file.environment(), file)
    print_facts(_written(target, target.promote(key_id)), as_json)
    _warn_of_environment()


@vault.command("drop")
def drop_key(
    key_id: KeyId,
    file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Take a sealing key out of the file; refused while a provider key is sealed with it."""
    target = sealing_keys.configured_file(env_file.environment(), file)

    async def in_use(database: Database, _: Vault) -> int:
        return int(await database.fetchval(_IN_USE, key_id, idempotent=True))

    if keys := _with_vault(in_use):
        raise CommandRefused(
            f"{keys} provider key(s) are sealed with {key_id}: run `uc-litellm vault rotate` first.",
            code="sealing_key_in_use",
        )
    print_facts(_written(target, target.drop(key_id)), as_json)
    _warn_of_environment()


@vault.command("rotate")
def rotate(
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Provider keys per transaction.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Seal all provider keys with the newest sealing key, while the proxy runs; exit code 1 when some are left.

    Interrupted, even killed, it goes on where it was when it is run again.
    """
    report = migrations.silent if as_json else say
    done = _with_vault(lambda database, keys: rotation.rotate(database, keys, batch, report))
    print_json(done.facts()) if as_json else say(f"{done.resealed} resealed with {done.newest}, {done.left} left.")
    if done.left:
        if not as_json:
            print_rows(done.facts()["closed"], ("key_id", "state", "keys"), as_json)
        raise typer.Exit(REFUSED)


@vault.command("verify")
def verify(as_json: AsJson = False) -> None:
    """Open every provider key and count what opens, by sealing key; exit code 1 when one does not."""
    findings = _with_vault(rotation.verify)
    print_rows([finding.facts() for finding in findings], _FINDINGS, as_json)
    closed = [finding for finding in findings if finding.state != rotation.OPENS]
    if closed and not as_json:
        say(f"They do not open: {', '.join(str(key) for finding in closed for key in finding.ids)}")
    if closed:
        raise typer.Exit(REFUSED)


def _with_vault(work: Callable[[Database, Vault], Awaitable[T]]) -> T:
    async def connected(configured: Settings) -> T:
        opened = Vault(configured.sealing_keys)
        await migrations.require_current(configured)
        async with Database(configured) as database:
            return await work(database, opened)

    return with_settings(connected)


def _written(target: sealing_keys.KeyFile, keys: Vault) -> dict[str, Any]:
    return {"file": str(target.path), "newest": keys.newest, "key_ids": list(keys.key_ids)}


def _warn_of_environment() -> None:
    if os.environ.get(sealing_keys.VARIABLE):
        say(f"Warning: {sealing_keys.VARIABLE} is set in this environment and wins over any file: unset it there.")

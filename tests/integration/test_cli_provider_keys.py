"""`uc-litellm provider-keys` and `uc-litellm vault`."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from tests.integration.commands import Result, Run
from tests.integration.vaults import canary
from uc_litellm_plugin import env_file
from uc_litellm_plugin.vault import new_sealing_key

KEY = canary(1)
Type = Callable[[str], None]


class Terminal(io.StringIO):
    """A stdin at which somebody sits."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Type:
    """Puts text on stdin."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture
def ann(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account, and a sealing key."""
    monkeypatch.setenv("UC_SEALING_KEYS", new_sealing_key())
    run("users", "add", "ann", "--tier", "starter")


@pytest.fixture
def add(run: Run, ann: None, typed: Type) -> Run:
    """Stores a key of Ann's."""

    def add(*args: str, key: str = KEY, provider: str = "openai") -> Result:
        typed(f"{key}\n")
        return run("provider-keys", "add", "ann", provider, *args, "--json")

    return add


def test_a_key_from_adding_to_deleting(run: Run, add: Run) -> None:
    """A key is added from stdin, listed by its hint, changed and deleted; what is not named stays."""
    added = add("--name", "mine", "--cap", "20.50", "--fallback", "credits", "--expires", "2999-01-01").json
    assert (added["key_hint"], added["key_name"], added["monthly_cap_usd"]) == ("cdef", "mine", "20.500000")
    assert (added["expires_at"], added["is_active"]) == ("2999-01-01T00:00:00Z", True)
    assert run("provider-keys", "list", "ann", "--json").json == [added]
    changed = run(
        "provider-keys", "set", "ann", added["id"], "--inactive", "--default", "--expires", "none", "--json"
    ).json
    assert (changed["is_active"], changed["is_default"], changed["expires_at"]) == (False, True, None)
    assert (changed["fallback"], changed["monthly_cap_usd"]) == ("credits", "20.500000")
    deleted = run("provider-keys", "delete", "ann", added["id"])
    assert (deleted.code, "revoke it at the provider" in deleted.err) == (0, True)
    assert run("provider-keys", "list", "ann", "--json").json == []


def test_the_key_is_shown_nowhere(run: Run, add: Run) -> None:
    """Tables, JSON and messages hold four characters of a key, also where it is refused."""
    shown = [add(), add(), add("--name", "other", provider="anthropic"), add("--name", "\n")]
    key_id = shown[0].json["id"]
    shown += [run("provider-keys", "list", "ann"), run("provider-keys", "set", "ann", key_id, "--name", "x")]
    assert [result.code for result in shown] == [0, 1, 1, 1, 0, 0]
    for result in shown:
        assert KEY[:-4] not in result.out + result.err


def test_a_terminal_is_asked_without_an_echo(run: Run, ann: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody sits at stdin, the key is asked for and not echoed."""
    asked: list[bool] = []

    def prompt(text: str, *, hide_input: bool, err: bool) -> str:
        asked.append(hide_input and err)
        return KEY

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(typer, "prompt", prompt)
    assert run("provider-keys", "add", "ann", "openai", "--json").json["key_hint"] == "cdef"
    assert asked == [True]


def test_a_key_is_no_argument(run: Run, add: Run, typed: Type) -> None:
    """A key on the command line is wrong usage, and nothing on stdin is refused."""
    typed("")
    assert run("provider-keys", "add", "ann", "openai", KEY).code == 2
    assert run("provider-keys", "add", "ann", "openai", "--json").error["code"] == "no_key"
    assert run("provider-keys", "list", "ann", "--json").json == []


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--cap", "lots"), "invalid_monthly_cap_usd"),
        (("--cap", "-1"), "invalid_monthly_cap_usd"),
        (("--expires", "soon"), "invalid_time"),
        (("--expires", "2001-01-01"), "invalid_expires_at"),
        (("--fallback", "always"), "invalid_fallback"),
        (("--name", ""), "invalid_key_name"),
        (("--api-base", "https://127.0.0.1"), "invalid_api_base"),
    ],
)
def test_impossible_options(run: Run, add: Run, args: tuple[str, ...], code: str) -> None:
    """What cannot be is refused with a code, and nothing is stored."""
    refused = add(*args)
    assert (refused.code, refused.error["code"]) == (1, code)
    assert run("provider-keys", "list", "ann", "--json").json == []


def test_other_refusals(run: Run, add: Run, typed: Type) -> None:
    """Unknown accounts, tiers below, other users' keys and changes of nothing are refused with their codes."""
    key_id = add().json["id"]
    run("users", "add", "bob")
    typed(KEY)
    assert run("provider-keys", "add", "bob", "openai", "--json").error["code"] == "tier"
    assert run("provider-keys", "list", "nan", "--json").error["code"] == "unknown_account"
    assert run("provider-keys", "set", "ann", key_id, "--json").error["code"] == "nothing_to_set"
    run("users", "set", "bob", "--tier", "enterprise")
    for command in ("set", "delete", "test"):
        args = ("--inactive",) if command == "set" else ()
        refused = run("provider-keys", command, "bob", key_id, *args, "--json")
        assert (refused.code, refused.error["code"]) == (1, "unknown_provider_key")


def test_a_test_at_the_provider(run: Run, add: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key whose endpoint does not answer is unreachable, with exit code 1."""
    (tmp_path / "uc.yaml").write_text("byok: {allow_http: true, allowed_hosts: ['127.0.0.1:9']}")
    monkeypatch.setenv("UC_CONFIG", str(tmp_path / "uc.yaml"))
    added = add("--api-base", "http://127.0.0.1:9/v1", provider="custom").json
    tried = run("provider-keys", "test", "ann", added["id"], "--json")
    assert (tried.code, tried.json["result"], tried.json["status"]) == (1, "unreachable", None)
    refused = add("--name", "x", "--test", "--api-base", "http://127.0.0.1:9/v1", provider="custom")
    assert refused.error["code"] == "provider_unreachable"


@pytest.mark.parametrize(
    "command",
    [
        *(
            ("provider-keys", "list", "ann"),
            ("provider-keys", "test", "ann", "x"),
            ("provider-keys", "delete", "ann", "x"),
        ),
        *(("vault", "rotate"), ("vault", "verify")),
    ],
)
def test_without_a_sealing_key(run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    """Without a sealing key every command of own keys says which setting is missing; with a bad one, which is bad."""
    monkeypatch.delenv("UC_SEALING_KEYS", raising=False)
    missing = run(*command, "--json")
    assert (missing.code, missing.error["code"]) == (2, "settings")
    assert "UC_SEALING_KEYS" in missing.error["message"]
    monkeypatch.setenv("UC_SEALING_KEYS", "hunter2")
    bad = run(*command, "--json")
    assert (bad.code, "key 1 of 1" in bad.error["message"], "hunter2" in bad.err) == (2, True, False)


def test_a_rotation_by_commands(run: Run, add: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new sealing key is made, everything resealed, the old one dropped; dropped too early it is refused."""
    file = tmp_path / "sealing-keys"
    monkeypatch.setenv("UC_SEALING_KEYS_FILE", str(file))
    monkeypatch.delenv("UC_SEALING_KEYS")
    old = run("vault", "key", "--json").json["newest"]
    add()
    new = run("vault", "key", "--json").json
    assert (new["key_ids"], new["file"]) == ([new["newest"], old], str(file))
    early = run("vault", "drop", old, "--json")
    assert (early.code, early.error["code"]) == (1, "sealing_key_in_use")
    rotated = run("vault", "rotate", "--json").json
    assert rotated == {"newest": new["newest"], "resealed": 1, "left": 0, "closed": []}
    assert run("vault", "drop", old, "--json").json["key_ids"] == [new["newest"]]
    (found,) = run("vault", "verify", "--json").json
    assert found == {"key_id": new["newest"], "is_newest": True, "state": "opens", "keys": 1, "ids": []}
    assert run("vault", "drop", new["newest"], "--json").error["code"] == "sealing_key_in_use"


def test_what_does_not_open(run: Run, add: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that do not open are counted and named, with exit code 1 of both commands, which print no traceback."""
    key_id = add().json["id"]
    monkeypatch.setenv("UC_SEALING_KEYS", new_sealing_key())
    found = run("vault", "verify", "--json")
    assert (found.code, [(each["state"], each["keys"]) for each in found.json if each["keys"]]) == (
        1,
        [("unknown_sealing_key", 1)],
    )
    assert key_id in run("vault", "verify").err
    rotated = run("vault", "rotate", "--json")
    assert (rotated.code, rotated.json["left"]) == (1, 1)
    assert "unknown_sealing_key" in run("vault", "rotate").out


def test_sealing_keys_are_never_printed(run_anywhere: Run, nowhere: Path) -> None:
    """A new sealing key goes into .env, readable by its owner only, and not to the terminal."""
    shown = [run_anywhere("vault", "key"), run_anywhere("vault", "key", "--last", "--json")]
    keys = env_file.read(nowhere / ".env")["UC_SEALING_KEYS"].split(",")
    assert (len(keys), (nowhere / ".env").stat().st_mode & 0o777) == (2, 0o600)
    for result in shown:
        assert result.code == 0
        assert not any(key in result.out + result.err for key in keys)


def test_an_environment_that_wins(run_anywhere: Run, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in the environment are written to the file with the new one, and it is said that the environment wins."""
    present = new_sealing_key()
    monkeypatch.setenv("UC_SEALING_KEYS", present)
    made = run_anywhere("vault", "key")
    assert "wins over any file" in made.err
    assert env_file.read(nowhere / ".env")["UC_SEALING_KEYS"].endswith(f",{present}")

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import asyncpg
import pytest

from tests.integration.commands import Run
from uc_litellm_plugin import api_keys
from uc_litellm_plugin.settings import Settings


def test_an_account_from_opening_to_audit(run: Run) -> None:
    """The usual path: open, add credits, look, audit; amounts are decimal strings."""
    assert run("users", "add", "ann", "--tier", "starter", "--json").json["created"] is True
    added = run("credits", "add", "ann", "12.5", "--notes", "welcome", "--json").json
    assert (added["amount"], added["credits_remaining"]) == ("12.5", "12.500000")
    balance = run("credits", "balance", "ann", "--json").json
    assert (balance["credits_available"], balance["credits_held"], balance["tier"]) == (
        "12.500000",
        "0.000000",
        "starter",
    )
    history = run("credits", "history", "ann", "--json").json
    assert [(row["transaction_type"], row["amount"], row["notes"]) for row in history] == [
        ("bonus", "12.500000", "welcome")
    ]
    assert run("ledger", "audit", "--json").json == []
    shown = run("users", "show", "ann")
    assert shown.code == 0
    assert "12.500000" in shown.out


def test_the_same_account_again(run: Run) -> None:
    """Opening an account twice changes nothing; with another tier or level it is refused."""
    run("users", "add", "ann", "--tier", "starter")
    again = run("users", "add", "ann")
    assert (again.code, "nothing was changed" in again.err) == (0, True)
    other = run("users", "add", "ann", "--tier", "free", "--json")
    assert (other.code, other.error["code"]) == (1, "account_exists")
    assert run("users", "show", "ann", "--json").json["tier"] == "starter"


def test_a_typo_opens_no_account(run: Run) -> None:
    """Credits and keys for somebody unknown are refused, with the way out."""
    for command in (("credits", "add", "nan", "5"), ("keys", "create", "nan"), ("users", "show", "nan")):
        refused = run(*command, "--json")
        assert (refused.code, refused.error["code"]) == (1, "unknown_account")
        assert "users add" in refused.error["message"]


def test_an_idempotency_key_adds_once(run: Run) -> None:
    """The same key with the same amount adds nothing; with another amount it is refused."""
    run("users", "add", "ann")
    first = run("credits", "add", "ann", "5", "--key", "order-1", "--json").json
    second = run("credits", "add", "ann", "5", "--key", "order-1", "--json").json
    assert first["transaction_id"] == second["transaction_id"]
    other = run("credits", "add", "ann", "6", "--key", "order-1", "--json")
    assert (other.code, other.error["code"]) == (1, "idempotency_conflict")
    assert run("credits", "balance", "ann", "--json").json["credits_remaining"] == "5.000000"


def test_a_refund_takes_what_is_there(run: Run) -> None:
    """A negative refund takes the balance and leaves the rest as debt; a negative bonus is refused."""
    run("users", "add", "ann")
    run("credits", "add", "ann", "5")
    taken = run("credits", "add", "ann", "-8", "--type", "refund", "--notes", "unused", "--json").json
    assert (taken["credits_remaining"], taken["credits_debt"]) == ("0.000000", "3.000000")
    refused = run("credits", "add", "ann", "-1", "--json")
    assert (refused.code, refused.error["code"]) == (1, "invalid_amount")


@pytest.mark.parametrize("amount", ["NaN", "inf", "1e3", "0", "0.0000001", "1" * 15, "--5", "5 ", "٣", ""])
def test_impossible_amounts(run: Run, amount: str) -> None:
    """Only plain decimals with up to six places, not zero, are amounts."""
    run("users", "add", "ann")
    refused = run("credits", "add", "ann", amount, "--json")
    assert refused.code in (1, 2)
    assert refused.error["message"]
    assert run("credits", "history", "ann", "--json").json == []


@pytest.mark.parametrize("user", ["", "a\nb", "nul\x00", "\ud800", "x" * 256, "\x9b31m"])
def test_impossible_user_ids(run: Run, user: str) -> None:
    """Empty, over-long ids and control characters are refused before anything is asked."""
    refused = run("users", "add", user, "--json")
    assert (refused.code, refused.error["code"]) == (1, "invalid_user_id")


@pytest.mark.parametrize(
    "args",
    [("users", "show", "\udcff"), ("credits", "add", "ann", "1", "--notes", "\udcc3"), ("levels", "show", "a\udcff"),
     ("provider-keys", "add", "ann", "\udcff"), ("users", "add", "--tier", "\udcff", "bob")],
    ids=lambda args: args[0],
)  # fmt: skip
def test_arguments_that_are_no_text(run_anywhere: Run, args: tuple[str, ...]) -> None:
    """An argument that is not UTF-8 is refused before anything is asked, and shown in ASCII."""
    refused = run_anywhere(*args, "--json")
    assert (refused.code, refused.error["code"]) == (1, "invalid_text")
    assert "\\udc" in refused.error["message"]


def test_a_key_file_where_there_is_no_directory(run_anywhere: Run, nowhere: Path) -> None:
    """A sealing key that can be kept nowhere is exit code 2, and the message names the file."""
    refused = run_anywhere("vault", "key", "--file", str(nowhere / "none" / "x.env"), "--json")
    assert (refused.code, "x.env" in refused.error["message"]) == (2, True)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"{", b"[]"], ids=lambda content: str(content[:4]))
def test_explaining_what_is_no_json(run_anywhere: Run, nowhere: Path, content: bytes) -> None:
    """A file that is no JSON object in UTF-8 is refused with a message."""
    (nowhere / "body.json").write_bytes(content)
    refused = run_anywhere("explain", "body.json", "--json")
    assert (refused.code, refused.error["code"]) == (1, "invalid_request")


@pytest.mark.parametrize("key", ["sk-uc-SECRET\nx", "sk-uc-SECRET ü"])
def test_explaining_shows_no_key(run_anywhere: Run, nowhere: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """What cannot be a key is refused, and is not in the message."""
    (nowhere / "body.json").write_text("{}")
    monkeypatch.setenv("UC_API_KEY", key)
    with socket.create_server(("127.0.0.1", 0)) as server:
        refused = run_anywhere("explain", "body.json", "--url", f"http://127.0.0.1:{server.getsockname()[1]}", "--json")
    assert (refused.code, refused.error["code"]) == (1, "no_key")
    assert "SECRET" not in refused.err


def test_explaining_for_anybody(run_anywhere: Run, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key with blanks around it is the key, and the user's name goes out in UTF-8, as the proxy reads it."""
    (nowhere / "body.json").write_text("{}")
    monkeypatch.setenv("UC_API_KEY", " sk-uc-1 ")
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        asked = threading.Thread(target=_refuse_one, args=(server, heard))
        asked.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert run_anywhere("explain", "body.json", "--user", "müller 例", "--url", url, "--json").code == 1
        asked.join()
    lines = heard[0].split(b"\r\n")
    assert b"authorization: Bearer sk-uc-1" in lines
    assert "x-uc-user-id: müller 例".encode() in lines


def _refuse_one(server: socket.socket, heard: list[bytes]) -> None:
    connection, _ = server.accept()
    with connection:
        heard.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 403 No\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")


def test_a_user_id_is_not_markup(run: Run) -> None:
    """What looks like terminal markup is shown as it is."""
    run("users", "add", "[red]ann[/red]")
    assert "[red]ann[/red]" in run("users", "show", "[red]ann[/red]").out


def test_keys_are_shown_once_and_revoked_for_good(run: Run) -> None:
    """`keys create --json` has the key; no other command shows it; a revoked one is listed as such."""
    run("users", "add", "ann")
    key = run("keys", "create", "ann", "--name", "app", "--role", "service", "--expires", "2999-01-31", "--json").json
    assert list(key) == ["id", "user_id", "api_key", "key_hint", "name", "role", "expires_at"]
    assert key["api_key"].startswith(api_keys.PREFIX)
    assert key["api_key"].endswith(key["key_hint"])
    assert key["expires_at"] == "2999-01-31T00:00:00Z"
    listed = run("keys", "list", "ann", "--json")
    assert key["api_key"] not in listed.out
    assert [(row["id"], row["role"], row["is_active"]) for row in listed.json] == [(key["id"], "service", True)]
    assert run("keys", "revoke", key["id"], "--json").json["was_active"] is True
    assert run("keys", "revoke", key["id"], "--json").json["was_active"] is False
    assert run("keys", "list", "ann", "--json").json[0]["is_active"] is False


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--expires", "2001-01-01"), "invalid_time"),
        (("--expires", "tomorrow"), "invalid_time"),
        (("--role", "root"), "invalid_role"),
        (("--name", "a\tb"), "invalid_text"),
        (("--name", "x" * 101), "invalid_text"),
    ],
)
def test_impossible_keys(run: Run, args: tuple[str, ...], code: str) -> None:
    """A key that expired already, or with a role or name that cannot be, is not made."""
    run("users", "add", "ann")
    refused = run("keys", "create", "ann", *args, "--json")
    assert (refused.code, refused.error["code"]) == (1, code)
    assert run("keys", "list", "ann", "--json").json == []


@pytest.mark.parametrize("key_id", ["nonsense", "00000000-0000-0000-0000-000000000000"])
def test_an_unknown_key(run: Run, key_id: str) -> None:
    """Revoking what is not there is refused."""
    refused = run("keys", "revoke", key_id, "--json")
    assert (refused.code, refused.error["code"]) == (1, "unknown_key")


def test_an_audit_that_finds_something(run: Run, database_url: str) -> None:
    """Tampering with a balance is found and told by the exit code."""
    run("users", "add", "ann")
    run("credits", "add", "ann", "5")
    asyncio.run(tamper(database_url, "UPDATE uc.user_credits SET credits_remaining = 6"))
    audit = run("ledger", "audit", "--json")
    assert audit.code == 1
    assert {row["user_id"] for row in audit.json} == {"ann"}
    verify = run("db", "verify", "--json")
    assert (verify.code, verify.json["ok"]) == (1, False)


def test_margins_are_shown(run: Run) -> None:
    """`db verify` tells what each package earns at each level, and warns of those below cost."""
    verify = run("db", "verify", "--json")
    assert verify.code == 0
    margins = {(each["package"], each["power_level"]): each["margin"] for each in verify.json["margins"]}
    assert margins["Value Pack", "balanced"] == "0.900"
    assert len(margins) == 12
    assert "below provider cost" in run("db", "verify").err


def test_an_unmigrated_database(run_anywhere: Run, empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands on a database without the schema say which command makes it, with exit code 3; that command works."""
    monkeypatch.setenv("UC_DATABASE_URL", empty_database_url)
    refused = run_anywhere("users", "add", "ann", "--json")
    assert refused.code == 3
    assert "uc-litellm db migrate" in refused.error["message"]
    assert run_anywhere("db", "status").code == 3
    assert "0001_tables.sql" in run_anywhere("db", "migrate", "--json").json["applied"]
    assert run_anywhere("db", "status", "--json").code == 0
    assert run_anywhere("users", "add", "ann").code == 0


def test_init_asks_before_it_destroys(run: Run) -> None:
    """Where nobody can answer, --reset of accounts needs --yes; then everything is made anew and verified."""
    run("users", "add", "ann")
    refused = run("db", "init", "--reset", "--json")
    assert (refused.code, refused.error["code"]) == (1, "confirmation_needed")
    assert run("users", "show", "ann").code == 0
    made = run("db", "init", "--reset", "--yes", "--test-data", "--json")
    assert (made.code, made.json["ok"]) == (0, True)
    assert run("users", "show", "ann").code == 1
    assert run("users", "show", "test-pro", "--json").json["credits_available"] == "1000.000000"


def test_no_database(run_anywhere: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that cannot be reached is exit code 3 and one message, in which no password stands."""
    monkeypatch.setenv("UC_DATABASE_URL", "postgresql://me:s3cret@127.0.0.1:1/none")
    refused = run_anywhere("users", "show", "ann", "--json")
    assert (refused.code, refused.error["code"]) == (3, "database_unavailable")
    assert "s3cret" not in refused.err


def test_wrong_settings(run_anywhere: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A settings file with a wrong key is exit code 2, and the message names it."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("database: {pool: 3}")
    monkeypatch.setenv("UC_CONFIG", str(wrong))
    refused = run_anywhere("users", "show", "ann", "--json")
    assert (refused.code, "database.pool" in refused.error["message"]) == (2, True)


@pytest.mark.parametrize(
    "args", [(), ("users",), ("users", "blub"), ("credits", "add", "ann"), ("keys", "list", "a", "b")]
)
def test_wrong_usage(run_anywhere: Run, args: tuple[str, ...]) -> None:
    """What is no command is exit code 2, also for programs."""
    assert run_anywhere(*args).code == 2
    if args and args != ("users",):
        assert run_anywhere(*args, "--json").error["code"] == "usage"


def test_the_env_file_counts(run_anywhere: Run, nowhere: Path, database_url: str) -> None:
    """Commands read the same `.env` as `serve`, so that both speak of one database."""
    (nowhere / ".env").write_text(f"UC_DATABASE_URL='{database_url}'\n")
    assert run_anywhere("users", "add", "ann", "--json").json["created"] is True


def test_the_embedded_server_starts_and_stops_with_a_command(nowhere: Path, own_server: Settings) -> None:
    """Without UC_DATABASE_URL a command starts the embedded server, and stops it when nobody else uses it."""
    environ = {"UC_STATE_DIR": str(own_server.state_dir), "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-m", "uc_litellm_plugin", "db", "migrate", "--json"]
    done = subprocess.run(command, env=environ, cwd=nowhere, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert "functions.sql" in json.loads(done.stdout)["applied"]
    assert not (own_server.state_dir / "postgres" / "data" / "postmaster.pid").exists()


async def tamper(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()

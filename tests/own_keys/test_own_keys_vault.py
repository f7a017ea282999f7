"""The vault at the proxy: sealing keys that are missing, rows that are damaged, and edits that two workers hear of."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from tests.acceptance import keyring, sides
from tests.acceptance.asking import asked, post, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import clone, paid_proxy
from tests.acceptance.keyring import Keyring
from tests.acceptance.sides import MIXED
from tests.proxy import Json, Proxy, litellm_config
from tests.upstream import Upstream
from uc_litellm_plugin import vault

SEED = 6
ENOUGH_FOR_BOTH = 12
ROTATED = 240


@pytest.fixture(scope="module")
def ring(bank: Bank) -> Keyring:
    return keyring.made(bank)


@pytest.fixture(scope="module")
def lost(ring: Keyring) -> Keyring:
    """The same bank's keys under a sealing key that the proxy does not have."""
    return replace(ring, sealing_key=vault.new_sealing_key())


@pytest.fixture(scope="module")
def newer(ring: Keyring) -> Keyring:
    """The same bank's keys under a sealing key that the proxy has, and does not seal with yet."""
    return replace(ring, sealing_key=vault.new_sealing_key())


def config(url: str) -> Json:
    made = litellm_config(url, router_settings={"num_retries": 0})
    made["model_list"] = [sides.one("solo", "south", MIXED["south"], url)]
    # LiteLLM's own cache of answers, which must not answer one user with another's.
    made["litellm_settings"] |= {"cache": True, "cache_params": {"type": "local"}}
    return made


@pytest.fixture(scope="module")
def proxy(running: Upstream, bank: Bank, ring: Keyring, newer: Keyring, lost: Keyring) -> Iterator[Proxy]:
    """Two workers, two sealing keys, and from the start a key that they cannot open."""
    lost.add(bank.open("0"), "openai", keyring.canary(SEED, 0, "openai"))
    both = f"{ring.sealing_key},{newer.sealing_key}"
    with paid_proxy(bank.url, config(running.url), workers=2, UC_SEALING_KEYS=both) as proxy:
        yield proxy


@pytest.fixture
def account(bank: Bank) -> Account:
    """A user without credits: what is answered is answered with an own key, for nothing."""
    return bank.open("0")


def ask(proxy: Proxy, account: Account, words: int = 7) -> int:
    return status(proxy, account, words)[0]


def status(proxy: Proxy, account: Account, words: int = 7) -> tuple[int, str]:
    path, body = request("chat", model="solo")
    body["messages"] = [{"role": "user", "content": f"say {words} words"}]
    answer = post(proxy, account.headers, path, body)
    return answer.status_code, answer.text


def test_without_credits(proxy: Proxy, upstream: Upstream, bank: Bank, ring: Keyring, account: Account) -> None:
    """Where there is no fee, own keys work without credits, and cost none."""
    key = keyring.canary(SEED, 1, "openai")
    ring.add(account, "openai", key)
    assert ask(proxy, account) == 200
    (row,) = bank.settled(account)
    assert (row["cost_credits"], row["cost_usd"] > 0, row["byok_used"]) == (0, True, True)
    assert [call["api_key"] for call in asked(upstream)] == [key]
    balance = bank.balance(account)
    assert (balance.remaining, balance.held, balance.debt) == (Decimal(0), Decimal(0), Decimal(0))


def test_edited(proxy: Proxy, upstream: Upstream, bank: Bank, ring: Keyring, account: Account) -> None:
    """An edit of a key's row is heard by both workers at once."""
    ring.add(account, "openai", keyring.canary(SEED, 2, "openai"))
    assert {ask(proxy, account, n) for n in range(1, ENOUGH_FOR_BOTH)} == {200}
    edit = "UPDATE user_provider_keys SET is_active = {} WHERE user_id = $1"
    bank.rows(edit.format("false"), account.user_id)
    assert {ask(proxy, account, n) for n in range(20, 20 + ENOUGH_FOR_BOTH)} == {402}
    bank.rows(edit.format("true"), account.user_id)
    assert {ask(proxy, account, n) for n in range(40, 40 + ENOUGH_FOR_BOTH)} == {200}
    bank.rows("DELETE FROM user_provider_keys WHERE user_id = $1", account.user_id)
    assert {ask(proxy, account, n) for n in range(60, 60 + ENOUGH_FOR_BOTH)} == {402}


def test_cached_answers(proxy: Proxy, upstream: Upstream, bank: Bank, ring: Keyring) -> None:
    """A cache of answers that the operator switched on does not answer one user with what another's key brought."""
    users = [bank.open("0"), bank.open("0")]
    keys = [keyring.canary(SEED, n, "openai") for n in (3, 4)]
    ring.insert([(user, "openai", key) for user, key in zip(users, keys, strict=True)])
    for user in users:
        assert {ask(proxy, user) for _ in range(ENOUGH_FOR_BOTH)} == {200}
    used = [call["api_key"] for call in asked(upstream)]
    assert set(used) == set(keys)
    assert len(used) <= 2 * 2


@pytest.mark.parametrize("what", ["lost", "bit", "moved", "cut"])
def test_does_not_open(proxy: Proxy, upstream: Upstream, bank: Bank, ring: Keyring, lost: Keyring, what: str) -> None:
    """A key that does not open fails its own calls with a clear error; nothing is lost, held or sent, others go on."""
    user, other = bank.open("5"), bank.open("0")
    key = keyring.canary(SEED, 5, "openai")
    (lost if what == "lost" else ring).add(user, "openai", key)
    ring.add(other, "openai", keyring.canary(SEED, 6, "openai"))
    damage = {
        "bit": "overlay(encrypted_api_key PLACING 'AAAA' FROM 60)", "cut": "left(encrypted_api_key, 60)",
        "moved": f"(SELECT encrypted_api_key FROM user_provider_keys WHERE user_id = '{other.user_id}')",
    }  # fmt: skip
    if what in damage:
        edit = f"UPDATE user_provider_keys SET encrypted_api_key = {damage[what]} WHERE user_id = $1"
        bank.rows(edit, user.user_id)
    before = ring.row(user, "openai")
    told, text = status(proxy, user)
    code = "unknown_sealing_key" if what == "lost" else "damaged_key"
    assert (told, json.loads(text)["error"]["code"]) == (403, code)
    assert "Your own key 'default' for openai does not open here" in text
    assert before["encrypted_api_key"][:40] not in text
    (row,) = bank.settled(user)
    assert (row["cost_credits"], row["success"], bank.balance(user).remaining) == (0, False, Decimal(5))
    assert asked(upstream) == []
    assert ring.row(user, "openai")["encrypted_api_key"] == before["encrypted_api_key"]
    assert ask(proxy, other) == 200
    bank.rows("UPDATE user_provider_keys SET fallback = 'credits' WHERE user_id = $1", user.user_id)
    assert ask(proxy, user) == 200
    assert [call["api_key"] for call in asked(upstream)][1:] == [sides.key("solo", "south")]


def rotation(bank: Bank, home: Path, newer: Keyring, older: Keyring) -> subprocess.Popen[str]:
    """`uc-litellm vault rotate` in small batches, with the sealing keys in another order than the proxy has them."""
    environ = {"UC_DATABASE_URL": bank.url, "UC_STATE_DIR": str(home), "PYTHONPATH": ":".join(sys.path),
               "UC_SEALING_KEYS": f"{newer.sealing_key},{older.sealing_key}"}  # fmt: skip
    command = [sys.executable, "-m", "uc_litellm_plugin", "vault", "rotate", "--batch", "3"]
    return subprocess.Popen(command, env=environ, cwd=home, stderr=subprocess.PIPE, text=True)


class Callers:
    """Users whose calls go on until the rotation is done."""

    def __init__(self, proxy: Proxy, accounts: list[Account]) -> None:
        self.statuses: Counter[int] = Counter()
        self._proxy = proxy
        self._accounts = accounts
        self._done = threading.Event()

    def go_on(self, first: int) -> None:
        for number in itertools.count(first):
            account = self._accounts[number % len(self._accounts)]
            self.statuses[ask(self._proxy, account, 100 + number % 50)] += 1
            if self._done.is_set():
                return

    def stop(self) -> None:
        self._done.set()


def test_rotation_under_traffic(
    proxy: Proxy, upstream: Upstream, bank: Bank, ring: Keyring, newer: Keyring, tmp_path: Path
) -> None:
    """While a rotation is killed again and again and goes on, no call fails, and each has its own caller's key."""
    users = [bank.open("0") for _ in range(ROTATED)]
    keys = {user.user_id: keyring.canary(SEED, 100 + n, "openai") for n, user in enumerate(users)}
    ring.insert((user, "openai", keys[user.user_id]) for user in users)
    callers = Callers(proxy, users[::20])
    with ThreadPoolExecutor(2) as pool:
        calling = [pool.submit(callers.go_on, first) for first in (0, 5)]
        for _ in range(2):
            process = rotation(bank, tmp_path, newer, ring)
            assert process.stderr is not None
            assert all("resealed" in process.stderr.readline() for _ in range(15))
            process.kill()
            assert process.wait() == -signal.SIGKILL
        left = [ring.row(user, "openai")["key_id"] for user in users].count(ring.key_id)
        assert 0 < left < ROTATED - 2 * 15
        last = rotation(bank, tmp_path, newer, ring)
        print(last.communicate()[1].splitlines()[-1], dict(callers.statuses))
        callers.stop()
        for each in calling:
            each.result()
    assert {ring.row(user, "openai")["key_id"] for user in users} == {newer.key_id}
    assert set(callers.statuses) == {200}
    assert {ask(proxy, user, 200) for user in users[::20]} == {200}
    used = {call["api_key"] for call in asked(upstream)}
    assert used == {keys[user.user_id] for user in users[::20]}


def test_no_sealing_key(server_url: str, template: str, running: Upstream) -> None:
    """Without a sealing key the proxy does not start while keys are stored, and says what is missing."""
    bank = Bank(clone(server_url, template))
    ring = keyring.made(bank)
    account = bank.open("0")
    ring.add(account, "openai", keyring.canary(SEED, 7, "openai"))
    with pytest.raises(RuntimeError) as raised, paid_proxy(bank.url, config(running.url), UC_SEALING_KEYS=""):
        pass
    assert "1 provider key(s) of users are stored and no sealing key is set" in str(raised.value)
    assert ring.row(account, "openai")["key_id"] in str(raised.value)


def test_what_is_missing_is_said(proxy: Proxy, lost: Keyring) -> None:
    """A worker that lacks one of several sealing keys says at its start which, and how many keys that closes."""
    log = proxy.log()
    assert "1 provider key(s)" in log
    assert "put it back into UC_SEALING_KEYS" in log

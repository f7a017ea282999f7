"""A key for each user at each provider that is nobody else's, calls with every fault, and the search for the keys.

`python -m tests.acceptance.canaries --users 50 --calls 2000` is the long form of `test_own_keys_canary.py`: it prints
its seed, what was called and what was found, and ends with 1 where a key is where it must not be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx
import yaml
from pydantic import SecretStr

from tests.acceptance import asking, keyring, sides
from tests.acceptance.asking import Visitor, post, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.echoing import FAULTS, EchoingUpstream
from tests.acceptance.keyring import CANARY
from tests.acceptance.sides import ENDPOINTS, PROVIDERS, SIDES
from tests.conftest import _run, _settings_with_own_server, database_at
from tests.proxy import Json, Proxy, litellm_config
from uc_litellm_plugin import embedded, migrations

AT_ONCE = 8
NEVER = 1000
# Those that make a call wait are for other tests.
KINDS = [name for name in FAULTS if name not in ("gate", "hang")]
ASKS = [(name, stream) for name, endpoint in ENDPOINTS.items() for stream in endpoint.streams]
_MARK = re.compile(r"mark (\d+) ")
SPIES = ("tests.acceptance.spy.before", "uc_litellm_plugin.proxy_handler_instance", "tests.acceptance.spy.after")


def group(name: str) -> str:
    return re.sub(r"\W+", "-", name)


@dataclass
class User:
    """A user and their keys."""

    account: Account
    keys: dict[str, str]


@dataclass
class Run:
    """Users with canaries at a proxy with spies, and what came of their calls.

    Attributes
    ----------
    seen
        What each client got: everything, as one text, by the number of the call.
    """

    bank: Bank
    upstream: EchoingUpstream
    proxy: Proxy
    state: Path
    spied: Path
    dice: random.Random
    users: list[User]
    seen: dict[int, str] = field(default_factory=dict)
    payers: dict[int, User] = field(default_factory=dict)

    def call(self, number: int) -> None:
        """One call of the mix: any endpoint, faults at some sides, and a client that may leave."""
        dice = random.Random(f"{self.dice.random()} {number}")
        user = self.payers[number] = self.users[number % len(self.users)]
        name, stream = dice.choice(ASKS)
        path, body = request(ENDPOINTS[name].ask, stream, model=group(name))
        faulty = dice.sample(SIDES, dice.choice((0, 1, 2, 3, 4)))
        orders = " ".join(f"at {side}: {dice.choice(KINDS)}" for side in faulty)
        written = f"mark {number} say 7 words {orders}"
        field_name = next(each for each in ("messages", "prompt", "input") if each in body)
        body[field_name] = [{"role": "user", "content": written}] if field_name == "messages" else written
        if stream and dice.random() < 0.1:
            with Visitor(self.proxy, user.account, path, body) as visitor:
                visitor.hear("HTTP/1.1")
            self.seen[number] = ""
            return
        answer = post(self.proxy, user.account.headers, path, body)
        self.seen[number] = f"{answer.status_code} {answer.headers.raw!r} {answer.text}"

    def calls(self, count: int) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self.call, range(1, count + 1)))
        asked = Counter(user.account.user_id for user in self.payers.values())
        for user in self.users:
            if asked[user.account.user_id]:
                self.bank.settled(user.account, asked[user.account.user_id], seconds=60)

    @property
    def canaries(self) -> list[str]:
        return [key for user in self.users for key in user.keys.values()]

    def books(self) -> dict[int, list[Json]]:
        """What the providers were asked for, by the number of the call."""
        found: dict[int, list[Json]] = {}
        for call in self.upstream.calls(method="POST"):
            mark = _MARK.search(json.dumps(call["body"]))
            assert mark, call
            found.setdefault(int(mark[1]), []).append(call)
        return found

    def outbox(self) -> str:
        """What waits for PostgreSQL when a call ends while no balance can be written."""
        user = self.users[0]
        rows = len(self.bank.usage(user.account))
        path, body = request("chat", model=group("chat"))
        orders = " ".join(f"at {side}: gate" for side in SIDES)
        body["messages"] = [{"role": "user", "content": f"mark 0 say 7 words {orders}"}]
        with ThreadPoolExecutor(1) as pool:
            answered = pool.submit(post, self.proxy, user.account.headers, path, body)
            self.upstream.wait(gated=1)
            with _locked(self.bank.url):
                self.upstream.open()
                answer = answered.result()
                waiting = "".join(text for _, text in files(self.state / "outbox"))
        self.seen[0] = f"{answer.status_code} {answer.headers.raw!r} {answer.text}"
        self.bank.settled(user.account, rows + 1, seconds=60)
        return waiting

    def memory(self) -> Json:
        """What the worker holds after all calls have ended."""
        answered: Json = httpx.get(f"{self.proxy.url}/spy/memory", trust_env=False, timeout=1200).json()
        return answered


@contextmanager
def running(bank: Bank, seed: int, users: int, level: str = "DEBUG", **env: str) -> Iterator[Run]:
    """A proxy with spies, an echoing provider at four sides, and users with a key at each."""
    with ExitStack() as stack:
        upstream = stack.enter_context(EchoingUpstream())
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uc-state-")))
        elsewhere = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uc-spy-")), "spied")
        elsewhere.touch()
        ring = keyring.made(bank)
        (state / "uc.yaml").write_text(yaml.safe_dump({"health": {"down_after": NEVER}, "holds": {"abort_drain_s": 2}}))
        environment = {
            "UC_STATE_DIR": str(state), "UC_DATABASE_URL": bank.url, "UC_CONFIG": str(state / "uc.yaml"),
            "UC_SEALING_KEYS": ring.sealing_key, "LITELLM_LOG": level, "SPY_FILE": str(elsewhere),
            "PYTHONPATH": str(Path(__file__).parents[2]), "DEFAULT_MAX_RETRIES": "0", **env,
        }  # fmt: skip
        proxy = stack.enter_context(Proxy(config(upstream.url), environment, cwd=state))
        made = [_user(bank, seed, number) for number in range(users)]
        ring.insert((user.account, provider, key) for user in made for provider, key in user.keys.items())
        for user in made[::2]:
            # Every other user's calls may go on with the platform's keys.
            bank.rows("UPDATE user_provider_keys SET fallback = 'credits' WHERE user_id = $1", user.account.user_id)
        yield Run(bank, upstream, proxy, state, elsewhere, random.Random(seed), made)


def config(url: str) -> Json:
    made = litellm_config(url, router_settings={"num_retries": 0})
    made["model_list"] = [each for name, endpoint in ENDPOINTS.items()
                          for each in sides.spread(group(name), endpoint.models, url)]  # fmt: skip
    made["litellm_settings"]["callbacks"] = list(SPIES)
    return made


def _user(bank: Bank, seed: int, number: int) -> User:
    return User(bank.open("100"), {each: keyring.canary(seed, number, each) for each in PROVIDERS.values()})


@contextmanager
def _locked(url: str) -> Iterator[None]:
    """While this lasts nobody can read or write a balance."""
    held, done = threading.Event(), threading.Event()

    async def hold() -> None:
        connection = await asyncpg.connect(url)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE uc.user_credits")
                held.set()
                await asyncio.to_thread(done.wait)
        finally:
            await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    try:
        assert held.wait(30)
        yield
    finally:
        done.set()
        thread.join()


def dump(url: str) -> str:
    """Every row of every table, as text."""

    async def work() -> str:
        connection = await asyncpg.connect(url)
        try:
            tables = await connection.fetch(
                "SELECT format('%I.%I', schemaname, relname) AS name FROM pg_stat_user_tables"
                " UNION SELECT format('%I.%I', schemaname, matviewname) FROM pg_matviews"
            )
            rows = [await connection.fetch(f"SELECT t::text FROM {table['name']} AS t") for table in tables]
            return "\n".join(row[0] for each in rows for row in each if row[0])
        finally:
            await connection.close()

    return asyncio.run(work())


def files(directory: Path) -> Iterator[tuple[str, str]]:
    """All files below a directory."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(directory)), path.read_bytes().decode(errors="replace")


def spied(path: Path) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Canaries that other callbacks found in plain data and through objects, and how often each hook was looked at."""
    plain: Counter[str] = Counter()
    deep: Counter[str] = Counter()
    hooks: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        note = json.loads(line)
        hooks[note["hook"]] += note["witnesses"] > 0
        for each in note["found"]:
            (plain if each["plain"] else deep)[f"{note['place']} {note['hook']} {each['path']}"] += 1
    return plain, deep, hooks


def strays(run: Run) -> list[str]:
    """What is wrong with the credentials that the providers got, by their own books."""
    wrong = []
    platform = {sides.key(group(name), side): side for name in ENDPOINTS for side in SIDES}
    for number, calls in run.books().items():
        user = run.users[0] if number == 0 else run.payers[number]
        credentials = [call["api_key"] for call in calls]
        for call in calls:
            side, key = sides.side_of(call), call["api_key"]
            if key != user.keys[PROVIDERS[side]] and platform.get(key) != side:
                wrong.append(f"call {number} of {user.account.user_id} came to {side} with {key}")
            others = json.dumps([call["headers"], call["body"]])
            wrong += [f"call {number} at {side} had {found} elsewhere" for found in CANARY.findall(others)]
        wrong += [f"call {number} used {key} twice" for key, times in Counter(credentials).items() if times > 1]
        # Their order is the ranking's: own keys first among those that are up, and again among those that are down.
        own = [key in user.keys.values() for key in credentials]
        if user not in run.users[::2] and not all(own):
            wrong.append(f"call {number}: platform's keys for who may not fall back: {own}")
    return wrong


def miscounts(run: Run) -> list[str]:
    """Where the usage rows and the rows of keys differ from the providers' books."""
    wrong = []
    ended: Counter[str] = Counter()
    books = run.books()
    last = {calls[-1]["api_key"]: 0 for calls in books.values()}
    for calls in books.values():
        last[calls[-1]["api_key"]] += 1
    for user in run.users:
        rows = run.bank.rows("SELECT id, provider FROM user_provider_keys WHERE user_id = $1", user.account.user_id)
        keys = {str(row["id"]): user.keys[row["provider"]] for row in rows}
        for row in run.bank.usage(user.account):
            if row["byok_used"]:
                ended[keys[str(row["provider_key_id"])]] += row["attempts"] > 0
    for key in run.canaries:
        if ended[key] != last.get(key, 0):
            wrong.append(f"{key} ended {last.get(key, 0)} calls by the books and {ended[key]} by the usage rows")
    asked = sum(map(len, books.values()))
    (row,) = run.bank.rows("SELECT coalesce(sum(attempts), 0) AS n FROM llm_usage_log WHERE user_id = ANY($1)",
                           [user.account.user_id for user in run.users])  # fmt: skip
    if row["n"] != asked:
        wrong.append(f"{asked} requests by the books, {row['n']} attempts by the usage rows")
    return wrong


@dataclass
class Findings:
    """Where canaries were found, and how much was searched.

    Attributes
    ----------
    in_memory
        What holds canaries in the worker's memory when all calls have ended.
    kept
        What still does after a garbage collection and what that set going.
    """

    leaks: list[str]
    searched: dict[str, int]
    through_objects: Counter[str]
    in_memory: Counter[str]
    kept: Counter[str]
    hooks: Counter[str]


def search(run: Run, waited: str, *directories: Path) -> Findings:
    """Look for every canary in all that was written, sent, stored and shown to others."""
    in_memory, kept = _holders(run.memory(), 1), _holders(run.memory(), 4)
    plain, deep, hooks = spied(run.spied)
    places = {"the proxy's log": run.proxy.log(), "the database": dump(run.bank.url), "the outbox": waited,
              **{f"the answer of call {number}": text for number, text in run.seen.items()}}  # fmt: skip
    for directory in (run.state, *directories):
        places |= {f"the file {name}": text for name, text in files(directory)}
    leaks = [f"{where}: {found}" for where, text in places.items() for found in set(CANARY.findall(text))]
    leaks += [f"another callback, {times} times: {where}" for where, times in plain.items()]
    searched = Counter[str]()
    for where, text in places.items():
        searched[where.partition(" of call")[0].partition(" file")[0]] += len(text)
    return Findings([*leaks, *strays(run), *miscounts(run)], dict(searched), deep, in_memory, kept, hooks)


def _holders(memory: Json, steps: int) -> Counter[str]:
    """What holds canaries, and what holds that, so many steps far."""
    return Counter(" < ".join(CANARY.sub("", each["held"]).split(" < ")[:steps]) for each in memory["found"])


def shown(run: Run, found: Findings) -> Iterator[str]:
    """The findings, as lines."""
    calls = [call for each in run.books().values() for call in each]
    yield f"{len(run.seen)} calls, {len(calls)} requests at the providers, {len(run.canaries)} canaries"
    yield f"own keys {sum(call['api_key'] in run.canaries for call in calls)} times"
    yield f"faults: {dict(Counter(call['fault'] for call in calls if call['fault']))}"
    yield f"statuses: {dict(Counter(text[:3] for text in run.seen.values()))}"
    yield f"characters searched: {found.searched}"
    yield f"hooks in which another callback saw the prompts: {dict(found.hooks)}"
    yield f"through objects: {dict(found.through_objects)}"
    yield f"in the worker's memory after all calls: {dict(found.in_memory)}"
    yield f"after a garbage collection: {dict(found.kept)}"
    yield f"found where they must not be: {len(found.leaks)}"
    yield from found.leaks[:40]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--timeout", type=float, default=300, help="of one call, in seconds")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    asking.SECONDS = options.timeout
    with _settings_with_own_server() as server:
        own = asyncio.run(embedded.ensure(server))
        asyncio.run(_run(own, "CREATE DATABASE canaries"))
        url = database_at(own, "canaries")
        asyncio.run(migrations.migrate(server.model_copy(update={"database_url": SecretStr(url)})))
        with running(Bank(url), options.seed, options.users) as run:
            run.calls(options.calls)
            found = search(run, run.outbox(), server.state_dir)
            print(*shown(run, found), sep="\n")
    return 1 if found.leaks else 0


if __name__ == "__main__":
    sys.exit(main())

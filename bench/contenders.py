"""The proxies that are compared: the same config over the same provider, in different environments.

`stock` is what `pip install 'litellm[proxy]'` gives, and `quiet` the same with its log switched off; `tuned` is stock
with all settings that docs/performance.md recommends (no log is one of them); `bare` is that with callbacks that wait
for two commits and do nothing else (`bench.bare`), and `commits` the same with the least that can be committed in place
of the ledger's statements; `plugin` is tuned with the plugin and a PostgreSQL beside it, as `uc-litellm serve` runs it.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
from pydantic import SecretStr

from bench import bare, processes, stock
from tests.conftest import database_at
from tests.proxy import START_SECONDS, Json, Proxy, deployment
from uc_litellm_plugin import api_keys, embedded, migrations, settings
from uc_litellm_plugin.settings import Settings
from uc_litellm_plugin.vault import new_sealing_key

STOCK, QUIET, TUNED, COMMITS, BARE, PLUGIN = "stock", "quiet", "tuned", "commits", "bare", "plugin"
# The plugin with a clock around each of its functions (`bench.timings`).
TIMED = "timed"
NAMES = (STOCK, TUNED, PLUGIN)
# Whose keys call in turn while contenders are loaded.
USERS = 200

_BARE = ("bench.bare.handler", "bench.bare.user_api_key_auth")
_CALLBACKS = {
    COMMITS: _BARE,
    BARE: _BARE,
    PLUGIN: ("uc_litellm_plugin.proxy_handler_instance", "uc_litellm_plugin.user_api_key_auth"),
    TIMED: ("bench.timings.proxy_handler_instance", "bench.timings.user_api_key_auth"),
}
_ROOT = Path(__file__).parents[1]

_SLOWED_START_S = 900.0
_NO_LOG = {"LITELLM_LOG": "ERROR"}
_RECOMMENDED = {**_NO_LOG, "DEFAULT_MAX_RETRIES": "0", "PYTHON_GC_THRESHOLD": "20000,50,50"}
# What the tests' proxies have and a new installation has not.
_UNSET = {"LITELLM_LOG": "", "PYTHONUNBUFFERED": ""}
# Should one die, its log says where it was.
_TOLD = {"PYTHONFAULTHANDLER": "1"}
_ENVIRONMENTS = {STOCK: _UNSET, QUIET: {**_UNSET, **_NO_LOG}}

_ACCOUNTS = "SELECT create_account('bench-' || n, 'starter') FROM generate_series(1, {}) AS n"
_CREDITS = "SELECT add_user_credits('bench-' || n, 1000, 'bonus') FROM generate_series(1, {}) AS n"
_KEYS = """
INSERT INTO user_api_keys (user_id, key_hash, key_hint) SELECT * FROM unnest($1::text[], $2::text[], $3::text[])"""


class _Proxy(Proxy):
    """The command of the environment that it is given; quiet, it says nothing when it has started."""

    python = Path(sys.executable)
    # A program that runs it, with its options.
    under: Sequence[str] = ()

    def _start(self, env: dict[str, str], cwd: Path) -> subprocess.Popen[bytes]:
        env = {name: value for name, value in env.items() if value}
        run = "from litellm import run_server; run_server()"
        where = ["--config", str(self.config_path), "--host", "127.0.0.1", "--port", str(self.port)]
        more = ["--num_workers", str(self.workers), "--timeout_worker_healthcheck", "120"]
        with self.log_path.open("wb") as log:
            return subprocess.Popen(
                [*self.under, str(self.python), "-c", run, *where, *more], env=env, cwd=cwd, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def _is_ready(self) -> bool:
        try:
            if len(self.worker_pids()) < self.workers:
                return False
            return httpx.get(f"{self.url}/health/liveliness", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False


@dataclass(frozen=True)
class Contender:
    """A proxy under test.

    Attributes
    ----------
    keys
        API keys that may call: the master key, or one per user.
    start_s
        From its start to its first answer. Seconds.
    """

    name: str
    proxy: Proxy
    keys: Sequence[str]
    start_s: float

    @property
    def worker(self) -> int:
        """The process that serves."""
        return self.proxy.worker_pids()[0]


class Stage:
    """A provider's URL, a database with users, and the environments: all that contenders need."""

    def __init__(self, home: Path, own: Settings, provider: str, users: int) -> None:
        self._provider = provider
        self._home = home
        self._sealing = new_sealing_key()
        self._stock_python = stock.make(home / "stock")
        self.database_url = database_at(asyncio.run(embedded.ensure(own)), "postgres")
        asyncio.run(migrations.migrate(own.model_copy(update={"database_url": SecretStr(self.database_url)})))
        self.keys = [api_keys.generate() for _ in range(users)]
        self.server_version = asyncio.run(_fill(self.database_url, self.keys))
        self.server_log = home / "state/postgres/server.log"
        self.postmaster = int((home / "state/postgres/data/postmaster.pid").read_text().split()[0])

    def postgres(self) -> list[int]:
        """All processes of the database."""
        return processes.tree(self.postmaster)

    @contextmanager
    def running(
        self,
        name: str,
        config: str = "",
        workers: int = 1,
        env: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
    ) -> Iterator[Contender]:
        """One contender, started; `config` is the text of its `uc.yaml`, `under` a program that runs it."""
        python = self._stock_python if name in (STOCK, QUIET) else _Proxy.python
        made = type("_Made", (_Proxy,), {"python": python, "under": under})
        state = self._home / "state"
        given = {**_ENVIRONMENTS.get(name, _RECOMMENDED), **_TOLD, **(env or {})}
        if name in (PLUGIN, TIMED):
            given |= {
                "UC_STATE_DIR": str(state),
                "UC_DATABASE_URL": self.database_url,
                "UC_SEALING_KEYS": self._sealing,
            }
            written = Path(tempfile.mkdtemp(dir=self._home), "uc.yaml")
            written.write_text(config)
            given["UC_CONFIG"] = str(written)
        if name in (COMMITS, BARE, TIMED):
            given |= {"PYTHONPATH": str(_ROOT)}
        if name in (COMMITS, BARE):
            statements = bare.LEAST if name == COMMITS else bare.LEDGER
            given |= {
                bare.DATABASE: self.database_url,
                bare.USERS: str(min(USERS, len(self.keys))),
                bare.STATEMENTS: statements,
            }
        began = time.perf_counter()
        patience_s = _SLOWED_START_S if under else START_SECONDS
        with made(self._config(name), given, workers=workers, start_seconds=patience_s) as proxy:
            keys = self.keys if name in (PLUGIN, TIMED) else [proxy.master_key]
            yield Contender(name, proxy, keys, time.perf_counter() - began)

    def _config(self, name: str) -> Json:
        config: Json = {
            "model_list": [deployment("gpt-4o-mini", "openai/gpt-4o-mini", f"{self._provider}/v1")],
            "litellm_settings": {"disable_hf_tokenizer_download": True},
            "general_settings": {},
        }
        if name in _CALLBACKS:
            handler, auth = _CALLBACKS[name]
            config["litellm_settings"]["callbacks"] = [handler]
            config["general_settings"]["custom_auth"] = auth
        return config


@contextmanager
def stage(provider: str, users: int) -> Iterator[Stage]:
    """A stage in a temporary directory; all of it goes at the end."""
    # Not closed to other users: for root, PostgreSQL runs as one.
    home = Path(tempfile.mkdtemp(prefix="uc-bench-"))
    home.chmod(0o711)
    own = settings.load({"UC_STATE_DIR": str(home / "state")})
    try:
        yield Stage(home, own, provider, users)
    finally:
        asyncio.run(embedded.stop(own))
        shutil.rmtree(home, ignore_errors=True)


async def _fill(url: str, keys: Sequence[str]) -> str:
    """A user for each key; returns the version of PostgreSQL."""
    connection = await asyncpg.connect(url, server_settings={"search_path": "uc"})
    for statement in (_ACCOUNTS, _CREDITS, bare.LEAST_TABLE, bare.LEAST_KEY):
        await connection.execute(statement.format(len(keys)))
    owners = [f"bench-{n}" for n in range(1, len(keys) + 1)]
    hashes = [api_keys.hash_key(key) for key in keys]
    await connection.execute(_KEYS, owners, hashes, [api_keys.hint(key) for key in keys])
    await connection.execute("ANALYZE")
    version: str = await connection.fetchval("SHOW server_version")
    await connection.close()
    return version

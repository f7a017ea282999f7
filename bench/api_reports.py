"""How long the REST API takes over a million usage rows: `python -m bench.api_reports`.

A real proxy with one worker and an embedded PostgreSQL. Half of the rows are one account's, as a platform's own app
might have them; the others are those of 1000 users. Rows lie in the last 90 days, the newest a moment ago. Times are
those of a client on the same machine, connection kept open. LiteLLM's own routes show what the proxy takes by itself.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import asyncpg
import httpx
import typer
from pydantic import SecretStr

from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import paid_proxy
from tests.conftest import database_at
from tests.proxy import Proxy, litellm_config
from tests.upstream import Upstream
from uc_litellm_plugin import embedded, migrations, settings

USERS = 1000
COLUMNS = ("request", "account's rows", "at once", "requests", "p50, ms", "p99, ms", "slowest, ms")
LIMITS = "limits: {api_requests_per_minute: null}\n"
REPORTS = ("day", "provider", "model", "power_level", "app")

# Call number n: every other one is the large account's; models, apps and levels as a busy platform has them.
_FILL = """
INSERT INTO llm_usage_log (user_id, provider, model, power_level, prompt_tokens, completion_tokens, total_tokens,
    cost_credits, cost_usd, cost_source, request_id, app_id, latency_ms, tokens_per_second, success, byok_used,
    created_at)
SELECT CASE WHEN n % 2 = 0 THEN $1 ELSE 'user' || n % {users} END,
    (ARRAY['openai', 'anthropic', 'openrouter'])[1 + n % 3], 'model-' || n % 40,
    (ARRAY['eco', 'balanced', 'precision'])[1 + n % 3], 100, 50, 150, 0.5, 0.05, 'usage',
    'r' || n, 'app' || n % 7, n % 3000, 40, n % 50 <> 0, n % 11 = 0, now() - n * (interval '90 days' / {rows})
FROM generate_series(1, {rows}) AS n"""


@contextmanager
def served(rows: int) -> Iterator[tuple[Proxy, Account, Account]]:
    """A proxy over a filled database, the large account and a small one."""
    home = Path(tempfile.mkdtemp(prefix="uc-bench-"))
    home.chmod(0o711)
    own = settings.load({"UC_STATE_DIR": str(home / "state")})
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home)
        server = asyncio.run(embedded.ensure(own))
        stack.callback(lambda: asyncio.run(embedded.stop(own)))
        bank = Bank(_database(server, own))
        large, small = bank.open(), bank.open()
        asyncio.run(_fill(bank.url, large, small, rows))
        limits = home / "uc.yaml"
        limits.write_text(LIMITS)
        upstream = stack.enter_context(Upstream())
        config = litellm_config(upstream.url)
        yield stack.enter_context(paid_proxy(bank.url, config, UC_CONFIG=str(limits))), large, small


def _database(server: str, own: settings.Settings) -> str:
    url = database_at(server, "uc_bench")
    asyncio.run(_execute(server, "CREATE DATABASE uc_bench"))
    asyncio.run(migrations.migrate(own.model_copy(update={"database_url": SecretStr(url)})))
    return url


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url, server_settings={"search_path": "uc"})
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


async def _fill(url: str, large: Account, small: Account, rows: int) -> None:
    connection = await asyncpg.connect(url, server_settings={"search_path": "uc"})
    await connection.execute(_FILL.format(users=USERS, rows=rows), large.user_id)
    await connection.execute(f"UPDATE llm_usage_log SET user_id = '{small.user_id}' WHERE user_id = 'user7'")  # noqa: S608
    await connection.execute("VACUUM ANALYZE llm_usage_log")
    await connection.execute("REFRESH MATERIALIZED VIEW llm_usage_summary")
    await connection.execute("ANALYZE llm_usage_summary")
    await connection.close()


def measure(url: str, account: Account, path: str, requests: int, at_once: int) -> list[float]:
    """Milliseconds that each request took."""
    limits = httpx.Limits(max_keepalive_connections=at_once)
    with httpx.Client(base_url=url, headers=account.headers, trust_env=False, timeout=60, limits=limits) as client:

        def ask(_: int) -> float:
            started = time.perf_counter()
            client.get(path).raise_for_status()
            return (time.perf_counter() - started) * 1000

        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(ask, range(at_once)))
            return sorted(pool.map(ask, range(requests)))


def main(
    rows: Annotated[int, typer.Option(help="Usage rows.")] = 1_000_000,
    requests: Annotated[int, typer.Option(help="Requests of each kind.")] = 200,
) -> None:
    """Print the table."""
    with served(rows) as (proxy, large, small):
        line(COLUMNS)
        line(("---",) * len(COLUMNS))
        for account, has in ((small, rows // USERS), (large, rows // 2)):
            for path in paths():
                for at_once in (1, 8) if path.endswith("balance") else (1,):
                    times = measure(proxy.url, account, path, requests, at_once)
                    p99 = times[min(len(times) - 1, round(len(times) * 0.99))]
                    shown = (f"{ms:.1f}" for ms in (statistics.median(times), p99, times[-1]))
                    line((path.removeprefix("/api/v1/"), str(has), str(at_once), str(requests), *shown))


def line(cells: tuple[str, ...]) -> None:
    """A row of the table."""
    typer.echo(f"| {' | '.join(cells)} |")


def paths() -> list[str]:
    """What is asked for; the first two are LiteLLM's own, without and with authentication."""
    reports = [f"analytics/usage?days=30&group_by={name}" for name in REPORTS]
    ours = ["credits/balance", *reports, "analytics/usage?days=90&group_by=model", "usage?limit=50", "key", "activity"]
    return ["/health/liveliness", "/v1/models", *(f"/api/v1/{path}" for path in ours)]


if __name__ == "__main__":
    typer.run(main)

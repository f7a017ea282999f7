"""`uc-litellm serve`: the database, the secrets, a demo account and the stock proxy, started and stopped together."""

from __future__ import annotations

import asyncio
import secrets
import shlex
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import demo, embedded, env_file, migrations, proxy_config, verification
from . import settings as settings_module
from .console import patient, say
from .database import Database
from .errors import CommandRefused
from .office import Office
from .proxy_process import ProxyProcess, shell_code
from .settings import Settings
from .vault import new_sealing_key

START_TIMEOUT_S = 180

# What the proxy runs with unless the environment says otherwise.
_DEFAULTS = {
    "DEFAULT_MAX_RETRIES": "0",  # The OpenAI client's own retries would be attempts that nobody sees.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # Prices come from the installed LiteLLM, they are not fetched.
    "LITELLM_LOG": "ERROR",  # Without it every request is logged twice, some 5 % of its time.
    "PYTHON_GC_THRESHOLD": "20000,50,50",  # Python's own thresholds suit programs a hundred times smaller.
}


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes
    ----------
    config
        A proxy configuration of the operator's own, or None for the shipped one.
    extra
        Further arguments for `litellm`.
    """

    host: str
    port: int
    workers: int
    config: Path | None = None
    with_demo: bool = True
    extra: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Where this machine reaches the proxy."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


async def serve(options: Options) -> int:
    """Run the proxy until it ends or a signal comes.

    Returns
    -------
    int
        The proxy's exit code; 0 after a signal.

    Raises
    ------
    UcError
        Something it needs is not there; nothing is left running.
    """
    with _signals() as interrupts:
        _require_free_port(options.host, options.port)
        environ = _complete_environment()
        settings = settings_module.load(environ)
        try:
            api_key = await _prepare(settings, environ, options)
            return await _run_proxy(options, settings, environ, api_key, interrupts)
        finally:
            if settings.database_url is None:
                await embedded.stop(settings)


def _complete_environment() -> dict[str, str]:
    """The environment with `.env`, whose missing secrets are made first."""
    environ = env_file.environment()
    wanted = {name: make for name, make in _SECRETS.items() if not (environ.get(name) or environ.get(f"{name}_FILE"))}
    if wanted:
        environ |= env_file.complete(Path(env_file.NAME), wanted)
        say(f"Made {' and '.join(wanted)} in {Path(env_file.NAME).absolute()}: keep that file, and keep it secret.")
    return environ


async def _prepare(settings: Settings, environ: Mapping[str, str], options: Options) -> str | None:
    """The database, migrated, and the demo account's API key if one is wanted."""
    say("Starting the embedded PostgreSQL …" if settings.database_url is None else "Looking at the database …")
    await migrations.migrate(settings, say)
    async with Database(patient(settings)) as database:
        await _warn_of_losses(database, settings)
        if not options.with_demo:
            return None
        known = environ.get("UC_DEMO_API_KEY")
        api_key = await demo.ensure(Office(database), known)
        if api_key != known:
            env_file.put(Path(env_file.NAME), "UC_DEMO_API_KEY", api_key)
        return api_key


async def _warn_of_losses(database: Database, settings: Settings) -> None:
    margins = await verification.margins(database, settings)
    if losses := [f"{each.package} at {each.power_level} ({each.margin})" for each in margins if each.margin < 1]:
        say(f"Warning: sold below provider cost: {', '.join(losses)}. `uc-litellm db verify` explains.")


async def _run_proxy(
    options: Options,
    settings: Settings,
    environ: Mapping[str, str],
    api_key: str | None,
    interrupts: asyncio.Queue[int],
) -> int:
    config = options.config or settings.state_dir / f"litellm-{options.port}.yaml"
    if options.config is None:
        proxy_config.write_effective(config, environ)
    say(f"Starting the LiteLLM proxy on port {options.port} …")
    proxy = await ProxyProcess.start(_arguments(options, config), _child_environment(environ, settings))
    try:
        interrupted = asyncio.ensure_future(interrupts.get())
        answers = asyncio.ensure_future(proxy.answers(options.url))
        await asyncio.wait({interrupted, answers, proxy.ended}, timeout=START_TIMEOUT_S, return_when="FIRST_COMPLETED")
        if not (interrupted.done() or answers.done()):
            proxy.kill()
            raise CommandRefused(f"The proxy did not start. It said:\n{await proxy.tail()}", code="proxy_failed")
        answers.cancel()
        if not interrupted.done():
            proxy.speak()
            _announce(options, proxy_config.read(config), api_key)
            await asyncio.wait({interrupted, proxy.ended}, return_when="FIRST_COMPLETED")
        if proxy.ended.done():
            return shell_code(proxy.ended.result())
        say("Stopping …")
        return await proxy.stop(hurry=interrupts.get())
    finally:
        proxy.kill()


def _arguments(options: Options, config: Path) -> list[str]:
    where = ["--config", str(config.absolute()), "--host", options.host, "--port", str(options.port)]
    # With several, a supervisor asks them how they are; one that imports LiteLLM on a busy machine answers late.
    patience = ["--timeout_worker_healthcheck", "60"] if options.workers > 1 else []
    return [*where, "--num_workers", str(options.workers), *patience, *options.extra]


def _child_environment(environ: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """The environment of the proxy: no DATABASE_URL in it, which LiteLLM would take for its own tables."""
    if environ.get("DATABASE_URL"):
        say("Warning: DATABASE_URL is set and not passed on, LiteLLM would use it; ours is UC_DATABASE_URL.")
    kept = {name: value for name, value in environ.items() if name != "DATABASE_URL"}
    return {**_DEFAULTS, **kept, "UC_STATE_DIR": str(settings.state_dir), "UC_CONFIG": str(settings.config_file)}


def _announce(options: Options, config: proxy_config.Config, api_key: str | None) -> None:
    say(f"\nThe proxy answers at {options.url}. Ctrl-C stops it and all that was started with it.")
    if options.config is None and (mocked := proxy_config.mocked(config)):
        say(f"Answered by LiteLLM's mock, since no provider key is set: {', '.join(mocked)}.")
    if api_key is None:
        return
    model = next((each["model_name"] for each in config.get("model_list") or []), "gpt-4o-mini")
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    print(f"\nAPI key of the demo account: {api_key}\n")  # noqa: T201 - this is the output
    print(  # noqa: T201
        f"curl {options.url}/v1/chat/completions -H 'Authorization: Bearer {api_key}' "
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}\n",
        flush=True,
    )


def _require_free_port(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise CommandRefused(
            f"Cannot listen on {host} port {port}: {error.strerror}. Choose another with --port or --host.",
            code="port_unavailable",
        ) from None


@contextmanager
def _signals() -> Iterator[asyncio.Queue[int]]:
    """SIGINT and SIGTERM as they come, in place of their usual effect."""
    loop = asyncio.get_running_loop()
    received: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, received.put_nowait, number)
    try:
        yield received
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _make_master_key() -> str:
    return f"sk-{secrets.token_urlsafe(32)}"


_SECRETS = {"LITELLM_MASTER_KEY": _make_master_key, "UC_SEALING_KEYS": new_sealing_key}

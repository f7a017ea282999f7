"""The real LiteLLM proxy as a process, and the config the tests give it."""

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import yaml

Json = dict[str, Any]

START_SECONDS = 180.0
STARTED = "Application startup complete"
FOREIGN = ("LITELLM_", "UC_", "DATABASE_URL", "DIRECT_URL", "REDIS_", "CONFIG_FILE_PATH", "WORKER_CONFIG")
LOG_TAIL = 60
PORTS = range(10_000, 30_000)

# Cached tokens are priced too: LiteLLM would take a price that is missing here from its map of the same model.
GPT_MINI_PRICES = {
    "input_cost_per_token": 1.7e-6,
    "output_cost_per_token": 6.1e-6,
    "cache_read_input_token_cost": 4.7e-7,
}
CLAUDE_PRICES = {
    "input_cost_per_token": 3.3e-6,
    "output_cost_per_token": 1.57e-5,
    "cache_read_input_token_cost": 3.1e-7,
    "cache_creation_input_token_cost": 4.1e-6,
}
PAIR_PRICES = {
    "east": {"input_cost_per_token": 1.1e-6, "output_cost_per_token": 4.3e-6},
    "west": {"input_cost_per_token": 2.3e-6, "output_cost_per_token": 7.9e-6},
}
FREE = {"input_cost_per_token": 0, "output_cost_per_token": 0}


def upstream_key(deployment: str) -> str:
    """The provider key of a deployment, by which the upstream's books tell who was called."""
    return f"sk-platform-{deployment}-0123456789abcdef"


def deployment(group: str, model: str, api_base: str, prices: Json | None = None, name: str = "") -> Json:
    """One entry of a model list; its id is `dep-<name>`, its name the group's unless told."""
    name = name or group
    where = {"model": model, "api_base": api_base, "api_key": upstream_key(name)}
    return {"model_name": group, "litellm_params": {**where, **(prices or {})}, "model_info": {"id": f"dep-{name}"}}


def model_list(upstream_url: str) -> list[Json]:
    """A deployment for every way a model is called and priced.

    LiteLLM adds the endpoint to `/v1` for OpenAI's models; for Anthropic's and Cohere's it adds the version as well.
    """
    v1 = f"{upstream_url}/v1"
    return [
        deployment("gpt-mini", "openai/gpt-4o-mini", v1, GPT_MINI_PRICES),
        deployment("gpt-mini-map", "openai/gpt-4o-mini", v1),
        deployment("claude", "anthropic/claude-sonnet-4-6", upstream_url, CLAUDE_PRICES),
        deployment("reason", "openai/o4-mini", v1),
        deployment("embed", "openai/text-embedding-3-small", v1),
        deployment("instruct", "text-completion-openai/gpt-3.5-turbo-instruct", v1),
        deployment("unpriced", "openai/some-unknown-model", v1),
        deployment("free", "openai/some-free-model", v1, FREE),
        *(
            deployment("pair", "openai/gpt-4o-mini", f"{upstream_url}/{side}/v1", prices, f"pair-{side}")
            for side, prices in PAIR_PRICES.items()
        ),
        deployment("image", "openai/gpt-image-1", v1),
        deployment("speech", "openai/tts-1", v1),
        deployment("transcribe", "openai/whisper-1", v1),
        deployment("moderate", "openai/omni-moderation-latest", v1),
        deployment("rerank", "cohere/rerank-v3.5", upstream_url),
    ]


def litellm_config(upstream_url: str, *, plugin: bool = True, **extra: Any) -> Json:
    """A proxy config over the upstream: with the plugin's two lines in it, or stock.

    `extra` adds to the section it names (`router_settings={"num_retries": 0}`, `model_list=[…]`) or sets another.
    """
    config: Json = {
        "model_list": model_list(upstream_url),
        "litellm_settings": {"disable_hf_tokenizer_download": True},
        "general_settings": {},
        "router_settings": {},
    }
    if plugin:
        config["litellm_settings"]["callbacks"] = ["uc_litellm_plugin.proxy_handler_instance"]
        config["general_settings"]["custom_auth"] = "uc_litellm_plugin.user_api_key_auth"
    for section, value in extra.items():
        config[section] = merged(config.get(section), value)
    return config


def merged(base: Any, value: Any) -> Any:
    if isinstance(base, dict) and isinstance(value, dict):
        return {**base, **value}
    return [*base, *value] if isinstance(base, list) and isinstance(value, list) else value


def environment(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment without what would steer a proxy or hand it a real provider key."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN) and not k.endswith("_API_KEY")}
    ours = {
        "LITELLM_LOG": "INFO",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    return {**kept, **ours, **extra}


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to clients and to who asks for any."""
    while True:
        port = secrets.choice(PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """A URL at which connections are refused: while this lasts the port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


class Proxy:
    """A running `litellm` proxy, ready when constructed, in a process group of its own. Stops when left as a context.

    Parameters: `config` a dict or a file's path; `env` is added to a cleaned environment and may name its own
    LITELLM_MASTER_KEY; `workers` processes serve (each loads the plugin); `cwd` is where it runs, a temporary directory
    unless told. Raises RuntimeError with the tail of the log when the process ends or is not ready in time.
    """

    def __init__(
        self,
        config: Json | Path,
        env: dict[str, str] | None = None,
        workers: int = 1,
        cwd: Path | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="proxy-"))
        self.config_path = config if isinstance(config, Path) else self._written(config)
        self.log_path = self._directory / "log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.workers = workers
        given = environment({"LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(24)}", **(env or {})})
        self.master_key = given["LITELLM_MASTER_KEY"]
        self._process = self._start(given, cwd or self._directory)
        atexit.register(self.kill)
        try:
            self._wait_until_ready(start_seconds)
        except BaseException:
            self.kill()
            shutil.rmtree(self._directory, ignore_errors=True)
            raise

    def _written(self, config: Json) -> Path:
        path = self._directory / "config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    def _start(self, env: dict[str, str], cwd: Path) -> "subprocess.Popen[bytes]":
        command = [str(Path(sys.executable).with_name("litellm")), "--config", str(self.config_path.resolve())]
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--num_workers", str(self.workers)]
        if self.workers > 1:
            # A worker that imports LiteLLM on a busy machine answers its supervisor later than in the usual 5 s.
            options += ["--timeout_worker_healthcheck", "120"]
        with self.log_path.open("wb") as log:
            return subprocess.Popen(
                [*command, *options], env=env, cwd=cwd, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def _wait_until_ready(self, seconds: float) -> None:
        """Asks ten times a second; a process that ends meanwhile is noticed at once."""
        for _ in range(int(seconds * 10)):
            try:
                self._process.wait(0.1)
            except subprocess.TimeoutExpired:
                if self._is_ready():
                    return
            else:
                raise RuntimeError(f"litellm ended with {self._process.returncode} at its start:\n{self.tail()}")
        raise RuntimeError(f"litellm was not ready after {seconds} s:\n{self.tail()}")

    def _is_ready(self) -> bool:
        if self.log().count(STARTED) < self.workers:
            return False
        try:
            return httpx.get(f"{self.url}/health/liveliness", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log().splitlines()[-LOG_TAIL:])

    def log(self) -> str:
        """All that the proxy has written to its output so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        """The process that was started: with one worker it serves, with more it is their parent."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def worker_pids(self) -> list[int]:
        """The processes that serve (Linux: read from /proc)."""
        if self.workers == 1:
            return [self.pid]
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def worker_at(self, answer: httpx.Response) -> int:
        """Which process gave an answer whose connection is still open (Linux: read from /proc)."""
        _, port = answer.extensions["network_stream"].get_extra_info("client_addr")
        ends = [f"0100007F:{self.port:04X}", f"0100007F:{port:04X}"]
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        sockets = {f"socket:[{row[9]}]" for row in rows if row[1:3] == ends}
        for pid in self.worker_pids():
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(handle) in sockets:
                        return pid
        raise LookupError(f"no worker has the connection {ends}")

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process that was started, as a supervisor would."""
        self._process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """Waits for the process to end and returns its exit code; raises subprocess.TimeoutExpired."""
        return self._process.wait(seconds)

    def stop(self, sig: int = signal.SIGTERM, seconds: float = 30) -> int:
        """Asks the proxy to end, kills its whole group when it has not after `seconds`; returns the exit code."""
        if self._process.poll() is None:
            self.send_signal(sig)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(seconds)
        self.kill()
        return self._process.returncode

    def kill(self) -> None:
        """Ends the whole process group at once (SIGKILL); the log stays readable until the context is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        atexit.unregister(self.kill)

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.proxy import free_port
from uc_litellm_plugin import env_file
from uc_litellm_plugin.settings import Settings

STUB = """
model_list:
  - model_name: parrot
    litellm_params: {model: openai/gpt-4o-mini, api_key: none, mock_response: Hello yourself}
general_settings: {master_key: os.environ/LITELLM_MASTER_KEY}
"""
BROKEN = "litellm_settings: {callbacks: [no_such_module.handler]}\n"
START_S = 120


@dataclass
class Serving:
    """A `uc-litellm serve` under way, in its own directory."""

    process: asyncio.subprocess.Process
    url: str
    printed: str = ""

    async def until_it_answers(self) -> None:
        assert self.process.stdout is not None
        while "curl" not in self.printed:
            line = await asyncio.wait_for(self.process.stdout.readline(), START_S)
            assert line, await self.errors()
            self.printed += line.decode()

    async def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 60)

    async def errors(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()


@dataclass
class Place:
    """A directory in which `serve` runs, with its state elsewhere."""

    directory: Path
    settings: Settings

    @property
    def env_file(self) -> Path:
        return self.directory / ".env"

    @asynccontextmanager
    async def serve(self, config: str = STUB, port: int | None = None, **environ: str) -> AsyncIterator[Serving]:
        (self.directory / "proxy.yaml").write_text(config)
        port = port or free_port()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "uc_litellm_plugin", "serve", "--config", "proxy.yaml", "--port", str(port),
            cwd=self.directory, env={**self._environ(), **environ}, start_new_session=True,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            yield Serving(process, f"http://127.0.0.1:{port}")
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()

    def _environ(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
        return {**kept, "UC_STATE_DIR": str(self.settings.state_dir), "PYTHONPATH": ":".join(sys.path)}

    def server_runs(self) -> bool:
        return (self.settings.state_dir / "postgres" / "data" / "postmaster.pid").exists()


@pytest.fixture
def place(tmp_path: Path, own_server: Settings) -> Place:
    return Place(tmp_path, own_server)


async def test_twice_from_nothing(place: Place) -> None:
    """The first run makes everything, the second keeps it; Ctrl-C stops all that was started, with exit code 0."""
    async with place.serve() as first:
        await first.until_it_answers()
        made = env_file.read(place.env_file)
        assert set(made) == {"LITELLM_MASTER_KEY", "UC_SEALING_KEYS", "UC_DEMO_API_KEY"}
        assert place.env_file.stat().st_mode & 0o777 == 0o600
        assert made["UC_DEMO_API_KEY"] in first.printed
        assert await first.end() == 0
        said = await first.errors()
        assert made["LITELLM_MASTER_KEY"] not in first.printed + said
        assert made["UC_SEALING_KEYS"] not in first.printed + said
    assert not place.server_runs()
    async with place.serve() as second:
        await second.until_it_answers()
        assert env_file.read(place.env_file) == made
        answer = await ask(second.url, made["LITELLM_MASTER_KEY"])
        assert answer == "Hello yourself"
        balance = await command(place, "credits", "balance", "demo", "--json")
        assert balance["credits_available"] == "100.000000", "the demo credits are given once"
        assert await second.end(signal.SIGTERM) == 0
    assert not place.server_runs()
    with pytest.raises(httpx.TransportError):
        await ask(second.url, made["LITELLM_MASTER_KEY"])


async def test_a_proxy_that_does_not_start(place: Place) -> None:
    """When LiteLLM fails at its start, its last words are shown, the exit code tells, and nothing is left running."""
    async with place.serve(BROKEN) as serving:
        assert await asyncio.wait_for(serving.process.wait(), START_S) == 1
        assert "no_such_module" in await serving.errors()
    assert not place.server_runs()


async def test_a_port_in_use(place: Place) -> None:
    """A taken port is told before anything is started or made."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with place.serve(port=taken.getsockname()[1]) as serving:
            assert await asyncio.wait_for(serving.process.wait(), 30) == 1
            assert "--port" in await serving.errors()
    assert not place.env_file.exists()
    assert not place.settings.state_dir.exists()


async def test_a_revoked_demo_key_is_replaced(place: Place) -> None:
    """The key that is printed works, also after an operator revoked the one before; DATABASE_URL is not passed on."""
    place.env_file.write_text("# mine\nOTHER=kept\nUC_DEMO_API_KEY=sk-uc-unknown\n")
    async with place.serve(DATABASE_URL="postgresql://litellm@nowhere/never") as serving:
        await serving.until_it_answers()
        assert place.env_file.read_text().startswith("# mine\nOTHER=kept\n")
        key = env_file.read(place.env_file)["UC_DEMO_API_KEY"]
        assert key != "sk-uc-unknown"
        assert key in serving.printed
        await serving.end()
        assert "DATABASE_URL is set and not passed on" in await serving.errors()


async def ask(url: str, key: str) -> str:
    body = {"model": "parrot", "messages": [{"role": "user", "content": "Hello"}]}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        response = await client.post(
            f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}
        )
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


async def command(place: Place, *args: str) -> dict[str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "uc_litellm_plugin", *args, cwd=place.directory, env=place._environ(),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    answer: dict[str, str] = json.loads(out)
    return answer

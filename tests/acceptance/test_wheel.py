"""The wheel alone, installed into an empty environment outside of the checkout, runs a paid call."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.proxy import free_port

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory that other users may pass through: for root, PostgreSQL runs as another one."""
    made = Path(tempfile.mkdtemp(prefix="uc-wheel-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def installed(directory: Path) -> Path:
    """The `bin` directory of an environment that has nothing but the wheel and what it depends on."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(directory), str(CHECKOUT)], check=True)
    (wheel,) = directory.glob("uc_litellm_plugin-*.whl")
    venv.create(directory / "env", with_pip=True)
    python = directory / "env" / "bin" / "python"
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", f"{wheel}[embedded]"]
    subprocess.run(install, check=True, cwd=directory)
    return python.parent


def test_the_wheel_serves_a_paid_call(installed: Path, directory: Path) -> None:
    """`uc-litellm serve` from the wheel starts, answers by the mock, and charges the demo account."""
    port = free_port()
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    env = {**kept, "UC_STATE_DIR": str(directory / "state"), "NO_PROXY": "127.0.0.1", "PYTHONUNBUFFERED": "1"}
    command = [str(installed / "uc-litellm"), "serve", "--port", str(port)]
    serving = subprocess.Popen(
        command, cwd=directory, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        key = _printed_key(serving)
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            headers={"Authorization": f"Bearer {key}"},
            json={"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]},
            timeout=60,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        balance = _command(installed, env, directory, "credits", "balance", "demo")
        assert balance["credits_remaining"] == answer.headers["x-uc-credits-remaining"]
        assert _command(installed, env, directory, "ledger", "audit") == []
    finally:
        serving.terminate()
        serving.communicate(timeout=60)


def _printed_key(serving: "subprocess.Popen[str]") -> str:
    seen = []
    assert serving.stdout is not None
    for line in serving.stdout:
        seen.append(line)
        if "Authorization: Bearer " in line:
            return line.split("Bearer ")[1].split("'")[0].split('"')[0].strip()
    raise AssertionError("serve ended without printing a key:\n" + "".join(seen))


def _command(installed: Path, env: dict[str, str], cwd: Path, *words: str) -> Any:
    ran = subprocess.run(
        [installed / "uc-litellm", *words, "--json"], env=env, cwd=cwd, capture_output=True, text=True, check=True
    )
    return json.loads(ran.stdout)

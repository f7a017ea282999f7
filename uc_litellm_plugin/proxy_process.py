"""The stock `litellm` command as a child process: started, watched until it answers, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path

from .errors import CommandRefused

POLL_S = 0.2
TAIL_LINES = 40

# Locally nothing goes through an HTTP proxy, whatever the environment says.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ProxyProcess:
    """A running proxy. What it prints is kept until it answers, and passed on from then.

    It gets a session of its own: a Ctrl-C in the terminal reaches us only, and the signal is passed on once.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._quiet = True
        self._relay = asyncio.create_task(self._relay_output())
        self.ended: asyncio.Task[int] = asyncio.create_task(process.wait())

    @classmethod
    async def start(cls, arguments: Sequence[str], environ: Mapping[str, str]) -> ProxyProcess:
        """Start `litellm` from the environment this Python runs in."""
        command = Path(sys.executable).with_name("litellm")
        if not command.exists():
            raise CommandRefused(f"{command} is missing: run `pip install 'litellm[proxy]'`.", code="no_litellm")
        process = await asyncio.create_subprocess_exec(
            str(command),
            *arguments,
            env=dict(environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=1 << 20,
        )
        return cls(process)

    async def answers(self, url: str) -> None:
        """Return when the proxy answers its liveliness check; waits for ever."""
        while not await asyncio.to_thread(_is_alive, url):  # noqa: ASYNC110 - another process sends us no event
            await asyncio.sleep(POLL_S)

    async def tail(self) -> str:
        """The last lines that the ended process printed."""
        await self._relay
        return b"".join(self._tail).decode("utf-8", "replace").rstrip()

    def speak(self) -> None:
        """Pass on what the proxy prints from now on."""
        self._quiet = False

    async def stop(self, hurry: Awaitable[object]) -> int:
        """Ask the proxy to end its calls and go; when `hurry` comes first, kill it.

        Returns
        -------
        int
            Its exit code, as a shell would report it; 0 when it went by our signal.
        """
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        hurried = asyncio.ensure_future(hurry)
        await asyncio.wait({self.ended, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        self.kill()
        code = await self.ended
        return 0 if code in (0, -signal.SIGTERM, -signal.SIGKILL) else shell_code(code)

    def kill(self) -> None:
        """End all that is left of it, workers included."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _relay_output(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for a pipe
        while chunk := await self._process.stdout.read(1 << 16):
            self._tail.extend(chunk.splitlines(keepends=True))
            if not self._quiet:
                sys.stderr.buffer.write(chunk)
                sys.stderr.flush()


def shell_code(code: int) -> int:
    """128 + n for a process that signal n ended."""
    return code if code >= 0 else 128 - code


def _is_alive(url: str) -> bool:
    try:
        with _direct.open(f"{url}/health/liveliness", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False

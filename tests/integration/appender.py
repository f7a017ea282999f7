"""Another process with an outbox of its own, which can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

# Appends what its arguments say, tells when it is on disk, and then lives until it is killed.
APPENDER = """
import sys, pathlib
from uc_litellm_plugin.outbox import Outbox
outbox = Outbox(pathlib.Path(sys.argv[1]), 1_000_000)
outbox.append([{"hold_id": name} for name in sys.argv[2:]])
print("written", flush=True)
sys.stdin.read()
"""


class Appender:
    """Another process with an outbox of its own in the same directory."""

    def __init__(self, directory: Path, *names: str) -> None:
        command = [sys.executable, "-c", APPENDER, str(directory), *names]
        environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        self.process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"written\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

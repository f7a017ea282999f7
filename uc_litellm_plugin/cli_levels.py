"""`uc-litellm levels`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from . import level_rows, office, settings
from .console import AsJson, ask, print_facts, print_rows, say
from .errors import CommandRefused
from .level_rows import Facts, LevelRows
from .office import Office
from .settings import PowerLevelSettings

levels = typer.Typer(help="Power levels: a caller's wish for cost against quality.", no_args_is_help=True)

_LIST = ("power_level", "preferred_providers", "cost_multiplier", "max_latency_ms", "min_quality_score", "is_active",
         "source", "edited_at")  # fmt: skip
_TEXTS = {"name", "description"}
_TEXT_MAX = 10_000
_KEYS = ", ".join(PowerLevelSettings.model_fields)

Level = Annotated[str, typer.Argument(metavar="NAME", help="eco, balanced, precision, or one of your own.")]


@levels.command("list")
def list_levels(as_json: AsJson = False) -> None:
    """List all power levels, the cheapest first."""
    print_rows(ask(lambda at: LevelRows(at.database).all()), _LIST, as_json)


@levels.command("show")
def show_level(name: Level, as_json: AsJson = False) -> None:
    """Show a power level and who edited it last: the seed, the settings file (yaml) or the database."""
    print_facts(ask(lambda at: LevelRows(at.database).show(name)), as_json)


@levels.command("set")
def set_level(
    name: Level,
    assignments: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help=f"Of {_KEYS}.")],
    as_json: AsJson = False,
) -> None:
    """Edit a power level; workers follow at once, and calls under way end on the terms they were held with.

    Providers are separated by commas, best first; max_latency_ms=none is no target. The edit stands until the next one,
    here or in the settings file.
    """
    values = _parse(assignments)

    async def edit(at: Office) -> Facts:
        rows = LevelRows(at.database)
        return {**await rows.edit(name, values), "warnings": await rows.doubts(name, values)}

    level = ask(edit)
    if as_json:
        print_facts(level, as_json)
        return
    changed = [{"setting": key, **change} for key, change in level["changed"].items()]
    print_rows(changed, ("setting", "before", "after"), as_json) if changed else say("It was so before.")
    for warning in level["warnings"]:
        say(f"Warning: {warning}")


def _parse(assignments: Sequence[str]) -> Facts:
    """What `key=value` arguments name, checked as the settings file is."""
    values = dict(map(_split, assignments))
    if len(values) < len(assignments):
        raise CommandRefused("Name each setting once.", code="invalid_level_setting")
    for key in _TEXTS & values.keys():
        office.checked_text(f"the {key}", values[key] or None, _TEXT_MAX)
    try:
        return level_rows.named(PowerLevelSettings.model_validate(values))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {_fix(fault)}" for fault in error.errors(include_url=False)]
        raise CommandRefused(f"Nothing was changed. {'; '.join(faults)}.", code="invalid_level_setting") from None


def _fix(fault: Any) -> str:
    return f"unknown; use one of {_KEYS}" if fault["type"] == "extra_forbidden" else settings.fix(fault)


def _split(assignment: str) -> tuple[str, Any]:
    key, equals, value = assignment.partition("=")
    if not equals:
        raise CommandRefused(
            f"{assignment[:40]!r} is no KEY=VALUE; the keys are {_KEYS}.", code="invalid_level_setting"
        )
    if key == "preferred_providers":
        return key, [name.strip() for name in value.split(",") if name.strip()]
    return key, None if (key, value) == ("max_latency_ms", "none") else value

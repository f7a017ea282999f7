"""`/power-level` and `/power-levels`: an account's default level, and the levels there are."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import ValidationError

from .. import level_rows
from ..errors import BadRequest, Forbidden
from ..level_rows import LevelRows
from ..office import Changes, Office
from ..reception import Reception
from ..settings import PowerLevelSettings
from . import statements
from .callers import Account, Acting, Asking, At, OpenAccount, note
from .envelope import EnvelopeRoute
from .models import ERRORS, Everything, PowerLevelName
from .models_levels import DefaultLevel, EditedLevel, Level, LevelChoice, LevelEdit

routing = APIRouter(tags=["uc: power levels"], route_class=EnvelopeRoute, responses=ERRORS)


@routing.get("/power-level")
async def default_level(account: Account, at: At) -> DefaultLevel:
    """At which power level the account's calls run when they name none."""
    facts = await Office(at.worker.database).show(account.user_id)
    return DefaultLevel(power_level=facts["power_level"], downgrade=facts["power_level_downgrade"])


@routing.put("/power-level")
async def choose_level(account: OpenAccount, at: At, choice: LevelChoice) -> DefaultLevel:
    """Choose that level, and whether calls that do not fit are tried at cheaper ones."""
    await _require_allowed(at, account, choice.power_level)
    changes = Changes(power_level=choice.power_level, downgrade=choice.downgrade)
    facts = await Office(at.worker.database).change(account.user_id, changes)
    note(account.actor, f"chose power level {choice.power_level}", account.user_id)
    return DefaultLevel(power_level=facts["power_level"], downgrade=facts["power_level_downgrade"])


@routing.get("/power-levels")
async def levels(asking: Asking, at: At) -> Everything[Level]:
    """The power levels there are, the cheapest first; those that are not active cannot be chosen."""
    return Everything(data=[Level.model_validate(row) for row in await LevelRows(at.worker.database).all()])


@routing.put("/power-levels/{level}")
async def edit_level(asking: Asking, at: At, level: Annotated[PowerLevelName, Path()], edit: LevelEdit) -> EditedLevel:
    """Edit a power level; workers follow at once, calls under way end on the terms they were held with. For admins."""
    rows = LevelRows(at.worker.database)
    try:
        values = level_rows.named(PowerLevelSettings.model_validate(edit.model_dump(exclude_unset=True)))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(map(str, fault["loc"]))
        raise BadRequest(f"{name}: {fault['msg']}.", code="invalid_value", param=name) from None
    if not values:
        raise BadRequest("Nothing was to be changed.", code="nothing_to_set")
    before = await rows.show(level)
    edited = await rows.edit(level, values)
    note(asking, f"edited {', '.join(edited['changed']) or 'nothing'} of power level {before['power_level']}", "all")
    return EditedLevel.model_validate({**edited, "warnings": await rows.doubts(level, values)})


async def _require_allowed(at: Reception, account: Acting, name: str) -> None:
    active = await at.worker.accounts.levels()
    if name not in active:
        message = f"There is no power level {name!r}; use one of {', '.join(active)}."
        raise BadRequest(message, code="invalid_power_level", param="power_level")
    tier = (await statements.balance(at.worker.database, account.user_id))["tier"]
    allowed = at.worker.settings.tier(tier).power_levels
    if allowed is not None and name not in allowed:
        message = f"Tier {tier} does not include power level {name}; it has {', '.join(allowed)}."
        raise Forbidden(message, code="tier", param="power_level", metadata={"tier": tier})

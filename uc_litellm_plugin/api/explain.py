"""`POST /route/explain`: what would happen to a call, and why, without calling anybody."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from .. import explanation, routes
from ..errors import Refusal
from ..requests import Inbound
from .callers import Account, At
from .envelope import EnvelopeRoute
from .models import ERRORS
from .models_usage import Explanation, Rehearsal

routing = APIRouter(tags=["uc: routing"], route_class=EnvelopeRoute, responses=ERRORS)


@routing.post("/route/explain", response_model=Explanation, response_model_exclude_unset=True)
async def explain(
    request: Request,
    account: Account,
    at: At,
    body: Rehearsal,
    endpoint: Annotated[str, Query(description="chat, completions, embeddings, responses or messages")] = "chat",
) -> dict[str, Any]:
    """What would happen to a call, and why: candidates in order, hold, balance, outcome. Nobody is called."""
    kind = routes.named(endpoint)
    headers = {name.lower(): value for name, value in request.headers.items()}
    await at.look_around()
    try:
        call, held = await at.admission.rehearse(kind, Inbound(body.model_dump(), headers), account.caller, body.model)
    except Refusal as refusal:
        return explanation.of_refusal(body.model, refusal)
    return explanation.of_call(call, held)

"""`POST /route/explain`: what would happen to a call, and why, without calling anybody."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth

from .. import explanation, identity, routes
from ..errors import DatabaseError, Refusal
from ..reception import Reception
from ..refusals import Refused, unreachable
from ..requests import Inbound


def router(reception: Reception) -> APIRouter:
    """The route, on this reception."""
    routing = APIRouter(tags=["uc: routing"])

    @routing.post("/route/explain", summary="What would happen to a call, and why")
    async def explain(
        request: Request,
        body: Annotated[dict[str, Any], Body(description="The body of the call, as it would be sent.")],
        auth: Annotated[UserAPIKeyAuth, Depends(user_api_key_auth)],
        endpoint: Annotated[str, Query(description="chat, completions, embeddings, responses or messages")] = "chat",
    ) -> dict[str, Any]:
        try:
            return await _explained(reception, request, body, endpoint, auth)
        except Refusal as refusal:
            raise Refused(refusal) from None
        except DatabaseError as error:
            raise Refused(unreachable(error)) from None

    return routing


async def _explained(
    reception: Reception, request: Request, body: dict[str, Any], endpoint: str, auth: UserAPIKeyAuth
) -> dict[str, Any]:
    await reception.worker.ready()
    kind = routes.named(endpoint)
    headers = {name.lower(): value for name, value in request.headers.items()}
    caller = await identity.caller_of(auth, headers, reception.worker.accounts)
    await reception.look_around()
    model = body.get("model")
    try:
        call, held = await reception.admission.rehearse(kind, Inbound(body, headers), caller, str(model))
    except Refusal as refusal:
        return explanation.of_refusal(str(model), refusal)
    return explanation.of_call(call, held)

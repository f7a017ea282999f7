"""Who asks, and whose rows: the one place where that is decided. Everything below it reads the account it is given."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPBearer
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth

from .. import api_routes, identity, routes
from ..bearers import Actor
from ..call import Caller
from ..errors import Forbidden, NotFound, Refusal
from ..reception import Reception
from .envelope import WrongMethod

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Acting:
    """An account, and who acts for it.

    Attributes
    ----------
    caller
        The account: a user's own, or the one that a service or admin key names.
    actor
        Whose key or token it is.
    """

    caller: Caller
    actor: Actor

    @property
    def user_id(self) -> str:
        """Whose rows are read and written."""
        return self.caller.user_id


def reception_of(request: Request) -> Reception:
    """The reception of this process; `api.mount` put it there."""
    reception: Reception = request.app.state.uc_reception
    return reception


# For the OpenAPI document, which would name LiteLLM's own header only.
_Bearer = Annotated[object, Security(HTTPBearer(auto_error=False, description="An API key or an access token."))]


async def _actor(
    request: Request, auth: Annotated[UserAPIKeyAuth, Depends(user_api_key_auth)], bearer: _Bearer
) -> Actor:
    """Who asks, if this route is open to them; LiteLLM's own authentication knows nothing of our table."""
    actor = identity.actor_of(auth)
    route = api_routes.find(request.method, identity.path_of(request))
    if route is None:
        # Not in the table, though it may have a handler: Starlette takes a path with a line end behind it for the same.
        raise nothing_at(request.method, identity.path_of(request))
    if not route.admits(actor.role):
        raise Forbidden(f"This route is for {route.audience} keys.", code="route_not_allowed")
    await reception_of(request).worker.ready()
    return actor


async def _acting(
    request: Request,
    auth: Annotated[UserAPIKeyAuth, Depends(user_api_key_auth)],
    actor: Annotated[Actor, Depends(_actor)],
    payer: Annotated[
        str | None,
        Header(
            alias="X-UC-User-Id",
            description="The account, by its user id: needed with service and admin keys, without effect for others.",
            examples=["ann"],
        ),
    ] = None,
) -> Acting:
    headers = {name.lower(): value for name, value in request.headers.items()}
    caller = await identity.caller_of(auth, headers, reception_of(request).worker.accounts)
    return Acting(caller, actor)


async def _active(request: Request, acting: Annotated[Acting, Depends(_acting)]) -> Acting:
    """An account that is open: who is locked out may look and take keys away, and changes nothing else."""
    account = await reception_of(request).worker.accounts.account(acting.user_id)
    if acting.actor.role == "user" and account is not None and account.status != "active":
        raise Forbidden("This account is not active; ask the operator.", code=f"account_{account.status}")
    return acting


def nothing_at(method: str, path: str) -> Refusal:
    """What is said of a method and path that are none of our routes."""
    if methods := api_routes.methods_of(path):
        allowed = ", ".join(methods)
        return WrongMethod(f"{method} is not for {routes.shown(path)}; use {allowed}.", headers={"allow": allowed})
    return NotFound(f"There is no {routes.shown(path)} here; the routes stand in /openapi.json.", code="unknown_route")


def note(actor: Actor, action: str, user_id: str, reason: str | None = None) -> None:
    """Log what somebody did to an account that is not their own, or with a key that is not the account's."""
    if actor.role != "user":
        logger.warning(
            "%s %s for %s: %s%s", actor.role, actor.name, user_id, action, f" ({reason})" if reason else "",
            extra={"action": action, "actor": actor.name, "role": actor.role, "user_id": user_id},
        )  # fmt: skip


# Handlers name what they need: who asks, the account that is asked about, one that is open, or the process's reception.
Asking = Annotated[Actor, Depends(_actor)]
Account = Annotated[Acting, Depends(_acting)]
OpenAccount = Annotated[Acting, Depends(_active)]
At = Annotated[Reception, Depends(reception_of)]

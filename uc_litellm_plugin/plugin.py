"""The two objects that LiteLLM's `config.yaml` names. Importing this module makes the worker of this process."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from fastapi import Request
from litellm.proxy import proxy_server
from litellm.proxy._types import UserAPIKeyAuth

from . import api
from .callbacks import UcHandler
from .errors import Refusal
from .worker import Worker

logger = logging.getLogger(__name__)


def speak() -> None:
    """Write our log lines where nobody else would: LiteLLM sets up its own loggers only."""
    ours = logging.getLogger(__package__)
    if ours.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s:%(levelname)s: %(message)s"))
    ours.addHandler(handler)
    level = logging.getLevelName(os.environ.get("LITELLM_LOG", "INFO").upper())
    ours.setLevel(level if isinstance(level, int) else logging.INFO)


def start_soon(worker: Worker) -> asyncio.Task[None] | None:
    """Open the database before the first request, if a loop runs (LiteLLM imports callbacks inside its lifespan)."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None

    async def boot() -> None:
        try:
            await worker.ready()
        except Refusal as refusal:
            logger.warning("not ready yet: %s", refusal.message)

    return loop.create_task(boot())


speak()
proxy_handler_instance = UcHandler()
api.mount(proxy_server.app, proxy_handler_instance.reception)
_booting = start_soon(proxy_handler_instance.worker)

_litellms_shutdown = proxy_server.proxy_shutdown_event


async def _shut_down(*args: Any, **kwargs: Any) -> None:
    """Let settlements that are under way end before the process does."""
    await proxy_handler_instance.worker.stop()
    await _litellms_shutdown(*args, **kwargs)


# LiteLLM has no hook for this; its lifespan looks the name up when it ends (litellm/proxy/proxy_server.py).
proxy_server.proxy_shutdown_event = _shut_down


# LiteLLM calls it by keyword or by position, so names and order are fixed: litellm/proxy/auth/user_api_key_auth.py.
async def user_api_key_auth(request: Request, api_key: str) -> UserAPIKeyAuth:
    """`general_settings.custom_auth`: our API keys, and LiteLLM's master key as administrator."""
    return await proxy_handler_instance.authenticate(request, api_key)

"""The plugin as LiteLLM may treat it: of the two hooks that settle a plain answer, one may never come, or both twice.

Runs in the proxies, whose configuration names this module's two objects. What became of which call's hooks is written
to the file CHAOS_HOOKS, a line each: the hook, `never` or `twice`, the call's id.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any
from weakref import WeakKeyDictionary

from uc_litellm_plugin.call import CURRENT, Call
from uc_litellm_plugin.callbacks import UcHandler
from uc_litellm_plugin.plugin import proxy_handler_instance, user_api_key_auth

__all__ = ["proxy_handler_instance", "user_api_key_auth"]

NEVER, TWICE = "never", "twice"
# The awaited one, and the one that LiteLLM's logging calls afterwards, which is the backstop for the first.
SUCCESS, LOG = "async_post_call_success_hook", "async_log_success_event"
FATES: tuple[dict[str, str], ...] = ({SUCCESS: NEVER}, {LOG: NEVER}, {SUCCESS: TWICE, LOG: TWICE}, {}, {}, {}, {}, {})

_dice = random.Random(f"{os.environ['CHAOS_SEED']} {os.getpid()}")
_book = os.open(os.environ["CHAOS_HOOKS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
_fates: WeakKeyDictionary[Call, dict[str, str]] = WeakKeyDictionary()


def unreliable(name: str) -> None:
    """Lets fate decide how often this hook of a plain call comes."""
    hook = getattr(UcHandler, name)

    async def fated(*args: Any, **kwargs: Any) -> Any:
        call = CURRENT.get()
        fate = None if call is None or call.streamed else fate_of(call).get(name)
        if call is not None and fate is not None:
            os.write(_book, f"{name} {fate} {call.id}\n".encode())
        if fate == NEVER:
            return kwargs.get("response")
        answers = await asyncio.gather(*(hook(*args, **kwargs) for _ in range(2 if fate == TWICE else 1)))
        return answers[0]

    setattr(UcHandler, name, fated)


def fate_of(call: Call) -> dict[str, str]:
    return _fates.setdefault(call, _dice.choice(FATES))


unreliable(SUCCESS)
unreliable(LOG)

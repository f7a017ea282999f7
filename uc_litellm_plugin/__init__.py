"""Prepaid credits, users' own provider keys and power levels inside the stock LiteLLM proxy.

An operator sets two lines in LiteLLM's `config.yaml`:

    litellm_settings:
      callbacks: uc_litellm_plugin.proxy_handler_instance
    general_settings:
      custom_auth: uc_litellm_plugin.user_api_key_auth
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .plugin import proxy_handler_instance as proxy_handler_instance
    from .plugin import user_api_key_auth as user_api_key_auth

__all__ = ["proxy_handler_instance", "user_api_key_auth"]


def __getattr__(name: str) -> Any:
    # Looked up late, so that commands and tests import this package without LiteLLM, which takes seconds.
    if name in __all__:
        # First of all, so that what has moved in LiteLLM is told with its name and the way out.
        importlib.import_module(".contract", __name__).check()
        return getattr(importlib.import_module(".plugin", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

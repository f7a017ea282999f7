"""A proxy whose LiteLLM has moved a part does not start, and says which."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.bank import Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.upstream import Upstream

# Python runs it before anything else; here it renames a hook once LiteLLM has been imported by the command.
SITE = """
import importlib.abc
import sys

MODULE = "litellm.integrations.custom_logger"


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            hook = module.CustomLogger.async_post_call_success_hook
            del module.CustomLogger.async_post_call_success_hook
            module.CustomLogger.async_after_success_hook = hook

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""


def test_a_renamed_hook_stops_the_start(running: Upstream, bank: Bank, tmp_path: Path) -> None:
    """The command ends with an error that names the hook, what was expected, what is supported, and the way out."""
    (tmp_path / "sitecustomize.py").write_text(f"import importlib.util\n{SITE}")
    with pytest.raises(RuntimeError) as raised, paid_proxy(bank.url, config(running.url), PYTHONPATH=str(tmp_path)):
        pass
    said = str(raised.value)
    assert "litellm ended with" in said
    assert "litellm ended with 0" not in said
    hook = "litellm.integrations.custom_logger.CustomLogger.async_post_call_success_hook"
    assert f"{hook}: expected a coroutine with (data, user_api_key_dict, response); there is no such name" in said
    assert "Nothing is served" in said
    assert "pip install" in said


def test_a_stop_ends_what_was_begun(running: Upstream, bank: Bank) -> None:
    """LiteLLM's shutdown goes through ours, whatever it passes, to its end."""
    with paid_proxy(bank.url, config(running.url)) as proxy:
        proxy.stop()
        said = proxy.log()
    assert "Application shutdown complete" in said
    assert "Application shutdown failed" not in said
    assert "_shut_down()" not in said

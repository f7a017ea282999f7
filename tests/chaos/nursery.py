"""Starts LiteLLM proxies in two seconds instead of ten: imports LiteLLM once, then forks a child for each proxy.

A child runs the stock command line (`litellm.run_server`, what the console script calls) in the nursery's environment.
Protocol: one JSON line in (`arguments`, `directory`, `log`), one JSON line out (`pid`). The children end with the
nursery, which ends with its stdin.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

# What a proxy imports at its start; the plugin's own two objects are made in the child.
IMPORTED = ("litellm.proxy.proxy_cli", "litellm.proxy.proxy_server", "uc_litellm_plugin.callbacks")
# What it imports at its first calls, as far as this release of LiteLLM has it: another second.
WARM = (
    *("openai.resources.chat", "openai.resources.beta", "openai.resources.admin", "openai.resources.fine_tuning"),
    *("openai.resources.evals", "openai.resources.responses", "openai.resources.embeddings", "openai.types.beta"),
    *("litellm.litellm_core_utils.default_encoding", "litellm.proxy.anthropic_endpoints.endpoints"),
    *("litellm.proxy._experimental.mcp_server.mcp_server_manager", "litellm.integrations.otel.presets"),
    *("litellm.responses.mcp.litellm_proxy_mcp_handler", "litellm.proxy.response_polling"),
    *("litellm.integrations.websearch_interception.handler", "uvicorn.loops.uvloop"),
    *(
        "litellm.llms.vertex_ai.vertex_ai_partner_models.anthropic.transformation",
        "litellm.integrations.shadow_eval_logger",
    ),
    *("uvicorn.protocols.http.h11_impl", "litellm.proxy.pass_through_endpoints.llm_passthrough_endpoints"),
)
PR_SET_PDEATHSIG = 1


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    for name in WARM:
        with suppress(ImportError):
            importlib.import_module(name)
    # The children need not look for garbage in what they share.
    gc.collect()
    gc.freeze()
    # Nobody waits for the children here; whoever ordered one watches it by its pidfd.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(json.dumps({"ready": True}), flush=True)
    orders = open(0, "rb", buffering=0)  # noqa: SIM115 - unbuffered, so that a child does not hold orders for others
    while order := orders.readline():
        if (pid := os.fork()) == 0:
            serve(json.loads(order))
        print(json.dumps({"pid": pid}), flush=True)


def serve(order: dict[str, Any]) -> NoReturn:
    """Become a proxy."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.chdir(order["directory"])
    sys.argv = ["litellm", *order["arguments"]]
    run_server = importlib.import_module("litellm").run_server
    sys.exit(run_server())


if __name__ == "__main__":
    main()

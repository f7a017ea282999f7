"""What one release of LiteLLM has of the parts that the plugin rests on, and of routes; run in its environment."""

from __future__ import annotations

import inspect
import json
import sys

from uc_litellm_plugin import contract, proxy_routes, routes
from uc_litellm_plugin.parts import PARTS, Part


def of_part(part: Part) -> str:
    """'as expected', what LiteLLM has beyond it, or what is wrong with it."""
    try:
        found = contract.find(part)
    except ImportError:
        return "missing"
    if (fault := contract.fault_of(part, found)) is not None:
        return fault
    if not part.callers:
        return "as expected"
    more = [name for name in inspect.signature(found).parameters if name not in ("self", *part.parameters)]
    return f"as expected, and {', '.join(more)}" if more else "as expected"


def of_routes() -> dict[str, str]:
    """Every route of LiteLLM that is open to users, and how many are not."""
    served = {(route.method, route.path) for route in proxy_routes.served()}
    ours = routes.open_to_users()
    found = {f"{method} {path}": "served" if (method, path) in served else "not there" for method, path in ours}
    return {**found, "others, closed to users": str(len(served - set(ours)))}


if __name__ == "__main__":
    facts = {"parts": {str(part): of_part(part) for part in PARTS}, "routes": of_routes()}
    json.dump(facts, sys.stdout)

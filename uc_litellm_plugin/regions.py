"""What a region adds to the price of a model: OpenAI's regional hosts, and all of Vertex AI's but the global one.

The price map says by how much (`litellm/litellm_core_utils/llm_cost_calc/utils.py`, `get_regional_uplift_multiplier`,
`get_vertex_regional_endpoint_uplift`); where a deployment answers follows from its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from litellm.llms.openai.data_residency import infer_openai_data_residency
from litellm.llms.vertex_ai.vertex_llm_base import VertexBase

from . import prices

# What of a deployment's parameters says where it answers.
PARAMS = frozenset({"api_base", "vertex_location", "vertex_ai_location"})


def multiplier(entry: Mapping[str, Any], params: Mapping[str, Any], model: str, provider: str) -> Decimal:
    """What each rate of a deployment's price entry is multiplied by; 1 for most.

    Parameters
    ----------
    entry
        Of the price map.
    params
        The deployment's, as LiteLLM has them.
    model, provider
        By LiteLLM's names.
    """
    value = entry.get(_key(params, model, provider))
    return prices.exact(value) if isinstance(value, int | float) and not isinstance(value, bool) else Decimal(1)


def _key(params: Mapping[str, Any], model: str, provider: str) -> str:
    """Under which name an entry has the multiplier; none for where there is no region."""
    if provider.startswith("vertex_ai"):
        location = VertexBase.get_vertex_region(VertexBase.safe_get_vertex_ai_location(params), model)
        return "" if location.lower() == "global" else "regional_endpoint_uplift_multiplier"
    residency = infer_openai_data_residency(provider, params.get("api_base"))
    return f"regional_processing_uplift_multiplier_{residency}" if residency else ""

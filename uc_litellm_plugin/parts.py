"""The parts of LiteLLM, httpx and OpenAI's client that this plugin rests on, and how it uses each."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

# The first of the tested releases, the last, and one that was compromised; docs/compatibility.md says why, and
# pyproject.toml the same to pip.
OLDEST, NEWEST, COMPROMISED = (1, 106), (1, 109), (1, 107)

_LOGGER = "litellm.integrations.custom_logger"
_ROUTER = "litellm.router"
_SERVER = "litellm.proxy.proxy_server"
_TYPES = "litellm.proxy._types"
_VERTEX = "litellm.llms.vertex_ai.vertex_llm_base"
_PROXY_HOOKS = ("litellm.proxy.utils",)
_CALL_HOOKS = ("litellm.utils",)
# It moved within the router in 1.108.
_ROUTER_HOOKS = ("litellm.router", "litellm.router_python_core")
_LOG_HOOKS = ("litellm.litellm_core_utils.litellm_logging",)


@dataclass(frozen=True)
class Part:
    """Something of others that we use.

    Attributes
    ----------
    module, name
        Where it stands; a name may be a class's member.
    kind
        A "coroutine" is awaited, a "stream" iterated over, a "value" only read.
    parameters
        What we pass by name; of a hook, all that it is given, in order.
    positional
        How many arguments we pass by position, `self` among them.
    callers
        Set for what LiteLLM calls on us: the modules of which one must do so.
    may_add
        What LiteLLM passes only to a hook that has a parameter for it.
    """

    module: str
    name: str
    kind: Literal["function", "coroutine", "stream", "value"] = "value"
    parameters: tuple[str, ...] = ()
    positional: int = 0
    callers: tuple[str, ...] = ()
    may_add: tuple[str, ...] = ()

    @property
    def is_ours_to_take(self) -> bool:
        """Whether others call it on us, rather than we on them."""
        return bool(self.callers)

    @property
    def expected(self) -> str:
        """What it should be, in words."""
        if self.kind == "value":
            return "a value of that name"
        given = ", ".join([*("_" * self.positional), *(f"{name}=" for name in self.parameters)])
        return (
            f"a {self.kind} with ({', '.join(self.parameters)})" if self.callers else f"a {self.kind}, called ({given})"
        )

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def _hook(name: str, parameters: str, callers: tuple[str, ...], *may_add: str, stream: bool = False) -> Part:
    kind: Literal["stream", "coroutine"] = "stream" if stream else "coroutine"
    return Part(_LOGGER, f"CustomLogger.{name}", kind, tuple(parameters.split()), 0, callers, may_add)


def _function(module: str, name: str, parameters: str = "", positional: int = 0) -> Part:
    return Part(module, name, "function", tuple(parameters.split()), positional)


def _coroutine(module: str, name: str, parameters: str = "", positional: int = 0) -> Part:
    return Part(module, name, "coroutine", tuple(parameters.split()), positional)


def _values(module: str, names: str) -> tuple[Part, ...]:
    return tuple(Part(module, name) for name in names.split())


_HOOKS = (
    _hook("async_pre_call_hook", "user_api_key_dict cache data call_type", _PROXY_HOOKS),
    _hook("async_filter_deployments", "model healthy_deployments messages request_kwargs parent_otel_span",
          _ROUTER_HOOKS),
    _hook("async_pre_call_deployment_hook", "kwargs call_type", _CALL_HOOKS),
    _hook("async_post_call_failure_deployment_hook", "request_data exception call_type fallback_depth", _CALL_HOOKS),
    _hook("async_post_call_success_hook", "data user_api_key_dict response", _PROXY_HOOKS),
    _hook("async_post_call_streaming_iterator_hook", "user_api_key_dict response request_data", _PROXY_HOOKS,
          stream=True),
    _hook("async_post_call_failure_hook", "request_data original_exception user_api_key_dict traceback_str",
          _PROXY_HOOKS),
    _hook("async_log_success_event", "kwargs response_obj start_time end_time", _LOG_HOOKS),
    _hook("async_post_call_response_headers_hook", "data user_api_key_dict response request_headers", _PROXY_HOOKS,
          "litellm_call_info"),
)  # fmt: skip

_CHOOSING = "model messages input specific_deployment request_kwargs"

_ROUTING = (
    Part("litellm.types.router", "CustomRoutingStrategyBase.async_get_available_deployment", "coroutine",
         tuple(_CHOOSING.split()), 0, _ROUTER_HOOKS),
    Part("litellm.types.router", "CustomRoutingStrategyBase.get_available_deployment", "function",
         tuple(_CHOOSING.split()), 0, _ROUTER_HOOKS),
    _coroutine(_ROUTER, "Router.async_get_available_deployment", _CHOOSING, 1),
    _function(_ROUTER, "Router.get_available_deployment", "messages input specific_deployment request_kwargs", 2),
    _coroutine(_ROUTER, "Router.async_get_healthy_deployments", _CHOOSING, 1),
    _coroutine(_ROUTER, "Router.atext_completion", "model prompt fallbacks num_retries", 1),
    _function(_ROUTER, "Router.get_model_list", "model_name", 1),
    _function(_ROUTER, "Router.set_custom_routing_strategy", "", 2),
    # What these set is read from the router, which is not built yet.
    _function(_ROUTER, "Router", "model_list max_fallbacks model_group_alias fallbacks context_window_fallbacks "
                                 "content_policy_fallbacks"),
    _coroutine("litellm.router_utils.cooldown_cache", "CooldownCache.async_get_active_cooldowns",
               "model_ids parent_otel_span", 1),
    _function("litellm.router_utils.fallback_event_handlers", "fallback_attempt_key", "", 1),
)  # fmt: skip

_PRICING = (
    _function("litellm", "completion_cost", "completion_response model custom_llm_provider custom_pricing base_model "
                                            "router_model_id call_type service_tier"),
    _function("litellm", "AnthropicConfig.calculate_usage", "usage_object reasoning_content", 1),
    _function("litellm", "get_llm_provider", "model api_base"),
    _function("litellm.llms.openai.data_residency", "infer_openai_data_residency", "", 2),
    _function(_VERTEX, "VertexBase.safe_get_vertex_ai_location", "", 1),
    _function(_VERTEX, "VertexBase.get_vertex_region", "", 2),
    _function("litellm.types.utils", "ModelResponse", "model usage"),
    _function("litellm.types.utils", "Usage", "prompt_tokens completion_tokens total_tokens prompt_tokens_details "
                                              "completion_tokens_details"),
    Part("litellm.types.router", "CustomPricingLiteLLMParams.model_fields"),
    *_values("litellm", "model_cost provider_list cost_discount_config cost_margin_config NotFoundError "
                        "BadRequestError"),
)  # fmt: skip

_PROXY = (
    _function(_TYPES, "ProxyException", "message type param code headers"),
    _function(_TYPES, "ProxyException.to_dict", "", 1),
    _function(_TYPES, "UserAPIKeyAuth", "api_key token user_id end_user_id user_role key_alias "
                                        "user_rpm_limit user_tpm_limit"),
    _coroutine(_SERVER, "proxy_shutdown_event"),
    _coroutine("litellm.proxy.auth.user_api_key_auth", "user_api_key_auth", "request"),
    _coroutine("litellm.proxy.common_utils.http_parsing_utils", "_read_request_body", "request"),
    _function("litellm.proxy.common_utils.http_parsing_utils", "_safe_get_request_parsed_body", "request"),
    _function("litellm.proxy._lazy_features", "register_all_features", "", 1),
    *_values(_TYPES, "LitellmUserRoles.PROXY_ADMIN LitellmUserRoles.PROXY_ADMIN_VIEW_ONLY "
                     "LitellmUserRoles.INTERNAL_USER"),
    *_values(_SERVER, "app llm_router master_key litellm_proxy_admin_name"),
    *_values("litellm", "cache callbacks DEFAULT_MAX_RETRIES ROUTER_MAX_FALLBACKS expose_router_debug_in_errors"),
    _function("litellm", "ServiceUnavailableError", "message model llm_provider"),
)  # fmt: skip

_HTTP = (
    _coroutine("httpx", "AsyncClient.send", "stream auth follow_redirects", 2),
    _function("openai", "AsyncOpenAI", "api_key base_url http_client max_retries"),
)

PARTS: tuple[Part, ...] = (*_HOOKS, *_ROUTING, *_PRICING, *_PROXY, *_HTTP)

# A call in three dialects whose cost anybody can work out: 600 x 2e-6 + 400 x 1e-6 + 100 x 8e-6 USD.
PROBED_PRICES: dict[str, Any] = {
    "litellm_provider": "openai",
    "mode": "chat",
    "input_cost_per_token": 2e-6,
    "cache_read_input_token_cost": 1e-6,
    "output_cost_per_token": 8e-6,
}
PROBED_USAGES: dict[str, dict[str, Any]] = {
    "acompletion": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100,
                    "prompt_tokens_details": {"cached_tokens": 400}},
    "aresponses": {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100,
                   "input_tokens_details": {"cached_tokens": 400}},
    "anthropic_messages": {"input_tokens": 600, "cache_read_input_tokens": 400, "output_tokens": 100},
}  # fmt: skip
PROBED_COST = Decimal("0.0024")

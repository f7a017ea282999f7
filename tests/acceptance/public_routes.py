"""Routes that LiteLLM serves without asking `user_api_key_auth`, so that our authentication never sees them.

Pages of the user interface, health checks, sign-in and OAuth flows, public lists, and routes that authenticate inside
their own handler. None of them answers with a model; a route that is new here must be looked at before it is added.
"""

PUBLIC = frozenset({
    "/", "/.well-known/agent-skills/index.json", "/.well-known/jwks.json", "/.well-known/litellm-cli-auth",
    "/.well-known/litellm-ui-config", "/.well-known/oauth-authorization-server",
    "/.well-known/oauth-authorization-server/mcp", "/.well-known/oauth-authorization-server/mcp/{mcp_server_name}",
    "/.well-known/oauth-authorization-server/v1/mcp/oauth",
    "/.well-known/oauth-authorization-server/{mcp_server_name}",
    "/.well-known/oauth-authorization-server/{mcp_server_name}/mcp",
    "/.well-known/oauth-authorization-server/{root_path:path}/v1/mcp/oauth", "/.well-known/oauth-protected-resource",
    "/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-protected-resource/mcp/{mcp_server_name}",
    "/.well-known/oauth-protected-resource/{mcp_server_name}/mcp", "/.well-known/openid-configuration",
    "/.well-known/skills/index.json", "/_next", "/api/event_logging/batch", "/authorize", "/authorize/complete",
    "/authorize/flow", "/authorize/mcp-session", "/callback", "/claude-code/marketplace.json",
    "/claude_code_gateway/.well-known/oauth-authorization-server", "/claude_code_gateway/oauth/device_authorization",
    "/claude_code_gateway/oauth/revoke", "/claude_code_gateway/oauth/token", "/docs/oauth2-redirect",
    "/fallback/login", "/gemini/{endpoint:path}", "/get/ui_settings", "/get/ui_theme_settings", "/get_favicon",
    "/get_image", "/get_logo_url", "/health/drain", "/health/liveliness", "/health/liveness", "/health/readiness",
    "/langfuse/{endpoint:path}", "/lens/internal/ingestion-credentials", "/lens/worker/claim",
    "/lens/worker/{lens_id}/{job_id}/content", "/lens/worker/{lens_id}/{job_id}/heartbeat",
    "/lens/worker/{lens_id}/{job_id}/model", "/lens/worker/{lens_id}/{job_id}/progress",
    "/lens/worker/{lens_id}/{job_id}/result", "/lens/worker/{lens_id}/{job_id}/reviews",
    "/lens/worker/{lens_id}/{job_id}/sample", "/liteadmin/slack/connect/{token}", "/litellm-asset-prefix/_next",
    "/litellm/.well-known/litellm-ui-config", "/login", "/mcp", "/mcp/proxy", "/moyai/connect/exchange",
    "/oauth/client-metadata.json", "/onboarding/claim_token", "/onboarding/get_token", "/openai/v1/realtime/calls",
    "/openapi.json", "/public/agent_hub", "/public/agents/fields", "/public/autorouter_presets",
    "/public/complexity_router/fuse_presets", "/public/complexity_router/scorer_defaults", "/public/endpoints",
    "/public/litellm_blog_posts", "/public/litellm_model_cost_map", "/public/mcp_hub", "/public/model_hub",
    "/public/model_hub/info", "/public/providers", "/public/providers/fields", "/public/skill_hub",
    "/realtime/calls", "/redoc", "/register", "/revoke", "/robots.txt", "/sso/callback",
    "/sso/cli/complete/{login_id}", "/sso/cli/poll/{key_id}", "/sso/cli/start", "/sso/debug/callback",
    "/sso/debug/login", "/sso/key/generate", "/sso/saml/callback", "/sso/saml/login", "/sso/saml/metadata",
    "/swagger", "/token", "/toolset/{toolset_name}/mcp", "/ui", "/v1/logs", "/v1/mcp/oauth/authorize",
    "/v1/mcp/oauth/protected-resource", "/v1/mcp/oauth/token", "/v1/mcp/registry.json", "/v1/realtime/calls",
    "/v1/skills/{skill_id}/archive", "/v1/traces", "/v2/login", "/v3/login", "/v3/login/exchange",
    "/vertex_ai/discovery/{endpoint:path}", "/{mcp_server_name}/authorize", "/{mcp_server_name}/mcp",
    "/{mcp_server_name}/register", "/{mcp_server_name}/token",
})  # fmt: skip

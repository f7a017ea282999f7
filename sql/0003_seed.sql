-- Rows every installation starts with. A row that is there already, edited or not, is left alone.

SELECT set_config('search_path', quote_ident(coalesce(nullif(current_setting('uc.schema', true), ''), 'uc')) || ', pg_temp', false);

INSERT INTO credit_packages (name, credits, price_usd, discount_percent, badge_text, is_featured, sort_order, description) VALUES
    ('Starter Pack', 100, 10.00, 0, NULL, false, 1, '100 credits to try things out'),
    ('Value Pack', 500, 45.00, 10, 'MOST POPULAR', true, 2, '500 credits for regular use'),
    ('Pro Pack', 1000, 80.00, 20, 'BEST VALUE', true, 3, '1000 credits for heavy use'),
    ('Enterprise Pack', 5000, 350.00, 30, NULL, false, 4, '5000 credits for teams')
ON CONFLICT (name) DO NOTHING;

INSERT INTO power_level_configs (
    power_level, name, description, preferred_providers, cost_multiplier, max_latency_ms, min_quality_score,
    default_max_output_tokens, source
) VALUES
    ('eco', 'Eco', 'Lowest cost', '["openrouter", "together", "deepinfra"]', 0.7, 5000, 70, 2048, 'seed'),
    ('balanced', 'Balanced', 'Cost and quality in balance', '["openai", "anthropic", "openrouter"]', 1.0, 3000, 85, 4096, 'seed'),
    ('precision', 'Precision', 'Highest quality', '["anthropic", "openai"]', 1.5, 2000, 95, 8192, 'seed')
ON CONFLICT (power_level) DO NOTHING;

INSERT INTO providers (name, display_name, litellm_names, key_pattern, models_url) VALUES
    ('openai', 'OpenAI', '{openai,text-completion-openai}', '^sk-[A-Za-z0-9_-]{20,}$', 'https://api.openai.com/v1/models'),
    ('anthropic', 'Anthropic', '{anthropic,anthropic_text}', '^sk-ant-[A-Za-z0-9_-]{20,}$', 'https://api.anthropic.com/v1/models'),
    ('openrouter', 'OpenRouter', '{openrouter}', '^sk-or-[A-Za-z0-9_-]{20,}$', 'https://openrouter.ai/api/v1/models'),
    ('google', 'Google', '{gemini,vertex_ai,vertex_ai_beta}', '^(AIza[A-Za-z0-9_-]{35}|AQ[.][A-Za-z0-9_-]{20,})$', 'https://generativelanguage.googleapis.com/v1beta/models'),
    ('cohere', 'Cohere', '{cohere,cohere_chat}', '^[A-Za-z0-9_-]{32,}$', 'https://api.cohere.com/v1/models'),
    ('together', 'Together AI', '{together_ai}', '^[A-Za-z0-9_-]{32,}$', 'https://api.together.xyz/v1/models'),
    ('groq', 'Groq', '{groq}', '^gsk_[A-Za-z0-9]{20,}$', 'https://api.groq.com/openai/v1/models'),
    ('mistral', 'Mistral AI', '{mistral,codestral,text-completion-codestral}', '^[A-Za-z0-9]{32,}$', 'https://api.mistral.ai/v1/models'),
    ('perplexity', 'Perplexity', '{perplexity}', '^pplx-[A-Za-z0-9]{20,}$', NULL),
    ('fireworks', 'Fireworks AI', '{fireworks_ai}', '^[A-Za-z0-9_-]{16,}$', 'https://api.fireworks.ai/inference/v1/models'),
    ('huggingface', 'Hugging Face', '{huggingface}', '^hf_[A-Za-z0-9]{20,}$', 'https://router.huggingface.co/v1/models'),
    ('anyscale', 'Anyscale', '{anyscale}', '^[A-Za-z0-9_-]{20,}$', 'https://api.endpoints.anyscale.com/v1/models'),
    ('deepinfra', 'DeepInfra', '{deepinfra}', '^[A-Za-z0-9_-]{20,}$', 'https://api.deepinfra.com/v1/openai/models'),
    ('custom', 'Custom', '{custom,custom_openai,openai_like}', '^[!-~]{1,512}$', NULL)
ON CONFLICT (name) DO NOTHING;

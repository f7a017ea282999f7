"""The acceptance tests on several releases of LiteLLM, each in its own environment: `python -m tests.versions`."""

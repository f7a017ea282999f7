"""The fixtures of the acceptance tests."""

from tests.acceptance.conftest import account, bank, proxy, running, upstream

__all__ = ["account", "bank", "proxy", "running", "upstream"]

from __future__ import annotations

from uc_litellm_plugin import migrations
from uc_litellm_plugin.settings import Settings


async def test_a_clone_of_the_template_is_current(settings: Settings) -> None:
    """A database cloned from the migrated template needs nothing more."""
    await migrations.require_current(settings)
    assert await migrations.migrate(settings) == []

from __future__ import annotations

import os

from hypothesis import settings

# Read when litellm is imported: the price map that ships with it, no download.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

settings.register_profile("unit", deadline=None, max_examples=100, print_blob=True)
settings.load_profile("unit")

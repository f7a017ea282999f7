from __future__ import annotations

import os

# Read when litellm is imported: the price map that ships with it, no download.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

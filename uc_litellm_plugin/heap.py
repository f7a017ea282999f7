"""What Python's garbage collector has to look through in a worker."""

from __future__ import annotations

import gc


def freeze() -> int:
    """Leave all objects that exist now out of every later collection; their number.

    LiteLLM's modules, models and routes are some 900,000 objects that never go, and a full collection, which looks
    through them, stops the worker for a third of a second. It concerns the whole process. What is freed by reference
    counting still is; only cycles among these objects are not collected any more.
    """
    gc.collect()
    gc.freeze()
    return gc.get_freeze_count()

"""Responses that a provider stores, each in the account of the key that it was made with.

What was made with a user's own key is nothing to the platform's key, and the other way round. LiteLLM's id of a
response names the deployment that made it (litellm/responses/utils.py, `_build_responses_api_response_id`).
"""

from __future__ import annotations

import base64
import re

from .errors import Forbidden
from .plan import OWN_KEY_MARK

_PLACE = re.compile(r"(?:^|;)model_id:([^;]*)")


def is_own(response_id: object) -> bool | None:
    """Whether a response was made with a user's own key; None where its id does not say."""
    if not isinstance(response_id, str):
        return None
    try:
        inner = base64.b64decode(response_id.removeprefix("resp_"), validate=True).decode()
    except ValueError:
        return None
    found = _PLACE.search(inner)
    return found[1].endswith(OWN_KEY_MARK) if found else None


def not_fetched() -> Forbidden:
    """The refusal of fetching what was made with an own key: the platform's key has nothing to do with it."""
    return Forbidden(
        "This response was made with your own key and is stored in your account at the provider: fetch it there.",
        code="own_key_response", param="response_id",
    )  # fmt: skip


def not_continued(*, own: bool) -> Forbidden:
    """The refusal of going on from a response with a key that did not make it.

    Parameters
    ----------
    own
        Whether the response was made with a user's own key.
    """
    made, other = ("your own key", "the platform's") if own else ("the platform's key", "your own")
    return Forbidden(
        f"The response that previous_response_id names was made with {made} and is stored in its account, which "
        f"{other} does not open: send the conversation itself.",
        code="response_of_another_key", param="previous_response_id",
    )  # fmt: skip

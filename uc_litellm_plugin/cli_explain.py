"""`uc-litellm explain`: asks a running proxy what it would do with a call."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, TextIO

import httpx
import typer

from . import env_file
from .console import AsJson, print_json, print_rows, say
from .errors import CommandRefused

_TIMEOUT_S = 30.0
_KEY = re.compile(r"[ -~]+", re.ASCII)
_COLUMNS = ("place", "deployment", "provider", "own_key", "status", "worst_case_usd", "why")


def explain(
    request: Annotated[typer.FileText, typer.Argument(help="The call's JSON body: a file, or - for stdin.")],
    endpoint: Annotated[str, typer.Option(help="chat, completions, embeddings, responses or messages.")] = "chat",
    user: Annotated[str | None, typer.Option(help="Who would pay; without it, the owner of UC_API_KEY.")] = None,
    power_level: Annotated[str | None, typer.Option(help="As the header X-Power-Level.")] = None,
    url: Annotated[str, typer.Option(help="The running proxy.")] = "http://127.0.0.1:4000",
    as_json: AsJson = False,
) -> None:
    """Show who would answer a call, in which order and why, what would be held, and what would happen.

    Nobody is called and nothing is held. The proxy is asked with UC_API_KEY, else with LITELLM_MASTER_KEY, from the
    environment or the .env file.
    """
    body = _body(request)
    headers = {"authorization": f"Bearer {_key()}"}
    if user is not None:
        headers["x-uc-user-id"] = user
    if power_level is not None:
        headers["x-power-level"] = power_level
    explained = _ask(url, endpoint, headers, body)
    if as_json:
        print_json(explained)
        return
    _show(explained)


def _body(request: TextIO) -> dict[str, Any]:
    try:
        body = json.loads(request.read())
    except (ValueError, RecursionError) as error:  # A text that is not UTF-8 is the first of these, too.
        raise CommandRefused(f"The request is not JSON: {error}.", code="invalid_request") from None
    if not isinstance(body, dict):
        raise CommandRefused("The request must be a JSON object, the body of the call.", code="invalid_request")
    return body


def _key() -> str:
    found = env_file.environment()
    key = found.get("UC_API_KEY") or found.get("LITELLM_MASTER_KEY")
    if not key:
        raise CommandRefused("No key for the proxy: set UC_API_KEY, or LITELLM_MASTER_KEY and --user.", code="no_key")
    key = key.strip()
    # HTTP's errors would show it.
    if not _KEY.fullmatch(key):
        raise CommandRefused("UC_API_KEY, or LITELLM_MASTER_KEY, holds what no key does.", code="no_key")
    return key


def _ask(url: str, endpoint: str, headers: Mapping[str, str], body: dict[str, Any]) -> dict[str, Any]:
    where = f"{url.rstrip('/')}/api/v1/route/explain"
    sent = httpx.Headers(headers, encoding="utf-8")
    try:
        answer = httpx.post(where, params={"endpoint": endpoint}, headers=sent, json=body, timeout=_TIMEOUT_S)
        answered = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise CommandRefused(f"No answer from {where}: {error}; name the proxy with --url.", code="no_proxy") from None
    if answer.status_code != 200:
        refusal = answered.get("error") if isinstance(answered, dict) else None
        message = refusal.get("message") if isinstance(refusal, dict) else answered
        raise CommandRefused(f"The proxy refused to explain ({answer.status_code}): {message}", code="refused")
    return dict(answered)


def _show(explained: dict[str, Any]) -> None:
    rows = [{**each, "why": "; ".join(reason["detail"] for reason in each["reasons"]) or "first choice"}
            for each in explained["candidates"]]  # fmt: skip
    left_out = [{"place": "-", "own_key": None, "status": "left out", "worst_case_usd": None,
                 "why": each["reason"]["detail"], **each} for each in explained["left_out"]]  # fmt: skip
    print_rows([*rows, *left_out], _COLUMNS, as_json=False)
    if (hold := explained["hold"]) is not None:
        say(f"Power level {explained['power_level']}: holds {hold['credits']} credits for up to "
            f"{hold['max_output_tokens'] or 0} output tokens; "
            f"{explained['balance']['available_after']} are available after it.")  # fmt: skip
    outcome = explained["outcome"]
    if outcome["error"] is not None:
        say(f"It would be refused with {outcome['status']}: {outcome['error']['message']}")

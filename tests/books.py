"""The upstream's books: every call it got, what it counted, and the faults it was told to show.

A fault is a rule `{"kind": …, "match": {"path", "model", "api_key"}, "times": …}` with options of its kind:

- `status`: refuses with `status` (500), `message`, `headers`, or a raw `body`
- `echo_key`: a 401 whose message repeats the credential
- `hang`: never answers, or says no more after `after` words of a stream
- `delay`: answers after `seconds`; `slow`: waits `seconds` before each event of a stream
- `gate`: waits, before the first byte or after `after` words, until POST /_open (or a reset)
- `cut`: closes the connection after `after` words; 0, and any plain answer, is right after the headers
- `error_event`: a stream's error event after `after` words; `error_first`: as its very first event
- `ignore_cap`, `no_usage`, `zero_usage`; `wrong_model`: answers as `model`

`after` counts words already sent; a negative one counts events from the end (-1: all but the last). `path` matches a
part of the path, the others match whole. Of each kind the first rule that matches and has `times` left applies, so that
two `status` rules with `times: 1` take turns, and rules of different kinds combine. A proxy may drop words that arrive
together with the end of a connection: give a `cut` a `gate` at the same word, read the words, then open it.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from tests.dialects import Json, Usage

KINDS = {
    *("status", "echo_key", "hang", "delay", "slow", "gate", "cut", "error_event", "error_first"),
    *("ignore_cap", "no_usage", "zero_usage", "wrong_model"),
}
SECRET_HEADERS = {"authorization", "x-api-key"}


@dataclass
class Call:
    """One request, recorded when it arrived.

    `usage` is what a provider would bill: None when refused, the input once accepted, the output as it was sent (the
    whole of it for a plain answer, sent or not). `finished`: everything was sent. `ended`: no longer under way.
    `gated`: waits at a gate now. `left`: the client was gone first.
    """

    n: int
    method: str
    path: str
    api_key: str | None
    headers: dict[str, str]
    body: Json
    model: str | None
    time: float = field(default_factory=time.time)
    status: int | None = None
    streamed: bool = False
    usage: Usage | None = None
    words_sent: int = 0
    finished: bool = False
    ended: bool = False
    gated: bool = False
    left: bool = False
    fault: str | None = None


class UnknownFault(ValueError):
    """A rule of a kind the upstream does not know."""


class Books:
    """The calls so far, oldest first, and the rules for those to come."""

    def __init__(self) -> None:
        self.changed = asyncio.Condition()
        self.gate = asyncio.Event()
        self.reset()

    def reset(self) -> None:
        """Forgets calls and rules, and lets go whoever waits at the gate."""
        self.calls: list[Call] = []
        self.stored: dict[str, Json] = {}
        self.set_rules([])

    def set_rules(self, rules: list[Json]) -> None:
        """Replaces all rules; the gate is shut again for calls to come."""
        unknown = {rule.get("kind") for rule in rules} - KINDS
        if unknown:
            raise UnknownFault(f"unknown fault {unknown}: use one of {sorted(KINDS)}")
        self.rules = rules
        self.gate.set()
        self.gate = asyncio.Event()

    def enter(self, method: str, path: str, headers: dict[str, str], body: Json) -> Call:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token if scheme.lower() == "bearer" and token else headers.get("x-api-key")
        shown = {name: value for name, value in headers.items() if name not in SECRET_HEADERS}
        call = Call(len(self.calls) + 1, method, path, key, shown, body, body.get("model"))
        self.calls.append(call)
        return call

    def faults(self, call: Call) -> dict[str, Json]:
        """The rules that apply to this call, by kind; each is used up by one."""
        chosen: dict[str, Json] = {}
        for rule in self.rules:
            if rule["kind"] not in chosen and rule.get("times") != 0 and matches(rule.get("match") or {}, call):
                chosen[rule["kind"]] = rule
        for rule in chosen.values():
            if rule.get("times"):
                rule["times"] -= 1
        call.fault = "+".join(chosen) or None
        return chosen

    def tally(self) -> dict[str, int]:
        states: dict[str, Callable[[Call], bool]] = {
            "calls": lambda call: True,
            "finished": lambda call: call.finished,
            "ended": lambda call: call.ended,
            "gated": lambda call: call.gated,
            "left": lambda call: call.left,
        }
        return {name: sum(map(holds, self.calls)) for name, holds in states.items()}

    def as_json(self) -> list[Json]:
        return [asdict(call) for call in self.calls]

    async def note(self) -> None:
        """Wakes whoever waits for the books to change."""
        async with self.changed:
            self.changed.notify_all()

    async def reached(self, wanted: dict[str, int], seconds: float) -> bool:
        """Waits until each tally named is at least as wanted; False when `seconds` have passed first."""

        def there() -> bool:
            now = self.tally()
            return all(now[name] >= least for name, least in wanted.items())

        async with self.changed:
            try:
                await asyncio.wait_for(self.changed.wait_for(there), seconds)
            except asyncio.TimeoutError:  # not the builtin one before Python 3.11
                return False
        return True


def matches(wanted: Json, call: Call) -> bool:
    return (
        str(wanted.get("path", "")) in call.path
        and wanted.get("model", call.model) == call.model
        and wanted.get("api_key", call.api_key) == call.api_key
    )

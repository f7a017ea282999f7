"""Keys in use, taken out of whatever is written down: logs, errors, and what LiteLLM hands to other callbacks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

REDACTED = "[own key]"
_DEEPEST = 8

# Keys of attempts that are under way, by how many use each.
_in_use: Counter[str] = Counter()


@contextmanager
def in_use(key: str) -> Iterator[None]:
    """While this lasts, no log line holds the key."""
    take(key)
    try:
        yield
    finally:
        give_back(key)


def take(key: str) -> None:
    """From now on no log line holds the key."""
    _in_use[key] += 1


def give_back(key: str) -> None:
    """The attempt that took the key is over, and everything about it is written."""
    _in_use[key] -= 1
    if _in_use[key] <= 0:
        del _in_use[key]


def clean_text(text: str, *keys: str) -> str:
    """A text without these keys, or without all that are in use."""
    for key in keys or tuple(_in_use):
        text = text.replace(key, REDACTED)
    return text


def clean(value: Any, key: str, depth: int = 0) -> Any:
    """A copy of plain data without a key; objects of other kinds are handed on as they are."""
    if isinstance(value, str):
        return value.replace(key, REDACTED) if key in value else value
    if isinstance(value, bytes):
        return value.replace(key.encode(), REDACTED.encode())
    if depth > _DEEPEST:
        return value
    if isinstance(value, Mapping):
        return {name: clean(each, key, depth + 1) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(clean(each, key, depth + 1) for each in value) if type(value) in (list, tuple) else value
    return value


def clean_error(error: BaseException, key: str) -> None:
    """Take a key out of an error's texts, and of the errors it was raised for."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        each = chain.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.args = clean(each.args, key)
        for name, value in list(vars(each).items()):
            if isinstance(value, str | bytes | dict | list | tuple):
                vars(each)[name] = clean(value, key)
        chain += [each.__cause__, each.__context__, getattr(each, "original_exception", None)]


class KeyFree(dict[str, Any]):
    """What LiteLLM keeps of a call for its callbacks (`Logging.model_call_details`), without one key.

    Parameters
    ----------
    details
        What there is so far.
    key
        Never stands in it, however it comes.
    """

    _HOLDERS = ("api_key", "additional_args", "litellm_params", "optional_params", "exception", "original_response",
                "raw_request_typed_dict", "kwargs")  # fmt: skip

    def __init__(self, details: Mapping[str, Any], key: str) -> None:
        self._key = key
        super().__init__()
        self.update(details)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, self._cleaned(value) if name in self._HOLDERS else value)

    def update(self, *others: Any, **more: Any) -> None:
        """As a dict's, through our own door."""
        for name, value in dict(*others, **more).items():
            self[name] = value

    def setdefault(self, name: str, default: Any = None) -> Any:
        """As a dict's, through our own door."""
        if name not in self:
            self[name] = default
        return self[name]

    def _cleaned(self, value: Any) -> Any:
        """Cleaned one level deep: what is nested deeper is shared with the request, and holds no key."""
        if isinstance(value, dict):
            return {name: clean(each, self._key) if _may_hold(name, each) else each for name, each in value.items()}
        return clean(value, self._key)


def _may_hold(name: Any, value: Any) -> bool:
    return name in ("api_key", "headers", "extra_headers", "client", "request_str") or isinstance(value, str)


def install() -> None:
    """Clean every log record as it is made, whichever logger and handler it is for."""
    make = logging.getLogRecordFactory()
    if getattr(make, "cleans", False):
        return

    def cleaned(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if _in_use:
            record.msg, record.args = clean_text(_message(record)), None
            if record.exc_info:
                record.exc_text = clean_text(_FORMATTER.formatException(record.exc_info))
        return record

    cleaned.cleans = True  # type: ignore[attr-defined]  # a mark, so that a second install does nothing
    logging.setLogRecordFactory(cleaned)


_FORMATTER = logging.Formatter()


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):
        # Its arguments do not fit its format; logging itself would print both with a traceback.
        return f"{record.msg} {record.args!r}"

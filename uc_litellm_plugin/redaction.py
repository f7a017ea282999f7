"""Keys in use, taken out of what a provider answers and of whatever is written down while they are sent."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import quote

import httpx

from .vault import Secret

REDACTED = "[own key]"
# What says how an answer's bytes came; they go on decoded, and as long as they are then.
_OF_TRANSPORT = frozenset({"content-encoding", "content-length"})

# Keys of requests that are being sent, by how many use each.
_in_use: Counter[str] = Counter()


@contextmanager
def in_use(key: str) -> Iterator[None]:
    """While this lasts, no log line holds the key."""
    _in_use[key] += 1
    try:
        yield
    finally:
        _in_use[key] -= 1
        if _in_use[key] <= 0:
            del _in_use[key]


def clean_text(text: str, *keys: str) -> str:
    """A text without these keys, or without all that are in use."""
    for key in keys or tuple(_in_use):
        for form in _forms(key):
            text = text.replace(form, REDACTED)
    return text


def bare(error: Exception, secret: Secret) -> Exception:
    """An error without where it was raised and what it was raised for, and without a key in what it says."""
    error.args = tuple(clean_text(str(each), secret.reveal()) if isinstance(each, str) else each for each in error.args)
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def clean_answer(response: httpx.Response, secret: Secret) -> None:
    """Take a key out of an answer: out of its headers, and its body as it comes."""
    said = httpx.Response(response.status_code, headers=response.headers, stream=response.stream)
    kept = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _OF_TRANSPORT]
    if response.is_stream_consumed:
        # A hook of the client's has read it.
        response._content = _split(response.content, secret, is_all=True)[0]
    else:
        response.stream = CleanStream(said, secret)
    response.headers = httpx.Headers([(name, clean_text(value, secret.reveal())) for name, value in kept])
    # Made with the request as it was sent.
    response.next_request = None


class CleanStream(httpx.AsyncByteStream):
    """The decoded bytes of an answer without a key, which may come in pieces.

    What has come goes on at once, but for an end with which the key may have begun.

    Parameters
    ----------
    said
        The answer as it came.
    secret
        The key.
    """

    def __init__(self, said: httpx.Response, secret: Secret) -> None:
        self._said: httpx.Response | None = said
        self._chunks: AsyncIterator[bytes] | None = said.aiter_bytes()
        self._secret: Secret | None = secret

    async def __aiter__(self) -> AsyncIterator[bytes]:
        kept = b""
        while self._secret is not None:
            data, fault = await self._next()
            if data is None:
                if kept:
                    yield kept
                await self.aclose()
                if fault is not None:
                    raise fault
                return
            ready, kept = _split(kept + data, self._secret)
            if ready:
                yield ready

    async def aclose(self) -> None:
        """Close the answer, and let go of it and of the key: the connection remembers the request as it was sent."""
        said, self._said, self._chunks, self._secret = self._said, None, None, None
        if said is not None:
            await said.aclose()

    async def _next(self) -> tuple[bytes | None, Exception | None]:
        """What comes next, None at the end, and what ended it early."""
        if self._chunks is None or self._secret is None:
            return None, None
        try:
            return await anext(self._chunks, None), None
        except Exception as error:
            # Whatever it is: it shows the request as it was sent.
            return None, bare(error, self._secret)


def _split(data: bytes, secret: Secret, *, is_all: bool = False) -> tuple[bytes, bytes]:
    """Clean bytes, and those at the end that may be the beginning of a key."""
    forms = [form.encode() for form in _forms(secret.reveal())]
    for form in forms:
        data = data.replace(form, REDACTED.encode())
    begun = 0 if is_all else max(_begun(data, form) for form in forms)
    return data[: len(data) - begun], data[len(data) - begun :]


def _begun(data: bytes, form: bytes) -> int:
    most = min(len(form) - 1, len(data))
    return next((length for length in range(most, 0, -1) if form.startswith(data[-length:])), 0)


def _forms(key: str) -> Sequence[str]:
    """A key as it is, and as it is written within JSON or a URL; the longest first."""
    return sorted({key, json.dumps(key)[1:-1], quote(key, safe="")}, key=len, reverse=True)


def install() -> None:
    """Clean every log record as it is made, whichever logger and handler it is for."""
    make = logging.getLogRecordFactory()
    if getattr(make, "cleans", False):
        return

    def cleaned(*args: object, **kwargs: object) -> logging.LogRecord:
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

"""Keys in use, taken out of what a provider answers and of whatever is written down while they are sent."""

from __future__ import annotations

import base64
import html
import json
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar
from urllib.parse import quote

import httpx

from .vault import Secret

Fault = TypeVar("Fault", bound=BaseException)

REDACTED = "[own key]"
# Stands for it meanwhile: no other key can be found in it, so that many keys do not make a line longer and longer.
_TAKEN_OUT = "\U0010fffe"
_SHORTEST_IN_BASE64 = 8
_ESCAPE = re.compile("%[0-9A-F]{2}")
_FOR_URLS = str.maketrans("+/", "-_")
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
            text = text.replace(form, _TAKEN_OUT)
    return text.replace(_TAKEN_OUT, REDACTED)


def bare(error: Fault, secret: Secret) -> Fault:
    """An error without where it was raised and what it was raised for, and without a key in what it says."""
    error.args = tuple(clean_text(str(each), secret.reveal()) if isinstance(each, str) else each for each in error.args)
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def clean_answer(response: httpx.Response, secret: Secret) -> None:
    """Take a key out of an answer: out of its headers, and its body as it comes."""
    said = httpx.Response(response.status_code, headers=response.headers, stream=response.stream)
    key = secret.reveal()
    # A name in which the key stands cannot be written in another way.
    kept = [(name, clean_text(value, key)) for name, value in response.headers.multi_items()
            if name.lower() not in _OF_TRANSPORT and key.lower() not in name.lower()]  # fmt: skip
    if response.is_stream_consumed:
        # A hook of the client's has read it.
        response._content = _Forms(secret).clean(response.content)
    else:
        response.stream = CleanStream(said, secret)
    response.headers = httpx.Headers(kept)
    if isinstance(reason := response.extensions.get("reason_phrase"), bytes):
        # httpx writes it into its errors.
        response.extensions = {**response.extensions, "reason_phrase": _Forms(secret).clean(reason)}
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
        self._forms: _Forms | None = _Forms(secret)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        kept = b""
        while True:
            data, fault = await self._next()
            if data is None or self._forms is None:
                if kept:
                    yield kept
                await self.aclose()
                if fault is not None:
                    raise fault
                return
            ready, kept = self._forms.split(kept + data)
            # While this waits, its frame is in the memory of whoever holds the stream.
            del data
            if ready:
                yield ready

    async def aclose(self) -> None:
        """Close the answer, and let go of it and of the key: the connection remembers the request as it was sent."""
        said, chunks = self._said, self._chunks
        self._said = self._chunks = self._secret = self._forms = None
        if chunks is not None:
            # It holds what came last. One that is being read ends by itself when its answer is closed.
            with suppress(RuntimeError):
                await chunks.aclose()  # type: ignore[attr-defined]  # httpx makes it as a generator
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


class _Forms:
    """All forms of a key, as bytes; made once for an answer, which may come in a thousand pieces."""

    __slots__ = ("_forms",)

    def __init__(self, secret: Secret) -> None:
        self._forms = [form.encode() for form in _forms(secret.reveal())]

    def __repr__(self) -> str:
        return "_Forms('**********')"

    def clean(self, data: bytes) -> bytes:
        """The bytes without the key."""
        for form in self._forms:
            data = data.replace(form, REDACTED.encode())
        return data

    def split(self, data: bytes) -> tuple[bytes, bytes]:
        """Clean bytes, and those at the end that may be the beginning of a key."""
        data = self.clean(data)
        begun = max(_begun(data, form) for form in self._forms)
        return data[: len(data) - begun], data[len(data) - begun :]


def _begun(data: bytes, form: bytes) -> int:
    """How many bytes at the end of the data may be the beginning of a form."""
    at = data.find(form[:1], max(0, len(data) - len(form) + 1))
    while at >= 0 and not form.startswith(data[at:]):
        at = data.find(form[:1], at + 1)
    return len(data) - at if at >= 0 else 0


def _forms(key: str) -> Sequence[str]:
    """A key as it is, and as it is written within JSON, URLs, HTML and base64; the longest first."""
    in_json, in_url = json.dumps(key)[1:-1], quote(key, safe="")
    in_lower = _ESCAPE.sub(lambda found: found[0].lower(), in_url)
    forms = {key, in_json, in_json.replace("/", "\\/"), in_url, in_lower, html.escape(key), *_in_base64(key)}
    return sorted(forms, key=len, reverse=True)


def _in_base64(key: str) -> Iterator[str]:
    """What base64 makes of a key, whatever stands before and after it (`Bearer …`), but for the characters at its ends
    in which that shows; none of a key too short to be told by them."""
    for before in range(3) if len(key) >= _SHORTEST_IN_BASE64 else ():
        written = base64.b64encode(bytes(before) + key.encode())
        whole = written[(before * 8 + 5) // 6 : (before + len(key.encode())) * 8 // 6].decode()
        yield whole
        yield whole.translate(_FOR_URLS)


def install() -> None:
    """Clean every log record as it is made, whichever logger and handler it is for."""
    make = logging.getLogRecordFactory()
    if getattr(make, "cleans", False):
        return

    def cleaned(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if _in_use and not _is_ours(record):
            record.msg, record.args = clean_text(_message(record)), None
            if record.exc_info:
                record.exc_text = clean_text(_FORMATTER.formatException(record.exc_info))
        return record

    cleaned.cleans = True  # type: ignore[attr-defined]  # a mark, so that a second install does nothing
    logging.setLogRecordFactory(cleaned)


_FORMATTER = logging.Formatter()


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether it is a line of the plugin's own, in which no key is written: a user's choice of key must not blank out
    who did what."""
    return record.name.startswith(__name__.partition(".")[0]) and not record.exc_info


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):
        # Its arguments do not fit its format; logging itself would print both with a traceback.
        return f"{record.msg} {record.args!r}"

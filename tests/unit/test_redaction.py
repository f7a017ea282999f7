"""Keys are taken out of answers, however they come, and out of what is logged while they are sent."""

from __future__ import annotations

import asyncio
import base64
import gzip
import html
import io
import itertools
import json
import logging
import random
import re
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uc_litellm_plugin import redaction
from uc_litellm_plugin.redaction import REDACTED, CleanStream
from uc_litellm_plugin.vault import Secret

KEY = "sk-cnry-0123456789abcdef"
# With all that JSON and URLs write in another way.
ODD_KEY = 'a"b\\c/d+e=f&g%h'


def written(key: str) -> list[str]:
    """A key as it is, and as JSON, PHP's JSON, URLs and HTML write it."""
    in_json, in_url = json.dumps(key)[1:-1], quote(key, safe="")
    lower = re.sub("%..", lambda found: found[0].lower(), in_url)
    return [key, in_json, in_json.replace("/", "\\/"), in_url, lower, html.escape(key)]


class Pieces(httpx.AsyncByteStream):
    """A body in these pieces, which may break off."""

    def __init__(self, *pieces: bytes, fault: Exception | None = None) -> None:
        self._pieces = pieces
        self._fault = fault
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        if self._fault is not None:
            raise self._fault

    async def aclose(self) -> None:
        self.closed = True


def answer(*pieces: bytes, key: str = KEY, headers: dict[str, str] | None = None) -> httpx.Response:
    response = httpx.Response(200, headers=headers, stream=Pieces(*pieces))
    redaction.clean_answer(response, Secret(key))
    return response


def read(response: httpx.Response) -> bytes:
    return asyncio.run(response.aread())


@pytest.mark.parametrize("key", [KEY, ODD_KEY])
@given(cuts=st.lists(st.integers(0, 400), max_size=12), seed=st.integers(0, 9))
def test_in_any_pieces(key: str, cuts: list[int], seed: int) -> None:
    """However a body is cut into pieces, no form of the key is in it, and all else is as it was."""
    forms = [*written(key), key[:5], "text"]
    parts = random.Random(seed).choices(forms, k=9)
    body = "|".join(parts).encode()
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    pieces = [body[a:b] for a, b in itertools.pairwise(places)]
    expected = "|".join(REDACTED if part in forms[:-2] else part for part in parts).encode()
    assert read(answer(*pieces, key=key)) == expected


@pytest.mark.parametrize("key", [KEY, ODD_KEY, "k" * 512])
@pytest.mark.parametrize("lead", ["", "Bearer ", "user:", "x:"])
def test_in_base64(key: str, lead: str) -> None:
    """A key within a text in base64, of either alphabet, is gone but for a character at its ends."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        told = read(answer(b'{"sent": "', encode(f"{lead}{key}!".encode()), b'"}', key=key)).decode()
        assert REDACTED in told
        assert len(told) < len('{"sent": ""}') + len(REDACTED) + len(encode(lead.encode())) + 8


def test_a_short_key() -> None:
    """A key so short that base64 of it could be anything is only looked for as it is."""
    assert read(answer(b"YWI= ab", key="ab")) == f"YWI= {REDACTED}".encode()


def test_the_reason() -> None:
    """The words beside a status, which httpx has in its errors, have no key, nor has a header's name."""
    extensions = {"reason_phrase": f"Bad key {KEY}".encode(), "http_version": b"HTTP/1.1"}
    headers = {f"x-{KEY.upper()}": "1", "x-other": "2"}
    response = httpx.Response(401, headers=headers, stream=Pieces(b""), extensions=extensions)
    redaction.clean_answer(response, Secret(KEY))
    assert response.reason_phrase == f"Bad key {REDACTED}"
    assert response.http_version == "HTTP/1.1"
    assert dict(response.headers) == {"x-other": "2"}


def test_what_has_come_goes_on() -> None:
    """A piece goes on when it comes; only an end with which the key may have begun waits."""
    response = answer(b"data: 1\n\n", b"data: sk-cn", b"ug\n\n", b"sk-")

    async def pieces() -> list[bytes]:
        return [piece async for piece in response.aiter_raw()]

    assert asyncio.run(pieces()) == [b"data: 1\n\n", b"data: ", b"sk-cnug\n\n", b"sk-"]


def test_compressed() -> None:
    """An answer that is compressed though nobody asked for it is read, cleaned, and goes on as it is then."""
    packed = gzip.compress(f"bad key {KEY}".encode())
    response = answer(packed[:9], packed[9:], headers={"content-encoding": "gzip", "content-length": str(len(packed))})
    assert read(response) == f"bad key {REDACTED}".encode()
    assert not {"content-encoding", "content-length"} & set(response.headers)


def test_headers() -> None:
    """Headers that repeat the key do not, and the others stay, also those that come twice."""
    headers = [("x-echo", f"Bearer {KEY}"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("retry-after", "7")]
    response = httpx.Response(401, headers=headers, stream=Pieces(b""))
    redaction.clean_answer(response, Secret(KEY))
    assert response.headers.multi_items() == [("x-echo", f"Bearer {REDACTED}"), *headers[1:]]


def test_broken_off() -> None:
    """What came before a body broke off goes on; the fault has its kind, and nothing of where it was raised."""
    shown = httpx.ReadError(f"cut at {KEY}")
    shown.__cause__ = RuntimeError(KEY)
    stream = CleanStream(httpx.Response(200, stream=Pieces(b"data: sk-", fault=shown)), Secret(KEY))
    came = []

    async def read_on() -> None:
        async for piece in stream:
            came.append(piece)

    with pytest.raises(httpx.ReadError) as raised:
        asyncio.run(read_on())
    assert b"".join(came) == b"data: sk-"
    assert (str(raised.value), raised.value.__cause__) == (f"cut at {REDACTED}", None)
    frames = []
    at = raised.value.__traceback__
    while at is not None:
        frames.append(at.tb_frame)
        at = at.tb_next
    ours = [frame for frame in frames if frame.f_code.co_filename == redaction.__file__]
    assert ours
    assert not [frame for frame in ours if KEY in str(frame.f_locals)]


def test_closed() -> None:
    """An answer that is closed lets go of the key, and of the connection."""
    pieces = Pieces(b"a", b"b")
    stream = CleanStream(httpx.Response(200, stream=pieces), Secret(KEY))

    async def leave() -> None:
        async for _ in stream:
            break
        await stream.aclose()
        await stream.aclose()

    asyncio.run(leave())
    assert pieces.closed
    assert not [each for each in vars(stream).values() if each is not None]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a handler writes, with the records cleaned."""
    before = logging.getLogRecordFactory()
    redaction.install()
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    logger = logging.getLogger("some.library")
    logger.addHandler(handler)
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    yield written
    logger.removeHandler(handler)
    logging.setLogRecordFactory(before)


def test_logged(lines: io.StringIO) -> None:
    """While a key is sent no line of any logger has it: in its text, its arguments, or a traceback."""
    logger = logging.getLogger("some.library")
    with redaction.in_use(KEY):
        logger.debug(f"sending {KEY}")
        logger.debug("headers %s and %d", {"authorization": f"Bearer {KEY}"}, 7)
        logger.debug("too many", KEY)
        try:
            raise ValueError(KEY)
        except ValueError:
            logger.exception("failed")
    assert KEY not in lines.getvalue()
    assert lines.getvalue().count(REDACTED) >= 4
    assert "and 7" in lines.getvalue()


def test_in_use_by_two(lines: io.StringIO) -> None:
    """A key that two calls send at once is kept out until the second is done; after that nobody knows it."""
    with redaction.in_use(KEY):
        with redaction.in_use(KEY):
            pass
        logging.getLogger("some.library").warning("one is done: %s", KEY)
    assert KEY not in lines.getvalue()
    assert not redaction._in_use


def test_our_own_lines_stay(caplog: pytest.LogCaptureFixture) -> None:
    """A key that is a word does not blank out that word where the plugin says who did what; other lines are cleaned."""
    before = logging.getLogRecordFactory()
    redaction.install()
    with redaction.in_use("suspended"):
        logging.getLogger("uc_litellm_plugin.api.callers").warning("ann is suspended")
        logging.getLogger("elsewhere").warning("the key suspended")
    logging.setLogRecordFactory(before)
    assert caplog.messages == ["ann is suspended", "the key [own key]"]

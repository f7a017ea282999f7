"""A stock LiteLLM proxy over the test upstream serves every deployment and endpoint of the tests' config."""

import io
import wave
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.proxy import Proxy, litellm_config, upstream_key
from tests.upstream import Upstream

THREE: Any = [{"role": "user", "content": "say 3 words"}]
WORDS = "the old boat"


@pytest.fixture(scope="module")
def running() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def proxy(running: Upstream) -> Iterator[Proxy]:
    with Proxy(litellm_config(running.url, plugin=False, router_settings={"num_retries": 0})) as proxy:
        yield proxy


@pytest.fixture
def upstream(running: Upstream) -> Upstream:
    running.reset()
    return running


@pytest.fixture
def client(proxy: Proxy, upstream: Upstream) -> OpenAI:
    return OpenAI(base_url=f"{proxy.url}/v1", api_key=proxy.master_key, max_retries=0)


@pytest.fixture
def claude(proxy: Proxy, upstream: Upstream) -> Anthropic:
    return Anthropic(base_url=proxy.url, api_key=proxy.master_key, max_retries=0)


def streamed(chunks: Any) -> tuple[str, Any]:
    """The text of a chat stream and the usage of its last chunk."""
    listed = list(chunks)
    return "".join(c.choices[0].delta.content or "" for c in listed if c.choices), listed[-1].usage


def silence(seconds: int) -> io.BytesIO:
    file = io.BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setparams((1, 2, 8000, 0, "NONE", ""))
        audio.writeframes(bytes(16000 * seconds))
    file.seek(0)
    file.name = "silence.wav"
    return file


@pytest.mark.parametrize(
    "model", ["gpt-mini", "gpt-mini-map", "claude", "reason", "unpriced", "free", "pair"]
)  # fmt: skip
def test_chat(client: OpenAI, upstream: Upstream, model: str) -> None:
    """Every chat deployment of the config answers, plain and streamed, under its own provider key."""
    plain = client.chat.completions.create(model=model, messages=THREE)
    assert plain.choices[0].message.content == WORDS
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    text, usage = streamed(client.chat.completions.create(model=model, messages=THREE, **options))
    assert (text, usage.total_tokens) == (WORDS, plain.usage.total_tokens if plain.usage else None)
    keys = {call["api_key"] for call in upstream.calls()}
    assert keys <= {upstream_key(name) for name in (model, "pair-east", "pair-west")}


def test_completions_and_embeddings(client: OpenAI, upstream: Upstream) -> None:
    """Lists of prompts and of texts arrive whole, and a completion streams."""
    prompts = ["say 2 words", "say 3 words"]
    assert len(client.completions.create(model="instruct", prompt=prompts, n=2, best_of=3).choices) == 4
    chunks = client.completions.create(model="instruct", prompt="say 3 words", stream=True)
    assert "".join(chunk.choices[0].text or "" for chunk in chunks if chunk.choices) == WORDS
    assert len(client.embeddings.create(model="embed", input=["a b c", "d"]).data) == 2
    assert [call["usage"]["output"] for call in upstream.calls()] == [15, 3, 0]


@pytest.mark.parametrize("model", ["gpt-mini", "claude"])
def test_responses(client: OpenAI, model: str) -> None:
    """Responses work at home and bridged, plain and streamed."""
    assert client.responses.create(model=model, input="say 3 words").output_text == WORDS
    events = list(client.responses.create(model=model, input="say 3 words", stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == WORDS
    assert events[-1].type == "response.completed"


@pytest.mark.parametrize("model", ["claude", "gpt-mini"])
def test_messages(claude: Anthropic, model: str) -> None:
    """Messages work at home and bridged, plain and streamed."""
    plain = claude.messages.create(model=model, max_tokens=50, messages=THREE)
    with claude.messages.stream(model=model, max_tokens=50, messages=THREE) as stream:
        final = stream.get_final_message()
    for message in (plain, final):
        assert message.content[0].to_dict()["text"] == WORDS
        assert (message.usage.input_tokens, message.usage.output_tokens) == (6, 3)


def test_count_tokens_asks_the_provider(claude: Anthropic, upstream: Upstream) -> None:
    """LiteLLM forwards the counting of an Anthropic model."""
    assert claude.messages.count_tokens(model="claude", messages=THREE).input_tokens == 6
    assert [call["path"] for call in upstream.calls()] == ["/v1/messages/count_tokens"]


@pytest.mark.parametrize(
    ("ask", "units"),
    [
        (lambda c: c.images.generate(model="image", prompt="a boat"), {"images": 1}),
        (lambda c: c.audio.speech.create(model="speech", voice="alloy", input="hello"), {"characters": 5}),
        (lambda c: c.audio.transcriptions.create(model="transcribe", file=silence(2)), {"seconds": 2.0}),
        (lambda c: c.moderations.create(model="moderate", input="peace"), {}),
        (
            lambda c: c.post("/rerank", cast_to=object, body={"model": "rerank", "query": "q", "documents": ["a"]}),
            {"search_units": 1},
        ),
    ],
)
def test_media(client: OpenAI, upstream: Upstream, ask: Callable[[OpenAI], Any], units: Any) -> None:
    """Images, speech, transcription, moderation and rerank reach the upstream."""
    assert ask(client)
    assert [call["usage"]["units"] for call in upstream.calls()] == [units]

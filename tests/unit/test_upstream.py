"""The test upstream speaks its dialects as the official clients read them, and fails as it is told."""

import io
import json
import wave
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from anthropic import Anthropic, APIStatusError
from openai import OpenAI

from tests.upstream import Upstream

THREE: Any = [{"role": "user", "content": "say 3 words"}]
TOOL_PROMPT: Any = [{"role": "user", "content": "call a tool"}]
WEATHER: Any = {"name": "weather", "parameters": {"type": "object"}}
WORDS = "the old boat"


@pytest.fixture(scope="module")
def running() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(running: Upstream) -> Upstream:
    running.reset()
    return running


@pytest.fixture
def client(upstream: Upstream) -> OpenAI:
    return OpenAI(base_url=f"{upstream.url}/v1", api_key="sk-direct", max_retries=0)


@pytest.fixture
def claude(upstream: Upstream) -> Anthropic:
    return Anthropic(base_url=upstream.url, api_key="sk-direct", max_retries=0)


def counted(upstream: Upstream) -> tuple[int, int]:
    """Input and output tokens of the only call in the books, when it has ended."""
    upstream.wait(ended=1)
    (call,) = upstream.calls()
    return call["usage"]["input"], call["usage"]["output"]


def silence(seconds: int) -> io.BytesIO:
    file = io.BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setparams((1, 2, 8000, 0, "NONE", ""))
        audio.writeframes(bytes(16000 * seconds))
    file.seek(0)
    file.name = "silence.wav"
    return file


class TestOpenAI:
    def test_chat_counts_its_words(self, client: OpenAI, upstream: Upstream) -> None:
        """Three words to a one-message prompt of three are 6 tokens in and 3 out, in the answer and in the books."""
        answer = client.chat.completions.create(model="gpt-4o-mini", messages=THREE, n=2)
        assert [choice.message.content for choice in answer.choices] == [WORDS, WORDS]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 6) == counted(upstream)

    @pytest.mark.parametrize("asked", [True, False])
    def test_chat_stream_tells_usage_when_asked(self, client: OpenAI, asked: bool) -> None:
        """A stream's usage comes in a last chunk without choices, and only on request."""
        options: Any = {"stream_options": {"include_usage": True}} if asked else {}
        chunks = list(client.chat.completions.create(model="gpt-4o-mini", messages=THREE, stream=True, **options))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == WORDS
        assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == ([9] if asked else [])

    def test_cap_cuts(self, client: OpenAI, upstream: Upstream) -> None:
        """A cap below the answer's length ends it with `length`; `ignore_cap` overruns it."""
        cut = client.chat.completions.create(model="m", messages=THREE, max_completion_tokens=2).choices[0]
        assert (cut.message.content, cut.finish_reason) == ("the old", "length")
        upstream.set_fault("ignore_cap")
        over = client.chat.completions.create(model="m", messages=THREE, max_tokens=2).choices[0]
        assert (over.message.content, over.finish_reason) == (WORDS, "stop")

    def test_reasoning_and_cache_are_told(self, client: OpenAI) -> None:
        """A reasoning model's thinking is part of its output, cached tokens are part of its input."""
        said: Any = [{"role": "user", "content": "say 2 words, think 9 tokens, cached 4 tokens"}]
        usage = client.chat.completions.create(model="reasoner", messages=said).usage
        assert usage is not None
        assert usage.completion_tokens_details is not None
        assert usage.prompt_tokens_details is not None
        assert (usage.completion_tokens, usage.completion_tokens_details.reasoning_tokens) == (11, 9)
        assert usage.prompt_tokens_details.cached_tokens == 4

    def test_tool_call(self, client: OpenAI) -> None:
        """A prompt that asks for a tool gets the first one called, streamed too."""
        tools: Any = [{"type": "function", "function": WEATHER}]
        choice = client.chat.completions.create(model="m", messages=TOOL_PROMPT, tools=tools).choices[0]
        assert choice.finish_reason == "tool_calls"
        with client.chat.completions.stream(model="m", messages=TOOL_PROMPT, tools=tools) as stream:
            whole = stream.get_final_completion().choices[0]
        for message in (choice.message, whole.message):
            assert [call.to_dict()["function"] for call in message.tool_calls or []] != []
            assert '{"city": "Paris"}' in str(message.tool_calls)

    def test_completions_bill_best_of(self, client: OpenAI, upstream: Upstream) -> None:
        """Every prompt of a list is answered n times and billed best_of times."""
        prompts = ["say 2 words", "say 3 words"]
        answer = client.completions.create(model="gpt-3.5-turbo-instruct", prompt=prompts, n=2, best_of=3)
        assert [choice.text for choice in answer.choices] == ["the old"] * 2 + [WORDS] * 2
        assert counted(upstream) == (6, 15)

    def test_completions_stream(self, client: OpenAI) -> None:
        """The legacy stream carries its words one by one."""
        chunks = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="say 3 words", stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == WORDS

    @pytest.mark.parametrize("given", [["a b c", "d"], [[1, 2, 3], [4]]])
    def test_embeddings(self, client: OpenAI, upstream: Upstream, given: Any) -> None:
        """Texts and lists of token ids both give one vector each, of the size asked for."""
        answer = client.embeddings.create(model="text-embedding-3-small", input=given, dimensions=4)
        assert [len(vector.embedding) for vector in answer.data] == [4, 4]
        assert (answer.usage.prompt_tokens, 0) == (4, 0) == counted(upstream)

    def test_responses(self, client: OpenAI, upstream: Upstream) -> None:
        """A response can be fetched again, and one that follows it counts it as input."""
        first = client.responses.create(model="gpt-4o-mini", input="say 3 words")
        assert client.responses.retrieve(first.id).output_text == WORDS
        assert first.usage is not None
        second = client.responses.create(model="gpt-4o-mini", input="say 1 words", previous_response_id=first.id)
        assert second.usage is not None
        assert (second.usage.input_tokens, second.usage.output_tokens) == (6 + first.usage.total_tokens, 1)

    @pytest.mark.parametrize("model", ["gpt-4o-mini", "reasoner"])
    @pytest.mark.parametrize("prompt", ["say 3 words", "call a tool"])
    def test_responses_stream(self, client: OpenAI, model: str, prompt: str) -> None:
        """The official client assembles the events to the response that the last of them carries."""
        tool: Any = {"type": "function", **WEATHER}
        with client.responses.stream(model=model, input=prompt, tools=[tool]) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        assert final.output_text == (WORDS if prompt == "say 3 words" else "")
        assert final.usage is not None
        assert final.usage.output_tokens == 3 + (5 if model == "reasoner" else 0)

    def test_media(self, client: OpenAI, upstream: Upstream) -> None:
        """Images, speech, transcriptions and moderations parse, and the books hold what each is sold by."""
        images = client.images.generate(model="gpt-image-1", prompt="a boat", n=2)
        assert images.usage is not None
        assert images.usage.output_tokens == 200
        assert client.audio.speech.create(model="tts-1", voice="alloy", input="hello").content
        assert client.audio.transcriptions.create(model="whisper-1", file=silence(2)).text == WORDS
        verdicts = client.moderations.create(model="omni-moderation-latest", input=["peace", "violence"]).results
        assert [verdict.flagged for verdict in verdicts] == [False, True]
        units = [call["usage"]["units"] for call in upstream.calls()]
        assert units == [{"images": 2}, {"characters": 5}, {"seconds": 2.0}, {}]

    def test_models(self, client: OpenAI) -> None:
        """The list of models parses."""
        assert [model.id for model in client.models.list()]


class TestAnthropic:
    def test_messages(self, claude: Anthropic, upstream: Upstream) -> None:
        """Cached and written tokens stand beside `input_tokens` in the answer, and within it in the books."""
        said: Any = [{"role": "user", "content": "say 3 words, cached 4 tokens, written 2 tokens"}]
        answer = claude.messages.create(model="claude-sonnet-4-6", max_tokens=50, system="be brief", messages=said)
        usage = answer.usage
        assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (11, 4, 2)
        assert (17, usage.output_tokens) == (17, 3) == counted(upstream)

    def test_stream(self, claude: Anthropic) -> None:
        """The official client assembles the events, the usage of the last one included."""
        with claude.messages.stream(model="claude-sonnet-4-6", max_tokens=2, messages=THREE) as stream:
            final = stream.get_final_message()
        assert (final.to_dict()["content"], final.stop_reason) == ([{"text": "the old", "type": "text"}], "max_tokens")
        assert (final.usage.input_tokens, final.usage.output_tokens) == (6, 2)

    def test_tool_stream(self, claude: Anthropic) -> None:
        """A tool's arguments are assembled from their parts."""
        tools: Any = [{"name": "weather", "input_schema": {"type": "object"}}]
        asked: Any = {"model": "claude-sonnet-4-6", "max_tokens": 50, "messages": TOOL_PROMPT, "tools": tools}
        with claude.messages.stream(**asked) as stream:
            final = stream.get_final_message()
        assert final.stop_reason == "tool_use"
        assert final.content[0].to_dict()["input"] == {"city": "Paris"}

    def test_count_tokens(self, claude: Anthropic) -> None:
        """Counting tells the input that a message of the same content would be billed."""
        assert claude.messages.count_tokens(model="claude-sonnet-4-6", messages=THREE).input_tokens == 6


class TestFaults:
    def test_statuses_take_turns(self, client: OpenAI, upstream: Upstream) -> None:
        """Rules used once apply in their order, and the call after them is answered."""
        retry_later = {"kind": "status", "status": 429, "headers": {"retry-after": "3"}, "times": 1}
        upstream.set_faults(retry_later, {"kind": "status", "status": 500, "times": 1})
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="m", messages=THREE)
        assert refused.value.response.headers["retry-after"] == "3"
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="m", messages=THREE)
        assert client.chat.completions.create(model="m", messages=THREE).choices[0].message.content == WORDS
        assert [call["usage"] is None for call in upstream.calls()] == [True, True, False]

    def test_echoed_key(self, client: OpenAI, upstream: Upstream) -> None:
        """`echo_key` repeats the credential in its 401."""
        upstream.set_fault("echo_key", match={"api_key": "sk-direct"})
        with pytest.raises(openai.AuthenticationError, match="sk-direct"):
            client.chat.completions.create(model="m", messages=THREE)

    def test_cut_stream_after_read_words(self, client: OpenAI, upstream: Upstream) -> None:
        """With a gate at the same word, a cut comes when the test says so and the books hold what went out."""
        upstream.set_faults({"kind": "gate", "after": 2}, {"kind": "cut", "after": 2})
        chunks = iter(client.chat.completions.create(model="m", messages=THREE, stream=True))
        assert [next(chunks).choices[0].delta.content for _ in range(3)] == ["", "the", " old"]
        upstream.wait(gated=1)
        upstream.open()
        with pytest.raises(httpx.RemoteProtocolError):
            next(chunks)
        assert counted(upstream) == (6, 2)
        assert not upstream.calls()[0]["finished"]

    @pytest.mark.parametrize("stream", [False, True])
    def test_cut_after_headers(self, client: OpenAI, upstream: Upstream, stream: bool) -> None:
        """A cut at once leaves a client with headers and no body."""
        upstream.set_fault("cut")
        with pytest.raises((httpx.RemoteProtocolError, openai.APIConnectionError)):
            list(client.chat.completions.create(model="m", messages=THREE, stream=stream))
        upstream.wait(ended=1)
        assert [(c["status"], c["words_sent"], c["finished"]) for c in upstream.calls()] == [(200, 0, False)]

    @pytest.mark.parametrize("fault", [{"kind": "hang"}, {"kind": "delay", "seconds": 60}, {"kind": "gate"}])
    def test_leaving_before_the_first_byte(self, upstream: Upstream, fault: dict[str, Any]) -> None:
        """A client that gives up on a silent upstream is noticed at once."""
        upstream.set_faults(fault)
        connection = HTTPConnection(urlsplit(upstream.url).netloc)
        body = json.dumps({"model": "m", "messages": THREE})
        connection.request("POST", "/v1/chat/completions", body, {"authorization": "Bearer sk-direct"})
        upstream.wait(calls=1)
        connection.close()
        upstream.wait(left=1, ended=1)

    def test_leaving_in_mid_stream(self, client: OpenAI, upstream: Upstream) -> None:
        """The books count the words sent before the client left a slow stream."""
        upstream.set_fault("slow", seconds=0.05)
        many: Any = [{"role": "user", "content": "say 1000 words"}]
        stream = client.chat.completions.create(model="m", messages=many, stream=True)
        for _ in range(3):
            next(stream)
        stream.close()
        upstream.wait(left=1)
        assert 2 <= counted(upstream)[1] < 1000

    @pytest.mark.parametrize("kind", ["error_event", "error_first"])
    def test_errors_in_streams(self, client: OpenAI, claude: Anthropic, upstream: Upstream, kind: str) -> None:
        """The official clients raise on the error event of their dialect, after the words that went before it."""
        upstream.set_fault(kind, after=1)
        with pytest.raises(openai.APIError, match="The upstream failed"):
            list(client.chat.completions.create(model="m", messages=THREE, stream=True))
        with pytest.raises(APIStatusError, match="overloaded_error"):
            list(claude.messages.create(model="m", max_tokens=9, messages=THREE, stream=True))
        with pytest.raises(openai.APIError, match="The upstream failed"):
            list(client.responses.create(model="m", input="say 3 words", stream=True))
        assert {call["words_sent"] for call in upstream.calls()} == {1 if kind == "error_event" else 0}

    def test_lies_about_usage(self, client: OpenAI, upstream: Upstream) -> None:
        """No usage, a usage of zeros, and another model's name are told; the books keep the truth."""
        upstream.set_faults({"kind": "no_usage", "times": 1}, {"kind": "wrong_model", "model": "other", "times": 1})
        silent = client.chat.completions.create(model="m", messages=THREE)
        assert (silent.usage, silent.model) == (None, "other")
        upstream.set_fault("zero_usage")
        zero = client.chat.completions.create(model="m", messages=THREE).usage
        assert zero is not None
        assert zero.total_tokens == 0
        assert [call["usage"]["output"] for call in upstream.calls()] == [3, 3]

    @pytest.mark.parametrize(
        "caps", [{"max_tokens": -5}, {"max_tokens": "many"}, {"max_tokens": 5, "max_completion_tokens": 5}]
    )
    def test_malformed_requests_are_refused(self, client: OpenAI, upstream: Upstream, caps: Any) -> None:
        """What OpenAI refuses is a 400 that costs nothing: a cap below 1, no number, or two caps at once."""
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="m", messages=THREE, **caps)
        assert upstream.calls()[0]["usage"] is None

    def test_unknown_fault_is_refused(self, upstream: Upstream) -> None:
        """A misspelt kind is an error, not a fault that never strikes."""
        with pytest.raises(ValueError, match="unknown fault"):
            upstream.set_fault("hung")

    def test_missing_credential_is_refused(self, upstream: Upstream) -> None:
        """A call without a key is a 401 and costs nothing."""
        answer = httpx.post(f"{upstream.url}/v1/chat/completions", json={"model": "m", "messages": []}, timeout=30)
        assert answer.status_code == 401
        assert upstream.calls()[0]["usage"] is None

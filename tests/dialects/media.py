"""The endpoints that answer something else than a conversation: vectors, images, audio, verdicts, rankings."""

import base64
import io
import math
import struct
import time
import wave

from tests.dialects.counting import Answer, Ask, Json, Usage, count

PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
TOKENS_PER_IMAGE = 100
DOCUMENTS_PER_SEARCH_UNIT = 100
HARMS = [
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm"),
    *("self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic"),
]


def embeddings(ask: Ask) -> Answer:
    """Vectors of 8 numbers unless `dimensions` says otherwise; base64 is what the official client asks for."""
    given = ask.body["input"]
    inputs = given if isinstance(given, list) and not all(isinstance(i, int) for i in given) else [given]
    tokens = [count(text) for text in inputs]
    size = ask.body.get("dimensions") or 8
    encoded = ask.body.get("encoding_format") == "base64"
    vectors = [[n / (n + i + 1) for i in range(size)] for n in tokens]
    data = [
        {"object": "embedding", "index": i, "embedding": packed(vector) if encoded else vector}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
    return Answer(Usage(sum(tokens)), {"object": "list", "data": data, "model": ask.model, "usage": usage})


def packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def images(ask: Ask) -> Answer:
    """Token usage is told for gpt-image models only; the dall-e models answer without."""
    n = ask.body.get("n") or 1
    usage = Usage(count(ask.body["prompt"]), n * TOKENS_PER_IMAGE, units={"images": n})
    plain: Json = {"created": int(time.time()), "data": [{"b64_json": PIXEL}] * n}
    if ask.model.startswith("gpt-image"):
        plain["usage"] = {
            "input_tokens": usage.input,
            "input_tokens_details": {"text_tokens": usage.input, "image_tokens": 0},
            "output_tokens": usage.output,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": usage.output},
            "total_tokens": usage.input + usage.output,
        }
    return Answer(usage, plain)


def speech(ask: Ask) -> Answer:
    text = ask.body["input"]
    return Answer(Usage(units={"characters": len(text)}), b"ID3" + text.encode(), media="audio/mpeg")


def transcriptions(ask: Ask) -> Answer:
    """Billed by the audio's seconds, which are a WAV file's own, else 1."""
    seconds = duration(ask.body["file"])
    words = ["the", "old", "boat"]
    text = " ".join(words)
    usage = Usage(units={"seconds": seconds})
    form = ask.body.get("response_format") or "json"
    if form == "text":
        return Answer(usage, f"{text}\n".encode(), media="text/plain; charset=utf-8", words=len(words))
    plain: Json = {"text": text, "usage": {"type": "duration", "seconds": math.ceil(seconds)}}
    if form == "verbose_json":
        plain |= {"task": "transcribe", "language": "english", "duration": seconds, "segments": []}
    return Answer(usage, plain, words=len(words))


def duration(file: Json) -> float:
    try:
        with wave.open(io.BytesIO(base64.b64decode(file["base64"]))) as audio:
            return float(audio.getnframes() / audio.getframerate())
    except (wave.Error, EOFError):
        return 1.0


def moderations(ask: Ask) -> Answer:
    """One verdict an input; an input is flagged when it says `violence`."""
    given = ask.body["input"]
    inputs = given if isinstance(given, list) and all(isinstance(i, str) for i in given) else [given]
    results = [verdict("violence" in str(text)) for text in inputs]
    usage = Usage(sum(map(count, inputs)))
    return Answer(usage, {"id": f"modr-{ask.id}", "model": ask.model, "results": results})


def verdict(violent: bool) -> Json:
    found = {harm: violent and harm == "violence" for harm in HARMS}
    return {
        "flagged": violent,
        "categories": found,
        "category_scores": {harm: 0.9 if yes else 0.001 for harm, yes in found.items()},
        "category_applied_input_types": {harm: ["text"] for harm in HARMS},
    }


def rerank(ask: Ask) -> Answer:
    """Cohere's: a search unit is one query with up to 100 documents."""
    documents = ask.body["documents"]
    units = math.ceil(len(documents) / DOCUMENTS_PER_SEARCH_UNIT)
    results = [{"index": i, "relevance_score": 1 / (i + 2)} for i in range(len(documents))]
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": units}}
    plain = {"id": ask.id, "results": results[: ask.body.get("top_n") or len(results)], "meta": meta}
    return Answer(Usage(units={"search_units": units}), plain)


def models(ask: Ask) -> Answer:
    names = ("gpt-4o-mini", "o4-mini", "claude-sonnet-4-6")
    data = [{"id": name, "object": "model", "created": 1, "owned_by": "upstream"} for name in names]
    return Answer(Usage(), {"object": "list", "data": data})

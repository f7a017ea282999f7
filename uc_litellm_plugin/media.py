"""Media in a prompt: taken out and counted, so that what is left is text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import BadRequest

_IMAGES = {"image_url", "image", "input_image", "computer_screenshot"}
_AUDIO = {"input_audio"}
_DOCUMENTS = {"file", "input_file", "document", "video_url", "video", "search_result", "container_upload"}
_MEDIA: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_IMAGES, ("image_url", "source", "image")),
    **dict.fromkeys(_AUDIO, ("input_audio",)),
    **dict.fromkeys(_DOCUMENTS, ("file", "file_data", "source", "video_url", "content")),
}
# The caller's own JSON below these is text to the model, whatever it looks like.
_FREE_FORM = {"input", "arguments", "parameters", "input_schema", "schema", "json_schema"}


class Stock:
    """Takes the media out of a prompt, counting them, so that the rest is the text."""

    def __init__(self) -> None:
        self.parts = self.images = self.remote_images = self.audio_bytes = self.documents = 0
        self.references: list[str] = []

    def take(self, node: Any) -> Any:
        """A prompt, or a part of one, without its media.

        Raises
        ------
        BadRequest
            An image holds neither a URL nor data.
        """
        if isinstance(node, list):
            return [self.take(item) for item in node]
        if not isinstance(node, dict):
            return node
        self.parts += 1
        kind = node.get("type")
        if isinstance(kind, str):
            self._note(kind, node)
        if _is_reference(node):
            self.references.append("item_reference")
        media = _MEDIA.get(kind, ()) if isinstance(kind, str) else ()
        # Only the medium itself is left out: whatever else stands in the part may be read as text.
        return {
            key: value if key in _FREE_FORM else self.take(value) for key, value in node.items() if key not in media
        }

    def _note(self, kind: str, node: Mapping[str, Any]) -> None:
        if kind in _IMAGES:
            self._note_image(node)
        elif kind in _AUDIO:
            sound = node.get("input_audio")
            self.audio_bytes += len(str(sound.get("data", ""))) if isinstance(sound, dict) else 0
        elif kind in _DOCUMENTS:
            self.documents += 1
            if _names_a_file(node):
                self.references.append("file")
        elif kind == "reasoning" and not node.get("encrypted_content"):
            self.references.append("stored reasoning")

    def _note_image(self, node: Mapping[str, Any]) -> None:
        source = next((node[key] for key in ("image_url", "source", "image") if node.get(key) is not None), None)
        url = source if isinstance(source, str) else _address(source)
        if url is not None and _is_no_image(source):
            self.documents += 1
        elif url is None:
            self.references.append("image by file id")
        elif url.startswith("data:image/"):
            self.images += 1
        elif url.startswith("data:"):
            self.documents += 1
        else:
            self.remote_images += 1


def _address(source: Any) -> str | None:
    """The URL of an image part, inline ones as data URLs."""
    if source is None:
        return None
    if not isinstance(source, dict):
        raise BadRequest("An image part must hold a URL or base64 data.", code="invalid_value", param="messages")
    if isinstance(url := source.get("url"), str):
        return url
    if isinstance(source.get("data"), str):
        return f"data:{source.get('media_type') or 'image/'}"
    return None


def _names_a_file(node: Any) -> bool:
    if isinstance(node, dict):
        return any(key in ("file_id", "url", "file_url") or _names_a_file(value) for key, value in node.items())
    return isinstance(node, list) and any(map(_names_a_file, node))


def _is_reference(node: Mapping[str, Any]) -> bool:
    """Whether a part only names what the provider has stored (`item_reference`, whose type may be left out; audio)."""
    return "id" in node and node.keys() <= {"id", "type", "status", "role"}


def _is_no_image(source: Any) -> bool:
    """Whether an image part says that it is something else; LiteLLM believes that over the data's own type."""
    named = (
        [source.get(key) for key in ("format", "mime_type", "content_type", "media_type")]
        if isinstance(source, dict)
        else []
    )
    return any(isinstance(kind, str) and "/" in kind and not kind.startswith("image/") for kind in named)

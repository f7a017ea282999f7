"""A client of the REST API for the tests: whoever's key it has, every error must come in the envelope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from tests.proxy import Json, Proxy

SECONDS = 60.0
# Making one loads all certificates, which takes longer than most requests.
_HTTP = httpx.Client(trust_env=False, timeout=SECONDS)
ENVELOPE = {"message", "type", "code", "param"}


@dataclass(frozen=True)
class Client:
    """Asks with one key, for one account if one is named."""

    proxy: Proxy
    api_key: str | None
    user_id: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        key = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        return key if self.user_id is None else {**key, "x-uc-user-id": self.user_id}

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Any request to a path below /api/v1."""
        headers = {**self.headers, **options.pop("headers", {})}
        url = f"{self.proxy.url}/api/v1{path}"
        answer = _HTTP.request(method, url, headers=headers, **options)
        if answer.status_code >= 400:
            check_envelope(answer)
        return answer

    def get(self, path: str, **params: Any) -> Any:
        """The JSON that a GET is answered with."""
        return self._ok(self.ask("GET", path, params=params))

    def post(self, path: str, body: Json | None = None, **headers: str) -> Any:
        return self._ok(self.ask("POST", path, json=body, headers=headers))

    def put(self, path: str, body: Json) -> Any:
        return self._ok(self.ask("PUT", path, json=body))

    def patch(self, path: str, body: Json) -> Any:
        return self._ok(self.ask("PATCH", path, json=body))

    def delete(self, path: str) -> Any:
        return self._ok(self.ask("DELETE", path))

    def refused(self, method: str, path: str, **options: Any) -> tuple[int, str]:
        """The status and code of an error."""
        answer = self.ask(method, path, **options)
        assert answer.status_code >= 400, (method, path, answer.text)
        return answer.status_code, answer.json()["error"]["code"]

    def all_pages(self, path: str, **params: Any) -> list[Json]:
        """All rows of a list, part by part."""
        rows, cursor = [], None
        while True:
            page = self.get(path, **params, **({} if cursor is None else {"cursor": cursor}))
            rows += page["data"]
            if (cursor := page["next_cursor"]) is None:
                return rows

    def _ok(self, answer: httpx.Response) -> Any:
        assert answer.is_success, (answer.request.method, str(answer.request.url), answer.status_code, answer.text)
        return answer.json()


def check_envelope(answer: httpx.Response) -> None:
    """An error is JSON with the OpenAI envelope, and is no fault of ours."""
    assert answer.status_code < 500 or answer.status_code == 501, answer.text
    assert answer.headers["content-type"].startswith("application/json"), answer.headers
    error = answer.json()["error"]
    assert set(error) >= ENVELOPE, answer.text
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)

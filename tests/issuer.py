"""An issuer of access tokens, as an OpenID Connect provider is one: its keys, what it answers, and what it signs."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

Json = dict[str, Any]
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/certs"


@cache
def key(name: str) -> PrivateKey:
    """A key pair of this name, made once: on the curve P-256 if it begins with `ec`, too short a one with `short`."""
    if name.startswith("ec"):
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=1024 if name.startswith("short") else 2048)


def public_pem(name: str) -> bytes:
    """The public key, as an attacker would use it for a secret."""
    return (
        key(name).public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def entry(name: str, **more: Any) -> Json:
    """The key's entry in a key set."""
    made = key(name).public_key()
    algorithm = "ES256" if isinstance(made, ec.EllipticCurvePublicKey) else "RS256"
    to_jwk = jwt.get_algorithm_by_name(algorithm).to_jwk
    public: Json = json.loads(to_jwk(made))
    return {**public, "kid": name, "use": "sig", "alg": algorithm, **more}


class Issuer:
    """What is answered and signed under one address.

    Attributes: `keys` are published, in this order; `asked` counts what was asked for; `down` answers 503 to all.
    """

    def __init__(self, url: str, *keys: str) -> None:
        self.url = url
        self.keys: list[Any] = [entry(name) for name in keys or ("rsa-1", "ec-1")]
        self.discovery: Json = {"issuer": url, "jwks_uri": f"{url}{KEYS}"}
        self.asked: Counter[str] = Counter()
        self.down = False

    def claims(self, **changed: Any) -> Json:
        """Those of a good token, with others; None leaves one out."""
        now = int(time.time())
        made = {"iss": self.url, "sub": "ann", "aud": "uc", "azp": "web", "iat": now, "exp": now + 300, "typ": "Bearer"}
        return {name: value for name, value in {**made, **changed}.items() if value is not None}

    def token(self, kid: str = "rsa-1", headers: Json | None = None, **changed: Any) -> str:
        """A token signed with this key."""
        signing = key(kid)
        algorithm = "ES256" if isinstance(signing, ec.EllipticCurvePrivateKey) else "RS256"
        return jwt.encode(self.claims(**changed), signing, algorithm, headers={"kid": kid, **(headers or {})})

    def answer(self, path: str) -> tuple[int, bytes]:
        """Status and body of an answer."""
        self.asked[path] += 1
        if self.down:
            return 503, b"{}"
        found = {DISCOVERY: self.discovery, KEYS: {"keys": self.keys}}.get(path)
        return (200, json.dumps(found).encode()) if found is not None else (404, b"{}")

    def client(self) -> httpx.AsyncClient:
        """A client whose requests all end here."""

        def handle(request: httpx.Request) -> httpx.Response:
            status, body = self.answer(str(request.url).removeprefix(self.url))
            return httpx.Response(status, content=body)

        return httpx.AsyncClient(transport=httpx.MockTransport(handle))


class RunningIssuer(Issuer):
    """An issuer behind a real address on this machine; it stops when left as a context."""

    def __init__(self, *keys: str) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = outer.answer(self.path)
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        super().__init__(f"http://127.0.0.1:{self._server.server_port}", *keys)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> RunningIssuer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

"""Tokens as an issuer signs them, keys of which only it knows the private half, and forgeries by hand."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from usagekeeper import BearerClaim
from usagekeeper.testing import ManualClock

ISSUER = "https://login.example.org"
AUDIENCE = "api"
NOW = int(ManualClock()())
SECRET = "0123456789abcdef" * 4


@lru_cache
def private(name: str = "EC") -> Any:
    """A key pair of its own for each name: "EC", "EC2", "P-384", "RSA", "Ed25519"."""
    if name.startswith("RSA"):
        return rsa.generate_private_key(65537, 2048)
    if name == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP384R1() if name == "P-384" else ec.SECP256R1())


@lru_cache
def public(name: str = "EC") -> str:
    """The public half as PEM."""
    key = private(name).public_key()
    text: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


def private_pem(name: str = "EC") -> str:
    text: bytes = private(name).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return text.decode()


def jwk(name: str = "EC", **more: Any) -> dict[str, Any]:
    """The public half as a key of a set, its kid the same name."""
    algorithm: Any = RSAAlgorithm if name.startswith("RSA") else ECAlgorithm
    return {**algorithm.to_jwk(private(name).public_key(), as_dict=True), "kid": name, **more}


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def claims(**more: Any) -> dict[str, Any]:
    """What a good token says; None leaves a claim out."""
    said = {"sub": "anne", "iss": ISSUER, "aud": AUDIENCE, "exp": NOW + 600, **more}
    return {name: value for name, value in said.items() if value is not None}


def signed(name: str = "EC", algorithm: str = "ES256", header: dict[str, Any] | None = None, **more: Any) -> str:
    """A token signed with a private key."""
    return sealed(claims(**more), private(name), algorithm, {"kid": name, **(header or {})})


def secretly(algorithm: str = "HS256", secret: str | bytes = SECRET, **more: Any) -> str:
    """A token signed with a secret."""
    return sealed(claims(**more), secret, algorithm, {})


def sealed(payload: Any, key: Any, algorithm: str, header: dict[str, Any]) -> str:
    """Whatever stands in the token, its signature is good."""
    method = jwt.PyJWS().get_algorithm_by_name(algorithm)
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signing = f"{b64(json.dumps({'alg': algorithm, 'typ': 'JWT', **header}).encode())}.{b64(body)}"
    raw = key.encode() if isinstance(key, str) else key
    return f"{signing}.{b64(method.sign(signing.encode(), raw))}"


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def by_key(claim: str = "sub", **more: Any) -> BearerClaim:
    """A claim that is verified with one public key."""
    options: dict[str, Any] = {"algorithms": ["ES256"], "issuer": ISSUER, "audience": AUDIENCE, **more}
    if "jwks_url" not in options:
        options.setdefault("key", public())
    return BearerClaim(claim, **options)


class Issuer:
    """A key set on a loopback port; *answer* may be changed, and *asked* counts."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.asked = 0
        self.answer: Callable[[], tuple[int, dict[str, str], bytes]] = lambda: (200, {}, key_set(*self.keys))
        self.keys = list(keys)
        self.url = ""

    def fails(self) -> None:
        self.answer = lambda: (500, {}, b"")


@contextmanager
def issuing(*keys: dict[str, Any]) -> Iterator[Issuer]:
    issuer = Issuer(*keys)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked += 1
            status, headers, body = issuer.answer()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):  # a client that has seen enough
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer.url = f"http://127.0.0.1:{server.server_address[1]}/keys"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

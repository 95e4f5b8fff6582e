"""A provider's token stands for its subject while it is good, and for nobody otherwise."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

joserfc = pytest.importorskip("joserfc", reason="NO joserfc: install the extra oidc")
from joserfc import jwt  # noqa: E402
from joserfc.jwk import ECKey, KeySet, OctKey, OKPKey, RSAKey  # noqa: E402

from bitnet_core.errors import FormatError  # noqa: E402
from bitnet_inference.server.oidc import Issuer, Subjects  # noqa: E402
from bitnet_inference.server.tenants import Tenant, Tenants  # noqa: E402

NOW = 1_800_000_000.0
EC = ECKey.generate_key("P-256", {"kid": "ec"})
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
OKP = OKPKey.generate_key("Ed25519", {"kid": "okp"})
STRANGER = ECKey.generate_key("P-256", {"kid": "ec"})


def jwks(*keys: Any) -> str:
    return json.dumps(KeySet(list(keys)).as_dict(private=False))


def claims(**other: Any) -> dict[str, Any]:
    usual = {"iss": "https://id.example", "aud": "bitnet", "sub": "ada", "iat": int(NOW), "exp": int(NOW) + 600}
    return {name: value for name, value in {**usual, **other}.items() if value is not None}


def token(key: Any = EC, alg: str = "ES256", header: dict[str, Any] | None = None, **other: Any) -> str:
    head = {"alg": alg, "kid": key.kid, **(header or {})}
    return jwt.encode({k: v for k, v in head.items() if v is not None}, claims(**other), key, algorithms=[alg])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "jwks.json"
    file.write_text(jwks(EC, RSA, OKP))
    return file


def subjects(place: Path | str, **settings: Any) -> Subjects:
    issuer = Issuer(issuer="https://id.example", audience="bitnet", jwks=str(place), **settings)
    return Subjects(issuer, clock=lambda: NOW)


def test_a_good_token_stands_for_its_subject(file: Path) -> None:
    find = subjects(file, everybody=Tenant(id="", name="", tokens_per_minute=5, budget=7))
    tenant = find(token())
    assert tenant is not None
    assert (tenant.name, tenant.role, tenant.tokens_per_minute, tenant.budget) == ("ada", "user", 5, 7)
    assert find(token(RSA, "RS256")) == tenant == find(token(RSA, "PS256")) == find(token(OKP, "Ed25519"))
    assert find(token(aud=["other", "bitnet"])) == tenant
    other = find(token(sub="bob"))
    assert other is not None
    assert other.id != tenant.id
    assert other.secret != tenant.secret
    assert len(tenant.secret) == 32


def test_claims_may_say_role_and_models(file: Path) -> None:
    find = subjects(file, role_claim="role", models_claim="models")
    tenant = find(token(role="admin", models=["m"]))
    assert tenant is not None
    assert (tenant.role, tenant.models) == ("admin", {"m"})
    for wrong in ({"role": "root", "models": []}, {"models": []}, {"role": "user"}, {"role": ["user"], "models": []}):
        assert find(token(**wrong)) is None
    assert find(token(role="user", models=5)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"exp": int(NOW) - 61},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": float("inf")},
        {"nbf": int(NOW) + 61},
        {"iat": int(NOW) + 61},
        {"iss": "https://id.example.evil"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"aud": []},
        {"sub": None},
        {"sub": ""},
        {"sub": 5},
        {"sub": "x" * 256},
    ],
)
def test_claims_that_are_not_for_us_or_not_of_now_are_nobody(file: Path, wrong: dict[str, Any]) -> None:
    assert subjects(file)(token(**wrong)) is None


def unsigned(head: dict[str, Any]) -> str:
    parts = (json.dumps(part).encode() for part in (head, claims()))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts) + "."


def test_what_the_provider_has_not_signed_is_nobody(file: Path) -> None:
    find = subjects(file)
    good = token()
    head, body, signature = good.split(".")
    public = EC.as_pem(private=False)
    shared = OctKey.import_key(public.replace(b"-----", b""), {"kid": "ec"})
    for wrong in (
        token(STRANGER),
        unsigned({"alg": "none", "kid": "ec"}),
        unsigned({"alg": "ES256", "kid": "ec"}),
        f"{head}.{body}.{signature[:-4]}AAAA",
        f"{head}.{body[:-2]}AA.{signature}",
        token(shared, "HS256"),
        token(header={"kid": "unknown"}),
        token(STRANGER, header={"jwk": STRANGER.as_dict(private=False)}),
        token(STRANGER, header={"jku": "http://127.0.0.1:9/keys"}),
        "..",
        "a.b.c",
        base64.urlsafe_b64encode(b"[" * 9000).decode() + "..",
        "\u00e9.\u00e9.\u00e9",
    ):
        assert find(wrong) is None
    assert find(good) is not None


def test_algorithms_that_were_not_allowed_are_nobody(file: Path) -> None:
    find = subjects(file, algorithms=("RS256",))
    assert find(token(RSA, "RS256")) is not None
    assert find(token(RSA, "PS256")) is None
    assert find(token()) is None


def test_a_token_ends_though_it_was_seen_before(file: Path) -> None:
    now = [NOW]
    issuer = Issuer(issuer="https://id.example", audience="bitnet", jwks=str(file))
    find = Subjects(issuer, clock=lambda: now[0])
    text = token()
    assert find(text) is not None
    now[0] += 659
    assert find(text) is not None
    now[0] += 1
    assert find(text) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"jwks": "http://id.example/keys"},
        {"jwks": "https://user:pass@id.example/keys"},
        {"jwks": "file:///etc/passwd"},
        {"jwks": "ftp://id.example/keys"},
        {"algorithms": ("none",)},
        {"algorithms": ("HS256",)},
        {"algorithms": ()},
        {"issuer": ""},
        {"audience": ""},
    ],
)
def test_an_issuer_that_could_not_be_trusted_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Issuer(**{"issuer": "https://id.example", "audience": "bitnet", "jwks": "keys.json", **settings})


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"keys": []}', '{"keys": [5]}', '{"keys": [{"kty": "oct", "k": "eA"}]}']
)
def test_a_set_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(text)
    with pytest.raises(FormatError, match=r"jwks\.json: keys: expected"):
        subjects(file)


class _Provider(BaseHTTPRequestHandler):
    """Gives what it is told to give."""

    server: Any

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, body = self.server.answer
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def provider(*answer: Any) -> Iterator[Any]:
    with HTTPServer(("127.0.0.1", 0), _Provider) as server:
        server.asked, server.answer = [], answer  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_keys_that_the_provider_changes_are_fetched_without_anybody_waiting() -> None:
    ticks = [0.0]
    with provider(200, jwks(EC)) as server:
        url = f"http://127.0.0.1:{server.server_port}/keys"
        issuer = Issuer(issuer="https://id.example", audience="bitnet", jwks=url)
        find = Subjects(issuer, clock=lambda: NOW, ticks=lambda: ticks[0])
        old = token()
        assert find(old) is not None
        server.answer = (200, jwks(RSA))
        for _ in range(5):
            assert find(token(RSA, "RS256")) is None
        assert server.asked == ["/keys"]  # a stranger's key is no reason to ask at once
        ticks[0] += 30
        end = time.monotonic() + 10
        while find(token(RSA, "RS256")) is None and time.monotonic() < end:
            threading.Event().wait(0.01)
        assert find(token(RSA, "RS256")) is not None
        assert find(old) is None  # whose key was withdrawn
        assert server.asked == ["/keys"] * 2


def test_a_provider_that_fails_leaves_the_keys_as_they_were() -> None:
    ticks = [0.0]
    with provider(200, jwks(EC)) as server:
        url = f"http://127.0.0.1:{server.server_port}/keys"
        issuer = Issuer(issuer="https://id.example", audience="bitnet", jwks=url)
        find = Subjects(issuer, clock=lambda: NOW, ticks=lambda: ticks[0])
        for answer in ((500, ""), (302, ""), (200, "<html>"), (200, "x" * (2 << 20))):
            server.answer = answer
            before = len(server.asked)
            ticks[0] += 301
            end = time.monotonic() + 10
            while (len(server.asked) == before or find._fetching) and time.monotonic() < end:
                assert find(token(iat=int(NOW) - len(server.asked))) is not None
                threading.Event().wait(0.01)
        assert server.asked == ["/keys"] * 5  # and a redirection was not followed


def test_keys_that_are_not_for_us_may_stand_beside_those_that_are(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    good = EC.as_dict(private=False)
    others = [
        {"kty": "oct", "k": "eA"},
        {"kty": "new"},
        {"kty": "EC", "crv": "P-256"},
        {**good, "use": "enc", "kid": "x"},
    ]
    file.write_text(json.dumps({"keys": [*others, good], "more": 1}))
    find = subjects(file)
    assert [key.kid for key in find._keys.keys] == ["ec"]
    assert find(token()) is not None


def test_tenants_know_tokens_beside_keys(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tenants = Tenants(shared_key="correct horse battery", verifier=subjects(file))
    found = tenants.authenticate(Headers({"authorization": f"Bearer {token()}"}))
    assert found is not None
    assert found.name == "ada"
    wrong = token(STRANGER)
    for _ in range(100):
        assert tenants.authenticate(Headers({"authorization": f"Bearer {wrong}"}), "192.0.2.1") is None
    assert len(caplog.records) < 70
    assert wrong not in caplog.text

"""JWTs of an OpenID Connect provider, whose keys are made here and served by a server of this test."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError

from service.settings import Settings
from tests.support.api import Api, running_api
from tests.support.http_server import http_server

ISSUER = "https://login.example.org"
AUDIENCE = "viscera"
EVERYTHING = "viscera:submit viscera:read viscera:admin"


@dataclass
class Provider:
    """An identity provider: signs tokens and publishes its keys."""

    url: str = ""
    private: dict[str, Any] = field(default_factory=dict)
    fetches: int = 0
    away: bool = False

    def add_key(self, key_id: str) -> None:
        self.private[key_id] = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def key_set(self) -> dict[str, Any]:
        keys = [
            json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())) | {"kid": key_id, "alg": "RS256"}
            for key_id, key in self.private.items()
        ]
        return {"keys": keys}

    def token(self, key_id: str = "one", algorithm: str = "RS256", signed_with: Any = None, **changes: Any) -> str:
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "jane", "iat": now, "exp": now + 300, "scope": EVERYTHING}
        claims = {name: value for name, value in (claims | changes).items() if value is not None}
        return jwt.encode(claims, signed_with or self.private[key_id], algorithm=algorithm, headers={"kid": key_id})


@pytest.fixture(scope="module")
def signing_keys() -> dict[str, Any]:
    provider = Provider()
    provider.add_key("one")
    return provider.private


@pytest.fixture
def provider(signing_keys: dict[str, Any]) -> Iterator[Provider]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        provider.fetches += 1
        body = json.dumps(provider.key_set()).encode()
        request.send_response(500 if provider.away else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    with http_server(answer) as host:
        provider = Provider(f"http://{host}/jwks", dict(signing_keys))
        yield provider


@pytest.fixture
def api(tmp_path: Path, provider: Provider) -> Iterator[Api]:
    with running_api(tmp_path, oidc_issuer=ISSUER, oidc_audience=AUDIENCE, oidc_jwks=provider.url) as api:
        yield api


def signed_by_hand(header: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
    """An HMAC token that the library would refuse to make."""

    def encoded(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).decode().rstrip("=")

    signed = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims).encode())}"
    return f"{signed}.{encoded(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def status(api: Api, token: str, method: str = "GET", path: str = "/v1/jobs") -> int:
    with api.client_with(token) as client:
        return client.request(method, path).status_code


def test_a_token_of_the_issuer_passes_and_its_subject_is_the_tenant(api: Api, provider: Provider):
    with api.client_with(provider.token()) as client:
        job_id = client.post("/v1/jobs", files={"files": ("a.nii", b"scan")}).json()["id"]
        assert client.get(f"/v1/jobs/{job_id}").status_code == 200
    assert api.store.get(job_id).tenant == "oidc:jane"
    assert status(api, provider.token(sub="john"), path=f"/v1/jobs/{job_id}") == 404
    assert api.client.get("/v1/jobs").status_code == 200  # API keys work beside it


def test_the_keys_are_fetched_once_and_not_for_every_unknown_id(api: Api, provider: Provider):
    for _ in range(5):
        assert status(api, provider.token()) == 200
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for number in range(5):
        assert status(api, provider.token(f"unknown-{number}", signed_with=stranger)) == 401
    assert provider.fetches == 1


def test_a_new_key_of_the_issuer_is_found(api: Api, provider: Provider, monkeypatch):
    monkeypatch.setattr("service.api.tokens._REFETCH_AFTER_SECONDS", 0.0)
    assert status(api, provider.token()) == 200
    provider.add_key("two")
    assert status(api, provider.token("two")) == 200


def test_a_provider_that_is_away_is_503_at_first_and_no_matter_later(api: Api, provider: Provider, monkeypatch):
    monkeypatch.setattr("service.api.tokens._REFETCH_AFTER_SECONDS", 0.0)
    monkeypatch.setattr("service.api.tokens._KEYS_LIVE_SECONDS", 0.0)
    provider.away = True
    with api.client_with(provider.token()) as client:
        answer = client.get("/v1/jobs")
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/identity-provider-unavailable")
        assert "Retry-After" in answer.headers
        provider.away = False
        assert client.get("/v1/jobs").status_code == 200
        provider.away = True
        assert client.get("/v1/jobs").status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1},
        {"exp": None},
        {"nbf": 10**10},
        {"iss": "https://evil.example.org"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"sub": None},
        {"sub": ""},
        {"sub": "a\nb"},
    ],
    ids=str,
)
def test_a_token_for_another_time_place_or_nobody_is_refused(api: Api, provider: Provider, changes):
    assert status(api, provider.token(**changes)) == 401


def test_signatures_of_others_are_refused(api: Api, provider: Provider):
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert status(api, provider.token(signed_with=stranger)) == 401
    assert status(api, provider.token(algorithm="RS384")) == 401  # not in the list
    elliptic = ec.generate_private_key(ec.SECP256R1())
    assert status(api, provider.token(algorithm="ES256", signed_with=elliptic)) == 401
    whole = provider.token()
    assert status(api, whole[:-8] + ("A" * 8)) == 401


def test_the_public_key_is_no_secret_and_none_is_no_signature(api: Api, provider: Provider):
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "jane", "exp": now + 300, "scope": EVERYTHING}
    unsigned = jwt.encode(claims, None, algorithm="none", headers={"kid": "one"})
    public = provider.private["one"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    confused = signed_by_hand({"alg": "HS256", "kid": "one"}, claims, public)
    assert status(api, unsigned) == 401
    assert status(api, confused) == 401


@pytest.mark.parametrize("scope", ["viscera:read", ["viscera:read"], "openid viscera:read email"])
def test_scopes_come_from_the_claim(api: Api, provider: Provider, scope):
    token = provider.token(scope=scope)
    assert status(api, token) == 200
    assert status(api, token, path="/metrics") == 403
    assert status(api, token, method="POST") == 403


@pytest.mark.parametrize("scope", [None, "", "read admin", 7, {"viscera:read": True}])
def test_without_our_scopes_a_token_allows_nothing(api: Api, provider: Provider, scope):
    assert status(api, provider.token(scope=scope)) == 403


def test_a_file_of_keys_and_other_claims(tmp_path: Path, provider: Provider):
    key_file = tmp_path / "jwks.json"
    key_file.write_text(json.dumps(provider.key_set()))
    chosen = {"oidc_tenant_claim": "org", "oidc_scope_claim": "roles"}
    issuer = {"oidc_issuer": ISSUER, "oidc_audience": AUDIENCE, "oidc_jwks": str(key_file)}
    with running_api(tmp_path, **issuer, **chosen) as api:
        token = provider.token(org="Radiology " * 20, roles=["viscera:submit", "viscera:read"], scope=None)
        with api.client_with(token) as client:
            job_id = client.post("/v1/jobs", files={"files": ("a.nii", b"scan")}).json()["id"]
            assert client.get(f"/v1/jobs/{job_id}").status_code == 200
        assert len(api.store.get(job_id).tenant) <= 64
    assert provider.fetches == 0


def test_an_issuer_without_audience_or_keys_is_a_mistake():
    with pytest.raises(ValidationError, match="oidc_audience"):
        Settings(oidc_issuer=ISSUER)


@pytest.mark.parametrize("algorithm", ["HS256", "none", "hs512"])
def test_a_symmetric_algorithm_cannot_be_allowed(algorithm):
    with pytest.raises(ValidationError, match="asymmetric"):
        Settings(oidc_algorithms=[algorithm])

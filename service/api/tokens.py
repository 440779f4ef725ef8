"""JWTs of an OpenID Connect provider, checked against its published keys."""

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import jwt

from service.api.caller import Caller
from service.errors import IdentityProviderUnavailable, Unauthenticated
from service.jobs.keys import Scope
from service.settings import Settings

TENANT_PREFIX = "oidc:"
SCOPE_PREFIX = "viscera:"
_MAX_TENANT_LENGTH = 64
LEEWAY_SECONDS = 30
_KEYS_LIVE_SECONDS = 300.0
# A token with an unknown key id makes the keys be fetched again, but not for everyone who invents an id.
_REFETCH_AFTER_SECONDS = 30.0
_FETCH_TIMEOUT_SECONDS = 5.0


class KeySet:
    """The public keys of the issuer, fetched from a URL or a file and kept for five minutes."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._fetched_at: float | None = None

    def find(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of that id; None when the issuer has none.

        Raises:
            IdentityProviderUnavailable: there are no keys yet, and none can be fetched.
        """
        with self._lock:
            age = float("inf") if self._fetched_at is None else time.monotonic() - self._fetched_at
            if age > _KEYS_LIVE_SECONDS or (key_id not in self._keys and age > _REFETCH_AFTER_SECONDS):
                self._refresh()
            return self._keys.get(key_id)

    def _refresh(self) -> None:
        try:
            found = jwt.PyJWKSet.from_dict(self._read()).keys
        except (OSError, ValueError, httpx.HTTPError, jwt.PyJWTError) as error:
            if not self._keys:
                raise IdentityProviderUnavailable(
                    "The keys of the identity provider cannot be read at the moment; try again shortly."
                ) from error
        else:
            self._keys = {key.key_id: key for key in found}
        self._fetched_at = time.monotonic()

    def _read(self) -> dict[str, Any]:
        if self._source.startswith(("http://", "https://")):
            answer = httpx.get(self._source, timeout=_FETCH_TIMEOUT_SECONDS)
            answer.raise_for_status()
            found: Any = answer.json()
        else:
            found = json.loads(Path(self._source).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("A key set is an object.")
        return found


class TokenVerifier:
    """Turns a JWT into the caller it was issued to."""

    def __init__(self, settings: Settings) -> None:
        assert settings.oidc_issuer, "there is an issuer"
        assert settings.oidc_jwks, "the settings have checked that"
        self._settings = settings
        self._keys = KeySet(settings.oidc_jwks)

    def caller_of(self, token: str) -> Caller:
        """The caller whom the token names.

        Raises:
            Unauthenticated: the token is not valid here and now; the reason is not told to whoever holds it.
            IdentityProviderUnavailable: nobody can tell at the moment.
        """
        try:
            key = self._keys.find(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                raise Unauthenticated("The token was not signed by a key of the issuer.")
            claims = jwt.decode(
                token,
                key.key,
                algorithms=self._settings.oidc_algorithms,
                issuer=self._settings.oidc_issuer,
                audience=self._settings.oidc_audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("The token has expired.") from error
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise Unauthenticated("The token is not valid.") from error
        return Caller(tenant=self._tenant(claims), key_id=None, scopes=self._scopes(claims))

    def _tenant(self, claims: Mapping[str, Any]) -> str:
        name = claims.get(self._settings.oidc_tenant_claim)
        if not isinstance(name, str) or not name or not name.isprintable():
            raise Unauthenticated(f"The token has no usable claim {self._settings.oidc_tenant_claim!r}.")
        if len(TENANT_PREFIX + name) > _MAX_TENANT_LENGTH:
            name = hashlib.sha256(name.encode()).hexdigest()[:48]
        return TENANT_PREFIX + name

    def _scopes(self, claims: Mapping[str, Any]) -> frozenset[Scope]:
        stated = claims.get(self._settings.oidc_scope_claim, ())
        words = stated.split() if isinstance(stated, str) else stated
        if not isinstance(words, list | tuple):
            return frozenset()
        return frozenset(scope for scope in Scope if f"{SCOPE_PREFIX}{scope}" in words)

"""Tokens of an OpenID provider in the place of keys: signed by it, for us, and of now."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import secrets
import threading
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import urlsplit

import msgspec
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import Key, KeySet, import_key

from bitnet_core.errors import FormatError, printable

from .keys import Role
from .tenants import Tenant

log = logging.getLogger("bitnet_inference.server")

# Signatures alone: nobody shares a secret with us.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
_LARGEST = 1 << 20  # bytes of a set of keys
_TIMEOUT = 5.0
_LEEWAY = 60  # seconds that clocks may differ
_FRESH = 300.0  # seconds until the keys are fetched again
_SOON = 30.0  # the same when a token names one that is not known
_CACHED = 4096  # tokens whose signatures need not be checked again


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """A provider, whose word is taken on who somebody is."""

    issuer: str  # as its tokens name it
    audience: str  # as its tokens name us
    jwks: str  # a file, or a https URL; keys come from nowhere else, whatever a token says
    algorithms: tuple[str, ...] = ALGORITHMS
    role_claim: str | None = None  # its value is the role: admin, user, read-only or metrics; others are refused
    models_claim: str | None = None  # its values are the models that may be used
    everybody: Tenant = field(default_factory=partial(Tenant, id="", name=""))  # what each subject may, save for claims

    def __post_init__(self) -> None:
        unknown = set(self.algorithms) - set(ALGORITHMS)
        if unknown or not self.algorithms:
            raise ValueError(f"algorithms: expected some of {', '.join(ALGORITHMS)}, got {self.algorithms}")
        if not self.issuer or not self.audience:
            raise ValueError("issuer, audience: expected what the tokens say, got nothing")
        if "://" in self.jwks and not _is_safe(self.jwks):
            raise ValueError(f"jwks: expected a file or a https URL without user and password, got {self.jwks!r:.200}")


class Subjects:
    """Finds the tenant that a token stands for; give it to `Tenants(verifier=...)`."""

    def __init__(
        self,
        issuer: Issuer,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self._clock = clock
        self._ticks = ticks
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, tuple[float, Tenant]] = OrderedDict()
        self._keys = _fetch(issuer.jwks)
        self._fetched = ticks()
        self._fetching = False

    def __call__(self, token: str, /) -> Tenant | None:
        """The tenant, or None if the token is not good; never waits for the network."""
        digest = hashlib.sha256(token.encode()).digest()
        now = self._clock()
        with self._lock:
            found = self._known.get(digest)
        if found is not None:
            return found[1] if now < found[0] else None
        self._refresh(_FRESH)
        try:
            claims = self._claims(token, now)
            tenant = self._tenant(claims)
        except (JoseError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            if isinstance(error, InvalidKeyIdError):
                self._refresh(_SOON)  # the next try may find it
            log.info("a token was refused: %s", type(error).__name__)
            return None
        with self._lock:
            self._known[digest] = (float(claims["exp"]) + _LEEWAY, tenant)
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)
        return tenant

    def _claims(self, token: str, now: float) -> dict[str, Any]:
        claims = jwt.decode(token, self._keys, algorithms=list(self.issuer.algorithms)).claims
        jwt.JWTClaimsRegistry(
            now=lambda: int(now),
            leeway=_LEEWAY,
            iss={"essential": True, "value": self.issuer.issuer},
            aud={"essential": True, "value": self.issuer.audience},
            exp={"essential": True},
            sub={"essential": True},
        ).validate(claims)
        return claims

    def _tenant(self, claims: Mapping[str, Any]) -> Tenant:
        issuer, subject = self.issuer, claims["sub"]
        if not isinstance(subject, str) or not 1 <= len(subject) <= 255:
            raise ValueError("sub: expected 1 to 255 characters")
        role: Any = issuer.everybody.role
        if issuer.role_claim is not None:
            role = claims[issuer.role_claim]
            if role not in get_args(Role):
                raise ValueError("the role is not one of ours")
        models = issuer.everybody.models
        if issuer.models_claim is not None:
            models = frozenset(str(name) for name in cast("list[object]", claims[issuer.models_claim]))
        identity = hashlib.sha256(f"{len(issuer.issuer)}:{issuer.issuer}{subject}".encode()).hexdigest()[:32]
        secret = hmac.digest(self._secret, identity.encode(), "sha256")
        name = printable(subject, 80)
        return replace(
            issuer.everybody, id=f"oidc_{identity}", name=name, role=cast("Role", role), models=models, secret=secret
        )

    def _refresh(self, after: float) -> None:
        """Have the keys fetched anew, by a thread, if the last time was long enough ago."""
        with self._lock:
            if self._fetching or self._ticks() - self._fetched < after:
                return
            self._fetching = True
        threading.Thread(target=self._refetch, name="bitnet-oidc", daemon=True).start()

    def _refetch(self) -> None:
        try:
            keys = _fetch(self.issuer.jwks)
        except (OSError, ValueError) as error:
            log.warning("the provider's keys cannot be fetched, the old ones are kept: %s", error)
            keys = self._keys
        with self._lock:
            if {key.thumbprint() for key in keys.keys} != {key.thumbprint() for key in self._keys.keys}:
                self._known.clear()  # a key that was withdrawn vouches for nobody any more
            self._keys, self._fetched, self._fetching = keys, self._ticks(), False


class _Still(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else than it was sent."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _fetch(place: str) -> KeySet:
    """The public keys at a place."""
    if "://" in place:
        opener = urllib.request.build_opener(_Still, urllib.request.ProxyHandler())
        with opener.open(place, timeout=_TIMEOUT) as answer:
            data = answer.read(_LARGEST + 1)
    else:
        with Path(place).open("rb") as stream:
            data = stream.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise FormatError(place, "keys", f"at most {_LARGEST} bytes", "more")
    try:
        found = msgspec.json.decode(data, type=_Set)
    except msgspec.MsgspecError as error:
        raise FormatError(place, "keys", "a JSON Web Key Set", error) from None
    keys = [key for entry in found.keys if (key := _key(entry)) is not None]
    if not keys:
        raise FormatError(place, "keys", "at least one for signatures", "none")
    return KeySet(keys)


class _Set(msgspec.Struct):
    keys: list[dict[str, Any]]


def _key(entry: dict[str, Any]) -> Key | None:
    """A public key for signatures; others may stand beside it."""
    if entry.get("kty") == "oct" or entry.get("use", "sig") != "sig":
        return None
    try:
        return import_key(entry)
    except (JoseError, ValueError, TypeError, KeyError):
        return None


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    if parts.username is not None or parts.hostname is None:
        return False
    if parts.scheme == "https":
        return True
    try:
        return parts.scheme == "http" and ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return False

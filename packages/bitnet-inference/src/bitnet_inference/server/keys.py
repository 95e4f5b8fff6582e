"""Keys that clients show: 256 random bits with a name in front and a checksum behind, stored only as a digest."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import msgspec

from bitnet_core.errors import NotFound

from .store import Row, Run, Store

Role = Literal["admin", "user", "read-only", "metrics"]
Period = Literal["day", "month", "total"]

_SHAPE = re.compile(r"bn_([a-z2-7]{16})_([a-z2-7]{52})([a-z2-7]{7})")
_NOBODY = hashlib.sha256(secrets.token_bytes(32)).hexdigest()  # what unknown keys are compared with
_LARGEST = 2**53  # of numbers that JSON carries unharmed
_COLUMNS = (
    "id, name, digest, previous, previous_until, secret, role, models, tokens_per_minute, requests_per_minute, "
    "budget, period, customer, created, expires, revoked"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What is known of a key; its own text is not."""

    id: str  # also the public part of the text
    name: str
    role: Role = "user"
    models: frozenset[str] | None = None  # a model's name allows its adapters, too; None: all
    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None
    budget: int | None = None  # tokens in a period
    period: Period = "month"  # of the calendar, in UTC
    customer: str | None = None  # who is billed
    created: float = 0.0  # seconds since 1970, as the others
    expires: float | None = None
    revoked: float | None = None
    secret: bytes = field(default=b"", repr=False)  # what its texts in the prefix cache are kept apart by
    digests: tuple[tuple[str, float | None], ...] = field(default=(), repr=False)  # each with its end

    def live(self, now: float) -> bool:
        """Whether it opens anything."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def opens(self, text: str, now: float) -> bool:
        """Whether this is its text, in the same time whatever is wrong with it."""
        digest = digest_of(text)
        found = False
        for known, until in self.digests:
            found |= hmac.compare_digest(known, digest) and (until is None or now < until)
        return found and self.live(now)


NOBODY = Key(id="", name="", digests=((_NOBODY, None),), revoked=0.0)


def digest_of(text: str) -> str:
    """How a key is stored: at 256 random bits nobody finds a key by trying, so the fast hash is enough."""
    return hashlib.sha256(text.encode()).hexdigest()


def id_of(text: str) -> str | None:
    """The public part of a key's text; None if it is no key, or was mistyped."""
    match = _SHAPE.fullmatch(text)
    if match is None or match[3] != _checksum(text[:-7]):
        return None
    return match[1]


def hidden(text: str) -> str:
    """A text with the secret part of each key in it taken out."""
    return _SHAPE.sub(r"bn_\1_***", text)


def _checksum(text: str) -> str:
    return base64.b32encode(zlib.crc32(text.encode()).to_bytes(4)).decode().rstrip("=").lower()


def _text(identity: str) -> str:
    start = f"bn_{identity}_{_random(32)}"
    return start + _checksum(start)


def _random(count: int) -> str:
    return base64.b32encode(secrets.token_bytes(count)).decode().rstrip("=").lower()


_All = list[Key]  # inside the class, `list` is its method


class Keys:
    """The keys of a store."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self._clock = clock

    def create(self, name: str, **settings: Any) -> tuple[Key, str]:
        """A new key and its text, which is shown this once; settings are fields of `Key` that a person chooses."""
        key = replace(
            _checked(Key(id=_random(10), name=name), settings),
            created=self._clock(),
            secret=secrets.token_bytes(32),
        )
        text = _text(key.id)
        values = _row(key) | {"digest": digest_of(text), "secret": key.secret.hex()}
        with self.store.write() as run:
            run(
                "INSERT INTO keys (id, name, digest, secret, role, models, tokens_per_minute, requests_per_minute, "
                "budget, period, customer, created, expires) VALUES (:id, :name, :digest, :secret, :role, :models, "
                ":tokens_per_minute, :requests_per_minute, :budget, :period, :customer, :created, :expires)",
                **values,
            )
            _changed(run)
        return replace(key, digests=((values["digest"], None),)), text

    def list(self) -> _All:
        """All of them, revoked ones too, the oldest first."""
        with self.store.read() as run:
            return [_key(row) for row in run(f"SELECT {_COLUMNS} FROM keys ORDER BY created, id")]  # noqa: S608

    def get(self, identity: str) -> Key:
        """One of them, by its id."""
        with self.store.read() as run:
            return _found(run, identity)

    def update(self, identity: str, **settings: Any) -> Key:
        """Change fields that a person chooses."""
        with self.store.write() as run:
            key = _checked(_found(run, identity), settings)
            run(
                "UPDATE keys SET name = :name, role = :role, models = :models, tokens_per_minute = :tokens_per_minute, "
                "requests_per_minute = :requests_per_minute, budget = :budget, period = :period, "
                "customer = :customer, expires = :expires WHERE id = :id",
                **{name: value for name, value in _row(key).items() if name != "created"},
            )
            _changed(run)
        return key

    def revoke(self, identity: str) -> Key:
        """From now on it opens nothing; running servers know it within a second."""
        with self.store.write() as run:
            _found(run, identity)
            run("UPDATE keys SET revoked = :now WHERE id = :id AND revoked IS NULL", now=self._clock(), id=identity)
            _changed(run)
            return _found(run, identity)

    def rotate(self, identity: str, *, grace_s: float = 0.0) -> tuple[Key, str]:
        """A new text for a key, shown this once; the old one opens for another `grace_s` seconds."""
        if not 0 <= grace_s <= 31 * 86400:
            raise ValueError(f"grace_s: expected 0 to {31 * 86400}, got {grace_s}")
        text = _text(identity)
        with self.store.write() as run:
            if _found(run, identity).revoked is not None:
                raise ValueError(f"identity: expected a key that has not been revoked, got {identity}")
            run(
                "UPDATE keys SET previous = digest, previous_until = :until, digest = :digest WHERE id = :id",
                until=self._clock() + grace_s,
                digest=digest_of(text),
                id=identity,
            )
            _changed(run)
            return _found(run, identity), text

    def version(self) -> int:
        """A number that grows with every change."""
        with self.store.read() as run:
            [(number,)] = run("SELECT value FROM facts WHERE name = 'changes'")
        return int(number)


def _changed(run: Run) -> None:
    run("UPDATE facts SET value = value + 1 WHERE name = 'changes'")


def _found(run: Run, identity: str) -> Key:
    rows = run(f"SELECT {_COLUMNS} FROM keys WHERE id = :id", id=identity)  # noqa: S608
    if not rows:
        raise NotFound(f"no key has the id {identity!r}; `list` names all of them")
    return _key(rows[0])


def _key(row: Row) -> Key:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    digests = ((values.pop("digest"), None), (values.pop("previous"), values.pop("previous_until")))
    models = values.pop("models")
    return Key(
        digests=tuple(pair for pair in digests if pair[0] is not None),
        models=None if models is None else frozenset(msgspec.json.decode(models, type=list[str])),
        secret=bytes.fromhex(values.pop("secret")),
        **values,
    )


def _row(key: Key) -> dict[str, Any]:
    names = ("id", "name", "role", "tokens_per_minute", "requests_per_minute", "budget", "period", "customer")
    row = {name: getattr(key, name) for name in (*names, "created", "expires")}
    return row | {"models": None if key.models is None else msgspec.json.encode(sorted(key.models)).decode()}


def _checked(key: Key, settings: dict[str, Any]) -> Key:
    """The key with what a person chose, each within its range."""
    chosen = ("name", "role", "models", "tokens_per_minute", "requests_per_minute", "budget", "period", "customer")
    for name in settings:
        if name not in (*chosen, "expires"):
            raise ValueError(f"{name}: expected one of {', '.join((*chosen, 'expires'))}")
    values = {name: settings.get(name, getattr(key, name)) for name in (*chosen, "expires")}
    for name in ("name", "customer"):
        _check_name(name, values[name], optional=name == "customer")
    for name, allowed in (("role", get_args(Role)), ("period", get_args(Period))):
        if values[name] not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {values[name]!r}")
    for name in ("tokens_per_minute", "requests_per_minute", "budget"):
        _check_number(name, values[name], least=0 if name == "budget" else 1)
    expires = values["expires"]
    if expires is not None and not (isinstance(expires, int | float) and 0 < expires < 1e11):
        raise ValueError(f"expires: expected seconds since 1970 or none, got {expires!r:.80}")
    values["models"] = _checked_models(values["models"])
    return replace(key, **values)


def _check_name(name: str, value: object, *, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
        raise ValueError(f"{name}: expected 1 to 200 printable characters, got {value!r:.80}")


def _check_number(name: str, value: object, *, least: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _LARGEST:
        raise ValueError(f"{name}: expected {least} to {_LARGEST} or none, got {value!r:.80}")


def _checked_models(models: object) -> frozenset[str] | None:
    if models is None:
        return None
    if isinstance(models, str) or not isinstance(models, Collection) or len(models) > 1000:
        raise ValueError(f"models: expected up to 1000 names or none, got {models!r:.80}")
    for name in models:
        _check_name("models", name, optional=False)
    return frozenset(cast("Collection[str]", models))

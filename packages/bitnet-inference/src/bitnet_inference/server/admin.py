"""What the operator sees and sets while the server runs: keys, usage, load, figures."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from bitnet_core.errors import NotFound

from . import usage
from .bodies import read
from .errors import Refusal
from .gate import Endpoint, answer
from .keys import Key, Keys
from .store import Store
from .tenants import Tenants

T = TypeVar("T")

_SHOWN = (
    "id", "name", "role", "models", "tokens_per_minute", "requests_per_minute", "budget", "period", "customer",
    "created", "expires", "revoked",
)  # fmt: skip


class KeySettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a person chooses of a key; what is left out stays as it is."""

    name: str | UnsetType = UNSET
    role: str | UnsetType = UNSET
    models: list[str] | UnsetType | None = UNSET
    tokens_per_minute: int | UnsetType | None = UNSET
    requests_per_minute: int | UnsetType | None = UNSET
    budget: int | UnsetType | None = UNSET
    period: str | UnsetType = UNSET
    customer: str | UnsetType | None = UNSET
    expires: float | UnsetType | None = UNSET


class NewKey(KeySettings, kw_only=True):
    """A key that is to be made."""

    name: str


class Rotation(Struct, forbid_unknown_fields=True):
    """How long the old text of a key opens beside the new one."""

    grace_s: float = 0.0


async def list_keys(request: Request) -> Response:
    """All keys, as far as they are known."""
    found = await _aside(_keys(request).list)
    return answer({"keys": [_shown(key) for key in found]})


async def create_key(request: Request) -> Response:
    """A new key, with the text that is shown this once."""
    body = await read(request, NewKey)
    settings = _chosen(body)
    key, text = await _change(request, "key created", partial(_keys(request).create, settings.pop("name"), **settings))
    return _secret(key, text, 201)


async def update_key(request: Request) -> Response:
    """Other settings for a key."""
    body = await read(request, KeySettings)
    update = partial(_keys(request).update, request.path_params["key"], **_chosen(body))
    return answer(_shown(await _change(request, "key updated", update)))


async def rotate_key(request: Request) -> Response:
    """A new text for a key, which is shown this once."""
    body = await read(request, Rotation)
    rotate = partial(_keys(request).rotate, request.path_params["key"], grace_s=body.grace_s)
    key, text = await _change(request, "key rotated", rotate)
    return _secret(key, text, 200)


async def revoke_key(request: Request) -> Response:
    """From now on a key opens nothing."""
    revoke = partial(_keys(request).revoke, request.path_params["key"])
    return answer(_shown(await _change(request, "key revoked", revoke)))


async def read_usage(request: Request) -> Response:
    """Sums by tenant, model, day or hour; `since` and `until` in seconds since 1970."""
    query = request.query_params
    by: Any = query.get("by", "tenant")
    found = await _aside(
        partial(usage.sums, _store(request), by, tenant=query.get("tenant"), **_span(request, ("by", "tenant")))
    )
    return answer({"by": by, "usage": found})


async def export_usage(request: Request) -> Response:
    """Each request as a line of CSV."""
    stream = io.StringIO()
    await _aside(partial(usage.export, _store(request), stream, **_span(request, ())))
    headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
    return Response(stream.getvalue(), 200, headers, "text/csv")


async def read_load(request: Request) -> Response:
    """How busy each model is now."""
    state = request.app.state
    engines = {} if state.metrics is None else state.metrics.load()
    models = [
        {"name": one.name, "loaded": one.loaded, "requests": one.requests, "memory": one.memory}
        | engines.get(one.name, {})
        for one in state.models.states()
    ]
    return answer({"requests": len(state.works), "draining": state.works.draining, "models": models})


async def read_metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    metrics = request.app.state.metrics
    if metrics is None:
        raise Refusal(404, "this server keeps no figures")
    data, kind = await _aside(metrics.render)
    return Response(data, 200, {"Content-Type": kind})


ENDPOINTS = (
    Endpoint(path="/admin/keys", method="GET", handler=list_keys, role="admin", summary="All keys"),
    Endpoint(path="/admin/keys", handler=create_key, role="admin", summary="Make a key", body=NewKey),
    Endpoint(path="/admin/keys/{key}", handler=update_key, role="admin", summary="Change a key", body=KeySettings),
    Endpoint(path="/admin/keys/{key}", method="DELETE", handler=revoke_key, role="admin", summary="Revoke a key"),
    Endpoint(
        path="/admin/keys/{key}/rotate",
        handler=rotate_key,
        role="admin",
        summary="Give a key a new text",
        body=Rotation,
    ),
    Endpoint(
        path="/admin/usage",
        method="GET",
        handler=read_usage,
        role="admin",
        summary="Sums of what was used",
        query=("by", "tenant", "since", "until"),
    ),
    Endpoint(
        path="/admin/usage.csv",
        method="GET",
        handler=export_usage,
        role="admin",
        summary="Each request that used something",
        media="text/csv",
        query=("since", "until"),
    ),
    Endpoint(path="/admin/load", method="GET", handler=read_load, role="admin", summary="How busy the models are"),
    Endpoint(
        path="/metrics",
        method="GET",
        handler=read_metrics,
        role="metrics",
        summary="Figures for Prometheus",
        media="text/plain",
    ),
)


def _tenants(request: Request) -> Tenants:
    tenants: Tenants | None = request.app.state.tenants
    if tenants is None or tenants.keys is None:
        raise Refusal(404, "this server has no keys; start it with a file of them", code="no_keys")
    return tenants


def _keys(request: Request) -> Keys:
    keys = _tenants(request).keys
    assert keys is not None  # noqa: S101  # looked at above
    return keys


def _store(request: Request) -> Store:
    return _keys(request).store


async def _aside(call: Callable[[], T]) -> T:
    """The database is asked beside the loop."""
    try:
        return await asyncio.to_thread(call)
    except NotFound as error:
        raise Refusal(404, str(error), code="not_found") from None


async def _change(request: Request, event: str, call: Callable[[], T]) -> T:
    """Change a key, have all know of it, and write it down."""
    found = await _aside(call)
    await _aside(_tenants(request).refresh)
    audit = request.app.state.audit
    if audit is not None:
        key: Any = found[0] if isinstance(found, tuple) else found
        audit.append(event, id=getattr(request.state, "request_id", None), key=key.id, by=request.state.tenant.id)
    return found


def _chosen(body: Struct) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(body).items() if value is not UNSET}


def _shown(key: Key) -> dict[str, Any]:
    shown = {name: getattr(key, name) for name in _SHOWN}
    return shown | {"models": None if key.models is None else sorted(key.models)}


def _secret(key: Key, text: str, status: int) -> Response:
    return answer(_shown(key) | {"key": text}, status, {"Cache-Control": "no-store"})


def _span(request: Request, others: tuple[str, ...]) -> dict[str, float]:
    """The time that is asked for."""
    found = {}
    for name, text in request.query_params.items():
        if name in others:
            continue
        if name not in ("since", "until"):
            raise Refusal(400, f"{name}: expected one of {', '.join(('since', 'until', *others))}", param=name)
        try:
            found[name] = float(text)
        except ValueError:
            raise Refusal(400, f"{name}: expected seconds since 1970, got {text!r:.80}", param=name) from None
        if not 0 <= found[name] <= 1e11:
            raise Refusal(400, f"{name}: expected seconds since 1970, got {text!r:.80}", param=name)
    return found

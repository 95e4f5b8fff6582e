"""The way to a handler: who asks, whether the route is open to them, and errors in the protocol's own words."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route

from bitnet_core.errors import printable

from .errors import Refusal, refusal_of

FILE_LIMIT = 64 << 20  # bytes of a form with a file
PAGE_LIMIT = 10_000  # entries of a list in one answer

_UNREAD_LIMIT = 16  # parameters of a path that an answer names

Role = Literal["none", "metrics", "read", "user", "admin"]
Style = Literal["openai", "anthropic", "ollama"]
Handler = Callable[[Request], Awaitable[Response]]

INSIDE = "bitnet.tenant"  # of the scope of a request that the server makes of itself; no client can set it

# What a tenant's role may do, beside what needs no key.
_MAY: Mapping[str, frozenset[str]] = {
    "admin": frozenset(("metrics", "read", "user", "admin")),
    "user": frozenset(("read", "user")),
    "read-only": frozenset(("read",)),
    "metrics": frozenset(("metrics",)),
}


class Tenant(Protocol):
    """Who asks."""

    @property
    def id(self) -> str:
        """What it is known by."""

    @property
    def role(self) -> str:
        """admin, user, read-only or metrics."""

    @property
    def models(self) -> frozenset[str] | tuple[str, ...] | None:
        """The models that it may use; None for all."""

    @property
    def secret(self) -> bytes:
        """What keeps its cached prefixes apart from others'."""


class Lease(Protocol):
    """Tokens that were set aside for a request."""

    def extend(self, tokens: int, /) -> None:
        """Set more aside; raises what the client is to be told, where there are none left."""

    def settle(self, usage: Any, /) -> None:
        """What the request took in truth."""

    def release(self) -> None:
        """It took nothing."""


class Tenants(Protocol):
    """Who may ask, and how much."""

    def authenticate(self, headers: Any, address: str = "", /) -> Any:
        """Whoever these headers belong to; None for nobody."""

    def admit(self, tenant: Any, model: str, tokens: int, /) -> Lease:
        """Set tokens aside, none in no time; raises what the client is to be told, where there are none left."""


@dataclass(frozen=True, slots=True)
class Anonymous:
    """Everybody, where there are no keys."""

    id: str = "anonymous"
    name: str = "anonymous"
    role: str = "admin"
    models: None = None
    secret: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A route: nothing is served without one, and none is without a role."""

    path: str
    handler: Handler
    role: Role
    summary: str
    method: Literal["GET", "POST", "DELETE"] = "POST"
    style: Style = "openai"
    body: type[msgspec.Struct] | None = None  # what the document says of the request
    reply: Any = None  # likewise, a JSON schema
    media: str = "application/json"  # of the answer
    form: bool = False  # the request is a form with a file, and may be larger than others
    query: tuple[str, ...] = ()  # parameters that are read; the answer names those that are not

    def route(self) -> Route:
        """As Starlette mounts it."""

        async def serve(request: Request) -> Response:
            try:
                await admit(request, self.role)
                response = await self.handler(request)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it
            except Exception as error:  # noqa: BLE001  # whatever went wrong, the client gets an answer
                refusal = refusal_of(error)
                request.state.code = refusal.short
                style = style_of(request) if self.style == "openai" else self.style
                return refuse(refusal, style, getattr(request.state, "request_id", None))
            ignored = (*getattr(request.state, "ignored", ()), *self._unread(request))
            if ignored:
                response.headers["X-Ignored-Fields"] = ", ".join(ignored).encode("ascii", "replace").decode()
            if self.style == "anthropic":
                response.headers["request-id"] = request.state.request_id
            return response

        return Route(self.path, serve, methods=[self.method])

    def _unread(self, request: Request) -> list[str]:
        """Parameters that nobody reads; of many, the first."""
        found = [name for name in dict.fromkeys(request.query_params) if name not in self.query]
        return [f"?{printable(name, 40)}" for name in found[:_UNREAD_LIMIT]]


async def admit(connection: HTTPConnection, role: Role) -> None:
    """Find out who asks; `connection.state.tenant` is the answer, where a role is needed."""
    if role == "none":
        return
    if INSIDE in connection.scope:  # a line of a batch, whose tenant has been asked for before
        connection.state.tenant = connection.scope[INSIDE]
        return
    tenants = connection.app.state.tenants
    if tenants is None:
        _check_host(connection)
        connection.state.tenant = Anonymous()
        return
    tenant = tenants.authenticate(connection.headers, connection.client.host if connection.client else "")
    if tenant is None:
        raise Refusal(401, "a valid key is needed: Authorization: Bearer KEY")
    if role not in _MAY.get(tenant.role, ()):
        raise Refusal(403, "this key may not do that", code="forbidden")
    connection.state.tenant = tenant


def _check_host(connection: HTTPConnection) -> None:
    """Without keys, a page of another site must not get in under a name of its own for this machine."""
    host = connection.headers.get("host", "")
    name, _, port = host.rpartition(":")
    if not is_local(name.strip("[]") if name and port.isdigit() else host.strip("[]")):
        raise Refusal(403, "Host: expected localhost; a server without keys answers to no other name", code="forbidden")
    origin = connection.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host and origin not in connection.app.state.origins:
        raise Refusal(403, "Origin: pages of other sites may not use a server without keys", code="forbidden")


def is_local(host: str) -> bool:
    """Whether an address is of this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def style_of(request: Request) -> Style:
    """Whose client asks, where the route does not tell."""
    if request.url.path.startswith("/api/"):
        return "ollama"
    return "anthropic" if "anthropic-version" in request.headers else "openai"


def refuse(refusal: Refusal, style: Style = "openai", identity: str | None = None) -> Response:
    """A refusal as the answer; `identity`: the request's, which Anthropic's clients are told."""
    body = {"openai": refusal.to_openai, "anthropic": refusal.to_anthropic, "ollama": refusal.to_ollama}[style]()
    if style != "anthropic" or identity is None:
        return answer(body, refusal.status, refusal.headers)
    return answer({**body, "request_id": identity}, refusal.status, {**refusal.headers, "request-id": identity})


def answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON as the answer."""
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def page(request: Request, found: list[dict[str, Any]], usual: int = 100) -> dict[str, Any]:
    """A part of a list: `limit` entries, those `after` one; Anthropic's clients say `after_id` or `before_id`."""
    query, ids = request.query_params, [one["id"] for one in found]
    text = query.get("limit", str(usual))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= PAGE_LIMIT):
        raise Refusal(400, f"limit: expected a whole number of 1..{PAGE_LIMIT}, got {text[:40]!r}", param="limit")
    limit = int(text[:9])
    after, before = query.get("after", query.get("after_id")), query.get("before_id")
    if before is not None:
        found = found[: ids.index(before)] if before in ids else []
        shown = found[-limit:]
    else:
        if after is not None:
            found = found[ids.index(after) + 1 :] if after in ids else []
        shown = found[:limit]
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return {"object": "list", "data": shown, "has_more": len(shown) < len(found), **ends}

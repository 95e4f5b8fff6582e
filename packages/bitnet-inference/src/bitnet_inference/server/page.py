"""The page that people talk to models with, and its files: static, from the wheel, and nothing from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import Response

from .errors import Refusal
from .gate import Endpoint, admit, answer

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# What a model writes can neither run nor fetch anything: no inline code, no other origin, no HTML made of text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = MappingProxyType(
    {
        "Content-Security-Policy": POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), clipboard-write=(self)",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        # Always asked for again, which costs a few bytes: a new version is there at once, in all of its files.
        "Cache-Control": "no-cache",
    }
)


async def show(request: Request) -> Response:
    """The page itself."""
    return _send(request, "index.html")


async def send(request: Request) -> Response:
    """One of its files."""
    return _send(request, request.path_params["file"])


async def tell(request: Request) -> Response:
    """Who asks, so that the page knows what to show; `role` is none for nobody."""
    tenants = request.app.state.tenants
    told = {"role": None, "name": None, "locked": tenants is not None, "keys": False}
    try:
        await admit(request, "read")
    except Refusal as refusal:
        if refusal.status != 401:
            raise
    else:
        tenant = request.state.tenant
        told |= {"role": tenant.role, "name": tenant.name, "keys": getattr(tenants, "keys", None) is not None}
    return answer(told, headers={"Cache-Control": "no-store"})


ENDPOINTS = (
    Endpoint(path="/", method="GET", handler=show, role="none", summary="The page", media="text/html"),
    Endpoint(path="/page/me", method="GET", handler=tell, role="none", summary="Who asks, for the page"),
    Endpoint(path="/page/{file}", method="GET", handler=send, role="none", summary="A file of the page", media="*/*"),
)


def _send(request: Request, name: str) -> Response:
    found = _files().get(name)
    if found is None:
        raise Refusal(404, "there is nothing at this path")
    data, tag = found
    headers = {**_HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, 200, headers, _TYPES[name.rpartition(".")[2]])


@cache
def _files() -> Mapping[str, tuple[bytes, str]]:
    """Each file with the tag of what is in it."""
    folder = files(__package__) / "page"
    found = {one.name: one.read_bytes() for one in folder.iterdir() if one.name.rpartition(".")[2] in _TYPES}
    return {name: (data, f'"{hashlib.sha256(data).hexdigest()[:32]}"') for name, data in found.items()}

"""The server as one ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from . import chat, health
from .errors import Refusal, refusal_of
from .gate import Endpoint, refuse
from .models import Models
from .works import Works

BODY_LIMIT = 1 << 20  # bytes
DRAIN_S = 30.0

ENDPOINTS = (
    Endpoint(path="/healthz", method="GET", handler=health.live, role="none", summary="Whether the process lives"),
    Endpoint(path="/readyz", method="GET", handler=health.ready, role="none", summary="Whether requests are taken"),
    Endpoint(path="/v1/models", method="GET", handler=health.models, role="read", summary="The models there are"),
    Endpoint(path="/v1/models/{model:path}", method="GET", handler=health.model, role="read", summary="One model"),
    Endpoint(
        path="/v1/chat/completions",
        handler=chat.complete,
        role="user",
        summary="Answer a conversation",
        body=chat.Chat,
    ),
)


def make_app(
    models: Models,
    *,
    tenants: Any = None,
    metrics: Any = None,
    audit: Any = None,
    endpoints: Sequence[Endpoint] = (),
    middleware: Sequence[Middleware] = (),
    lenient: bool = False,
    drain_s: float = DRAIN_S,
    body_limit: int = BODY_LIMIT,
) -> Starlette:
    """The application; `tenants=None` has one tenant who may do everything. `lenient` ignores unknown fields."""
    app = Starlette(
        routes=[endpoint.route() for endpoint in (*ENDPOINTS, *endpoints)],
        middleware=list(middleware),
        exception_handlers={HTTPException: _unrouted, Exception: _failed},
        lifespan=_live,
        max_body_size=body_limit,
    )
    app.router.redirect_slashes = False  # a path is what it is
    state = app.state
    state.models, state.tenants, state.metrics, state.audit = models, tenants, metrics, audit
    state.lenient, state.drain_s = lenient, drain_s
    state.works = Works()
    return app


@contextlib.asynccontextmanager
async def _live(app: Starlette) -> AsyncIterator[None]:
    watch = asyncio.create_task(app.state.models.watch())
    try:
        yield
    finally:
        watch.cancel()
        await app.state.works.drain(0.0)
        await app.state.models.close()
        app.state.works.close()


async def _unrouted(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: "there is nothing at this path", 405: "this path takes another method", 413: "the body is too large"}
    refusal = Refusal(status, words.get(status, "the request cannot be answered"), type="invalid_request_error")
    return refuse(refusal)


async def _failed(_: Request, error: Exception) -> Response:
    return refuse(refusal_of(error))

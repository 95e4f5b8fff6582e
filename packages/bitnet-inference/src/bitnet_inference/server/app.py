"""The server as one ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute

from . import admin, files, openapi, responses, socket
from .audit import Audit
from .batches import Batches
from .errors import Refusal, refusal_of
from .gate import FILE_LIMIT, Endpoint, refuse, style_of
from .limits import Limits
from .metrics import Metrics
from .models import Models
from .origins import layers
from .records import Records
from .routes import ENDPOINTS
from .tenants import Tenants
from .works import Works

BODY_LIMIT = 1 << 20  # bytes
DRAIN_S = 30.0


def make_app(  # noqa: PLR0913  # each is a setting of its own, given by name
    models: Models,
    *,
    tenants: Tenants | None = None,
    metrics: Metrics | None = None,
    audit: Audit | None = None,
    endpoints: Sequence[Endpoint] = (),
    middleware: Sequence[Middleware] = (),
    origins: Sequence[str] = (),
    lenient: bool = False,
    drain_s: float = DRAIN_S,
    body_limit: int = BODY_LIMIT,
    folder: str | os.PathLike[str] | None = None,
) -> Starlette:
    """The application; `tenants=None` has one tenant who may do everything.

    `origins`: addresses of pages that may use it from a browser, beside its own. `lenient` ignores unknown fields, and
    says which. `folder` keeps clients' files; without one, they go at the end.
    """
    every = (*ENDPOINTS, *admin.ENDPOINTS, *endpoints)
    larger = {endpoint.path: FILE_LIMIT for endpoint in every if endpoint.form}
    figures = Metrics() if metrics is None else metrics
    models.observe(figures.observer)
    app = Starlette(
        routes=[*(endpoint.route() for endpoint in every), WebSocketRoute("/v1/stream", socket.talk)],
        middleware=[
            Middleware(Records, metrics=figures, audit=audit),
            *layers(origins, keyed=tenants is not None),
            Middleware(Limits, body=body_limit, larger=larger),
            *middleware,
        ],
        exception_handlers={HTTPException: _failed, Exception: _failed},
        lifespan=_live,
    )
    app.router.redirect_slashes = False  # a path is what it is
    state = app.state
    state.models, state.tenants, state.metrics, state.audit = models, tenants, figures, audit
    state.open_paths = tuple(
        endpoint.path.partition("{")[0] for endpoint in every if endpoint.role == "none" and endpoint.path != "/page/me"
    )
    state.origins = frozenset(origins)
    state.document = openapi.document(every)
    state.lenient, state.drain_s = lenient, drain_s
    state.works, state.memory = Works(), responses.Memory()
    state.files, state.batches = files.Files(folder), Batches(app)
    return app


@contextlib.asynccontextmanager
async def _live(app: Starlette) -> AsyncIterator[None]:
    works, loop = app.state.works, asyncio.get_running_loop()
    watch = asyncio.create_task(app.state.models.watch())
    if app.state.tenants is not None:
        app.state.tenants.when_gone(lambda owner: loop.call_soon_threadsafe(_leave, app, owner))
    try:
        yield
    finally:
        watch.cancel()
        app.state.batches.close()
        await works.drain(0.0)
        await app.state.models.close()
        works.close()
        app.state.files.close()


def _leave(app: Starlette, owner: str) -> None:
    """A key is gone: what it asked for ends with it."""
    app.state.works.cut(Refusal(401, "the key was revoked, or has expired"), lambda work: work.tenant.id == owner)
    app.state.batches.leave(owner)


async def _failed(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    request.state.code = refusal.short
    return refuse(refusal, style_of(request))

"""The server as a process: an address, a signal to stop, and what happens between the two."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from .. import __version__
from . import page
from .app import make_app
from .audit import Audit
from .connection import Connection
from .gate import Endpoint, is_local
from .logs import written
from .metrics import Metrics
from .models import Models
from .store import Store
from .tenants import Tenants, Verifier

log = logging.getLogger("bitnet_inference.server")

_GRACE_S = 5  # for those that were cut, to say so
HEAD_LIMIT = 16 << 10  # bytes of a request's head


class Server(uvicorn.Server):
    """A server that finishes what it has begun before it stops, and says so where it takes too long."""

    def __init__(self, app: Starlette, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # uvicorn calls it so
        """The first signal asks for an end, a second interrupt has no patience; either way the process ends well."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            urls = [f"http://{f'[{host}]' if ':' in host else host}:{port}" for host, port in addresses(self)]
            told = {"version": __version__, "pid": os.getpid(), "models": self._app.state.models.names, "urls": urls}
            log.info("started", extra={"fields": told})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No new connections; those at work may end, for `drain_s` seconds; then they are cut with an error."""
        log.info("stopping")
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        await self._drain()
        await super().shutdown(sockets)
        log.info("stopped")

    async def _drain(self) -> None:
        draining = asyncio.ensure_future(self._app.state.works.drain(self._app.state.drain_s))
        while not draining.done() and not self.force_exit:
            await asyncio.wait([draining], timeout=0.1)
        draining.cancel()


def make_server(app: Starlette, host: str = "127.0.0.1", port: int = 8000, **settings: Any) -> Server:
    """A server of an application; `settings` are uvicorn's. Other machines are let in only where keys are asked for."""
    if app.state.tenants is None and not is_local(host):
        raise ValueError(
            f"host: expected an address of this machine alone, as 127.0.0.1, got {host!r}; "
            "to serve other machines, make a key first: bitnet keys create"
        )
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Connection,
        ws="websockets-sansio",
        h11_max_incomplete_event_size=HEAD_LIMIT,
        ws_max_size=1 << 20,
        timeout_graceful_shutdown=_GRACE_S,
        server_header=False,
        access_log=False,
        proxy_headers=False,
        backlog=2048,
        **settings,
    )
    return Server(app, config)


def serve(  # noqa: PLR0913  # each is a setting of its own, given by name
    models: Models | Any = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: str | os.PathLike[str] | None = None,
    api_key: str | None = None,
    verifier: Verifier | None = None,
    audit: str | os.PathLike[str] | None = None,
    log_file: str | os.PathLike[str] | None = None,
    log_level: str = "info",
    endpoints: Sequence[Endpoint] = page.ENDPOINTS,
    **settings: Any,
) -> None:
    """Serve models until a signal says to stop.

    `keys`: the file or database of keys. `api_key`: one key that may do everything. `verifier`: finds out who shows a
    signed token. `audit`: the file of the audit log. Lines of JSON go to stderr from `log_level` up, and
    to `log_file`, which SIGHUP opens anew. `endpoints`: routes beside those of the protocols, by default
    the page. Other settings are those of `make_app`.
    """
    found = models if isinstance(models, Models) else Models(models)
    level = logging.getLevelNamesMapping()[log_level.upper()]
    with ExitStack() as stack:
        stack.enter_context(written(sys.stderr, log_file, level=level))
        metrics = Metrics()
        tenants = None
        if keys is not None or api_key is not None or verifier is not None:
            store = None if keys is None else stack.enter_context(Store(keys))
            tenants = stack.enter_context(
                Tenants(store, shared_key=api_key, verifier=verifier, charged=metrics.charged)
            )
        kept = None if audit is None else stack.enter_context(Audit(audit))
        app = make_app(found, tenants=tenants, metrics=metrics, audit=kept, endpoints=endpoints, **settings)
        make_server(app, host, port, log_config=None).run()


def addresses(server: uvicorn.Server) -> Sequence[tuple[str, int]]:
    """Where a server that has started listens."""
    return [listening.getsockname()[:2] for one in server.servers for listening in one.sockets]

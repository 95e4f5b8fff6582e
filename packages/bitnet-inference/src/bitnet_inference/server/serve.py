"""The server as a process: an address, a signal to stop, and what happens between the two."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from .. import __version__
from . import page
from .app import make_app
from .audit import Audit
from .connection import Connection
from .door import Door, most_connections, raise_files
from .gate import Endpoint, is_local
from .keys import Keys
from .logs import written
from .metrics import Metrics
from .models import Models
from .store import Store
from .tenants import Tenants, Verifier
from .turnstile import HEAD_LIMIT, Turnstile

log = logging.getLogger("bitnet_inference.server")

_GRACE_S = 5  # for those that were cut, to say so
_COLLECTIONS = (50_000, 20, 100)  # new objects, and collections of the younger ones, between two collections


class Server(uvicorn.Server):
    """A server that finishes what it has begun before it stops, and says so where it takes too long."""

    def __init__(self, app: Starlette, config: uvicorn.Config, turnstile: Turnstile, limit: int) -> None:
        super().__init__(config)
        self._app = app
        self._turnstile = turnstile
        self._limit = limit
        self._door: Door | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # uvicorn calls it so
        """The first signal asks for an end, a second interrupt has no patience; either way the process ends well."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        try:
            await super().startup(sockets)
        except SystemExit as end:  # it would end the process; what is wrong is for whoever began it to say
            if isinstance(end.__context__, OSError):
                raise end.__context__ from None
            raise
        if self.started:
            self._open_door()
            scheme = "https" if self.config.is_ssl else "http"
            urls = [f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}" for host, port in addresses(self)]
            told = {"version": __version__, "pid": os.getpid(), "models": self._app.state.models.names, "urls": urls}
            log.info("started", extra={"fields": told})

    def _open_door(self) -> None:
        """Take connections in ourselves, where they are plain and the loop lets us; elsewhere it does."""
        loop = asyncio.get_running_loop()
        if self.config.is_ssl or not isinstance(loop, asyncio.SelectorEventLoop):
            return

        def enter(first: bytes) -> asyncio.Protocol:
            return Connection(
                self.config, self.server_state, self.lifespan.state, turnstile=self._turnstile, first=first
            )

        self._door = Door(self._turnstile, enter, lambda: len(self.server_state.connections), limit=self._limit)
        listening = [one for server in self.servers for one in server.sockets]
        for one in listening:
            loop.remove_reader(one.fileno())
        self._door.open([one.dup() for one in listening])

    async def on_tick(self, counter: int) -> bool:
        """Once a second, who was turned away is counted."""
        if counter % 10 == 0:
            self._count()
        return await super().on_tick(counter)

    def _count(self) -> None:
        if turned := self._turnstile.turned():
            self._app.state.metrics.refused(turned)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, while Python looks for cycles more seldom: a look at all objects holds every stream up."""
        before = gc.get_threshold()
        gc.collect()
        gc.freeze()  # what is loaded by now stays, and need not be looked at
        gc.set_threshold(*_COLLECTIONS)
        try:
            await super().serve(sockets)
        finally:
            gc.set_threshold(*before)
            gc.unfreeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No new connections; those at work may end, for `drain_s` seconds; then they are cut with an error."""
        log.info("stopping")
        if self._door is not None:
            self._door.close()
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        await self._drain()
        self._count()
        await super().shutdown(sockets)
        log.info("stopped")

    async def _drain(self) -> None:
        draining = asyncio.ensure_future(self._app.state.works.drain(self._app.state.drain_s))
        while not draining.done() and not self.force_exit:
            await asyncio.wait([draining], timeout=0.1)
        draining.cancel()


def make_server(
    app: Starlette, host: str = "127.0.0.1", port: int = 8000, *, limit: int | None = None, **settings: Any
) -> Server:
    """A server of an application; `settings` are uvicorn's. Other machines are let in only where keys are asked for.

    `limit`: connections at once; by default, as many as the files that the process may open allow.
    """
    if app.state.tenants is None and not is_local(host):
        raise ValueError(
            f"host: expected an address of this machine alone, as 127.0.0.1, got {host!r}; "
            "to serve other machines, make a key first: bitnet keys create"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected 1 or more connections, got {limit}")
    turnstile = Turnstile(app.state.models, app.state.tenants, app.state.open_paths)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=partial(Connection, turnstile=turnstile),  # type: ignore[arg-type]  # it is called and no more
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
    return Server(app, config, turnstile, most_connections() if limit is None else limit)


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
    limit: int | None = None,
    endpoints: Sequence[Endpoint] = page.ENDPOINTS,
    **settings: Any,
) -> None:
    """Serve models until a signal says to stop.

    `keys`: the file or database of keys. `api_key`: one key that may do everything. `verifier`: finds out who shows a
    signed token. `audit`: the file of the audit log. Lines of JSON go to stderr from `log_level` up, and
    to `log_file`, which SIGHUP opens anew; it never ends the server. `endpoints`: routes beside those of the
    protocols, by default the page. Other settings are those of `make_app`.
    """
    found = models if isinstance(models, Models) else Models(models)
    raise_files()
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
            if store is not None and api_key is None and verifier is None and not Keys(store).list():
                log.warning("nobody has a key yet, and nothing is answered without one: bitnet keys create NAME")
        kept = None if audit is None else stack.enter_context(Audit(audit))
        app = make_app(found, tenants=tenants, metrics=metrics, audit=kept, endpoints=endpoints, **settings)
        make_server(app, host, port, limit=limit, log_config=None).run()


def addresses(server: uvicorn.Server) -> Sequence[tuple[str, int]]:
    """Where a server that has started listens."""
    return [listening.getsockname()[:2] for one in server.servers for listening in one.sockets]

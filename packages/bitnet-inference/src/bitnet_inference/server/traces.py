"""A span of OpenTelemetry for each request: who asked for what, how it ended, how long it took; not what it said."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitnet_core.errors import UnsupportedError

_METHODS = frozenset(("GET", "HEAD", "POST", "DELETE", "PATCH"))


class Traces:
    """ASGI middleware for `make_app(middleware=...)`; spans go where OpenTelemetry was told to send them."""

    def __init__(self, app: ASGIApp, *, provider: Any = None) -> None:
        try:
            from opentelemetry import propagate, trace  # noqa: PLC0415  # an extra
        except ImportError:
            raise UnsupportedError(
                "traces need OpenTelemetry; install it with: pip install 'bitnet-inference[otel]'"
            ) from None
        self.app = app
        self._tracer = trace.get_tracer("bitnet_inference.server", tracer_provider=provider)
        self._extract = propagate.extract
        self._kind = trace.SpanKind.SERVER
        self._failed = trace.Status(trace.StatusCode.ERROR)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        parent = self._extract({name: carrier[name] for name in ("traceparent", "tracestate") if name in carrier})
        # What an exception says may be a client's words, so it is not recorded with the span.
        with self._tracer.start_as_current_span(
            method,
            parent,
            self._kind,
            {"http.request.method": method},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            status = 500

            async def sending(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await self.app(scope, receive, sending)
            finally:
                route = getattr(scope.get("route"), "path", None)
                state = scope.get("state", {})
                if route is not None:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", status)
                span.set_attribute("bitnet.request_id", state.get("request_id", ""))
                if state.get("tenant") is not None:
                    span.set_attribute("bitnet.tenant", state["tenant"].id)
                if status >= 500:
                    span.set_status(self._failed)

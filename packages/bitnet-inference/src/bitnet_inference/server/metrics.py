"""Figures for Prometheus: what the engines do, what clients wait for, and what each key takes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from ..observer import FinishEvent, Observer, StepEvent
from ..request import Usage

if TYPE_CHECKING:
    from .tenants import Tenant

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_NAMES = 1000  # tenants with series of their own; the rest share one
_RECENT = 64  # steps that a rate is taken from


class Metrics:
    """All figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._loads: dict[str, _Load] = {}
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()
        self._define_engine()
        self._define_requests()

    def _define_engine(self) -> None:
        model = ("model",)
        self._running = self._gauge("running_sequences", "Sequences in the batch", model)
        self._waiting = self._gauge("waiting_sequences", "Sequences in the queue", model)
        self._step = self._histogram("step_seconds", "One step of the engine", model, _SHORT)
        self._gap = self._histogram(
            "inter_token_seconds", "Between two tokens: steps in which running sequences had one", model, _SHORT
        )
        self._batch = self._histogram(
            "step_tokens", "Tokens in one step", model, (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
        )
        self._first = self._histogram("time_to_first_token_seconds", "From submission", model, _LONG)
        self._queue = self._histogram("queue_seconds", "From submission to a place in the batch", model, _LONG)
        self._each = self._histogram("time_per_output_token_seconds", "Mean of a request", model, _SHORT)
        self._total = self._histogram("request_seconds", "From submission to the end", model, _LONG)
        self._tokens = self._counter("tokens", "Tokens of finished requests", ("model", "kind"))
        self._finished = self._counter(
            "finished_sequences", "Sequences by the reason of their end", ("model", "reason")
        )
        self._joules = self._counter("energy_joules", "Energy of finished requests", model)

    def _define_requests(self) -> None:
        self._http = self._counter("http_requests", "Answers by route and status", ("route", "method", "status"))
        self._http_s = self._histogram("http_seconds", "From a request's head to the answer's end", ("route",), _LONG)
        self._refused = self._counter(
            "refused_requests", "Turned away before they were looked at, by the reason", ("reason",)
        )
        self._open = self._gauge("http_open_requests", "Requests that are being answered", ())
        self._key_tokens = self._counter("key_tokens", "Tokens that a key has used", ("key", "name", "kind"))
        self._key_requests = self._counter("key_requests", "Requests of a key", ("key", "name"))

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"bitnet_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"bitnet_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"bitnet_{name}", text, labels, registry=self.registry, buckets=buckets)

    def observer(self, model: str) -> Observer:
        """What a model's engine tells; give it to `LLM(observer=...)`."""
        with self._lock:
            load = self._loads.setdefault(model, _Load())
        on_step = self._on_step(model, load)

        def observe(event: StepEvent | FinishEvent) -> None:
            if isinstance(event, StepEvent):
                on_step(event)
            else:
                self._on_finish(model, event)

        return observe

    def _on_step(self, model: str, load: _Load) -> Callable[[StepEvent], None]:
        running, waiting = self._running.labels(model), self._waiting.labels(model)
        step, gap, batch = self._step.labels(model), self._gap.labels(model), self._batch.labels(model)

        def observe(event: StepEvent) -> None:
            running.set(event.running)
            waiting.set(event.waiting)
            step.observe(event.seconds)
            batch.observe(event.prompt_tokens + event.output_tokens)
            if event.output_tokens:
                gap.observe(event.seconds)
            load.add(event)

        return observe

    def _on_finish(self, model: str, event: FinishEvent) -> None:
        usage, timings = event.usage, event.timings
        self._queue.labels(model).observe(timings.queue_s)
        self._total.labels(model).observe(timings.total_s)
        if timings.first_token_s is not None:
            self._first.labels(model).observe(timings.first_token_s)
        later = usage.completion_tokens - len(event.reasons)
        if later > 0:
            self._each.labels(model).observe(timings.decode_s * len(event.reasons) / later)
        for kind, count in _kinds(usage).items():
            self._tokens.labels(model, kind).inc(count)
        for reason in event.reasons:
            self._finished.labels(model, reason).inc()
        if usage.joules is not None:
            self._joules.labels(model).inc(usage.joules)

    def charged(self, tenant: Tenant, _: str, usage: Usage) -> None:
        """A tenant has used tokens; give it to `Tenants(charged=...)`."""
        with self._lock:
            known = tenant.id in self._names or len(self._names) < _NAMES
            if known:
                self._names.setdefault(tenant.id, tenant.name)
        labels = (tenant.id, self._names[tenant.id]) if known else ("other", "other")
        self._key_requests.labels(*labels).inc()
        for kind, count in _kinds(usage).items():
            self._key_tokens.labels(*labels, kind).inc(count)

    def begin(self) -> None:
        """A request has come in."""
        self._open.inc()

    def end(self, route: str, method: str, status: int, seconds: float) -> None:
        """It was answered; `route` as it was declared, not as it was asked for."""
        self._open.dec()
        self._http.labels(route, method, str(status)).inc()
        self._http_s.labels(route).observe(seconds)

    def refused(self, turned: Mapping[str, int]) -> None:
        """So many were turned away at the door."""
        for reason, count in turned.items():
            self._refused.labels(reason).inc(count)

    def load(self) -> dict[str, dict[str, Any]]:
        """How busy each model's engine is, as of its last step."""
        with self._lock:
            return {model: load.show() for model, load in self._loads.items()}

    def render(self) -> tuple[bytes, str]:
        """All figures as Prometheus reads them, and the type of that."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _Load:
    """The last steps of an engine, which its thread adds and others look at."""

    def __init__(self) -> None:
        self._steps: deque[StepEvent] = deque(maxlen=_RECENT)

    def add(self, event: StepEvent) -> None:
        self._steps.append(event)

    def show(self) -> dict[str, Any]:
        steps = list(self._steps)
        if not steps:
            return {"running": 0, "waiting": 0, "step_seconds": None, "tokens_per_second": None}
        seconds = sum(step.seconds for step in steps)
        output = sum(step.output_tokens for step in steps)
        return {
            "running": steps[-1].running,
            "waiting": steps[-1].waiting,
            "step_seconds": seconds / len(steps),
            "tokens_per_second": output / seconds if seconds else None,
        }


def _kinds(usage: Usage) -> dict[str, int]:
    return {
        "prompt": usage.prompt_tokens,
        "cached": usage.cached_tokens,
        "completion": usage.completion_tokens,
        "drafted": usage.drafted_tokens,
        "accepted": usage.accepted_tokens,
    }

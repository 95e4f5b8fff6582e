"""What engines and requests do is told in figures and in lines, never what they say."""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from bitnet_inference import LLM
from bitnet_inference.request import Usage
from bitnet_inference.server.audit import Audit, verify
from bitnet_inference.server.logs import written
from bitnet_inference.server.metrics import Metrics
from bitnet_inference.server.records import Records
from bitnet_inference.server.tenants import Tenant
from bitnet_inference.server.traces import Traces

CANARY = "canary-7f3a"
KEY = "bn_" + "a" * 16 + "_" + "b" * 59


def figures(metrics: Metrics) -> Callable[..., float | None]:
    """The value of a figure by its name and labels, as Prometheus would read it."""
    data, kind = metrics.render()
    assert kind.startswith("text/plain")
    samples = [sample for family in text_string_to_metric_families(data.decode()) for sample in family.samples]

    def value(name: str, /, **labels: str) -> float | None:
        found = [s.value for s in samples if s.name == f"bitnet_{name}" and labels.items() <= s.labels.items()]
        return sum(found) if found else None

    return value


def test_an_engine_tells_what_it_does() -> None:
    metrics = Metrics()
    with LLM(threads=1, observer=metrics.observer("stories")) as llm:
        replies = [llm.generate(f"Once upon a time {CANARY} " * 3, max_tokens=8, seed=1) for _ in range(3)]
    of = figures(metrics)
    prompt = sum(reply.usage.prompt_tokens for reply in replies)
    completion = sum(reply.usage.completion_tokens for reply in replies)
    cached = sum(reply.usage.cached_tokens for reply in replies)
    assert of("tokens_total", model="stories", kind="prompt") == prompt
    assert of("tokens_total", model="stories", kind="completion") == completion
    assert of("tokens_total", model="stories", kind="cached") == cached > 0
    assert of("time_to_first_token_seconds_count", model="stories") == 3
    assert of("request_seconds_count", model="stories") == 3
    assert of("queue_seconds_count", model="stories") == 3
    assert of("time_per_output_token_seconds_count", model="stories") == 3
    assert of("finished_sequences_total", model="stories") == 3
    assert of("waiting_sequences", model="stories") == 0
    steps, gaps = of("step_seconds_count", model="stories"), of("inter_token_seconds_count", model="stories")
    assert steps is not None
    assert gaps is not None
    assert 0 < gaps <= steps
    load = metrics.load()["stories"]
    assert load["tokens_per_second"] > 0
    assert CANARY not in metrics.render()[0].decode()


def test_what_a_key_takes_is_told_by_its_id_and_name() -> None:
    metrics = Metrics()
    for name in ("a", "b", "a"):
        metrics.charged(Tenant(id=name, name=name * 2), "m", Usage(prompt_tokens=5, completion_tokens=2))
    of = figures(metrics)
    assert of("key_tokens_total", key="a", name="aa", kind="prompt") == 10
    assert of("key_tokens_total", key="b", kind="completion") == 2
    assert of("key_requests_total", key="a") == 2


def test_series_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet_inference.server.metrics._NAMES", 3)
    metrics = Metrics()
    for number in range(10):
        metrics.charged(Tenant(id=f"t{number}", name="n"), "m", Usage(prompt_tokens=1))
    metrics.charged(Tenant(id="t0", name="n"), "m", Usage(prompt_tokens=1))
    of = figures(metrics)
    assert of("key_requests_total", key="other") == 7
    assert of("key_requests_total", key="t0") == 2


async def fine(request: Request) -> Response:
    request.state.tenant = Tenant(id="tenant1", name="ada")
    await request.body()
    return Response("fine")


async def broken(_: Request) -> Response:
    raise RuntimeError(f"cannot read {CANARY}")


def app(metrics: Metrics | None = None, audit: Audit | None = None) -> TestClient:
    routes = [Route("/fine/{name}", fine, methods=["POST"]), Route("/broken", broken)]
    found = Starlette(routes=routes, middleware=[Middleware(Records, metrics=metrics, audit=audit)])
    return TestClient(found, raise_server_exceptions=False)


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What the logs say, when they are asked for, once."""
    stream = io.StringIO()
    with ExitStack() as stack:
        stack.enter_context(written(stream))

        def read() -> list[dict[str, Any]]:
            stack.close()
            return [json.loads(line) for line in stream.getvalue().splitlines()]

        yield read


def test_each_request_is_one_line_one_figure_and_one_audit_line(tmp_path: Path, lines: Any) -> None:
    metrics = Metrics()
    with Audit(tmp_path / "audit.jsonl") as audit:
        client = app(metrics, audit)
        answer = client.post(f"/fine/x?key={CANARY}", content=CANARY, headers={"Authorization": f"Bearer {CANARY}"})
        missing = client.get("/nowhere")
    assert answer.headers["x-request-id"] != missing.headers["x-request-id"]
    first, second = [line for line in lines() if line["message"] == "request"]
    assert first["id"] == answer.headers["x-request-id"]
    assert (first["tenant"], first["method"], first["path"], first["status"]) == ("tenant1", "POST", "/fine/x", 200)
    assert (second["tenant"], second["status"]) == (None, 404)
    assert verify(tmp_path / "audit.jsonl").lines == 1  # nobody in particular asked for what is nowhere
    [written] = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert {name: written[name] for name in ("id", "tenant", "path", "status")} == {
        name: first[name] for name in ("id", "tenant", "path", "status")
    }
    of = figures(metrics)
    assert of("http_requests_total", route="/fine/{name}", method="POST", status="200") == 1
    assert of("http_requests_total", route="none", status="404") == 1
    assert of("http_seconds_count", route="/fine/{name}") == 1
    assert of("http_open_requests") == 0
    for text in (json.dumps([first, second]), (tmp_path / "audit.jsonl").read_text(), metrics.render()[0].decode()):
        assert CANARY not in text


def test_a_failure_is_told_by_its_type_and_place_not_by_its_words(lines: Any) -> None:
    metrics = Metrics()
    assert app(metrics).get("/broken").status_code == 500
    try:
        int(CANARY)
    except ValueError:
        logging.getLogger("bitnet_inference.server").exception("something failed with %s", KEY)
    found = lines()
    request, failure = found[-2], found[-1]
    assert request["status"] == 500
    assert failure["error"] == "ValueError"
    assert failure["at"][-1].startswith("test_metrics.py:")
    assert failure["message"] == f"something failed with bn_{'a' * 16}_***"
    assert CANARY not in json.dumps(found)
    assert figures(metrics)("http_requests_total", status="500") == 1


@pytest.mark.parametrize("text", ["a\r\nb", "\x1b[31m", "x" * 100_000, "\u2028"])
def test_a_record_is_one_short_line_whatever_is_in_it(lines: Any, text: str) -> None:
    logging.getLogger("bitnet_core").warning("%s", text)
    [line] = lines()
    assert len(line["message"]) <= 1000
    assert line["message"].isprintable()


def test_logs_are_as_they_were_when_writing_ends(lines: Any) -> None:
    lines()
    logger = logging.getLogger("bitnet_inference")
    assert logger.propagate
    assert not any(isinstance(handler, logging.handlers.QueueHandler) for handler in logger.handlers)


def test_nothing_happens_while_it_cannot_be_written_down() -> None:
    class Stuck(Audit):
        stuck = True

        def __init__(self) -> None:
            """No file."""

    answer = app(audit=Stuck()).post("/fine/x")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"].startswith("the audit log cannot be written")


def test_each_request_is_a_span_that_goes_on_where_the_client_was() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="NO OpenTelemetry SDK")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    routes = [Route("/fine/{name}", fine, methods=["POST"]), Route("/broken", broken)]
    middleware = [Middleware(Records), Middleware(Traces, provider=provider)]
    client = TestClient(Starlette(routes=routes, middleware=middleware), raise_server_exceptions=False)
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "authorization": f"Bearer {CANARY}"}
    answer = client.post(f"/fine/x?key={CANARY}", content=CANARY, headers=headers)
    client.get("/broken")
    first, second = spans.get_finished_spans()
    assert first.name == "POST /fine/{name}"
    assert f"{first.context.trace_id:x}" == trace[1:]
    assert first.attributes == {
        "http.request.method": "POST",
        "http.route": "/fine/{name}",
        "http.response.status_code": 200,
        "bitnet.request_id": answer.headers["x-request-id"],
        "bitnet.tenant": "tenant1",
    }
    assert (second.name, second.status.status_code.name, second.events) == ("GET /broken", "ERROR", ())
    assert CANARY not in first.to_json() + second.to_json()


def test_the_dashboard_asks_for_figures_that_there_are() -> None:
    file = Path(__file__).parents[1] / "deploy" / "grafana.json"
    board = json.loads(file.read_text())
    metrics = Metrics()
    metrics.observer("m")
    kinds = {family.name: family.type for family in text_string_to_metric_families(metrics.render()[0].decode())}
    asked = {name for target in _targets(board) for name in re.findall(r"bitnet_\w+|process_\w+", target)}
    assert len(asked) > 12
    for name in asked:
        base = re.sub(r"_(total|bucket|sum|count)$", "", name)
        assert base in kinds or name in kinds, name
        assert not name.endswith("_bucket") or kinds[base] == "histogram"
        assert not name.endswith("_total") or kinds[base] == "counter"


def _targets(board: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]

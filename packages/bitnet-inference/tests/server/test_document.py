"""The document at /openapi.json, and what becomes of requests that are made from it."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from serving import Running
from starlette.routing import Route

ONCE = settings(
    max_examples=4,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_the_document_has_every_route(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in server.app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert {(path, method) for path, methods in document["paths"].items() for method in methods} == routes


def test_the_document_says_what_fields_there_are(server: Running) -> None:
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]
    chat = schemas["Chat"] if "Chat" in schemas else schemas["bitnet_inference.server.chat.Chat"]
    assert chat["additionalProperties"] is False
    assert set(chat["required"]) == {"model", "messages"}
    assert chat["properties"]["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 8}


@pytest.mark.parametrize("generation", ["positive", "negative"])
def test_no_request_that_is_made_from_the_document_fails_the_server(server: Running, generation: str) -> None:
    document = narrowed(server.client.get("/openapi.json").json())
    found: list[str] = []
    for operation in schemathesis.openapi.from_dict(document).get_all_operations():
        one = operation.ok()
        if not one.body and generation == "negative":
            continue  # there is nothing to get wrong

        @ONCE
        @given(case=one.as_strategy(generation_mode=schemathesis.GenerationMode(generation)))
        def attempt(case: schemathesis.Case) -> None:
            reply = case.call(base_url=server.url, timeout=30)
            if reply.status_code >= 500:
                found.append(f"{case.method} {case.path} {case.body!r}: {reply.status_code} {reply.text[:200]}")

        attempt()
    assert not found


def narrowed(document: Any) -> Any:
    """The document with a model that there is, and short answers: so that requests come to be answered."""
    for schema in document["components"]["schemas"].values():
        fields = schema.get("properties", {})
        if "model" in fields:
            fields["model"] = {"enum": ["stories"]}
        for name in ("max_tokens", "max_output_tokens"):
            if name in fields:
                fields[name] = {"type": "integer", "minimum": 1, "maximum": 4}
                schema["required"] = sorted({*schema.get("required", []), name})
    return document

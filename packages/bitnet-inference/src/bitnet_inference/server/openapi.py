"""The document that says what the server takes and gives, made from the types that it reads requests with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from .gate import Endpoint, answer

_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")
_ERRORS = {
    "400": "The request is wrong; the answer says where",
    "401": "A valid key is needed",
    "403": "The key may not do that",
    "404": "There is nothing of this name for you",
    "409": "It has ended already",
    "413": "The body is too large",
    "415": "The body is not what it must be",
    "429": "Too many requests, or tokens",
    "500": "The server has failed",
    "503": "The server is full, or stops; try again",
}
_FORM = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": ["batch", "user_data"]},
    },
    "required": ["file", "purpose"],
    "additionalProperties": False,
}


async def show(request: Request) -> Response:
    """The document."""
    return answer(request.app.state.document)


def document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """The document of routes."""
    every = list(endpoints)
    bodies = list(dict.fromkeys(endpoint.body for endpoint in every if endpoint.body is not None))
    found, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(bodies, found, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in every:
        path = _PARAMETER.sub(r"{\1}", endpoint.path)
        schema = schemas[endpoint.body] if endpoint.body is not None else None
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, schema)
    return {
        "openapi": "3.1.0",
        "info": {"title": "bitnet", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": {"type": "object"}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, schema: dict[str, Any] | None) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    kinds = {endpoint.media, "application/json"} if endpoint.body is not None else {endpoint.media}
    if endpoint.body is not None and "stream" in endpoint.body.__struct_fields__:
        kinds.add("application/x-ndjson" if endpoint.style == "ollama" else "text/event-stream")
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": re.sub(r"\W+", "_", f"{endpoint.method.lower()}{endpoint.path}").strip("_"),
        "security": [] if endpoint.role == "none" else [{"key": []}],
        "responses": {
            "200": {"description": "It is done", "content": {kind: {"schema": {}} for kind in sorted(kinds)}},
            **{status: {"description": text, **error} for status, text in _ERRORS.items()},
        },
    }
    string = {"type": "string", "minLength": 1}
    parameters = [
        *(
            {"name": name, "in": "path", "required": True, "schema": string}
            for name in _PARAMETER.findall(endpoint.path)
        ),
        *({"name": name, "in": "query", "required": False, "schema": string} for name in endpoint.query),
    ]
    if parameters:
        operation["parameters"] = parameters
    if schema is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    elif endpoint.form:
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    return operation

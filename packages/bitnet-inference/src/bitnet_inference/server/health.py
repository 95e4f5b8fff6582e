"""Whether the server lives and takes requests, and which models it has."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..options import advice
from .errors import Refusal
from .gate import PAGE_LIMIT, answer, page
from .models import Models, ModelState
from .works import works_of


async def live(_: Request) -> Response:
    """The process lives; nothing is said beside that."""
    return answer({"status": "ok"})


async def ready(request: Request) -> Response:
    """Whether requests are taken."""
    if works_of(request).draining:
        raise Refusal(503, "the server is stopping", code="stopping")
    return answer({"status": "ready"})


async def models(request: Request) -> Response:
    """The models that the tenant may use, adapters by names of their own."""
    return answer(page(request, [_model(state, name) for state, name in _open(request)], usual=PAGE_LIMIT))


async def model(request: Request) -> Response:
    """One of them."""
    wanted = request.path_params["model"]
    for state, name in _open(request):
        if name == wanted:
            return answer(_model(state, name))
    models_of(request).find(wanted, ())  # refuses it
    raise Refusal(404, "model: there is none of this name", code="model_not_found")


def models_of(request: Request) -> Models:
    """The models of a server."""
    found: Models = request.app.state.models
    return found


def timestamp(seconds: float) -> str:
    """A moment since 1970 as RFC 3339 has it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _open(request: Request) -> list[tuple[ModelState, str]]:
    allowed = request.state.tenant.models
    return [
        (state, name)
        for state in models_of(request).states()
        for name in (state.name, *(f"{state.name}:{adapter}" for adapter in state.adapters))
        if allowed is None or name in allowed or state.name in allowed
    ]


def _model(state: ModelState, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"id": name, "object": "model", "created": state.created, "owned_by": "bitnet"}
    found |= {"type": "model", "display_name": name, "created_at": timestamp(state.created)}
    found["lifecycle"] = "active"
    found["loaded"] = state.loaded
    if state.llm is not None:
        found["max_model_len"] = found["max_input_tokens"] = found["max_tokens"] = state.llm.engine.context
        found["sampling"] = advice(state.llm.model)
    if name != state.name:
        found["parent"] = state.name
    return found

"""What the server answers where it cannot do what is asked: one refusal, in the words of each protocol."""

from __future__ import annotations

import logging
import re
from typing import Any

from starlette.exceptions import HTTPException

from bitnet_core.errors import BitNetError, FormatError, OutOfMemory, UnsupportedError, printable

from ..request import EngineClosed, Overloaded
from ..sampling import SamplingError

log = logging.getLogger("bitnet_inference.server")

RETRY_S = 2  # when an overloaded server may be asked again
_MESSAGE_LIMIT = 500
# How our refusals begin: the name of what is wrong, perhaps with a path into it.
_NAMED = re.compile(r"([A-Za-z_][\w$]*(?:\[[^\]]*\]|[./]?[\w$-]+)*): ")
_OPENAI = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
_ANTHROPIC = _OPENAI | {413: "request_too_large", 500: "api_error", 503: "overloaded_error"}
_WORDS = {404: "there is nothing at this path", 405: "this path takes another method", 413: "the body is too large"}
_CODES = {401: "invalid_api_key", 413: "request_too_large", 429: "rate_limit_exceeded", 503: "overloaded"}


class Refusal(Exception):
    """An answer that is an error: its status, and what the client is told of it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,  # noqa: A002  # the name that protocols have for it
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = printable(message, _MESSAGE_LIMIT)
        self.type = type
        self.param = None if param is None else printable(param)
        self.code = code or _CODES.get(status)
        self.retry_after = RETRY_S if retry_after is None and status == 503 else retry_after  # seconds

    @property
    def short(self) -> str:
        """Why, in a word that is always the same."""
        return self.code or "error"

    def to_openai(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = self.type or _OPENAI.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def to_anthropic(self) -> dict[str, Any]:
        """As Anthropic's clients read it."""
        kind = self.type or _ANTHROPIC.get(self.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def to_ollama(self) -> dict[str, Any]:
        """As Ollama's clients read it."""
        return {"error": self.message}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        found = {}
        if self.retry_after is not None:
            found["Retry-After"] = str(max(1, round(self.retry_after)))
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return found


def refusal_of(error: Exception) -> Refusal:
    """What a client is told of an error: what it did wrong, or that it was not its fault, and nothing of ours."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):  # of the framework
        return Refusal(error.status_code, _WORDS.get(error.status_code, "the request cannot be answered"))
    if isinstance(error, Overloaded):
        return Refusal(503, "too many requests are waiting; try again")
    if isinstance(error, EngineClosed):
        return Refusal(503, "the model is being unloaded; try again")
    if isinstance(error, FormatError):
        param = None if error.field in ("JSON", "text", "number") else error.field
        return Refusal(400, str(error), param=param)
    if isinstance(error, UnsupportedError | OutOfMemory | SamplingError):
        return Refusal(400, str(error))
    named = _NAMED.match(str(error))
    if isinstance(error, ValueError) and named:
        # What is asked of the engine is checked by it; its words name the argument and the range.
        code = "context_length_exceeded" if " in a context of " in str(error) else None
        return Refusal(400, str(error), param=named[1], code=code)
    log.error("a request has failed", exc_info=error)
    message = "the request has failed; the server's log says why"
    return Refusal(500, message, code="unsupported" if isinstance(error, BitNetError) else None)

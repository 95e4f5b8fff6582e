"""What requests of several protocols have in common: the fields of sampling, with their ranges, and messages."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from .errors import Refusal

Name = Annotated[str, Meta(min_length=1, max_length=512)]
Text = str
Count = Annotated[int, Meta(ge=1, le=1 << 30)]
Natural = Annotated[int, Meta(ge=0, le=1 << 30)]
Token = Annotated[int, Meta(ge=0, le=(1 << 20) - 1)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Stop = Annotated[str, Meta(min_length=1, max_length=256)]
Stops = Stop | Annotated[list[Stop], Meta(max_length=16)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]
Seconds = Annotated[float, Meta(ge=0.0, le=86400.0)]

# Under these names the engine knows them, too.
_SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "penalty_window",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "seed",
    "min_tokens",
    "ignore_eos",
    "include_stop",
    "n",
    "priority",
    "deadline_s",
)


class StreamOptions(Struct, forbid_unknown_fields=True):
    """How a stream is sent."""

    include_usage: bool | None = None
    # Random padding against those who look at sizes of packets is not made.
    include_obfuscation: Literal[False] | None = None


class Sampled(Struct, forbid_unknown_fields=True, kw_only=True):
    """Fields of sampling, OpenAI's and those beyond."""

    LABELS: ClassVar[tuple[str, ...]] = ("user",)

    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    top_p: Share | None = None
    n: Annotated[int, Meta(ge=1, le=8)] | None = None
    stop: Stops | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]], Meta(max_length=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    # Beyond OpenAI's.
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100.0)] | None = None
    penalty_window: Count | None = None
    dry_multiplier: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    dry_base: Annotated[float, Meta(ge=1.0, le=100.0)] | None = None
    dry_allowed_length: Count | None = None
    min_tokens: Natural | None = None
    stop_token_ids: Annotated[list[Token], Meta(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    include_stop: bool | None = None
    priority: Annotated[int, Meta(ge=0, le=1000)] | None = None  # 0 goes first
    deadline_s: Seconds | None = None

    def wishes(self) -> dict[str, Any]:
        """What is asked for, as the engine's options."""
        found = {name: value for name in _SAME if (value := getattr(self, name)) is not None}
        if self.stop:
            found["stop"] = self.stop
        if self.stream_options is not None and not self.stream:
            raise Refusal(400, "stream_options: expected stream to be true with it", param="stream_options")
        if self.stop_token_ids:
            found["stop_tokens"] = frozenset(self.stop_token_ids)
        if self.logit_bias:
            found["logit_bias"] = {_token(token): bias for token, bias in self.logit_bias.items()}
        return found

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(Struct, forbid_unknown_fields=True):
    """A part of a message; there are none but text."""

    type: Literal["text"]
    text: str


class CalledFunction(Struct, forbid_unknown_fields=True):
    """A function that was called, with its arguments as JSON."""

    name: Name
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Struct, forbid_unknown_fields=True):
    """A call that the model made."""

    function: CalledFunction
    id: Annotated[str, Meta(max_length=256)] | None = None
    type: Literal["function"] = "function"
    index: Natural | None = None


class ChatMessage(Struct, forbid_unknown_fields=True):
    """What somebody said; the fields that say nothing are those which clients send back with an answer."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Meta(max_length=2048)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=128)] | None = None
    tool_call_id: Annotated[str, Meta(max_length=256)] | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None

    def plain(self) -> dict[str, Any]:
        """As templates take it."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if not isinstance(self.content, str | None):
            found["content"] = "".join(part.text for part in self.content)
        for name in ("name", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                found[name] = value
        if self.tool_calls:
            found["tool_calls"] = msgspec.to_builtins(self.tool_calls)
        return found


Messages = Annotated[list[ChatMessage], Meta(min_length=1, max_length=2048)]


class FunctionTool(Struct, forbid_unknown_fields=True):
    """A function that the model may ask to have called."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, forbid_unknown_fields=True):
    """A tool; there are none but functions."""

    type: Literal["function"]
    function: FunctionTool


Tools = Annotated[list[Tool], Meta(max_length=128)]


def descriptions(tools: list[Tool] | None) -> list[dict[str, Any]]:
    """Tools as the engine takes them."""
    each = [tool.function for tool in tools or ()]
    return [described(one.name, one.description, one.parameters) for one in each]


def chosen_of(tools: list[dict[str, Any]], choice: str, names: list[str]) -> tuple[list[dict[str, Any]], str]:
    """Those of the tools that are named, all where none is, and which must be called; refuses what does not fit."""
    known = [tool["function"]["name"] for tool in tools]
    for name in names:
        if name not in known:
            message = f"tool_choice: expected one of tools, {', '.join(known) or 'and there are none'}, got {name!r}"
            raise Refusal(400, message, param="tool_choice")
    if choice == "required" and not tools:
        raise Refusal(400, "tool_choice: expected tools with required, got none", param="tool_choice")
    return [tool for tool in tools if not names or tool["function"]["name"] in names], choice


def described(name: str, description: str | None, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """One of them."""
    function: dict[str, Any] = {"name": name, "description": description or ""}
    if parameters:
        function["parameters"] = parameters
    return {"type": "function", "function": function}


def _token(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 7:
        raise ValueError(f"logit_bias: expected token ids of 0..{(1 << 20) - 1} as keys, got {text[:40]!r}")
    return int(text)

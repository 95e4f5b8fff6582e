"""What Ollama's routes are asked with."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from ..llm import LLM
from ..writing import Writing
from .fields import Alternatives, Name, Penalty, Seed, Share, Stops
from .text import talk

KeepAlive = Annotated[float, Meta(ge=-1e9, le=1e9)] | Annotated[str, Meta(max_length=32)]

# Of Ollama's options, those that the engine has, by its names for them.
_SAME = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
}
# Those that tell a machine how to work, and change no text: they are taken, and listed as ignored.
_MACHINE = (
    *("numa", "num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "use_mlock", "num_thread", "num_keep"),
    *("low_vram", "f16_kv", "vocab_only", "logits_all"),
)


class Options(Struct, forbid_unknown_fields=True, kw_only=True):
    """How a text is sampled."""

    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100.0)] | None = None
    repeat_last_n: Annotated[int, Meta(ge=-1, le=1 << 30)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    num_predict: Annotated[int, Meta(ge=-2, le=1 << 30)] | None = None
    stop: Stops | None = None
    numa: bool | None = None
    num_ctx: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None
    num_batch: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None
    num_gpu: Annotated[int, Meta(ge=-1, le=1 << 30)] | None = None
    main_gpu: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    num_thread: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None
    num_keep: Annotated[int, Meta(ge=-1, le=1 << 30)] | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    vocab_only: bool | None = None
    logits_all: bool | None = None
    mirostat: Literal[0] | None = None  # there is none here, which 0 asks for

    def wishes(self) -> dict[str, Any]:
        """What is asked for, as the engine's options."""
        found = {ours: value for name, ours in _SAME.items() if (value := getattr(self, name)) not in (None, [])}
        if self.num_predict is not None and self.num_predict > 0:
            found["max_tokens"] = self.num_predict
        if self.repeat_last_n == 0:
            found["repetition_penalty"] = 1.0
        elif self.repeat_last_n is not None and self.repeat_last_n > 0:
            found["penalty_window"] = self.repeat_last_n
        return found

    def ignored(self) -> list[str]:
        """What changes nothing here."""
        return [f"options.{name}" for name in _MACHINE if getattr(self, name) is not None]


class Asked(Struct, forbid_unknown_fields=True, kw_only=True):
    """What both ways to ask have."""

    HINTS: ClassVar[tuple[str, ...]] = ("think",)

    model: Name
    stream: bool | None = None
    options: Options | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    keep_alive: KeepAlive | None = None
    think: Literal[False] | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None

    def wishes(self) -> dict[str, Any]:
        """What is asked for, as the engine's options."""
        found = self.options.wishes() if self.options else {}
        if self.format:
            found["form"] = self.format
        if self.logprobs:
            found["logprobs"] = self.top_logprobs or 0
        return found


class Function(Struct, forbid_unknown_fields=True):
    """A function, as it was called or is described."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    arguments: dict[str, Any] | None = None
    index: Annotated[int, Meta(ge=0, le=1024)] | None = None


class Called(Struct, forbid_unknown_fields=True):
    """A call, or a description of a tool."""

    function: Function
    type: Literal["function"] | None = None
    id: Annotated[str, Meta(max_length=256)] | None = None


class Message(Struct, forbid_unknown_fields=True):
    """What somebody said."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: Annotated[list[Any], Meta(max_length=0)] | None = None
    thinking: None = None
    tool_calls: Annotated[list[Called], Meta(max_length=128)] | None = None
    tool_name: Annotated[str, Meta(max_length=256)] | None = None
    tool_call_id: Annotated[str, Meta(max_length=256)] | None = None

    def plain(self) -> dict[str, Any]:
        """As a message of a chat."""
        found: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.tool_calls:
            found["tool_calls"] = [
                {"type": "function", "function": {"name": one.function.name, "arguments": one.function.arguments or {}}}
                for one in self.tool_calls
            ]
        return found | ({"name": self.tool_name} if self.tool_name else {})


class Chat(Asked, kw_only=True):
    """A conversation that is to be continued; without messages, the model is only loaded."""

    messages: Annotated[list[Message], Meta(max_length=2048)] | None = None
    tools: Annotated[list[Called], Meta(max_length=128)] | None = None

    def start(self, llm: LLM, wishes: dict[str, Any]) -> Writing:
        """Begin to answer."""
        tools = [
            {
                "type": "function",
                "function": {
                    "name": tool.function.name,
                    "description": tool.function.description or "",
                    "parameters": tool.function.parameters,
                },
            }
            for tool in self.tools or ()
        ]
        return talk(llm, [message.plain() for message in self.messages or ()], tools, "auto", wishes)


class Generate(Asked, kw_only=True):
    """A text that is to be answered, or continued where it is `raw`."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: Annotated[str, Meta(max_length=0)] | None = None
    images: Annotated[list[Any], Meta(max_length=0)] | None = None
    template: Annotated[str, Meta(max_length=0)] | None = None
    context: Annotated[list[Any], Meta(max_length=0)] | None = None

    def start(self, llm: LLM, wishes: dict[str, Any]) -> Writing:
        """Begin to answer."""
        if self.raw or llm.model.template is None:
            return llm.write((self.system or "") + (self.prompt or ""), **wishes)
        said = [{"role": "system", "content": self.system}] if self.system else []
        return llm.stream([*said, {"role": "user", "content": self.prompt or ""}], **wishes)


class Embed(Struct, forbid_unknown_fields=True, kw_only=True):
    """Texts whose meaning is asked for."""

    model: Name
    input: str | Annotated[list[str], Meta(min_length=1, max_length=2048)]
    truncate: Literal[False] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None


class Embedding(Struct, forbid_unknown_fields=True, kw_only=True):
    """One text whose meaning is asked for, as older clients do."""

    model: Name
    prompt: str | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None


class Show(Struct, forbid_unknown_fields=True, kw_only=True):
    """A model that is asked about."""

    model: Name | None = None
    name: Name | None = None  # the same, by its older name
    verbose: bool | None = None

"""What commands that write text are asked: how the model runs, and how the next token is chosen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter, validators

from . import models
from .amounts import Count, Size, Threads
from .console import Flags
from .failures import Refused

if TYPE_CHECKING:
    from bitnet_inference.llm import LLM
    from bitnet_inference.reply import Reply

_ENGINE = Group("How it runs", sort_key=40)
_SAMPLING = Group("How it writes", sort_key=30)


@Parameter(name="*", group=_ENGINE)
@dataclass(frozen=True, kw_only=True)
class Running:
    """How a model runs."""

    backend: str = "auto"
    """What runs it; bitnet backends lists them."""
    threads: Annotated[Threads | None, Parameter(name=["--threads", "-t"])] = None
    """How many threads; the backend chooses by default."""
    context: Annotated[Count | None, Parameter(name=["--context", "-c"])] = None
    """Tokens of context, as 4096 or 8k (8,000)."""
    memory: Size | None = None
    """What weights and caches may take together, as 2GiB."""
    head: Literal["f16", "int8"] | None = None
    """How the cpu backend holds the output head: int8 is half the bytes."""
    draft: str | None = None
    """A smaller model of the same tokens, whose guesses are checked several at a time; the text is the same."""
    adapter: Path | None = None
    """A LoRA adapter of PEFT's form."""

    @contextmanager
    def opened(self, model: str | None, flags: Flags) -> Iterator[LLM]:
        """The model, ready to write; None is the built-in one."""
        models.backend(self.backend)
        options: dict[str, Any] = {"head": self.head} if self.head else {}
        path = None if model is None else str(models.find(model, flags))
        if self.draft is not None:
            options["draft"] = str(models.find(self.draft, flags))
        from bitnet_inference.llm import LLM  # noqa: PLC0415  # half a second

        flags.remark(f"loading {model}") if model else None
        with LLM(
            path, backend=self.backend, threads=self.threads, memory=self.memory, context=self.context, **options
        ) as llm:
            if self.adapter is not None:
                llm.load_adapter(self.adapter.name, self.adapter)
            yield llm


@Parameter(name="*", group=_SAMPLING)
@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How the next token is chosen, and where the text ends; what is not said is as the model's makers advise."""

    max_tokens: Annotated[Count | None, Parameter(name=["--max-tokens", "-n"])] = None
    """The most tokens; to the end of the context by default."""
    temperature: Annotated[float | None, Parameter(validator=validators.Number(gte=0, lte=100))] = None
    """0 takes the likeliest token always."""
    top_p: Annotated[float | None, Parameter(validator=validators.Number(gte=0, lte=1))] = None
    """Of the likeliest tokens, those that make up this share."""
    top_k: Annotated[int | None, Parameter(validator=validators.Number(gte=0, lte=1 << 20))] = None
    """Of the likeliest tokens, so many; 0 for all."""
    min_p: Annotated[float | None, Parameter(validator=validators.Number(gte=0, lte=1))] = None
    """Tokens at least this probable beside the likeliest."""
    repetition_penalty: Annotated[float | None, Parameter(validator=validators.Number(gte=0.01, lte=100))] = None
    """Above 1, what was said comes again more seldom."""
    seed: int | None = None
    """The same seed writes the same text."""
    stop: tuple[str, ...] = ()
    """A string that ends the text."""
    schema: str | None = None
    """Answer in JSON: a file with a JSON schema, or "json" for any object."""

    def options(self, running: Running) -> dict[str, Any]:
        """The keywords of the library."""
        plain = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        found: dict[str, Any] = {name: getattr(self, name) for name in plain if getattr(self, name) is not None}
        if self.stop:
            found["stop"] = self.stop
        if self.schema is not None:
            found["form"] = read_schema(self.schema)
        if running.adapter is not None:
            found["adapter"] = running.adapter.name
        return found


RUNNING, WISHES = Running(), Wishes()


def read_schema(source: str) -> Any:
    """A JSON schema from a file, or "json" itself."""
    if source == "json":
        return source
    try:
        found = json.loads(models.read_text(source, "a JSON schema"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise Refused(f"{source}: expected a JSON schema, got {error}") from error
    if not isinstance(found, dict):
        raise Refused(f"{source}: expected a JSON schema, an object, got {type(found).__name__}")
    return found


def record_of(reply: Reply) -> dict[str, Any]:
    """All that is known of a text."""
    return {
        "text": str(reply),
        "finish_reason": reply.finish_reason,
        "usage": reply.usage,
        "timings": reply.timings,
        "tokens_per_s": speed(reply),
        "parsed": reply.parsed,
        "tokens": reply.tokens,
    }


def speed(reply: Reply) -> float | None:
    """Tokens a second from the first one on; None where there was but one."""
    later = len(reply.tokens) - 1
    return later / reply.timings.decode_s if later > 0 and reply.timings.decode_s > 0 else None


def said_of(reply: Reply) -> str:
    """One line about how a text came about."""
    usage, timings = reply.usage, reply.timings
    first = "" if timings.first_token_s is None else f", first after {timings.first_token_s:.2f} s"
    rate = speed(reply)
    fast = "" if rate is None else f", {rate:.1f} tokens/s"
    energy = "" if usage.joules is None else f", {usage.joules:.1f} J"
    kept = f" ({usage.cached_tokens} of them known)" if usage.cached_tokens else ""
    return (
        f"{usage.prompt_tokens} tokens read{kept}, {usage.completion_tokens} written{first}{fast}{energy}; "
        f"ended by {reply.finish_reason}"
    )

"""What a caller may say of one text: how it is sampled, what form it has, and how its request is treated."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, Literal, TypedDict

from bitnet_core.model import Adapter, Backend, Model

from .request import Request
from .session import Session
from .settings import Processor, Sampling

_SAMPLING = frozenset(field.name for field in fields(Sampling))
# Where a model's makers advise nothing: all of a small model's distribution has too much chance in it.
_USUAL: Mapping[str, float] = {"temperature": 0.8, "top_p": 0.95}

# What other libraries call the same.
_ELSEWHERE: Mapping[str, str] = {
    "n_ctx": "context",
    "max_model_len": "context",
    "num_ctx": "context",
    "n_threads": "threads",
    "max_new_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "stop_token_ids": "stop_tokens",
    "sampling_params": "sampling",
    "logits_processor": "processors",
    "logits_processors": "processors",
    "response_format": "form",
    "lora_request": "adapter",
}
_CONSTRUCTOR = ("backend", "memory", "context", "max_sequences", "step_tokens", "queue", "prefix_cache", "name")


class Options(TypedDict, total=False):
    """Keywords of `generate`, `chat` and `stream`; those of sampling are the fields of `Sampling`."""

    sampling: Sampling | None  # all settings at once, instead of what the model's makers advise
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int | None
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_breakers: frozenset[int] | None
    logit_bias: Mapping[int, float]
    seed: int | None
    max_tokens: int | None
    min_tokens: int
    stop: str | tuple[str, ...] | list[str]
    stop_tokens: frozenset[int]
    include_stop: bool
    ignore_eos: bool
    logprobs: int | None
    prompt_logprobs: int | None
    n: int
    processors: tuple[Processor, ...]
    form: Any  # "json", a JSON schema, a type, a compiled regex, a list of choices, or a Form
    adapter: str | Adapter | None
    priority: int  # lower goes first
    deadline_s: float | None  # from now; what was written by then is the reply
    tenant: bytes  # prefixes are shared within one tenant alone
    drafts: Literal["auto", "on", "off"]  # speculation; the text is the same
    session: Session | None  # the text that the prompt goes on with
    admit: Callable[[Request], object] | None  # is shown the request, its prompt in tokens; what it raises refuses it


def check(options: Mapping[str, Any]) -> None:
    """Refuse a keyword that there is not, and name the one that was meant."""
    for name in options:
        if name not in Options.__annotations__:
            raise TypeError(f"no option {name!r}{_meant(name, Options.__annotations__)}")
    session = options.get("session")
    if session is not None and not isinstance(session, Session):
        raise TypeError(f"session: expected a Session, got {type(session).__name__}")


def check_backend(options: Mapping[str, Any], backend: Backend) -> None:
    """Refuse a keyword of the constructor that neither it nor the backend has."""
    known = inspect.signature(backend.load).parameters
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in options:
        if name not in known:
            own = [each for each, parameter in known.items() if parameter.kind == parameter.KEYWORD_ONLY]
            hint = _meant(name, [*own, *_CONSTRUCTOR])
            raise TypeError(f"no option {name!r} of LLM, or of the backend {backend.name}{hint}")


def _meant(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = [_ELSEWHERE[name]] if _ELSEWHERE.get(name) in names else difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def sampling_of(options: Mapping[str, Any], model: Model, breakers: Callable[[], frozenset[int]]) -> Sampling:
    """How a text is sampled: what the caller says, over what the model's makers advise.

    `breakers` gives the tokens that no repetition runs across, where the caller names none.
    """
    # Of every setting, None is the default.
    given = {name: value for name, value in options.items() if name in _SAMPLING and value is not None}
    whole = options.get("sampling")
    if whole is not None:
        if given:
            raise TypeError(f"expected sampling, or its settings one by one, got both: sampling and {', '.join(given)}")
        if not isinstance(whole, Sampling):
            raise TypeError(f"sampling: expected a Sampling, got {type(whole).__name__}")
        return _resolved(whole, model, breakers)
    return _resolved(Sampling(**{**advice(model), **given}), model, breakers)


def advice(model: Model) -> dict[str, Any]:
    """How a text is sampled where nobody says anything: as the model's makers advise."""
    found: dict[str, Any] = dict(model.sampling) or dict(_USUAL)
    if "top_k" in found:
        found["top_k"] = int(found["top_k"])
    return found


def _resolved(sampling: Sampling, model: Model, breakers: Callable[[], frozenset[int]]) -> Sampling:
    """What only a tokenizer can tell: stop strings that are one token, and what no repetition runs across."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return sampling
    special = tokenizer.special_tokens
    if found := [text for text in sampling.stop if text in special]:
        # Special tokens are no text: as strings they would never be found.
        stops = sampling.stop_tokens | {special[text] for text in found}
        sampling = replace(
            sampling, stop=tuple(text for text in sampling.stop if text not in special), stop_tokens=stops
        )
    if sampling.dry_multiplier and sampling.dry_breakers is None:
        sampling = replace(sampling, dry_breakers=breakers())
    return sampling

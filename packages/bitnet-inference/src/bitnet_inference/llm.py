"""A language model in one object: text in, text out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Self, Unpack, cast, overload

import numpy as np

from bitnet_core import backends
from bitnet_core.errors import UnsupportedError
from bitnet_core.formats import load, load_adapter
from bitnet_core.memory import Pool
from bitnet_core.messages import Message
from bitnet_core.model import Adapter, Array, Model, Tokens
from bitnet_core.tokenizer import Tokenizer

from . import likelihood, options
from .conversation import Conversation
from .engine import Engine
from .likelihood import Perplexity, Score, Submit
from .observer import Observer
from .options import Options
from .penalties import breaker_tokens
from .prompts import Prompt, Prompts, is_several
from .reply import Reply
from .request import Request, Result
from .session import Session
from .structured import Form, Vocabulary
from .tools import Tool, Toolbox, form_of
from .writing import Writing, read_answer, stopper

BUILT_IN = Path(__file__).parent / "stories"

_OF_REQUEST = ("priority", "deadline_s", "tenant", "drafts", "session")
Tools = Toolbox | Iterable[Tool] | None
ToolChoice = Literal["auto", "none", "required"] | str  # or the name of the tool that must be called


class LLM:
    """A model, ready to write; any number of threads and tasks may use it at once, and share its steps.

    `model`: a name on the hub, a folder, a GGUF file, a `Model`, or None or "stories" for the small story model that
    comes with this package. `memory`: bytes that weights and caches may take together. `draft`: a smaller model of the
    same vocabulary, whose guesses the model checks several at a time. `observer` is told of each step and each request
    that ended. `name`: what errors and servers call it. What is left goes to the backend: `head`, `kv`, `isa`.
    """

    def __init__(  # noqa: PLR0913  # each is a setting of its own, given by name
        self,
        model: str | os.PathLike[str] | Model | None = None,
        *,
        backend: str = "auto",
        threads: int | None = None,
        memory: int | None = None,
        context: int | None = None,
        max_sequences: int = 32,
        step_tokens: int = 512,
        queue: int = 1024,
        prefix_cache: bool = True,
        draft: str | os.PathLike[str] | Model | None = None,
        observer: Observer | None = None,
        name: str | None = None,
        progress: Callable[[Any], None] | None = None,
        **backend_options: Any,
    ) -> None:
        if threads is not None:
            backend_options["threads"] = threads
        self.model = _open(model, progress)
        self.name = name or _name(model)
        self.backend = backends.get(backend)
        options.check_backend(backend_options, self.backend)
        self._pool = Pool(memory, name="llm")
        place = partial(self.backend.load, memory=self._pool, **backend_options)
        with ExitStack() as stack:  # what was placed goes, if what comes after it fails
            self._runner = stack.enter_context(closing(place(self.model)))
            smaller = None if draft is None else stack.enter_context(closing(place(_open(draft, progress))))
            self._engine = Engine(
                self._runner,
                memory=self._pool,
                context=context,
                max_sequences=max_sequences,
                step_tokens=step_tokens,
                queue=queue,
                prefix_cache=prefix_cache,
                model=self.model,
                draft=smaller,
                observer=observer,
            )
            self._placed = stack.pop_all()
        self._prompts = Prompts(self.model, self.name)
        self._adapters: dict[str, Adapter] = {}
        self._lock = Lock()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._prompts.tokenizer

    @property
    def engine(self) -> Engine:
        """The engine below: ids in, ids out."""
        return self._engine

    @overload
    def generate(self, prompt: str | Tokens | list[int], **wishes: Unpack[Options]) -> Reply: ...

    @overload
    def generate(
        self, prompt: list[str] | list[Tokens] | list[list[int]], **wishes: Unpack[Options]
    ) -> list[Reply]: ...

    def generate(self, prompt: Prompt | list[Prompt], **wishes: Unpack[Options]) -> Reply | list[Reply]:  # type: ignore[misc]
        """What follows a prompt, a text or token ids; of a list of prompts a list, computed together."""
        if not is_several(prompt):
            with self.write(cast("Prompt", prompt), **wishes) as writing:
                return writing.reply
        with self._engine.together() as submit:
            return [writing.reply for writing in [self._write(one, wishes, submit) for one in prompt]]

    async def agenerate(self, prompt: Prompt, **wishes: Unpack[Options]) -> Reply:
        """What follows one prompt, in asyncio; `asyncio.gather` computes several together."""
        with self.write(prompt, **wishes) as writing:
            return await writing.areply()

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Tools = (),
        tool_choice: ToolChoice = "auto",
        template: Mapping[str, Any] | None = None,
        **wishes: Unpack[Options],
    ) -> Reply:
        """The answer to a question, or to a conversation, as the model's own chat template has it.

        `tools`: functions that it may ask to have called; `conversation` also calls them. `template`: variables of
        the template beyond the usual ones.
        """
        with self.stream(messages, tools=tools, tool_choice=tool_choice, template=template, **wishes) as writing:
            return writing.reply

    async def achat(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Tools = (),
        tool_choice: ToolChoice = "auto",
        template: Mapping[str, Any] | None = None,
        **wishes: Unpack[Options],
    ) -> Reply:
        """The same in asyncio."""
        with self.stream(messages, tools=tools, tool_choice=tool_choice, template=template, **wishes) as writing:
            return await writing.areply()

    def stream(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Tools = (),
        tool_choice: ToolChoice = "auto",
        template: Mapping[str, Any] | None = None,
        **wishes: Unpack[Options],
    ) -> Writing:
        """The answer of `chat` piece by piece, with `for` or `async for`; its `reply` is the whole."""
        toolbox = Toolbox.of(tools) if tool_choice != "none" else Toolbox.of(())
        tokens = self._prompts.chat(messages, tools=toolbox.schemas, variables=template)
        return self._submit(tokens, wishes, toolbox, tool_choice)

    def write(self, prompt: Prompt, **wishes: Unpack[Options]) -> Writing:
        """What follows a prompt, piece by piece; its `reply` is the whole."""
        return self._write(prompt, wishes, self._engine.submit)

    def session(self, **scope: Any) -> Session:
        """A text that requests go on with, one after another: pass it to `generate` or `write` as `session`."""
        return Session(self._engine, **scope)

    def load_session(self, path: str | os.PathLike[str], **scope: Any) -> Session:
        """A session from a file; refused where it is another model's, or another kind of backend's."""
        return Session.load(path, self._engine, **scope)

    def conversation(self, system: str | None = None, *, tools: Tools = (), **wishes: Unpack[Options]) -> Conversation:
        """A conversation that remembers what was said, and calls its tools."""
        return Conversation(self, system=system, tools=tools, options=wishes)

    @overload
    def embed(self, texts: str, *, adapter: str | Adapter | None = None) -> Array: ...

    @overload
    def embed(self, texts: Iterable[Prompt], *, adapter: str | Adapter | None = None) -> Array: ...

    def embed(self, texts: str | Iterable[Prompt], *, adapter: str | Adapter | None = None) -> Array:
        """The meaning of a text as a vector of length 1, the state of its last token; of several texts, a row each."""
        with self._engine.together() as submit:
            tickets = [submit(request) for request in self._state_requests(texts, adapter)]
            rows = self._rows([ticket.result() for ticket in tickets])
        return rows[0] if isinstance(texts, str) else rows

    async def aembed(self, texts: str | Iterable[Prompt], *, adapter: str | Adapter | None = None) -> Array:
        """The same in asyncio, of as many texts as the queue has room for."""
        tickets = [self._engine.submit(request) for request in self._state_requests(texts, adapter)]
        rows = self._rows([await ticket.aresult() for ticket in tickets])
        return rows[0] if isinstance(texts, str) else rows

    def score(self, text: Prompt, given: str = "", *, adapter: str | Adapter | None = None) -> Score:
        """How probable a text is, token by token, after what is given."""
        return self.scores([(given, text)], adapter=adapter)[0]

    def scores(self, pairs: Iterable[tuple[str, Prompt]], *, adapter: str | Adapter | None = None) -> list[Score]:
        """The same of several texts, each after what it is given, computed together."""
        return self.score_tokens([self._prompts.pair(given, text) for given, text in pairs], adapter=adapter)

    def perplexity(
        self, texts: str | Iterable[str], *, stride: int | None = None, adapter: str | Adapter | None = None
    ) -> Perplexity:
        """How surprising texts of any length are, each from its beginning.

        Every token has at least `context - stride` tokens before it, where there are so many; half of the context by
        default. Less is slower, and nearer to the truth.
        """
        several = [texts] if isinstance(texts, str) else list(texts)
        step = self._engine.context // 2 if stride is None else stride
        pairs = [self._prompts.pair("", text) for text in several]
        return likelihood.perplexity(self.score_tokens(pairs, stride=step, adapter=adapter), several)

    def score_tokens(
        self,
        pairs: Iterable[tuple[Tokens, int]],
        *,
        stride: int | None = None,
        adapter: str | Adapter | None = None,
    ) -> list[Score]:
        """Scores of token ids, each text from its given place on; what is longer than the context is cut in windows.

        The windows after the first score `stride` tokens each, by default one context's worth.
        """
        found, context = self.adapter(adapter), self._engine.context
        step = context - 1 if stride is None else stride
        with self._engine.together() as submit:
            begun = [
                likelihood.score(submit, tokens, first, context=context, stride=step, adapter=found)
                for tokens, first in pairs
            ]
            return [wait() for wait in begun]

    def load_adapter(self, name: str, path: str | os.PathLike[str]) -> Adapter:
        """Read a LoRA adapter of PEFT's format; requests use it by its name, at once."""
        adapter = load_adapter(path, self.model.spec, name)
        with self._lock:
            if name in self._adapters:
                raise ValueError(f"adapter {name!r} is loaded already; unload it first")
            self._adapters[name] = adapter
        return adapter

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that have it finish with it."""
        with self._lock:
            adapter = self._adapters.pop(name, None)
        if adapter is None:
            raise ValueError(self._no_adapter(name))
        self._engine.forget(adapter)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of those that are loaded."""
        return tuple(sorted(self._adapters))

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Tell one more of each step and each request that ends; call what is returned to tell it no more."""
        return self._engine.observe(observer)

    def serve(self, **settings: Any) -> None:
        """Serve this model over HTTP until a signal says to stop; `settings` are those of `server.serve`."""
        from .server import serve  # noqa: PLC0415  # an extra

        serve(self, **settings)

    def close(self, drain_s: float = 0.0) -> None:
        """End all requests, after `drain_s` seconds at the latest, and give the memory back."""
        self._engine.close(drain_s)
        self._placed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, prompt: Prompt, wishes: Mapping[str, Any], submit: Submit) -> Writing:
        options.check(wishes)
        # What begins every text stands before the first part of a session alone.
        begins = not wishes.get("session")
        return self._submit(self._prompts.tokens(prompt, begins=begins), wishes, submit=submit, continues=True)

    def _submit(
        self,
        tokens: Tokens,
        wishes: Mapping[str, Any],
        toolbox: Toolbox | None = None,
        tool_choice: ToolChoice = "auto",
        *,
        submit: Submit | None = None,
        continues: bool = False,
    ) -> Writing:
        options.check(wishes)
        tokenizer = self.model.tokenizer
        form = form_of(wishes.get("form"), toolbox, tool_choice)
        request = self._request(tokens, wishes, form, continues=continues)
        if (admit := wishes.get("admit")) is not None:
            admit(request)
        reader = None
        if form is not None or toolbox:
            reader = partial(read_answer, form, toolbox)
        ticket = (submit or self._engine.submit)(request)
        return Writing(ticket, request, tokenizer, continues=continues, read=reader)

    def _request(self, tokens: Tokens, wishes: Mapping[str, Any], form: Form | None, *, continues: bool) -> Request:
        sampling = options.sampling_of(wishes, self.model, lambda: self._breakers)
        tokenizer = self.model.tokenizer
        if sampling.stop and tokenizer is None:
            raise UnsupportedError(f"{self.name}: stop strings need a tokenizer, and the model has none")
        first = None if form is None else self._vocabulary.constraint(form)
        return Request(
            prompt=tokens,
            sampling=sampling,
            eos=tokenizer.eos if tokenizer else frozenset(),
            adapter=self.adapter(wishes.get("adapter")),
            constraint=None if first is None else first.fork,
            stopper=partial(stopper, tokenizer, sampling, continues=continues) if tokenizer and sampling.stop else None,
            **{name: wishes[name] for name in _OF_REQUEST if name in wishes},
        )

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer, self.model.spec.vocab_size)

    @cached_property
    def _breakers(self) -> frozenset[int]:
        return breaker_tokens(self.tokenizer)

    def adapter(self, wanted: str | Adapter | None) -> Adapter | None:
        """The adapter of a name that is loaded; an adapter, or None, is itself."""
        if wanted is None or isinstance(wanted, Adapter):
            return wanted
        if not isinstance(wanted, str):
            raise TypeError(f"adapter: expected a name, an Adapter or None, got {type(wanted).__name__}")
        adapter = self._adapters.get(wanted)
        if adapter is None:
            raise ValueError(self._no_adapter(wanted))
        return adapter

    def _no_adapter(self, name: str) -> str:
        return f"adapter: expected one of {', '.join(self.adapters) or 'those loaded, and none is'}, got {name!r}"

    def _state_requests(self, texts: str | Iterable[Prompt], adapter: str | Adapter | None) -> list[Request]:
        several, found = [texts] if isinstance(texts, str) else list(texts), self.adapter(adapter)
        return [Request(prompt=self._prompts.tokens(text), want="state", adapter=found) for text in several]

    def _rows(self, results: Sequence[Result]) -> Array:
        """The states as vectors of length 1."""
        states = [result.state for result in results]
        rows = np.array(states, np.float32).reshape(len(states), self.model.spec.hidden_size)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return rows


def _open(model: str | os.PathLike[str] | Model | None, progress: Callable[[Any], None] | None) -> Model:
    if isinstance(model, Model):
        return model
    if model is None or (model == BUILT_IN.name and not Path(model).exists()):
        model = BUILT_IN
    return load(model, progress=progress)


def _name(model: str | os.PathLike[str] | Model | None) -> str:
    return BUILT_IN.name if model is None else "model" if isinstance(model, Model) else os.fspath(model)

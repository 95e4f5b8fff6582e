"""The models that a server has: found by name, loaded when first asked for, unloaded when nobody needs them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bitnet_core.errors import BitNetError, printable
from bitnet_core.model import Model

from ..llm import BUILT_IN, LLM
from ..observer import Observer
from .errors import Refusal, refusal_of

log = logging.getLogger("bitnet_inference.server")

_ROOM = 256 << 20  # bytes for caches beside a small model's weights
_SWEEP_S = 1.0  # between two looks for models that nobody uses


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a model comes from, and how it is loaded."""

    model: str | os.PathLike[str] | Model | None = None  # as `LLM` takes it
    memory: int | None = None  # bytes for weights and caches; by default what suits the size of its files
    adapters: Mapping[str, str | os.PathLike[str]] = field(default_factory=dict)  # paths by name
    options: Mapping[str, Any] = field(default_factory=dict)  # further keywords of `LLM`


@dataclass(slots=True, eq=False)
class _Entry:
    name: str
    source: Source | None  # None: a model that somebody else loaded, and keeps
    llm: LLM | None = None
    uses: int = 0
    used: float = 0.0  # when it was last let go of
    memory: int = 0  # what it was promised
    keep_s: float | None = None  # how long it stays when idle; None: as the others
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model of a server at one moment."""

    name: str
    loaded: bool
    requests: int  # that use it
    memory: int  # bytes that it may take; 0 where it is not loaded, or has no limit
    created: int  # seconds since 1970
    adapters: tuple[str, ...]
    llm: LLM | None
    origin: str | os.PathLike[str] | Model | None  # what it is loaded from
    expires_s: float | None  # seconds until it is unloaded, if nobody asks for it; None: it stays


class Held:
    """A model that stays loaded until it is released."""

    def __init__(self, name: str, llm: LLM, adapter: str | None, release: Callable[[], None]) -> None:
        self.name = name
        self.llm = llm
        self.adapter = adapter
        self._release: Callable[[], None] | None = release

    def tell(self, error: BitNetError) -> Refusal:
        """What a client is told of an error: the model by its name here, and nothing of where its files are."""
        refusal, template = refusal_of(error), self.llm.model.template
        places = {self.llm.name: self.name} | ({} if template is None else {template.file: Path(template.file).name})
        for place, name in places.items():
            if os.sep in place:
                refusal.message = refusal.message.replace(printable(place), name)
        return refusal

    def release(self) -> None:
        """Let go of it; doing so twice does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()


class Models:
    """Models by name. `memory`: bytes for all that are loaded. `idle_s`: seconds after which an idle one is unloaded.

    A value is an `LLM` that is ready, which stays; a `Source`; or what `LLM` takes as its model. Used in one event
    loop; `observer` makes the observer of a model from its name.
    """

    def __init__(
        self,
        models: Mapping[str, Any] | Iterable[Any] | Any = None,
        *,
        memory: int | None = None,
        idle_s: float | None = None,
        observer: Callable[[str], Observer] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.memory = memory
        self.idle_s = idle_s
        self._observer = observer
        self._clock = clock
        self._entries = {name: _entry(name, value) for name, value in _named(models).items()}
        self._leave: list[Callable[[], None]] = []  # for those that stay when this goes: tell no more
        self._lock = asyncio.Lock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="bitnet-models")

    def observe(self, observer: Callable[[str], Observer]) -> None:
        """Have models observed, if nobody does: those that are ready until they are closed, others when loaded."""
        if self._observer is not None:
            return
        self._observer = observer
        for entry in self._entries.values():
            if entry.source is None and entry.llm is not None:
                self._leave.append(entry.llm.observe(observer(entry.name)))

    @property
    def names(self) -> list[str]:
        """The names that requests may have, those of adapters included."""
        return [
            name for state in self.states() for name in (state.name, *(f"{state.name}:{a}" for a in state.adapters))
        ]

    def states(self) -> list[ModelState]:
        """Each model at this moment."""
        return [self._state(entry) for entry in self._entries.values()]

    @property
    def full(self) -> bool:
        """Whether none of them takes another request, for as long as those at work have not ended."""
        return all(one.llm is not None and one.uses >= one.llm.engine.queue for one in self._entries.values())

    def find(self, name: str, allowed: Collection[str] | None = None) -> tuple[str, str | None]:
        """A model's name and its adapter's; what is unknown and what is forbidden are refused in the same words."""
        for base, adapter in _readings(name):
            entry = self._entries.get(base)
            known = entry is not None and (adapter is None or adapter in _adapters(entry))
            if known and (allowed is None or name in allowed or base in allowed):
                return base, adapter
        raise missing(name)

    async def hold(self, name: str, allowed: Collection[str] | None = None) -> Held:
        """A model, loaded if it is not; it stays until it is released."""
        base, adapter = self.find(name, allowed)
        entry = self._entries[base]
        if entry.llm is None:
            async with self._lock:
                if entry.llm is None:
                    await self._load(entry)
        if entry.llm is None:  # closed while we waited
            raise Refusal(503, f"model: {base} is not loaded; try again")
        if entry.uses >= entry.llm.engine.queue:  # those whose prompts are not even read yet included
            raise Refusal(503, "too many requests are waiting; try again")
        entry.uses += 1
        return Held(name, entry.llm, adapter, partial(self._release, entry))

    async def keep(self, name: str, seconds: float | None) -> None:
        """How long a model stays after its last request: 0 unloads it as soon as it is idle, below 0 never."""
        entry = self._entries[self.find(name)[0]]
        entry.keep_s = seconds
        if seconds == 0:
            await self.sweep()

    async def sweep(self) -> None:
        """Unload what has been idle for too long."""
        async with self._lock:
            for entry in self._idle():
                keep = self._keep_s(entry)
                if not entry.uses and keep is not None and self._clock() - entry.used >= keep:
                    await self._unload(entry)

    async def watch(self) -> None:
        """Sweep now and then, for as long as the server runs."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            await self.sweep()

    async def close(self, drain_s: float = 0.0) -> None:
        """Unload what was loaded here, and leave alone what was not."""
        for leave in self._leave:
            leave()
        async with self._lock:
            for entry in self._entries.values():
                if entry.llm is not None and entry.source is not None:
                    await self._unload(entry, drain_s)
        self._loader.shutdown(wait=False)

    def _state(self, entry: _Entry) -> ModelState:
        keep, left = self._keep_s(entry), None
        if keep is not None and entry.llm is not None and entry.source is not None:
            left = keep if entry.uses else max(0.0, entry.used + keep - self._clock())
        return ModelState(
            name=entry.name,
            loaded=entry.llm is not None,
            requests=entry.uses,
            memory=entry.memory,
            created=entry.created,
            adapters=_adapters(entry),
            llm=entry.llm,
            origin=_origin(entry),
            expires_s=left,
        )

    def _keep_s(self, entry: _Entry) -> float | None:
        """How long a model stays when it is idle; None for ever."""
        keep = self.idle_s if entry.keep_s is None else entry.keep_s
        return None if keep is None or keep < 0 else keep

    def _release(self, entry: _Entry) -> None:
        entry.uses -= 1
        entry.used = self._clock()

    def _idle(self) -> list[_Entry]:
        """What could be unloaded, the one that was used longest ago first."""
        idle = [
            one for one in self._entries.values() if one.llm is not None and one.source is not None and not one.uses
        ]
        return sorted(idle, key=lambda entry: entry.used)

    async def _load(self, entry: _Entry) -> None:
        source = entry.source
        if source is None:
            raise Refusal(503, f"model: {entry.name} was closed")
        wanted = _budget(source, self.memory)
        await self._make_room(entry.name, wanted)
        observer = None if self._observer is None else self._observer(entry.name)
        load = partial(_load, entry.name, source, wanted, observer)
        try:
            entry.llm = await asyncio.get_running_loop().run_in_executor(self._loader, load)
        except (BitNetError, OSError, ValueError) as error:
            log.exception("the model %s cannot be loaded", entry.name)
            raise Refusal(503, f"model: {entry.name} cannot be loaded; the server's log says why") from error
        entry.memory = wanted or 0
        entry.used = self._clock()

    async def _make_room(self, name: str, wanted: int | None) -> None:
        if self.memory is None or wanted is None:
            return
        for idle in self._idle():
            if self._taken() + wanted <= self.memory:
                break
            if not idle.uses:  # while another was unloaded, somebody may have come
                await self._unload(idle)
        if self._taken() + wanted > self.memory:
            raise Refusal(503, f"model: there is no room for {name} while others are at work; try again")

    def _taken(self) -> int:
        return sum(entry.memory for entry in self._entries.values() if entry.llm is not None)

    async def _unload(self, entry: _Entry, drain_s: float = 0.0) -> None:
        # From here on nobody can get it.
        llm, entry.llm, entry.memory = entry.llm, None, 0
        if llm is not None:
            log.info("unloading the model %s", entry.name)
            await asyncio.get_running_loop().run_in_executor(self._loader, llm.close, drain_s)


def missing(name: str) -> Refusal:
    """What is said of a model, or an adapter, that is not there, or not for whoever asks."""
    message = f"model: there is no model {printable(repr(name))} for you; GET /v1/models lists those there are"
    return Refusal(404, message, param="model", code="model_not_found")


def _named(models: Any) -> dict[str, Any]:
    """What was given as models by name."""
    if isinstance(models, Mapping):
        return dict(models)
    several = list(models) if isinstance(models, list | tuple | set | frozenset) else [models]
    found: dict[str, Any] = {}
    for value in several:
        name = _name(value)
        if name in found:
            raise ValueError(f"models: expected names that differ, got {name!r} twice; give them as a mapping")
        found[name] = value
    return found


def _name(value: Any) -> str:
    """How clients name a model: the folder or the file, without what leads there."""
    model = value.model if isinstance(value, Source) else value
    if isinstance(model, LLM):
        model = model.name
    if model is None:
        return "stories"
    if isinstance(model, Model):
        raise ValueError("models: a Model has no name of its own; give it as {name: model}")  # noqa: TRY004
    path = Path(os.fspath(model))
    return path.name.removesuffix(".gguf") if path.exists() else str(model)


def _entry(name: str, value: Any) -> _Entry:
    if isinstance(value, LLM):
        return _Entry(name, None, value)
    return _Entry(name, value if isinstance(value, Source) else Source(model=value))


def _readings(name: str) -> list[tuple[str, str | None]]:
    """A name may have a colon in itself; behind the last one, an adapter's name may stand."""
    base, colon, adapter = name.rpartition(":")
    return [(name, None), (base, adapter)] if colon and adapter else [(name, None)]


def _adapters(entry: _Entry) -> tuple[str, ...]:
    if entry.llm is not None:
        return entry.llm.adapters
    return tuple(sorted(entry.source.adapters)) if entry.source else ()


def _origin(entry: _Entry) -> str | os.PathLike[str] | Model | None:
    if entry.source is not None:
        return entry.source.model
    llm = entry.llm
    return None if llm is None else llm.name if Path(llm.name).exists() else llm.model


def files_of(model: str | os.PathLike[str] | Model | None) -> list[Path]:
    """The files of a model's weights, where it has some here."""
    if isinstance(model, Model):
        return []
    path = BUILT_IN if model is None else Path(model)
    return [path] if path.is_file() else sorted((*path.glob("*.safetensors"), *path.glob("*.gguf")))


def _budget(source: Source, limit: int | None) -> int | None:
    """Bytes that a model may take: twice its files' size, and some more, where nothing else is said."""
    if source.memory is not None or limit is None:
        return source.memory
    files = files_of(source.model)
    if not files:
        return limit  # how large it is, only loading it would tell
    size = sum(file.stat().st_size for file in files)
    return min(limit, 2 * size + _ROOM)


def _load(name: str, source: Source, memory: int | None, observer: Observer | None) -> LLM:
    # Errors of it go to clients, who know it by this name, and need not know where its files are.
    llm = LLM(source.model, memory=memory, observer=observer, **{"name": name, **source.options})
    try:
        for adapter, path in source.adapters.items():
            llm.load_adapter(adapter, path)
    except BaseException:
        llm.close()
        raise
    return llm

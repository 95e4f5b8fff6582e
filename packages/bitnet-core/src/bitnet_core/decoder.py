"""The decoder, written once: a loop over layers of a handful of coarse operations that a backend supplies."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import UnsupportedError
from .model import Adapter, Array, Cache, CacheStats, ModelSpec, Reach, Runner, Step, Tokens

X = TypeVar("X")  # a backend's own array of activations, one row a token
C = TypeVar("C", bound="PositionCache")
C_co = TypeVar("C_co", covariant=True)


class PositionCache(Cache, Protocol):
    """A cache that a decoder can fill."""

    def extend(self, count: int) -> None:
        """Make room for `count` more positions, or raise OutOfMemory and change nothing."""

    def check_open(self) -> None:
        """Raise ValueError if the cache was closed."""


class Caches(Protocol[C_co]):
    """The memory that caches are made of."""

    @property
    def layout(self) -> str:
        """How pages hold keys and values."""

    def restore(self, content: npt.NDArray[np.generic]) -> C_co:
        """A cache made of full pages."""

    def stats(self) -> CacheStats:
        """How many pages there are, and how big they are."""

    def trim(self) -> None:
        """Give back what nobody owns."""


@dataclass(frozen=True, slots=True)
class Span(Generic[C]):
    """The rows of a batch that belong to one sequence."""

    rows: slice
    start: int  # the position of the first of them
    cache: C
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class Batch(Generic[C]):
    """The tokens of all steps, one after another."""

    tokens: Tokens
    positions: npt.NDArray[np.int64]
    spans: tuple[Span[C], ...]


class Operations(Protocol[X, C]):
    """What a backend must do; six calls a layer at most, so that Python stays out of the way."""

    @property
    def caches(self) -> Caches[C]:
        """What its caches are made of."""

    def new_cache(self) -> C:
        """An empty cache."""

    def embed(self, tokens: Tokens) -> X:
        """Rows of the embedding, scaled."""

    def project(self, layer: int, x: X, batch: Batch[C]) -> tuple[X, X, X]:
        """Norm, then queries, keys and values, with their head norms, turned to their positions."""

    def attend(self, layer: int, queries: X, keys: X, values: X, batch: Batch[C]) -> X:
        """Write keys and values into the caches, and attend over all that each sequence holds."""

    def merge(self, layer: int, x: X, attended: X, batch: Batch[C]) -> X:
        """x plus the output projection of what was attended to, with the norms around it."""

    def feed(self, layer: int, x: X, batch: Batch[C]) -> X:
        """x plus the feed-forward, with the norms around it."""

    def states(self, x: X, rows: npt.NDArray[np.int64]) -> Array:
        """The final norm of some rows, as float32."""

    def head(self, states: Array, reaches: Sequence[Reach | None]) -> Array:
        """Logits of normed states, as float32; what is beyond a row's reach may be -inf."""

    def close(self) -> None:
        """Give the memory back."""


class Decoder(Generic[X, C]):
    """A Runner made of operations."""

    def __init__(self, spec: ModelSpec, operations: Operations[X, C]) -> None:
        self.spec = spec
        self._operations = operations
        self._fitting: weakref.WeakSet[Adapter] = weakref.WeakSet()  # adapters whose shapes were looked at

    @property
    def layout(self) -> str:
        return self._operations.caches.layout

    def new_cache(self) -> C:
        return self._operations.new_cache()

    def restore(self, content: npt.NDArray[np.generic]) -> C:
        return self._operations.caches.restore(content)

    def cache_stats(self) -> CacheStats:
        return self._operations.caches.stats()

    def trim(self) -> None:
        self._operations.caches.trim()

    def forward(self, steps: Sequence[Step]) -> list[Array | None]:
        batch = self._gather(steps)
        grown: list[C] = []
        try:
            for span in batch.spans:
                span.cache.extend(span.rows.stop - span.rows.start)
                grown.append(span.cache)
            return self._run(steps, batch)
        except BaseException:
            for span in batch.spans[: len(grown)]:
                span.cache.truncate(span.start)
            raise

    def close(self) -> None:
        self._operations.close()

    def _gather(self, steps: Sequence[Step]) -> Batch[C]:
        """The steps as one batch; refuses what cannot be run before anything changes."""
        spans, tokens, first = [], [], 0
        seen: set[int] = set()
        for number, step in enumerate(steps):
            self._check(number, step, seen)
            ids = np.asarray(step.tokens, np.int32)
            cache: C = step.cache  # type: ignore[assignment]  # a runner is given caches that it made
            spans.append(Span(slice(first, first + len(ids)), cache.length, cache, step.adapter))
            tokens.append(ids)
            first += len(ids)
        positions = [span.start + np.arange(span.rows.stop - span.rows.start) for span in spans]
        empty = [np.empty(0, np.int32)]
        return Batch(np.concatenate(tokens or empty), np.concatenate(positions or empty).astype(np.int64), tuple(spans))

    def _check(self, number: int, step: Step, seen: set[int]) -> None:
        ids = np.asarray(step.tokens)
        if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"step {number}: expected one or more token ids, got {ids.dtype} of shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self.spec.vocab_size:
            bad = int(ids[(ids < 0) | (ids >= self.spec.vocab_size)][0])
            raise ValueError(f"step {number}: expected token ids from 0 to {self.spec.vocab_size - 1}, got {bad}")
        if id(step.cache) in seen:
            raise ValueError(f"step {number}: its cache is in another step of the same call; join the two steps")
        if step.want not in ("last", "all", "none", "state"):
            raise ValueError(f"step {number}: expected want to be last, all, none or state, got {step.want!r}")
        if not hasattr(step.cache, "check_open"):
            raise UnsupportedError(f"step {number}: its cache was made by another backend")
        if step.adapter is not None:
            self._check_adapter(number, step.adapter)
        step.cache.check_open()
        seen.add(id(step.cache))

    def _check_adapter(self, number: int, adapter: Adapter) -> None:
        if adapter in self._fitting:
            return
        matrices = self.spec.projections()
        for name, (down, up) in adapter.weights.items():
            layer, _, projection = name.removeprefix("layers.").partition(".")
            known = layer.isdecimal() and int(layer) < self.spec.layers and projection in matrices
            shape = matrices[projection] if known else ()
            if (up.shape[0], down.shape[1]) != shape or up.shape[1] != down.shape[0]:
                raise ValueError(
                    f"step {number}: adapter {adapter.name!r}: {name}: expected a projection of the model, with down "
                    f"(rank, in) and up (out, rank) for {shape}, got {down.shape} and {up.shape}"
                )
        self._fitting.add(adapter)

    def _run(self, steps: Sequence[Step], batch: Batch[C]) -> list[Array | None]:
        ops = self._operations
        if not len(batch.tokens):
            return []
        x = ops.embed(batch.tokens)
        for layer in range(self.spec.layers):
            queries, keys, values = ops.project(layer, x, batch)
            attended = ops.attend(layer, queries, keys, values, batch)
            x = ops.feed(layer, ops.merge(layer, x, attended, batch), batch)
        return self._scatter(steps, batch, x)

    def _scatter(self, steps: Sequence[Step], batch: Batch[C], x: X) -> list[Array | None]:
        """What each step wants, from one pass over the rows that any of them wants."""
        rows = [_wanted_rows(step, span) for step, span in zip(steps, batch.spans, strict=True)]
        wanted = np.concatenate(rows)
        if not len(wanted):
            return [None] * len(steps)
        states = self._operations.states(x, wanted)
        ends = np.cumsum([len(part) for part in rows])
        needs_head = np.repeat([step.want != "state" for step in steps], [len(part) for part in rows])
        reaches = [
            step.reach for step, part in zip(steps, rows, strict=True) if step.want != "state" for _ in range(len(part))
        ]
        logits = self._operations.head(states[needs_head], reaches) if reaches else states[:0]
        place = np.cumsum(needs_head) - 1  # where a row of states stands among the logits
        results: list[Array | None] = []
        for step, end, count in zip(steps, ends, map(len, rows), strict=True):
            if step.want == "all":
                first = int(place[end - count])
                results.append(logits[first : first + count])
            elif step.want == "last":
                results.append(logits[int(place[end - 1])])
            else:
                results.append(states[end - 1] if step.want == "state" else None)
        return results


def _wanted_rows(step: Step, span: Span[C]) -> npt.NDArray[np.int64]:
    if step.want == "none":
        return np.empty(0, np.int64)
    first = span.rows.start if step.want == "all" else span.rows.stop - 1
    return np.arange(first, span.rows.stop)


def likeliest(logits: Array) -> int:
    """The token of the highest logit; the first of several."""
    return int(np.argmax(logits))


def generate(
    runner: Runner,
    prompt: Tokens,
    *,
    choose: Callable[[Array], int] = likeliest,
    stop: frozenset[int] = frozenset(),
    count: int = 256,
) -> Iterator[int]:
    """The tokens that follow one prompt, as `choose` takes them from logits: the shortest engine there is."""
    cache = runner.new_cache()
    try:
        tokens = np.asarray(prompt, np.int32)
        for _ in range(count):
            (logits,) = runner.forward([Step(tokens, cache)])
            token = choose(logits)  # type: ignore[arg-type]  # "last" always gives logits
            if token in stop:
                return
            yield token
            tokens = np.array([token], np.int32)
    finally:
        cache.close()

"""What a model is, and how one is run: the types that flow between files, backends and engines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .tensor import TernaryTensor

if TYPE_CHECKING:
    from .chat import ChatTemplate
    from .tokenizer import Tokenizer

Array = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]
Weight = npt.NDArray[np.generic] | TernaryTensor

ATTENTION = ("q", "k", "v", "o")
FFN = ("gate", "up", "down")

_SAMPLED = 16  # rows of a matrix of which a fingerprint looks at the first
_RUN = 1 << 21  # numbers that are made at a time of what is made in runs
_TELLING = 8  # rows that tell whether floats are a ternary matrix multiplied out


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary positions: element j of a head turns with element j + size / 2, at one frequency a pair."""

    theta: float
    size: int  # elements of a head that turn; the rest pass through
    divisors: tuple[float, ...] = ()  # one a frequency; () leaves them as theta gives them
    magnitude: float = 1.0  # multiplies sine and cosine

    def frequencies(self) -> npt.NDArray[np.float64]:
        """Radians a position for each of the size / 2 pairs."""
        powers = np.arange(0, self.size, 2, dtype=np.float64) / self.size
        turns = self.theta**-powers
        return turns / np.array(self.divisors) if self.divisors else turns


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Any Llama-like ternary decoder as data: a field exists because the decoder or a shape asks for it."""

    family: str  # a name in families.FAMILIES: what files call it; the decoder never looks
    vocab_size: int
    hidden_size: int
    ffn_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    context: int  # positions that the model was made for
    rope: Rope
    norm_eps: float
    activation: Literal["relu2", "silu", "gelu"]  # of the gate; gelu is the tanh form
    # Extra norms: "block" before o and before down, "projection" in front of each of the seven projections.
    sub_norms: Literal["none", "block", "projection"] = "none"
    sub_norm_eps: float = 1e-5
    # What ternary projections multiply: int8 with one scale a token, or the activations as they are.
    inputs: Literal["int8", "float"] = "int8"
    qk_norm: bool = False  # an RMS norm over each head of q and k, before they turn
    post_norms: bool = False  # a norm after attention and one after the feed-forward, before the residual
    biases: tuple[str, ...] = ()  # the projections that have one
    windows: tuple[int, ...] = ()  # positions that each layer sees back, 0 for all; () for all everywhere
    local_rope: Rope | None = None  # of the layers with a window, where it differs
    attention_scale: float | None = None  # None: head_size ** -0.5
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    tied: bool = False  # the head is the embedding
    pooling: Literal["none", "last"] = "none"  # an embedding model's: the last token's state

    def window(self, layer: int) -> int:
        """Positions that this layer sees back, itself included; 0 for all."""
        return self.windows[layer] if self.windows else 0

    def rope_of(self, layer: int) -> Rope:
        """The rotation of this layer."""
        return self.local_rope if self.local_rope and self.window(layer) else self.rope

    @property
    def query_scale(self) -> float:
        """What a score is multiplied by before the softmax."""
        return self.head_size**-0.5 if self.attention_scale is None else self.attention_scale

    def projections(self) -> dict[str, tuple[int, int]]:
        """The seven matrices of a layer: their name in it, and (out, in) features."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "attn.q": (queries, self.hidden_size),
            "attn.k": (keys, self.hidden_size),
            "attn.v": (keys, self.hidden_size),
            "attn.o": (self.hidden_size, queries),
            "ffn.gate": (self.ffn_size, self.hidden_size),
            "ffn.up": (self.ffn_size, self.hidden_size),
            "ffn.down": (self.hidden_size, self.ffn_size),
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight of the model, by its canonical name, with its shape."""
        found: dict[str, tuple[int, ...]] = {"embedding": (self.vocab_size, self.hidden_size)}
        for layer in range(self.layers):
            found.update({f"layers.{layer}.{name}": shape for name, shape in self.layer_shapes().items()})
        found["norm"] = (self.hidden_size,)
        if not self.tied:
            found["head"] = (self.vocab_size, self.hidden_size)
        return found

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight of one layer, by its name in it, with its shape."""
        matrices = self.projections()
        found: dict[str, tuple[int, ...]] = {
            "attn.norm": (self.hidden_size,),
            "ffn.norm": (self.hidden_size,),
            **matrices,
        }
        if self.sub_norms == "block":
            found["attn.sub_norm"] = (matrices["attn.o"][1],)
            found["ffn.sub_norm"] = (matrices["ffn.down"][1],)
        elif self.sub_norms == "projection":
            found.update({f"{name}.norm": (shape[1],) for name, shape in matrices.items()})
        if self.qk_norm:
            found["attn.q_norm"] = found["attn.k_norm"] = (self.head_size,)
        if self.post_norms:
            found["attn.post_norm"] = found["ffn.post_norm"] = (self.hidden_size,)
        found.update({f"{name}.bias": (matrices[name][0],) for name in self.biases})
        return found


class Weights(Mapping[str, Weight]):
    """Weights by canonical name, each made when it is asked for.

    It is read from its file, and unpacked or ternarized, anew at every access, so that a backend that places one
    weight after another never holds two. What is very large is made in `runs` of rows too.
    """

    def __init__(
        self,
        makers: Mapping[str, Callable[[], Weight]],
        runs: Mapping[str, Callable[[], Iterator[Weight]]] = MappingProxyType({}),
    ) -> None:
        self._makers = dict(makers)
        self._runs = dict(runs)

    def __getitem__(self, name: str) -> Weight:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers  # Mapping's own would make the weight to find out

    def runs(self, name: str) -> Iterator[Weight]:
        """The weight's rows from the first to the last, as many at a time as come at once."""
        if name in self._runs:
            yield from self._runs[name]()
        else:
            yield self[name]


def runs_of(weights: Mapping[str, Weight], name: str) -> Iterator[Weight]:
    """The rows of one of these weights in order, as many at a time as come at once."""
    return weights.runs(name) if isinstance(weights, Weights) else iter((weights[name],))


def in_runs(
    shape: tuple[int, ...], rows: Callable[[int, int], npt.NDArray[np.floating]], whole: Callable[[], Weight]
) -> Callable[[], Iterator[Weight]]:
    """What makes a matrix in runs for `Weights`: of `rows` from one to another, or as a `whole` where it is ternary."""

    def runs() -> Iterator[Weight]:
        if TernaryTensor.detect(rows(0, min(_TELLING, shape[0]))) is not None:
            yield whole()
            return
        step = max(1, _RUN // shape[1] // _SAMPLED) * _SAMPLED
        for start in range(0, shape[0], step):
            yield rows(start, min(start + step, shape[0]))

    return runs


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its files have it: what it is, its weights, and how text becomes tokens."""

    spec: ModelSpec
    weights: Mapping[str, Weight]
    tokenizer: Tokenizer | None = None
    template: ChatTemplate | None = None
    # What the model's makers advise for sampling: temperature, top_p, top_k.
    sampling: Mapping[str, float] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """A hash of what it is, of its vectors and of each sixteenth row of its matrices: tells models apart."""
        found = hashlib.sha256(repr(self.spec).encode())
        for name in sorted(self.weights):
            found.update(name.encode())
            for run in runs_of(self.weights, name):
                for part in (run.data, run.scale) if isinstance(run, TernaryTensor) else (run,):
                    found.update((part if part.ndim < 2 else part[::_SAMPLED]).tobytes())
        return found.hexdigest()


class Cache(Protocol):
    """One sequence's keys and values; its pages are private to the backend."""

    @property
    def length(self) -> int:
        """Positions held."""

    def fork(self, length: int | None = None) -> Cache:
        """A second cache with the first `length` positions of this one; pages are shared until written."""

    def truncate(self, length: int) -> None:
        """Forget what lies beyond `length`."""

    def content(self) -> npt.NDArray[np.generic]:
        """A copy of its full pages, one after another: what `Runner.restore` makes a cache from again."""

    def close(self) -> None:
        """Give the pages back; the cache cannot be used any more. Closing twice does nothing."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """The pages of all caches of a runner at one moment."""

    used: int  # pages with an owner
    free: int  # pages held that nobody owns
    positions: int  # that a page holds
    page_bytes: int
    slab: int  # pages that memory is asked for at once

    def pages(self, positions: int) -> int:
        """Pages that a sequence of so many positions takes."""
        return -(-positions // self.positions)


@dataclass(frozen=True, slots=True)
class Reach:
    """The logits that a sampler can come to: the `best` highest, and all within `margin` of the highest."""

    best: int = 1
    margin: float = 0.0


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Adapter:
    """Low-rank changes of some projections, over one base that many adapters share; compared by identity.

    A projection `y = W x` becomes `y = W x + up (down x)`, where x is its input as floats: after every norm in front
    of it, and before it is quantized.
    """

    name: str
    # "layers.3.attn.q": down (rank, in features) and up (out features, rank) with the scale multiplied in; float32.
    weights: Mapping[str, tuple[Array, Array]]


class Step(NamedTuple):
    """Tokens to append to one sequence, and what is wanted back."""

    tokens: Tokens  # one or many
    cache: Cache
    # Logits of the last token, of all, of none; or the last token's state after the final norm.
    want: Literal["last", "all", "none", "state"] = "last"
    # Logits within reach are exact, ties included; any other may be -inf, which saves reading their rows. None: all.
    reach: Reach | None = None
    adapter: Adapter | None = None


class Runner(Protocol):
    """A model placed on a device. One thread at a time calls it; its caches may be closed from any."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def layout(self) -> str:
        """How pages hold keys and values: content fits a runner of the same model and the same layout."""

    def new_cache(self) -> Cache:
        """An empty cache; raises OutOfMemory where there is no room for one page."""

    def restore(self, content: npt.NDArray[np.generic]) -> Cache:
        """A cache that holds what another's `content` gave; ValueError where that has another shape or type."""

    def cache_stats(self) -> CacheStats:
        """How many pages its caches take, and how big they are."""

    def trim(self) -> None:
        """Give pages that nobody owns back to the memory that they came from."""

    def forward(self, steps: Sequence[Step]) -> list[Array | None]:
        """Append each step's tokens to its cache, and give what it wants: (vocab,), (tokens, vocab) or (hidden,).

        All steps share each read of the weights. If it raises, no cache has changed.
        """

    def close(self) -> None:
        """Give the memory back. Closing twice does nothing."""


@dataclass(frozen=True, slots=True)
class Backend:
    """What runs models on one kind of device; found by name through entry points."""

    name: str
    load: Callable[..., Runner]  # (model, **options)
    why_not: Callable[[], str | None]  # None where it can run here, else one sentence with the remedy
    priority: int  # "auto" takes the highest that can run
    api: int = 1  # refused, with both numbers in the message, where it differs from backends.API

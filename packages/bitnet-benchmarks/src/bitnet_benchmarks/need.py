"""What a model takes of a machine: memory, and bytes to read for a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnet_core import Model, ModelSpec

_SCRATCH = 64 << 20  # bytes of code, tables and scratch that every backend takes beside the model


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a model takes with so many tokens of context."""

    weights: int
    keys_and_values: int  # at 16 bits, of the whole context
    scratch: int
    context: int
    a_token: int  # bytes that are read for the next token, without keys and values
    available: int  # bytes that this process may still take

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.keys_and_values + self.scratch


def needs(model: Model, context: int, sequences: int = 1) -> Need:
    """What a model takes; a ternary weight is two bits, and embeddings are as they are stored."""
    from bitnet_core import memory  # noqa: PLC0415

    weights, a_token = _weights(model)
    pages = keys_and_values(model.spec, context) * sequences
    return Need(weights, pages, _SCRATCH, context, a_token, memory.available())


def keys_and_values(spec: ModelSpec, tokens: int) -> int:
    """Bytes of the keys and values of so many tokens, at 16 bits."""
    row = 2 * 2 * spec.kv_heads * spec.head_size
    return sum(row * min(tokens, spec.window(layer) or tokens) for layer in range(spec.layers))


def _weights(model: Model) -> tuple[int, int]:
    """Bytes of all weights, and of those that a token reads."""
    import math  # noqa: PLC0415

    total = read = 0
    for name, shape in model.spec.shapes().items():
        count = math.prod(shape)
        if name.startswith("layers.") and len(shape) == 2:
            nbytes = -(-count // 4)
        else:
            nbytes = 2 * count if len(shape) == 2 else 4 * count
        total += nbytes
        # Of the embedding a token reads one row, unless it is the head as well.
        read += 0 if name == "embedding" and not model.spec.tied else nbytes
    return total, read


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a model can reach on a machine at most, by its ceilings."""

    need: Need
    fits: bool
    longest: int  # tokens of context that would fit, 0 where the weights alone do not
    decode_tokens_per_s: float  # of one sequence, its context half full: bandwidth over bytes
    prompt_tokens_per_s: float  # multiplications over those of a token


def forecast(model: Model, context: int, sequences: int, threads: int) -> Forecast:
    """What a model needs, and what bandwidth and multiplications, measured now, let it reach."""
    from bitnet_core import backends, device  # noqa: PLC0415

    from . import machine  # noqa: PLC0415

    need, spec = needs(model, context, sequences), model.spec
    read = need.a_token + keys_and_values(spec, context // 2)
    bandwidth = device.bandwidth(threads=threads, passes=5).highest
    multiplied = machine.throughput(backends.get(), threads, 3).highest
    products = spec.layers * sum(rows * cols for rows, cols in spec.projections().values())
    room = need.available - need.weights - need.scratch
    longest = max(0, min(spec.context, room // max(1, keys_and_values(spec, 1) * sequences)))
    return Forecast(need, need.total <= need.available, longest, bandwidth / read, multiplied / products)

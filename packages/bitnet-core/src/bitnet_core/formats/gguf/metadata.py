"""A GGUF file's values as a ModelSpec, each checked, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from ... import rope
from ...errors import FormatError, UnsupportedError, printable
from ...model import ModelSpec, Rope
from . import names
from .strings import Strings

Activation = Literal["relu2", "silu", "gelu"]
Inputs = Literal["int8", "float"]
Shapes = Mapping[str, tuple[int, ...]]
Vector = npt.NDArray[np.float32]

_COUNT = 2**24
_DEPTH = 4096
_POSITIVE = 1e12
INPUTS_KEY = "bitnet_core.inputs"  # no other program's key says what ternary projections multiply
_LAST_TOKEN = 3  # of llama.cpp's ways of pooling


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What a value of `general.architecture` says without saying it."""

    family: str
    activation: Activation = "silu"
    permuted: bool = False  # rows of q and k lie as interleaved rotation wants them
    parts: frozenset[str] = frozenset()  # tensors that a layer may have beside norms and projections
    pooled: bool = False  # norms in front of every projection are an embedding model's


_BIASED = frozenset({"bias"})
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "bitnet": Architecture(family="bitnet", parts=frozenset({"sub_norm"})),
        "bitnet-25": Architecture(family="bitnet", activation="relu2", parts=frozenset({"sub_norm"})),
        "bitnet-b1.58": Architecture(family="bitnet", activation="relu2", parts=frozenset({"sub_norm"})),
        "llama": Architecture(family="llama", permuted=True, parts=_BIASED),
        "qwen2": Architecture(family="qwen2", parts=_BIASED),
        "qwen3": Architecture(family="qwen3", parts=frozenset({"qk_norm", "norm_in"})),
        "gemma3": Architecture(
            family="gemma3", activation="gelu", parts=frozenset({"qk_norm", "norm_in", "post_norm"})
        ),
        "minicpm": Architecture(family="minicpm", permuted=True, parts=_BIASED),
    }
)
_ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {"relu2": "relu2", "silu": "silu", "swish": "silu", "swiglu": "silu"}
)


@dataclass(frozen=True, slots=True)
class Keys:
    """The values of one architecture; each is taken as what it must be, or refused by name."""

    file: str
    metadata: Mapping[str, object]
    prefix: str

    def integer(self, name: str, lowest: int, highest: int, default: int | None = None) -> int:
        """A whole number between the two."""
        value = self._single(name, default)
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
            return value
        raise self._refusal(name, f"an integer in {lowest}..{highest}", value)

    def number(self, name: str, highest: float, default: float | None = None) -> float:
        """A number above zero, as the shortest decimal that its float32 is nearest to."""
        value = self._single(name, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= highest:
            return float(str(np.float32(value))) if self.has(name) else float(value)
        raise self._refusal(name, f"a number above 0 and up to {highest:g}", value)

    def text(self, name: str) -> str | None:
        """A string, or None."""
        value = self.metadata.get(f"{self.prefix}.{name}")
        if value is None or isinstance(value, str):
            return value
        raise self._refusal(name, "a string", value)

    def has(self, name: str) -> bool:
        """Whether there is such a value."""
        return f"{self.prefix}.{name}" in self.metadata

    def refuse_unless(self, name: str, plain: object) -> None:
        """Values that would change every number if they were passed over."""
        value = self.metadata.get(f"{self.prefix}.{name}", plain)
        if isinstance(value, np.ndarray) or value != plain:
            raise UnsupportedError(
                f"{self.file}: {self.prefix}.{name}: {printable(value)} is not supported; "
                "no ternary model is known to use it"
            )

    def _single(self, name: str, default: object) -> object:
        value = self.metadata.get(f"{self.prefix}.{name}", default)
        if not isinstance(value, np.ndarray):
            return value
        # One a layer: llama.cpp allows it for some counts.
        if value.size and (value == value[0]).all():
            return value[0].item()
        raise UnsupportedError(f"{self.file}: {self.prefix}.{name}: layers of different sizes are not supported")

    def _refusal(self, name: str, expected: str, value: object) -> FormatError:
        got = "none" if value is None else repr(value)
        return FormatError(self.file, f"kv '{self.prefix}.{name}'", expected, got)


def architecture_of(file: str, metadata: Mapping[str, object]) -> str:
    """The name in ARCHITECTURES of what a file holds."""
    name = metadata.get("general.architecture")
    known = ", ".join(ARCHITECTURES)
    if not isinstance(name, str):
        got = "none" if name is None else f"a {type(name).__name__}"
        raise FormatError(file, "kv 'general.architecture'", f"one of {known}", got)
    if name not in ARCHITECTURES:
        raise UnsupportedError(f"{file}: general.architecture: '{printable(name)}' is not read; there are {known}")
    return name


def read_spec(
    file: str, metadata: Mapping[str, object], shapes: Shapes, vector: Callable[[str], Vector], inputs: Inputs
) -> ModelSpec:
    """The spec that values and tensors describe; `vector` gives one of the tensors of `shapes`."""
    name = architecture_of(file, metadata)
    architecture, keys = ARCHITECTURES[name], Keys(file, metadata, name)
    for key, plain in _PLAIN.items():
        keys.refuse_unless(key, plain)
    parts = _parts(architecture, shapes)
    hidden = keys.integer("embedding_length", 1, _COUNT)
    layers = keys.integer("block_count", 1, _DEPTH)
    heads = keys.integer("attention.head_count", 1, _DEPTH)
    context = keys.integer("context_length", 1, _COUNT)
    eps = keys.number("attention.layer_norm_rms_epsilon", 0.5)
    head_size = _head_size(keys, hidden, heads)
    windows, local = _windows(keys, layers, head_size)
    scales = _scales(keys, name, hidden, layers)
    pooling = keys.integer("pooling_type", 0, 4, _LAST_TOKEN if "norm_in" in parts else 0)
    if pooling not in (0, _LAST_TOKEN):
        raise UnsupportedError(f"{file}: {name}.pooling_type: {pooling} is not supported; 0 and 3 are")
    return ModelSpec(
        family=architecture.family,
        vocab_size=_vocab_size(keys, shapes),
        hidden_size=hidden,
        ffn_size=keys.integer("feed_forward_length", 1, _COUNT),
        layers=layers,
        heads=heads,
        kv_heads=_kv_heads(keys, heads),
        head_size=head_size,
        context=context,
        rope=_rope(keys, architecture, head_size, context, shapes, vector),
        norm_eps=eps,
        activation=_activation(keys, architecture),
        sub_norms="block" if "sub_norm" in parts else "projection" if "norm_in" in parts else "none",
        sub_norm_eps=eps,
        inputs=inputs,
        qk_norm="qk_norm" in parts,
        post_norms="post_norm" in parts,
        biases=_biases(architecture, shapes),
        windows=windows,
        local_rope=local,
        # Its largest size divides by what its heads would have if they were cut from the hidden size.
        attention_scale=(hidden // heads) ** -0.5 if name == "gemma3" and layers == 62 else None,
        embedding_scale=scales[0],
        residual_scale=scales[1],
        logit_scale=scales[2],
        tied="output.weight" not in shapes,
        pooling="last" if pooling == _LAST_TOKEN else "none",
    )


# What no ternary model has, and the value that says so.
_PLAIN: Mapping[str, object] = MappingProxyType(
    {
        "expert_count": 0,
        "attn_logit_softcapping": 0.0,
        "final_logit_softcapping": 0.0,
        "attention.causal": True,
        "attention.clamp_kqv": 0.0,
        "attention.max_alibi_bias": 0.0,
        "rope.scaling.yarn_log_multiplier": 0.0,
        "rope.scaling.yarn_ext_factor": 1.0,
        "rope.scaling.yarn_attn_factor": 1.0,
        "rope.scaling.alpha": 0.0,
    }
)


def _parts(architecture: Architecture, shapes: Shapes) -> frozenset[str]:
    """Which of the parts that the architecture may have are there, as the first layer shows."""
    signs = {
        "sub_norm": "blk.0.attn_sub_norm.weight",
        "norm_in": "blk.0.attn_q_norm_in.weight",
        "qk_norm": "blk.0.attn_q_norm.weight",
        "post_norm": "blk.0.post_attention_norm.weight",
    }
    return frozenset(part for part, sign in signs.items() if part in architecture.parts and sign in shapes)


def _biases(architecture: Architecture, shapes: Shapes) -> tuple[str, ...]:
    if "bias" not in architecture.parts:
        return ()
    return tuple(name for name, stored in names.PROJECTIONS.items() if f"blk.0.{stored}.bias" in shapes)


def _head_size(keys: Keys, hidden: int, heads: int) -> int:
    if keys.has("attention.key_length"):
        size = keys.integer("attention.key_length", 2, 4096)
        if (values := keys.integer("attention.value_length", 2, 4096, size)) != size:
            raise UnsupportedError(
                f"{keys.file}: {keys.prefix}.attention.value_length: {values} beside keys of {size} is not supported"
            )
    elif hidden % heads:
        raise FormatError(
            keys.file, f"kv '{keys.prefix}.attention.head_count'", f"a divisor of embedding_length = {hidden}", heads
        )
    else:
        size = hidden // heads
    if size % 2:
        raise FormatError(keys.file, "head size", "an even number", size)
    return size


def _kv_heads(keys: Keys, heads: int) -> int:
    found = keys.integer("attention.head_count_kv", 1, _DEPTH, heads)
    if heads % found:
        raise FormatError(
            keys.file, f"kv '{keys.prefix}.attention.head_count_kv'", f"a divisor of head_count = {heads}", found
        )
    return found


def _vocab_size(keys: Keys, shapes: Shapes) -> int:
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    rows = shapes.get("token_embd.weight", (0,))[0]
    size = keys.integer("vocab_size", 1, _COUNT, len(tokens) if isinstance(tokens, Strings) else rows)
    if tokens is not None:
        _check_tokens(keys, size)
    return size


def _check_tokens(keys: Keys, size: int) -> None:
    """The arrays of the tokenizer: of the types that they must have, and as long as the vocabulary."""
    kinds = {"tokens": "strings", "scores": "float32", "token_type": "int32", "merges": "strings"}
    for name, kind in kinds.items():
        key = f"tokenizer.ggml.{name}"
        value = keys.metadata.get(key)
        if value is None:
            continue
        if isinstance(value, Strings):
            found = "strings"
        else:
            found = str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__
        if found != kind:
            raise FormatError(keys.file, f"kv {key!r}", f"an array of {kind}", found)
        length = len(value)  # type: ignore[arg-type]  # both kinds of array have one
        if name != "merges" and length != size:
            raise FormatError(keys.file, f"kv {key!r}", f"{size} entries, as vocab_size says", length)


def _activation(keys: Keys, architecture: Architecture) -> Activation:
    name = keys.text("hidden_activation") if architecture.family == "bitnet" else None
    if name is None:
        return architecture.activation
    if name not in _ACTIVATIONS:
        raise UnsupportedError(
            f"{keys.file}: {keys.prefix}.hidden_activation: '{printable(name)}' is not supported; silu and relu2 are"
        )
    return _ACTIVATIONS[name]


def _scales(keys: Keys, name: str, hidden: int, layers: int) -> tuple[float, float, float]:
    """Of the embedding, the residual and the logits."""
    if name == "gemma3":
        return hidden**0.5, 1.0, 1.0
    if name != "minicpm":
        return 1.0, 1.0, 1.0
    # Files from before these keys are of the first MiniCPM. Logits are divided by what the file has.
    return (
        keys.number("embedding_scale", _POSITIVE, 12.0),
        keys.number("residual_scale", _POSITIVE, 1.4 / layers**0.5),
        1 / keys.number("logit_scale", _POSITIVE, hidden / 256),
    )


def _windows(keys: Keys, layers: int, head_size: int) -> tuple[tuple[int, ...], Rope | None]:
    """Positions that each layer sees back, and the rotation of those that do not see all."""
    if keys.prefix != "gemma3" or not keys.integer("attention.sliding_window", 0, _COUNT, 0):
        return (), None
    size = keys.integer("attention.sliding_window", 1, _COUNT)
    pattern = keys.metadata.get("gemma3.attention.sliding_window_pattern", 6)
    if isinstance(pattern, np.ndarray):
        if pattern.dtype != np.bool_ or len(pattern) != layers:
            raise FormatError(
                keys.file,
                "kv 'gemma3.attention.sliding_window_pattern'",
                f"a number, or {layers} bools",
                f"{len(pattern)} of {pattern.dtype}",
            )
        narrow = pattern.tolist()
    else:
        period = keys.integer("attention.sliding_window_pattern", 0, _DEPTH, 6)
        narrow = [period == 0 or (layer + 1) % period != 0 for layer in range(layers)]
    theta = keys.number("rope.freq_base_swa", _POSITIVE, 10000.0)
    return tuple(size if is_narrow else 0 for is_narrow in narrow), Rope(theta=theta, size=head_size)


def _rope(
    keys: Keys,
    architecture: Architecture,
    head_size: int,
    context: int,
    shapes: Shapes,
    vector: Callable[[str], Vector],
) -> Rope:
    theta = keys.number("rope.freq_base", _POSITIVE, 10000.0)
    size = keys.integer("rope.dimension_count", 2, head_size, head_size)
    if size % 2:
        raise FormatError(keys.file, f"kv '{keys.prefix}.rope.dimension_count'", "an even number", size)
    if architecture.permuted and size != head_size:
        raise UnsupportedError(
            f"{keys.file}: {keys.prefix}.rope.dimension_count: {size} of {head_size} is not supported here"
        )

    def divisors(name: str) -> Vector:
        if shapes.get(name) != (size // 2,):
            raise FormatError(keys.file, f"tensor {name!r}", f"a vector of {size // 2}", shapes.get(name, "none"))
        values = vector(name)
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise FormatError(keys.file, f"tensor {name!r}", "finite numbers above 0", "others")
        return values

    kind = keys.text("rope.scaling.type")
    if kind == "longrope" and architecture.permuted:
        original = keys.integer("rope.scaling.original_context_length", 2, _COUNT, context)
        chosen = divisors(names.LONG_FACTORS if context > original else names.SHORT_FACTORS)
        found = rope.longrope(theta, size, chosen.tolist(), original, context)
        return replace(found, magnitude=keys.number("rope.scaling.attn_factor", 1e3, found.magnitude))
    found = _stretched(keys, kind, theta, size, context)
    if architecture.permuted and names.FREQUENCIES in shapes:
        both = divisors(names.FREQUENCIES) * np.array(found.divisors or 1.0)
        found = replace(found, divisors=tuple(both.tolist()))
    return replace(found, magnitude=found.magnitude * keys.number("rope.scaling.attn_factor", 1e3, 1.0))


def _stretched(keys: Keys, kind: str | None, theta: float, size: int, context: int) -> Rope:
    # Older files have one factor, and mean it linearly; 0 is none.
    key = "rope.scaling.factor" if keys.has("rope.scaling.factor") else "rope.scale_linear"
    given = keys.metadata.get(f"{keys.prefix}.{key}", 0)
    factor = keys.number(key, _POSITIVE) if given != 0 else 1.0
    if kind == "none" or (kind in (None, "linear") and factor == 1):
        return Rope(theta=theta, size=size)
    if kind in (None, "linear"):
        return rope.linear(theta, size, factor)
    if kind == "yarn":
        original = keys.integer("rope.scaling.original_context_length", 2, _COUNT, context)
        fast = keys.number("rope.scaling.yarn_beta_fast", 1e4, 32.0)
        slow = keys.number("rope.scaling.yarn_beta_slow", 1e4, 1.0)
        if theta <= 1:
            raise FormatError(keys.file, f"kv '{keys.prefix}.rope.freq_base'", "a number above 1 for yarn", theta)
        return rope.yarn(theta, size, factor, original, fast=fast, slow=slow)
    raise UnsupportedError(
        f"{keys.file}: {keys.prefix}.rope.scaling.type: '{printable(kind)}' is not supported in this architecture; "
        "none, linear and yarn are"
    )

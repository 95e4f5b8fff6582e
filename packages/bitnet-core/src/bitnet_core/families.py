"""The families of models that are read: what each calls itself, and what its files leave unsaid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the files of one family leave unsaid."""

    title: str  # what transformers' classes are called by
    model_types: tuple[str, ...]  # of config.json
    activation: Literal["relu2", "silu", "gelu"] = "silu"
    sub_norms: Literal["none", "block"] = "none"
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0  # added to every norm of Hugging Face's files but those in front of projections
    biases: tuple[str, ...] = ()
    eps: float = 1e-6
    theta: float = 10000.0
    local_theta: float | None = None  # of the layers with a window, where it is one of their own
    head_size: int | None = None  # None: hidden size over heads
    tied: bool = False
    window: int | None = None  # positions that each layer sees back; None: all


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "bitnet": Family(
            title="BitNet",
            model_types=("bitnet",),
            activation="relu2",
            sub_norms="block",
            eps=1e-5,
            theta=500_000.0,
        ),
        "llama": Family(title="Llama", model_types=("llama",)),
        "mistral": Family(title="Mistral", model_types=("mistral",), window=4096),
        "qwen2": Family(title="Qwen2", model_types=("qwen2",), biases=("attn.q", "attn.k", "attn.v")),
        "qwen3": Family(title="Qwen3", model_types=("qwen3",), qk_norm=True, head_size=128),
        "gemma3": Family(
            title="Gemma3",
            model_types=("gemma3_text", "gemma3"),
            activation="gelu",
            qk_norm=True,
            post_norms=True,
            norm_offset=1.0,
            theta=1_000_000.0,
            local_theta=10000.0,
            head_size=256,
            tied=True,
        ),
        "minicpm": Family(title="MiniCPM", model_types=("minicpm",), tied=True),
    }
)

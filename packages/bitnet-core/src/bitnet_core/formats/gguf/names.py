"""What GGUF files call the weights that have canonical names here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_GLOBAL = MappingProxyType({"embedding": "token_embd", "norm": "output_norm", "head": "output"})
PROJECTIONS: Mapping[str, str] = MappingProxyType(
    {
        "attn.q": "attn_q",
        "attn.k": "attn_k",
        "attn.v": "attn_v",
        "attn.o": "attn_output",
        "ffn.gate": "ffn_gate",
        "ffn.up": "ffn_up",
        "ffn.down": "ffn_down",
    }
)
_NORMS = MappingProxyType(
    {
        "attn.norm": "attn_norm",
        "attn.sub_norm": "attn_sub_norm",
        "attn.q_norm": "attn_q_norm",
        "attn.k_norm": "attn_k_norm",
        "attn.post_norm": "post_attention_norm",
        "ffn.norm": "ffn_norm",
        "ffn.sub_norm": "ffn_sub_norm",
        "ffn.post_norm": "post_ffw_norm",
    }
)
IN_LAYER: Mapping[str, str] = MappingProxyType(
    {name: f"{stored}.weight" for name, stored in (PROJECTIONS | _NORMS).items()}
    | {f"{name}.bias": f"{stored}.bias" for name, stored in PROJECTIONS.items()}
    | {f"{name}.norm": f"{stored}_norm_in.weight" for name, stored in PROJECTIONS.items()}
    | {f"{name}.scale": f"{stored}.scale" for name, stored in PROJECTIONS.items()}
)

FREQUENCIES = "rope_freqs.weight"
LONG_FACTORS = "rope_factors_long.weight"
SHORT_FACTORS = "rope_factors_short.weight"


def file_name(name: str) -> str:
    """The name in a file of the weight with this canonical name."""
    if name in _GLOBAL:
        return f"{_GLOBAL[name]}.weight"
    _, layer, inner = name.split(".", 2)
    return f"blk.{layer}.{IN_LAYER[inner]}"


def projection_of(name: str) -> str | None:
    """ "attn.q" for "layers.3.attn.q"; None for what is no projection's matrix."""
    inner = name.split(".", 2)[-1]
    return inner if inner in PROJECTIONS else None

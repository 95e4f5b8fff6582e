"""What Hugging Face's files call the weights that have canonical names here."""

from __future__ import annotations

import re
from collections.abc import Mapping

EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
_FINAL_NORM = "norm.weight"

_PROJECTIONS = {
    **{f"self_attn.{name}_proj": f"attn.{name}" for name in "qkvo"},
    **{f"mlp.{name}_proj": f"ffn.{name}" for name in ("gate", "up", "down")},
}
# What stands behind a projection's name, and behind its canonical one; the first of two is what is written.
_PARTS = (
    ("weight", ""),
    ("weight_scale", ".scale"),
    ("bias", ".bias"),
    ("rms_norm.weight", ".norm"),
    ("norm.weight", ".norm"),
)
_NORMS = (
    ("input_layernorm", "attn.norm"),
    ("self_attn.attn_sub_norm", "attn.sub_norm"),
    ("self_attn.inner_attn_ln", "attn.sub_norm"),
    ("mlp.ffn_sub_norm", "ffn.sub_norm"),
    ("mlp.ffn_layernorm", "ffn.sub_norm"),
    ("self_attn.q_norm", "attn.q_norm"),
    ("self_attn.k_norm", "attn.k_norm"),
)
_PRE_NORMS = (("post_attention_layernorm", "ffn.norm"),)
_POST_NORMS = (
    ("post_attention_layernorm", "attn.post_norm"),
    ("pre_feedforward_layernorm", "ffn.norm"),
    ("post_feedforward_layernorm", "ffn.post_norm"),
)
_INPUT_NORM = re.compile(r"\.(q|k|v|o|gate|up|down)\.norm$")


def names_in_layer(*, post_norms: bool) -> list[tuple[str, str]]:
    """Pairs of the file's name and the canonical one, both as they stand behind a layer's number."""
    pairs = [(f"{hf}.{part}", name + ending) for hf, name in _PROJECTIONS.items() for part, ending in _PARTS]
    norms = _NORMS + (_POST_NORMS if post_norms else _PRE_NORMS)
    return pairs + [(f"{hf}.weight", name) for hf, name in norms]


def canonical_name(name: str, prefix: str, in_layer: Mapping[str, str]) -> str | None:
    """The canonical name of a tensor; "" for one that says nothing new, None for one that is unknown."""
    if name.endswith("rotary_emb.inv_freq"):
        return ""  # old files store what theta gives
    if name.endswith(HEAD):
        return "head"
    if not name.startswith(prefix):
        return None
    rest = name.removeprefix(prefix)
    if rest in (EMBEDDING, _FINAL_NORM):
        return "embedding" if rest == EMBEDDING else "norm"
    folder, _, behind = rest.partition(".")
    number, _, tail = behind.partition(".")
    if folder != "layers" or tail not in in_layer or not _is_number(number):
        return None
    return f"layers.{number}.{in_layer[tail]}"


def file_name(canonical: str, in_layer: Mapping[str, str]) -> str:
    """The name under which a weight is written."""
    whole = {"embedding": f"model.{EMBEDDING}", "norm": f"model.{_FINAL_NORM}", "head": HEAD}
    if canonical in whole:
        return whole[canonical]
    _, number, tail = canonical.split(".", 2)
    return f"model.layers.{number}.{in_layer[tail]}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 6 and str(int(text)) == text


def is_shifted_norm(canonical: str) -> bool:
    """Whether a family that stores its norms less one does so for this weight."""
    return canonical.endswith("norm") and not _INPUT_NORM.search(canonical)

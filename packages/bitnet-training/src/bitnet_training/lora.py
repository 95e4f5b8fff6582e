"""Low-rank adapters on a ternary base, by PEFT: on BitLinear and on PackedLinear, saved in PEFT's own format.

An adapter adds to a projection what its input gives as floats: after every norm in front of it, and before it is
quantized. PEFT's own layer would take the input before a norm that is part of the projection.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
from peft.tuners import lora
from torch import Tensor, nn

from bitnet_core import Adapter, FormatError, UnsupportedError
from bitnet_core.durable import replacing
from bitnet_core.formats.strictjson import read_json
from bitnet_quant import digest

from .linear import BitLinear, normed
from .models import to_core
from .packed import PackedLinear
from .replace import projection_of

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
_BASE = "base.json"
_FILES = ("adapter_config.json", "adapter_model.safetensors")


class TernaryLora(lora.Linear):
    """PEFT's layer around a ternary one: y = W x + up (down x), with x after the norm in front."""

    def forward(self, x: Tensor) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        base: Any = self.get_base_layer()
        x = normed(base.rms_norm, x)
        y: Tensor = base.product(x)
        if self.disable_adapters or self.merged:
            return y
        layers: Any = self
        for name in self.active_adapters:
            if name in layers.lora_A:
                down, up, dropout = (part[name] for part in (layers.lora_A, layers.lora_B, layers.lora_dropout))
                change = up(down(dropout(x.to(down.weight.dtype)))) * self.scaling[name]
                y = y + change.to(y.dtype)
        return y

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features  # PEFT asks, and warns of types that it does not know

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Add the change to the masters, which packed weights have not."""
        if isinstance(self.get_base_layer(), PackedLinear):
            raise UnsupportedError("packed weights cannot take up an adapter; merge.merge rounds it into new ones")
        super().merge(*args, **kwargs)


def add_adapter(
    model: nn.Module, *, rank: int = 16, alpha: float = 32.0, targets: Sequence[str] = TARGETS, dropout: float = 0.0
) -> peft.PeftModel:
    """The model with a new adapter on the named projections of every layer; nothing else trains."""
    if unknown := sorted(set(targets) - set(TARGETS)) or (not targets and ["none"]):
        raise ValueError(f"targets: expected some of {', '.join(TARGETS)}, got {unknown[0]}")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a whole number in PEFT's type, any number in its arithmetic
        lora_dropout=dropout,
        target_modules=[f"{name}_proj" for name in targets],
        bias="none",
        task_type="CAUSAL_LM",
    )
    with _quiet():
        return peft.get_peft_model(model, _known(config))


def load_adapter(model: nn.Module, folder: str | os.PathLike[str], *, trains: bool = False) -> peft.PeftModel:
    """The model with the adapter of a folder, which must have been made on the same ternary weights."""
    for name in _FILES:  # what is missing here, PEFT would look for on the hub, or among pickles
        if not (Path(folder) / name).is_file():
            raise FormatError(folder, name, "a file in this folder, as PEFT saves it", "none")
    path = Path(folder) / _BASE
    if path.exists():
        value = read_json(path, limit=1 << 16)
        made_on = value.get("trits") if isinstance(value, dict) else None
        if made_on != (mine := digest(to_core(model))):
            raise FormatError(path, "trits", f"{mine[:12]}..., those of this base", f"{str(made_on)[:12]}...")
    config = peft.LoraConfig.from_pretrained(os.fspath(folder))
    with _quiet():
        return peft.PeftModel.from_pretrained(model, os.fspath(folder), config=_known(config), is_trainable=trains)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers has to say about names that PEFT still calls it by."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _known(config: peft.LoraConfig) -> peft.LoraConfig:
    config._register_custom_module({BitLinear: TernaryLora, PackedLinear: TernaryLora})
    return config


def save_adapter(model: peft.PeftModel, folder: str | os.PathLike[str]) -> None:
    """Write the adapter as PEFT does, and beside it which trits it was made on."""
    # Whether embeddings go along would otherwise be asked of the hub.
    model.save_pretrained(os.fspath(folder), save_embedding_layers=False)
    trits = digest(to_core(model, adapted=True))
    with replacing(Path(folder) / _BASE) as stream:
        stream.write(json.dumps({"trits": trits}).encode())


def adapter_of(model: peft.PeftModel, name: str = "default") -> Adapter:
    """The adapter as core's runners take it: down (rank, in), and up (out, rank) with the scale multiplied in."""
    found = {}
    layers: Iterable[tuple[str, Any]] = model.named_modules()
    for path, module in layers:
        canonical = projection_of(path)
        if canonical and name in getattr(module, "lora_A", ()):
            down, up = (part[name].weight.detach().float().cpu().numpy() for part in (module.lora_A, module.lora_B))
            found[canonical] = (down, np.asarray(up * module.scaling[name], np.float32))
    if not found:
        raise ValueError(f"name: expected one of {', '.join(model.peft_config)}, got {name!r}")
    return Adapter(name, found)

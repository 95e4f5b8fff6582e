"""Adapters in PEFT's format: adapter_config.json beside adapter_model.safetensors."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...durable import replacing
from ...errors import FormatError, UnsupportedError, printable
from ...model import Adapter, Array, ModelSpec
from ..safetensors import SafetensorsFile, write
from ..strictjson import read_json
from . import names

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_CONFIG_LIMIT = 1 << 20
_ENTRY_BYTES = 512  # more than a header says about two matrices
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_PLAIN = re.compile(r"\^?(?:[\w.]|\\\.)+", re.ASCII)  # patterns that say one thing to everybody, and in no time
_RANKS = range(1, 1 << 16)
# What says which modules have weights, or how they were trained: the weights that are there say it as well.
_PASSED_OVER = frozenset(
    {
        *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "auto_mapping", "revision"),
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "inference_mode"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"),
        *("lora_dropout", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("velora_config", "ensure_weight_tying", "qalora_group_size"),
    }
)
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # others take from the base what they begin with


@dataclass(frozen=True, slots=True)
class _Config:
    """What scales the products of each module."""

    path: Path
    rank: int
    ranks: Mapping[str, int]  # by pattern
    alpha: float
    alphas: Mapping[str, float]  # by pattern
    rooted: bool  # alpha is over the root of the rank

    def scale(self, module: str, rank: int) -> float:
        """What a module's product is multiplied by; `rank` is that of its matrices."""
        if (expected := _first(self.ranks, module, self.rank)) != rank:
            raise FormatError(self.path, f"r of {module}", rank, expected, hint="the weights have another rank")
        alpha: float = _first(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rooted else rank)


@dataclass(frozen=True, slots=True)
class _Module:
    """A module of transformers, and what the file calls its matrices: "A" and "B"."""

    name: str
    keys: dict[str, str]


def load_adapter(folder: str | os.PathLike[str], spec: ModelSpec, name: str | None = None) -> Adapter:
    """The adapter in a folder, for a model of this spec; it is called as the folder is, if nobody says otherwise."""
    path = Path(folder)
    _refuse_inner_norms(spec, path)
    config = _read_config(path / _CONFIG)
    if not (path / _WEIGHTS).exists() and (path / "adapter_model.bin").exists():
        raise UnsupportedError(
            f"{path / 'adapter_model.bin'}: pickle-based formats can run code and are not read; "
            "save the adapter as safetensors"
        )
    file = SafetensorsFile(path / _WEIGHTS)
    try:
        found = {
            canonical: _pair(file, spec, canonical, module, config)
            for canonical, module in _modules(file, spec).items()
        }
    finally:
        file.close()
    ordered = [canonical for canonical in spec.shapes() if canonical in found]
    return Adapter(name or path.resolve().name, {canonical: found[canonical] for canonical in ordered})


def save_adapter(adapter: Adapter, folder: str | os.PathLike[str], spec: ModelSpec) -> None:
    """Write an adapter as PEFT reads it, in float32 and the same bytes every time; each file is whole or not there."""
    target = Path(folder)
    _refuse_inner_norms(spec, target)
    target.mkdir(parents=True, exist_ok=True)
    modules = {name: module for name, module in _file_modules(spec).items() if name in adapter.weights}
    if not modules or len(modules) != len(adapter.weights):
        raise ValueError(f"adapter {adapter.name!r}: expected projections of the model alone, got {[*adapter.weights]}")
    ranks = {module: len(adapter.weights[name][0]) for name, module in modules.items()}
    write(target / _WEIGHTS, _arrays(adapter, modules), header_room=_ENTRY_BYTES * (len(modules) + 1))
    rank = max(ranks.values())
    others = {module: other for module, other in ranks.items() if other != rank}
    # The scale is in the weights already: alpha over the rank is 1.
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": _targets(modules, spec),
        "bias": "none",
        "lora_dropout": 0.0,
    }
    with replacing(target / _CONFIG) as stream:
        stream.write((json.dumps(config, indent=2) + "\n").encode())


def _refuse_inner_norms(spec: ModelSpec, path: Path) -> None:
    if spec.sub_norms == "projection":
        raise UnsupportedError(
            f"{path}: PEFT's adapters multiply what comes to a module; a model with a norm inside every projection has "
            "its adapters behind that norm, which this format cannot say"
        )


def _read_config(path: Path) -> _Config:
    value = read_json(path, limit=_CONFIG_LIMIT)
    if not isinstance(value, dict):
        raise FormatError(path, "JSON", "an object", type(value).__name__)
    _check_kind(value, path)
    rank, alpha = value.get("r", 8), value.get("lora_alpha", 8)
    config = _Config(
        path,
        rank,
        _patterns(value, "rank_pattern", path),
        alpha,
        _patterns(value, "alpha_pattern", path),
        _flag(value, "use_rslora", path),
    )
    for field, number in (("r", rank), *(("rank_pattern", number) for number in config.ranks.values())):
        if type(number) is not int or number not in _RANKS:
            raise FormatError(path, field, f"an integer from 1 to {_RANKS[-1]}", number)
    for field, number in (("lora_alpha", alpha), *(("alpha_pattern", number) for number in config.alphas.values())):
        if isinstance(number, bool) or not isinstance(number, int | float) or abs(number) > 1e30:
            raise FormatError(path, field, "a number", number)
    return config


def _check_kind(value: Mapping[str, Any], path: Path) -> None:
    """Whether the file is about low-rank changes of projections, and of nothing else."""
    if value.get("peft_type") != "LORA":
        raise UnsupportedError(f"{path}: peft_type: only LORA is supported, got {printable(value.get('peft_type'))}")
    if (start := value.get("init_lora_weights")) not in _STARTS:
        raise UnsupportedError(
            f"{path}: init_lora_weights: {printable(start)} changes the base as well; convert it to a plain adapter"
        )
    for key, said in value.items():
        if key not in _PASSED_OVER and said not in (None, False, "none", [], {}):
            raise UnsupportedError(
                f"{path}: {printable(key)}: {printable(said)} is not supported: an adapter changes the seven "
                "projections by matrices of low rank, and nothing else; merge it into its base instead"
            )


def _flag(value: Mapping[str, Any], key: str, path: Path) -> bool:
    flag = value.get(key)
    if flag is None or isinstance(flag, bool):
        return bool(flag)
    raise FormatError(path, key, "true or false", flag)


def _patterns(value: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    patterns = value.get(key) or {}
    if not isinstance(patterns, dict):
        raise FormatError(path, key, "an object", type(patterns).__name__)
    for pattern in patterns:
        if not _PLAIN.fullmatch(pattern):
            raise UnsupportedError(f"{path}: {key}: only names of modules are supported, got {printable(pattern)}")
    return patterns


def _first(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """What the first pattern says that names a module or the end of its name; "^" stands for its beginning."""
    for pattern, said in patterns.items():
        name = pattern.replace("\\.", ".")
        whole = name.startswith("^")
        if module == name.removeprefix("^") or (not whole and module.endswith(f".{name}")):
            return said
    return default


def _modules(file: SafetensorsFile, spec: ModelSpec) -> dict[str, _Module]:
    """What the file has for each projection."""
    in_layer = dict(names.names_in_layer(post_norms=spec.post_norms))
    known = _file_modules(spec)
    found: dict[str, _Module] = {}
    paths: set[tuple[str, str | None]] = set()
    for key in file.entries:
        match = _KEY.fullmatch(key)
        before = match["module"].partition("layers.")[0] if match else ""
        canonical = names.canonical_name(f"{match['module']}.weight", before, in_layer) if match else None
        if not match or canonical not in known:
            raise UnsupportedError(
                f"{file.file.path}: tensor {printable(key)}: only lora_A and lora_B of the seven projections of this "
                f"model's {spec.layers} layers are supported; merge the adapter into its base instead"
            )
        paths.add((before, match["adapter"]))
        module = found.setdefault(canonical, _Module(match["module"].removeprefix(_PREFIX), {}))
        if module.keys.setdefault(match["side"], key) != key or len(paths) > 1:
            raise FormatError(file.file.path, f"tensor {key!r}", "one adapter, under one path", "another beside it")
    if not found:
        raise FormatError(file.file.path, "tensors", "lora_A and lora_B of projections", "none")
    return found


def _pair(
    file: SafetensorsFile, spec: ModelSpec, canonical: str, module: _Module, config: _Config
) -> tuple[Array, Array]:
    """Both matrices of a projection, the scale multiplied into the second."""
    rows, columns = spec.projections()[canonical.split(".", 2)[2]]
    for side in "AB":
        if side not in module.keys:
            raise FormatError(file.file.path, f"module {module.name!r}", "lora_A and lora_B", f"no lora_{side}")
    down, up = (_matrix(file, module.keys[side]) for side in "AB")
    rank = down.shape[0]
    for side, matrix, shape in (("A", down, (rank, columns)), ("B", up, (rows, rank))):
        if matrix.shape != shape or not rank:
            expected = f"shape {list(shape)}, as the model's {canonical}"
            raise FormatError(file.file.path, f"tensor {module.keys[side]!r}", expected, list(matrix.shape))
    with np.errstate(over="ignore"):
        scaled = up * np.float32(config.scale(module.name, rank))
    if not np.isfinite(scaled).all():
        raise FormatError(config.path, "lora_alpha", "products within float32", "infinite ones")
    return down, scaled


def _matrix(file: SafetensorsFile, key: str) -> Array:
    entry = file.entries[key]
    if len(entry.shape) != 2 or entry.dtype.name not in ("float16", "bfloat16", "float32"):
        got = f"{entry.dtype.name} of shape {list(entry.shape)}"
        raise FormatError(file.file.path, f"tensor {key!r}", "a matrix of F32, F16 or BF16", got)
    values = np.array(file.array(key), np.float32)
    if not np.isfinite(values).all():
        raise FormatError(file.file.path, f"tensor {key!r}", "finite numbers", values[~np.isfinite(values)][0])
    return values


def _file_modules(spec: ModelSpec) -> dict[str, str]:
    """Every projection of a model, and the module of transformers that it is."""
    in_layer = {canonical: hf for hf, canonical in names.names_in_layer(post_norms=spec.post_norms)}
    projections = [f"layers.{layer}.{name}" for layer in range(spec.layers) for name in spec.projections()]
    return {name: names.file_name(name, in_layer).removesuffix(".weight") for name in projections}


def _arrays(adapter: Adapter, modules: Mapping[str, str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name, module in modules.items():
        for side, matrix in zip("AB", adapter.weights[name], strict=True):
            yield f"{_PREFIX}{module}.lora_{side}.weight", np.asarray(matrix, np.float32)


def _targets(modules: Mapping[str, str], spec: ModelSpec) -> list[str]:
    """Names of the projections that are changed in every layer, and of modules where some are not."""
    ends = [module.rpartition(".")[2] for module in modules.values()]
    whole = {end for end in ends if ends.count(end) == spec.layers}
    return sorted(whole | {module for module in modules.values() if module.rpartition(".")[2] not in whole})

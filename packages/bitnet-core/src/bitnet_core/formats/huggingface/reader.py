"""Hugging Face folders: config.json and safetensors, in every form that ternary models are published in.

Forms of a projection, told apart by its tensors and, where those leave it open, by config.json:
- packed: uint8, four rows a byte, with `weight_scale` that multiplies (linear_class autobitlinear) or
  divides (bitlinear, and where nothing is said);
- masters: floats that every forward pass of the original ternarizes by their mean magnitude;
- ternary floats: the codes multiplied out, one scale a tensor, row or block;
- plain floats, of a model that is not ternary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ... import arithmetic
from ...errors import FormatError, UnsupportedError
from ...families import FAMILIES
from ...model import Model, ModelSpec, Weight, Weights, in_runs
from ...tensor import TernaryTensor
from .. import advice
from ..safetensors import SafetensorsFile
from ..strictjson import read_json
from . import names
from .config import family_of, parse_config, spec_from_config
from .fields import Config, QuantizationConfig

CONFIG_LIMIT = 4 << 20
_INDEX_LIMIT = 64 << 20
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".npz", ".ckpt")

Form = Literal["packed", "masters", "ternary", "plain"]


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor of the folder."""

    file: SafetensorsFile
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.file.entries[self.name].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.file.entries[self.name].dtype

    def array(self) -> npt.NDArray[Any]:
        return self.file.array(self.name)

    def rows(self, first: int, last: int) -> npt.NDArray[Any]:
        return _narrowed(self.file.rows(self.name, first, last))

    def refuse(self, expected: object, got: object) -> FormatError:
        return FormatError(self.file.file.path, f"tensor {self.name!r}", expected, got)


def load(
    folder: str | os.PathLike[str],
    *,
    masters: bool | None = None,
    inputs: Literal["int8", "float"] | None = None,
) -> Model:
    """The model in a folder.

    `masters` says whether float projections are ternarized, and `inputs` what ternary projections multiply;
    None leaves both to what the files tell.
    """
    from ...chat import ChatTemplate  # noqa: PLC0415  # both cost time that tools that only look do not need
    from ...tokenizer import Tokenizer  # noqa: PLC0415

    path = Path(folder) / "config.json"
    config = parse_config(read_json(path, limit=CONFIG_LIMIT, same_duplicates=True), path)
    family = family_of(config, path)
    sources = _canonical(_open_tensors(Path(folder)), FAMILIES[family].post_norms)
    trained = family == "bitnet" or config.quantization_config is not None  # by BitNet's recipe
    form = _form_of(sources, config, trained, masters)
    spec = spec_from_config(
        config,
        path,
        inputs=inputs or _inputs_of(form, trained),
        projection_norms="layers.0.attn.q.norm" in sources,
        headless="head" not in sources,
    )
    makers = _makers(sources, spec, form, config, folder)
    whole: dict[str, Source] = {
        name: sources[name] for name in ("embedding", "head") if name in makers and sources[name].dtype != np.uint8
    }
    runs = {name: in_runs(source.shape, source.rows, makers[name]) for name, source in whole.items()}
    return Model(
        spec, Weights(makers, runs), Tokenizer.from_folder(folder), ChatTemplate.from_folder(folder), _sampling(folder)
    )


def _open_tensors(folder: Path) -> dict[str, Source]:
    """Every tensor of the folder's safetensors files, by the name it has there."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return _open_shards(index)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        single = folder / "model.safetensors"
        if single not in files:
            raise _no_single_file(folder, files)
        files = [single]
    opened = SafetensorsFile(files[0])
    return {name: Source(opened, name) for name in opened.entries}


def _no_single_file(folder: Path, files: list[Path]) -> Exception:
    if files:
        return FormatError(folder, "weights", "model.safetensors, or an index of shards", f"{len(files)} other files")
    pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]
    if pickles:
        return UnsupportedError(
            f"{folder / pickles[0]}: pickle-based formats can run code and are not read; convert it to safetensors"
        )
    return FormatError(folder, "weights", "model.safetensors", "none")


def _open_shards(index: Path) -> dict[str, Source]:
    value = read_json(index, limit=_INDEX_LIMIT)
    places = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise FormatError(index, "weight_map", "an object of file names", type(places).__name__)
    shards = sorted(set(places.values()))
    for shard in shards:
        if PurePosixPath(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise FormatError(index, "weight_map", "names of safetensors files in this folder", shard)
    sources: dict[str, Source] = {}
    for shard in shards:
        if not (index.parent / shard).exists():
            raise FormatError(index, f"shard {shard}", "a file in this folder", "none")
        opened = SafetensorsFile(index.parent / shard)
        for name in opened.entries:
            if places.get(name) != shard:
                raise FormatError(index, f"tensor {name!r}", f"to be listed in {shard}", places.get(name, "nowhere"))
            sources[name] = Source(opened, name)
    if missing := sorted(places.keys() - sources.keys()):
        raise FormatError(index, f"tensor {missing[0]!r}", f"to be in {places[missing[0]]}", "none")
    _check_total(value, sources, index)
    return sources


def _check_total(value: Mapping[str, Any], sources: Mapping[str, Source], index: Path) -> None:
    metadata = value.get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    entries = [source.file.entries[source.name] for source in sources.values()]
    total = sum(entry.end - entry.start for entry in entries)
    if stated is not None and stated != total:
        raise FormatError(index, "metadata.total_size", f"{total}, as the shards hold", stated)


def _canonical(sources: Mapping[str, Source], post_norms: bool) -> dict[str, Source]:
    """Tensors by canonical name; refuses those that no family has."""
    embeddings = [name for name in sources if name.endswith(names.EMBEDDING)]
    if len(embeddings) != 1:
        file = next((source.file.file.path for source in sources.values()), "safetensors")
        raise FormatError(file, "tensors", f"one that ends in {names.EMBEDDING}", ", ".join(embeddings) or "none")
    prefix = embeddings[0].removesuffix(names.EMBEDDING)
    in_layer = dict(names.names_in_layer(post_norms=post_norms))
    found: dict[str, Source] = {}
    unknown: list[str] = []
    for name, source in sources.items():
        canonical = names.canonical_name(name, prefix, in_layer)
        if canonical is None:
            unknown.append(name)
        elif canonical in found:
            raise source.refuse("one tensor for each weight", f"a second {canonical}")
        elif canonical:
            found[canonical] = source
    if unknown:
        shown = ", ".join(repr(name) for name in sorted(unknown)[:3])
        file = sources[unknown[0]].file.file.path
        raise FormatError(file, "tensors", "only those of the model's family", f"{len(unknown)} others: {shown}")
    return found


def _form_of(sources: Mapping[str, Source], config: Config, trained: bool, masters: bool | None) -> Form:
    """How the projections are stored; a model has them all in one form."""
    sample = sources.get("layers.0.ffn.gate")
    if sample is None or sample.dtype == np.uint8:
        return "packed"
    if masters is not None:
        return "masters" if masters else "plain"
    recipe = config.quantization_config
    if recipe is not None and recipe.quantization_mode == "online":
        return "masters"  # its forward pass rounds, also weights that happen to be ternary
    if len(sample.shape) == 2 and TernaryTensor.detect(sample.array()[:64]) is not None:
        return "ternary"
    return "masters" if trained or "layers.0.attn.q.norm" in sources else "plain"


def _inputs_of(form: Form, trained: bool) -> Literal["int8", "float"]:
    """BitNet's recipe quantizes activations; models that publish ternary floats without it do not."""
    return "int8" if form in ("packed", "masters") or (form == "ternary" and trained) else "float"


def _makers(
    sources: dict[str, Source], spec: ModelSpec, form: Form, config: Config, folder: str | os.PathLike[str]
) -> dict[str, Callable[[], Weight]]:
    """What makes each weight, once its tensor is known to be there and of the right shape."""
    if spec.tied:
        sources.pop("head", None)  # some files repeat the embedding
    shapes = spec.shapes()
    scales = {name for name in sources if name.endswith(".scale")}
    missing, extra = sorted(shapes.keys() - sources.keys()), sorted(sources.keys() - shapes.keys() - scales)
    for wrong, what in ((missing, "missing"), (extra, "too many for this config")):
        if wrong:
            shown = ", ".join(wrong[:3])
            raise FormatError(folder, "tensors", f"the {len(shapes)} of the config", f"{len(wrong)} {what}: {shown}")
    recipe = config.quantization_config or QuantizationConfig()
    multiplies = recipe.linear_class == "autobitlinear"
    offset = FAMILIES[spec.family].norm_offset
    makers: dict[str, Callable[[], Weight]] = {}
    for name, shape in shapes.items():
        source = sources[name]
        if name.endswith(".bias"):
            scale = sources.get(f"{name.removesuffix('.bias')}.scale") if multiplies else None
            makers[name] = partial(_bias, _checked(source, shape), scale)
        elif len(shape) == 1:
            shift = offset if names.is_shifted_norm(name) else 0.0
            makers[name] = partial(_norm, _checked(source, shape), shift)
        elif scale := _scale_source(sources, name, source, shape):
            makers[name] = partial(_packed, source, scale, (shape[0], shape[1]), divides=not multiplies)
        else:
            makers[name] = partial(_matrix, _checked(source, shape), _form_in(form, name, source, recipe))
    return makers


def _form_in(form: Form, name: str, source: Source, recipe: QuantizationConfig) -> Form:
    """The form of one float matrix: the head may be ternary but is never a master, and some are left alone."""
    if not name.startswith("layers."):
        return "ternary"
    module = f".{source.name.removesuffix('.weight')}."
    kept = [f".{part}." for part in recipe.modules_to_not_convert or []]
    return "plain" if any(module.startswith(part) or module.endswith(part) for part in kept) else form


def _checked(source: Source, shape: tuple[int, ...]) -> Source:
    if source.shape != shape:
        raise source.refuse(f"shape {list(shape)}", list(source.shape))
    if source.dtype.name not in _FLOATS:
        raise source.refuse("F64, F32, F16 or BF16", source.dtype)
    return source


def _scale_source(sources: Mapping[str, Source], name: str, source: Source, shape: tuple[int, ...]) -> Source | None:
    """The scale beside a packed matrix; None for what is not packed."""
    if source.dtype != np.uint8 or len(shape) != 2:
        return None
    scale = sources.get(f"{name}.scale")
    if scale is None:
        raise source.refuse("a weight_scale beside packed weights", "none")
    packed = (-(-shape[0] // 4), shape[1])
    if source.shape != packed:
        raise source.refuse(f"shape {list(packed)}", list(source.shape))
    if scale.shape not in ((), (1,), (shape[0],), (shape[0], 1)):
        raise scale.refuse(f"one scale, or {shape[0]}", f"shape {list(scale.shape)}")
    return scale


def _norm(source: Source, offset: float) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = source.array().astype(np.float32)
    return values + np.float32(offset)


def _bias(source: Source, scale: Source | None) -> npt.NDArray[np.float32]:
    # Where the scale multiplies, transformers adds the bias before it does.
    values: npt.NDArray[np.float32] = source.array().astype(np.float32)
    return values if scale is None else values * _scales(scale).ravel()


def _scales(source: Source) -> npt.NDArray[np.float32]:
    values = source.array().astype(np.float32).reshape(-1, 1)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise source.refuse("finite scales above zero", values.ravel()[:4])
    return values


def _packed(source: Source, scale: Source, shape: tuple[int, int], *, divides: bool) -> TernaryTensor:
    scales = _scales(scale)
    if divides:
        with np.errstate(over="ignore"):
            scales = np.float32(1) / scales
        if not np.isfinite(scales).all():
            raise scale.refuse("scales with a finite inverse", scale.array().ravel()[:4])
    tensor = TernaryTensor(source.array(), scales, shape, "hf_rows")
    tensor.check_codes(source.file.file.path, f"tensor {source.name!r}")
    return tensor


def _matrix(source: Source, form: Form) -> Weight:
    array = source.array()
    if form == "masters":
        codes, scale = arithmetic.absmean(array)
        return TernaryTensor.from_codes(codes, scale)
    found = TernaryTensor.detect(array) if form == "ternary" else None
    return _narrowed(array) if found is None else found


def _narrowed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # No backend multiplies wider numbers.
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _sampling(folder: str | os.PathLike[str]) -> dict[str, float]:
    """What generation_config.json advises."""
    path = Path(folder) / "generation_config.json"
    if not path.exists():
        return {}
    value = read_json(path, limit=CONFIG_LIMIT)
    if not isinstance(value, dict):
        raise FormatError(path, "JSON", "an object", type(value).__name__)
    if value.get("do_sample") is False:
        return {"temperature": 0.0}
    stated = {name: value[name] for name in advice.NAMES if value.get(name) is not None}
    return {name: advice.checked(name, number, path, name) for name, number in stated.items()}

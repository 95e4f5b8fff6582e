"""Conversions: the same trits in every form, nothing half written, nothing rounded unasked."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import bitnet_core
from bitnet_core import BitNetError, FormatError, Model, TernaryTensor, UnsupportedError, arithmetic, reference
from bitnet_core.formats import gguf, huggingface
from bitnet_core.formats.safetensors import SafetensorsFile
from bitnet_core.model import Weight
from bitnet_core.testing import CASES, Case, random_model, run, some_tokens, tiny_spec
from bitnet_quant import blocks
from bitnet_quant.conversion import FILES, FOLDERS, Conversion, Progress, convert, digest
from bitnet_quant.recipe import Recipe, Rule
from bitnet_quant.ternarization import Method

STORIES = Path(__file__).parents[3] / "models" / "stories"
SPEC = tiny_spec(hidden_size=256, head_size=64)
PACKED = ("hf_multiply", "hf_divide")


def model(seed: int = 3) -> Model:
    """A model whose scales are powers of two: every form holds them."""
    made = random_model(SPEC, seed)
    weights: dict[str, Weight] = {}
    for number, (name, weight) in enumerate(made.weights.items()):
        weights[name] = weight
        if isinstance(weight, TernaryTensor):
            weights[name] = replace(weight, scale=np.full((1, 1), 2.0 ** -(number % 5), np.float32))
    return Model(SPEC, weights)


def place(folder: Path, layout: str) -> Path:
    return folder / (f"{layout}.gguf" if layout in FILES else layout)


def opened(path: Path, layout: str) -> Model:
    if layout in FOLDERS:
        return huggingface.load(path)
    return gguf.load(path, i2_s_group=64 if layout == "i2_s_64" else None)


def tree(path: Path) -> dict[str, bytes]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize("source", [*FILES, *PACKED])
def test_any_form_becomes_any_other_with_the_same_trits_and_numbers(source: str, tmp_path: Path) -> None:
    first = place(tmp_path, source)
    convert(model(), first, layout=source)
    expected = digest(model())
    options: dict[str, Any] = {"i2_s_group": 64} if source == "i2_s_64" else {}
    for target in (*FILES, *PACKED):
        if target == source:
            continue
        done = convert(first, place(tmp_path / "out", target), layout=target, **options)
        assert (done.before, done.after, done.rounded) == (expected, expected, ())
        found = opened(done.target, target)
        for name, weight in model().weights.items():
            other = found.weights[name]
            if isinstance(weight, TernaryTensor):
                assert isinstance(other, TernaryTensor)
                np.testing.assert_array_equal(other.dense(), weight.dense())
            else:
                np.testing.assert_array_equal(other, weight)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("target", ["file", "folder"])
def test_every_kind_of_model_says_the_same_after_its_conversion(case: Case, target: str, tmp_path: Path) -> None:
    before = case.model()
    layouts = ("i2_s_128", "q2_0_64", "tq2_0", "i2_s_64") if target == "file" else (None,)
    for layout in layouts:
        path = tmp_path / (f"{layout}.gguf" if target == "file" else "folder")
        try:
            convert(before, path, layout=layout, lossy=True)
        except UnsupportedError:
            assert not path.exists()
            continue  # another layout may hold it
        options: dict[str, Any] = {"i2_s_group": 64} if layout == "i2_s_64" else {}
        after = bitnet_core.load(path, **options)
        assert after.spec.inputs == case.spec.inputs
        tokens = some_tokens(case.spec, 9)
        expected = run(reference.load(before), tokens)
        np.testing.assert_allclose(run(reference.load(after), tokens), expected, atol=2e-4 * float(np.ptp(expected)))
        return
    cannot = {"file": {"bitnet-odd", "gemma3"}, "folder": {"bitnet-odd", "llama-row-scales"}}
    assert case.name in cannot[target]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_files_are_byte_for_byte_what_core_writes(case: Case, tmp_path: Path) -> None:
    for layout in FILES:
        try:
            gguf.save(case.model(), tmp_path / "core.gguf", layout=layout, embedding="as stored")
        except UnsupportedError:
            with pytest.raises(UnsupportedError):
                convert(case.model(), tmp_path / f"{layout}.gguf", layout=layout, lossy=True)
            continue
        found = convert(case.model(), tmp_path / f"{layout}.gguf", layout=layout, lossy=True).target
        assert found.read_bytes() == (tmp_path / "core.gguf").read_bytes()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_folders_hold_the_tensors_that_core_writes(case: Case, tmp_path: Path) -> None:
    try:
        huggingface.save(case.model(), tmp_path / "core")
    except UnsupportedError:
        with pytest.raises(UnsupportedError):
            convert(case.model(), tmp_path / "ours", lossy=True)
        return
    convert(case.model(), tmp_path / "ours", lossy=True)
    core, ours = (SafetensorsFile(tmp_path / name / "model.safetensors") for name in ("core", "ours"))
    assert list(core.entries) == list(ours.entries)
    for name in core.entries:
        np.testing.assert_array_equal(core.array(name), ours.array(name).astype(core.array(name).dtype))
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("core", "ours")]
    assert configs[0] == configs[1]


def test_masters_are_ternarized_on_the_way_as_their_makers_do(tmp_path: Path) -> None:
    spec = tiny_spec(inputs="float")
    random = np.random.default_rng(0)
    floats = {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in spec.shapes().items()}
    masters = convert(Model(spec, floats), tmp_path / "masters").target
    done = convert(masters, tmp_path / "m.gguf", masters=True)
    found = gguf.load(done.target)
    assert found.spec.inputs == "int8"
    for name, weight in found.weights.items():
        if isinstance(weight, TernaryTensor):
            codes, scale = arithmetic.absmean(floats[name])
            np.testing.assert_array_equal(weight.codes(), codes)
            assert weight.scale[0, 0] == scale
    assert done.before == done.after == digest(found)


@pytest.mark.parametrize("layout", [*FILES, *PACKED])
def test_a_real_model_says_the_same_in_every_form(layout: str, tmp_path: Path) -> None:
    before = bitnet_core.load(STORIES)
    done = convert(STORIES, place(tmp_path, layout), layout=layout, lossy=True)
    after = opened(done.target, layout)
    assert done.before == done.after == digest(before) == digest(after)
    assert after.tokenizer is not None
    assert before.tokenizer is not None
    text = "Once upon a time there was a dog."
    np.testing.assert_array_equal(after.tokenizer.encode(text), before.tokenizer.encode(text))
    assert after.sampling == before.sampling
    tokens = before.tokenizer.encode(text)
    expected = run(reference.load(before), tokens)
    found = run(reference.load(after), tokens)
    # Where a scale was rounded to float16, an activation may fall on the other side of a step.
    np.testing.assert_allclose(found, expected, atol=0.3 if done.rounded else 1e-4)


@pytest.mark.parametrize("layout", [*FILES, *PACKED])
def test_the_same_model_makes_the_same_bytes_whatever_else_the_process_did(layout: str, tmp_path: Path) -> None:
    first = convert(STORIES, place(tmp_path / "a", layout), layout=layout, lossy=True).target
    code = f"""
from bitnet_quant.conversion import convert
convert({str(STORIES)!r}, {str(place(tmp_path / "b", layout))!r}, layout={layout!r}, lossy=True)
"""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7", "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert tree(first) == tree(place(tmp_path / "b", layout))


def test_the_source_is_only_read(tmp_path: Path) -> None:
    source = convert(model(), tmp_path / "source.gguf").target
    before, stamp = source.read_bytes(), source.stat()
    for target in ("a.gguf", "folder"):
        convert(source, tmp_path / target)
    assert source.read_bytes() == before
    assert source.stat().st_mtime_ns == stamp.st_mtime_ns


def test_a_target_that_is_the_source_or_a_part_of_it_is_refused(tmp_path: Path) -> None:
    file = convert(model(), tmp_path / "m.gguf").target
    folder = convert(model(), tmp_path / "inner" / "folder").target
    (tmp_path / "link.gguf").symlink_to(file)
    for source, target in (
        (file, file),
        (file, tmp_path / "link.gguf"),
        (folder, folder),
        (folder, folder.parent),
        (file, tmp_path),
    ):
        before = tree(tmp_path)
        with pytest.raises(UnsupportedError, match="is the source, or a part of it"):
            convert(source, target, replace=True)
        assert tree(tmp_path) == before


def test_a_part_of_a_split_source_is_refused(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError, match="a part of it"):
        convert(parts[0], parts[1], replace=True)


def test_what_stands_at_the_target_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    for name in ("m.gguf", "folder"):
        first = convert(model(1), tmp_path / name).target
        before = tree(first)
        with pytest.raises(UnsupportedError, match="is there already"):
            convert(model(2), tmp_path / name)
        assert tree(first) == before
        done = convert(model(2), tmp_path / name, replace=True)
        assert digest(bitnet_core.load(done.target)) == digest(model(2)) != digest(model(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "m.gguf"]
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(UnsupportedError, match="is a folder"):
        convert(model(), tmp_path / "x.gguf", replace=True)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("a\0b.gguf", "NUL character"), ("x" * 300, "name too long"), ("file/m.gguf", "Not a directory")],
)
def test_a_name_that_nothing_can_have_is_refused(name: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FormatError, match=f"target: expected a path.*{complaint}"):
        convert(model(), tmp_path / name)


@pytest.mark.parametrize("name", ["m.gguf", "folder"])
def test_a_disk_that_is_full_is_said_of_the_target(name: str, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # what a full disk is like
    try:
        with pytest.raises(BitNetError, match=f"^{tmp_path / name}: File too large; nothing was kept; make room"):
            convert(model(), tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m.gguf", "folder"])
def test_errors_of_whoever_hears_of_progress_are_theirs(name: str, tmp_path: Path) -> None:
    def hang_up(progress: Progress) -> None:
        if progress.stage == "write":
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        convert(model(), tmp_path / name, progress=hang_up)


@pytest.mark.parametrize("name", ["m.gguf", "folder"])
@pytest.mark.parametrize("stage", ["look", "write", "check"])
def test_a_conversion_that_is_stopped_leaves_nothing_and_can_be_run_again(
    name: str, stage: str, tmp_path: Path
) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == stage and progress.done == 5:
            raise KeyboardInterrupt

    whole = tree(convert(model(), tmp_path / "whole" / name).target)
    old = convert(model(9), tmp_path / "out" / name)
    with pytest.raises(KeyboardInterrupt):
        convert(model(), old.target, replace=True, progress=stop)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert digest(bitnet_core.load(old.target)) == old.after
    assert tree(convert(model(), old.target, replace=True).target) == whole


@pytest.mark.parametrize("name", ["m.gguf", "folder"])
def test_a_conversion_that_is_killed_leaves_no_target_and_its_second_run_makes_the_same_bytes(
    name: str, tmp_path: Path
) -> None:
    code = f"""
import os
from bitnet_quant.conversion import convert
def die(progress):
    if progress.stage == "write" and progress.done == 40:
        os._exit(3)
convert({str(STORIES)!r}, {str(tmp_path / "out" / name)!r}, progress=die)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 3
    assert not (tmp_path / "out" / name).exists()
    whole = tree(convert(STORIES, tmp_path / "whole" / name).target)
    assert tree(convert(STORIES, tmp_path / "out" / name).target) == whole


@pytest.mark.parametrize("name", ["m.gguf", "folder"])
def test_trits_that_do_not_come_back_from_the_disk_as_they_were_are_noticed(name: str, tmp_path: Path) -> None:
    def damage(progress: Progress) -> None:
        if (progress.stage, progress.done) == ("check", 1):
            (staged,) = tmp_path.glob(".*.part")
            file = staged / "model.safetensors" if staged.is_dir() else staged
            stamp = file.stat()
            data = bytearray(file.read_bytes())
            weight = model().weights["layers.1.ffn.up"]
            assert isinstance(weight, TernaryTensor)
            packed = weight.repack("hf_rows" if staged.is_dir() else "i2_s_128").data.tobytes()
            data[data.index(packed)] ^= 0x40 if data[data.index(packed)] >> 6 == 0 else 0xC0 & data[data.index(packed)]
            with file.open("r+b") as stream:
                stream.write(data)
            os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    with pytest.raises(BitNetError, match=r"other trits|bits"):
        convert(model(), tmp_path / name, progress=damage)
    assert list(tmp_path.iterdir()) == []


def test_scales_that_would_be_rounded_are_refused_by_name_until_that_is_accepted(tmp_path: Path) -> None:
    made = model()
    weight = made.weights["layers.1.ffn.up"]
    assert isinstance(weight, TernaryTensor)
    odd = replace(weight, scale=np.full((1, 1), 0.7337, np.float32))
    changed = Model(SPEC, {**made.weights, "layers.1.ffn.up": odd})
    complaint = r"1 weights would be rounded, by up to 0\.00025 of their size: layers\.1\.ffn\.up \(TQ2_0 holds float16"
    with pytest.raises(UnsupportedError, match=complaint):
        convert(changed, tmp_path / "m.gguf", layout="tq2_0")
    assert list(tmp_path.iterdir()) == []
    done = convert(changed, tmp_path / "m.gguf", layout="tq2_0", lossy=True)
    assert [rounding.name for rounding in done.rounded] == ["layers.1.ffn.up"]
    for layout in ("i2_s_128", "hf_multiply"):
        assert convert(changed, place(tmp_path, layout), layout=layout).rounded == ()


def test_scales_that_divide_come_back_as_they_were_or_are_named(tmp_path: Path) -> None:
    weights = dict(model().weights)
    scales = np.random.default_rng(0).uniform(0.5, 2, 14).astype(np.float32)
    names = [name for name, weight in weights.items() if isinstance(weight, TernaryTensor)]
    for name, scale in zip(names, scales, strict=True):
        weight = weights[name]
        assert isinstance(weight, TernaryTensor)
        weights[name] = replace(weight, scale=np.full((1, 1), scale, np.float32))
    done = convert(Model(SPEC, weights), tmp_path / "folder", layout="hf_divide", lossy=True)
    config = json.loads((done.target / "config.json").read_text())
    assert config["quantization_config"]["linear_class"] == "bitlinear"
    found = huggingface.load(done.target).weights
    named = {rounding.name: rounding.error for rounding in done.rounded}
    for name, scale in zip(names, scales, strict=True):
        back = found[name]
        assert isinstance(back, TernaryTensor)
        assert (back.scale[0, 0] == scale) == (name not in named)
        assert abs(back.scale[0, 0] / scale - 1) <= 2**-23
    assert len(named) < 10
    stored = SafetensorsFile(done.target / "model.safetensors")
    assert stored.array("model.layers.0.self_attn.q_proj.weight_scale")[0] == pytest.approx(1 / scales[0], rel=1e-6)


def test_a_folder_s_floats_have_the_narrowest_type_that_rounds_none(tmp_path: Path) -> None:
    for kind, expected in ((ml_dtypes.bfloat16, "BF16"), (np.float16, "F16"), (np.float32, "F32")):
        weights = dict(model().weights)
        weights["embedding"] = np.random.default_rng(0).standard_normal((96, 256)).astype(kind)
        weights |= {name: np.ones(shape, np.float32) for name, shape in SPEC.shapes().items() if len(shape) == 1}
        target = convert(Model(SPEC, weights), tmp_path / expected).target
        header = (target / "model.safetensors").read_bytes()[8:].split(b"}}")[0]
        assert {part.split(b'"')[0].decode() for part in header.split(b'"dtype":"')[1:]} == {"U8", expected}


def test_a_recipe_is_carried_out_and_its_blocks_are_what_ggml_reads(tmp_path: Path) -> None:
    spec = replace(SPEC, inputs="float", tied=False, family="llama", activation="silu", sub_norms="none")
    random = np.random.default_rng(0)
    floats = {name: random.normal(0, 0.05, shape).astype(np.float32) for name, shape in spec.shapes().items()}
    made = Recipe(
        (
            Rule("*.ffn.down", "int8"),
            Rule("*.attn.[qk]", "int4"),
            Rule("head", "int8"),
            Rule("layers.*", "ternary", Method("optimal", "row")),
        )
    )
    with pytest.raises(UnsupportedError, match="holds one scale"):
        convert(Model(spec, floats), tmp_path / "m.gguf", recipe=made)
    done = convert(Model(spec, floats), tmp_path / "m.gguf", recipe=made, layout="tq2_0")
    with gguf.File(done.target) as file:
        kinds = {name: file.tensors[name].kind.name for name in file.tensors}
    assert [kinds[f"blk.1.{name}.weight"] for name in ("ffn_down", "attn_q", "ffn_up")] == ["Q8_0", "Q4_0", "TQ2_0"]
    assert (kinds["output.weight"], kinds["token_embd.weight"]) == ("Q8_0", "F32")
    found = gguf.load(done.target)
    for name, form in (("layers.0.ffn.down", "int8"), ("layers.1.attn.q", "int4"), ("layers.0.attn.k", "int4")):
        np.testing.assert_array_equal(found.weights[name], blocks.rounded(form, floats[name]))
    np.testing.assert_array_equal(found.weights["embedding"], floats["embedding"])
    assert isinstance(found.weights["layers.0.ffn.up"], TernaryTensor)
    with pytest.raises(UnsupportedError, match=r"layers\.0\.attn\.q: folders hold ternary"):
        convert(Model(spec, floats), tmp_path / "folder", recipe=made)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_folder_names_the_projections_that_stay_floats(tmp_path: Path) -> None:
    weights = dict(model().weights)
    for name in ("layers.0.ffn.gate", "layers.1.attn.o"):
        shape = weights[name].shape
        weights[name] = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    target = convert(Model(SPEC, weights), tmp_path / "folder").target
    found = huggingface.load(target).weights
    for name in ("layers.0.ffn.gate", "layers.1.attn.o"):
        np.testing.assert_array_equal(found[name], weights[name])
    assert isinstance(found["layers.0.ffn.up"], TernaryTensor)
    assert len(json.loads((target / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]) == 2


def test_layouts_that_the_target_does_not_have_are_refused(tmp_path: Path) -> None:
    for name, layout in (("m.gguf", "hf_divide"), ("folder", "tq2_0"), ("m.gguf", "q5_k"), ("m.gguf", "hf_rows")):
        with pytest.raises(UnsupportedError, match="is written as"):
            convert(model(), tmp_path / name, layout=layout)
    with pytest.raises(UnsupportedError, match="hf_multiply or hf_divide says what this model does"):
        convert(model(), tmp_path / "folder", layout="hf_floats")
    odd = random_model(tiny_spec(hidden_size=100, heads=5, kv_heads=5, head_size=20))
    with pytest.raises(UnsupportedError, match=r"layers\.0\.attn\.q: .*multiple"):
        convert(odd, tmp_path / "m.gguf", layout="tq2_0")
    assert list(tmp_path.iterdir()) == []


def test_progress_hears_of_every_weight_in_every_stage(tmp_path: Path) -> None:
    heard: list[Progress] = []
    convert(model(), tmp_path / "m.gguf", progress=heard.append)
    count = len(SPEC.shapes())
    for stage, expected in (("look", count), ("write", count), ("check", 14)):
        assert [said.done for said in heard if said.stage == stage] == list(range(1, expected + 1))
    assert {said.weight for said in heard} == set(SPEC.shapes())


@pytest.mark.parametrize("layout", ["tq2_0", "hf_multiply"])
def test_an_embedding_is_never_held_twice(layout: str, tmp_path: Path) -> None:
    big = tiny_spec(vocab_size=60_000, hidden_size=256, head_size=64, layers=1)
    source = convert(replace(random_model(big), tokenizer=None), tmp_path / "source.gguf").target
    tracemalloc.start()
    try:
        done: Conversion = convert(source, place(tmp_path, layout), layout=layout, lossy=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    embedding = 60_000 * 256 * 2
    assert done.nbytes > embedding
    assert peak < 1.9 * embedding + (16 << 20)

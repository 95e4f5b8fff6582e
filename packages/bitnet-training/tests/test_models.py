from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import bitnet_core
from bitnet_core import Model, TernaryTensor, UnsupportedError, Weights, reference
from bitnet_core.formats import huggingface
from bitnet_core.testing import CASES, Case, random_model, run, some_tokens, tiny_spec
from bitnet_quant import Recipe, Rule
from bitnet_training.linear import BitLinear
from bitnet_training.models import add_dropout, build, from_core, load, masters_of, spec_of, to_core, with_norms
from bitnet_training.packed import PackedLinear

GOLDEN = Path(__file__).parent / "golden"
LLAMA = tiny_spec(family="llama", activation="silu", sub_norms="none", tied=False)
TRAINED = [  # what transformers has a causal class for, with one scale a tensor
    case
    for case in CASES
    if case.spec.family != "minicpm" and case.spec.inputs == "int8" and case.spec.pooling == "none"
    if not case.options and case.name != "llama-wide-heads"
]


def logits(model: nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: torch.Tensor = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    return found.numpy()


def expected(model: Model, tokens: np.ndarray) -> np.ndarray:
    return run(reference.load(model), tokens)


def assert_parity(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal but for float32's rounding, which may move an activation that stands at a tie by one of 255 steps."""
    assert np.abs(ours[0] - theirs[0]).max() < 1e-4
    assert np.abs(ours - theirs).max() < 2e-2 * np.ptp(theirs)


@pytest.mark.parametrize("case", TRAINED, ids=lambda case: case.name)
@pytest.mark.parametrize("form", ["masters", "packed"])
def test_logits_are_those_of_the_reference(case: Case, form: str) -> None:
    model, tokens = case.model(), some_tokens(case.spec, 24)
    assert_parity(logits(from_core(model, form), tokens), expected(model, tokens))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", TRAINED, ids=lambda case: case.name)
def test_what_core_gives_it_gets_back(case: Case) -> None:
    model = case.model()
    found = to_core(from_core(model, "packed"))
    assert found.spec == model.spec
    for name, weight in model.weights.items():
        again = found.weights[name]
        if isinstance(weight, TernaryTensor):
            assert isinstance(again, TernaryTensor)
            np.testing.assert_array_equal(again.codes(), weight.codes())
            np.testing.assert_array_equal(again.scale, weight.scale)
        else:
            np.testing.assert_allclose(again, weight.astype(np.float32), rtol=1e-6)  # type: ignore[arg-type]


def test_golden_masters_give_the_golden_logits() -> None:
    golden = np.load(GOLDEN / "tiny_bitnet.npz")
    model = build(tiny_spec()).eval()
    masters = {
        name.removeprefix("master/"): torch.from_numpy(golden[name]).view(torch.bfloat16).float()
        for name in golden.files
        if name.startswith("master/")
    }
    assert set(model.state_dict()) - set(masters) == {"lm_head.weight"}  # which is the embedding
    model.load_state_dict(masters, strict=False)
    found = logits(model, golden["input_ids"].ravel())
    for name in ("logits_own_float64", "logits_transformers_online"):
        np.testing.assert_allclose(found, golden[name].reshape(found.shape), atol=1e-4)


def test_masters_of_ternary_weights_round_to_them() -> None:
    for seed in range(5):
        codes = np.random.default_rng(seed).integers(-1, 2, (40, 60)).astype(np.int8)
        tensor = TernaryTensor.from_codes(codes, 0.123)
        layer = BitLinear(60, 40)
        layer.weight.data = torch.from_numpy(masters_of(tensor))
        np.testing.assert_array_equal(layer.tensor().codes(), codes)
        np.testing.assert_allclose(layer.tensor().scale, tensor.scale, rtol=2e-7)


def test_a_matrix_of_zeros_has_masters_too() -> None:
    assert not masters_of(TernaryTensor.from_codes(np.zeros((4, 4), np.int8), 0.5)).any()


@pytest.mark.parametrize("case", TRAINED, ids=lambda case: case.name)
def test_from_a_shape_comes_a_model_of_that_shape(case: Case) -> None:
    torch.manual_seed(0)
    model = build(case.spec)
    assert spec_of(model) == case.spec
    tokens = some_tokens(case.spec, 24)
    assert_parity(logits(model.eval(), tokens), expected(to_core(model), tokens))


def test_one_seed_makes_one_model_and_its_float_twin() -> None:
    made = []
    for recipe in (Recipe((Rule("layers.*", "ternary"),)), None):
        torch.manual_seed(3)
        made.append(build(LLAMA, recipe))
    ternary, twin = (dict(model.named_parameters()) for model in made)
    assert ternary.keys() == twin.keys()
    assert all(torch.equal(ternary[name], twin[name]) for name in ternary)
    assert spec_of(made[1]) == replace(LLAMA, inputs="float")


def test_the_stream_begins_no_wider_with_more_layers() -> None:
    torch.manual_seed(0)
    shallow, deep = (build(replace(LLAMA, layers=layers)) for layers in (2, 8))
    stds = [model.get_parameter("model.layers.0.mlp.down_proj.weight").std().item() for model in (shallow, deep)]
    assert stds[0] / stds[1] == pytest.approx(2, rel=0.05)


def test_the_embedding_begins_as_wide_as_is_asked() -> None:
    torch.manual_seed(0)
    assert build(LLAMA, embedding_std=0.05).get_input_embeddings().weight.std().item() == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("family", ["bitnet", "llama"])
def test_what_writes_into_the_stream_is_dropped_in_training_alone(family: str) -> None:
    torch.manual_seed(0)
    plain = build(tiny_spec() if family == "bitnet" else LLAMA)
    tokens = torch.randint(0, 96, (2, 16))
    expected = plain.eval()(input_ids=tokens).logits
    before = set(plain.state_dict())
    add_dropout(plain, 0.25)
    assert set(plain.state_dict()) == before
    assert torch.equal(plain(input_ids=tokens).logits, expected)
    dropped = {}
    for name in ("model.embed_tokens", "model.layers.1.self_attn", "model.layers.1.mlp"):
        module = plain.get_submodule(name)
        module.register_forward_hook(lambda _, __, out, name=name: dropped.__setitem__(name, out))
    plain.train()(input_ids=tokens)
    for name, out in dropped.items():
        zeros = (out[0] if isinstance(out, tuple) else out).eq(0).float().mean().item()
        assert zeros == pytest.approx(0.25, abs=0.05), name
    assert len(dropped) == 3


def test_layers_computed_again_drop_the_same() -> None:
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        model = build(tiny_spec()).train()
        add_dropout(model, 0.25)
        if again:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(1)
        tokens = torch.randint(0, 96, (2, 16))
        model(input_ids=tokens, use_cache=False).logits.square().mean().backward()
        found.append(model.get_parameter("model.layers.0.mlp.up_proj.weight").grad)
    assert torch.equal(found[0], found[1])


def test_a_ternary_model_learns_by_heart() -> None:
    torch.manual_seed(0)
    model = build(tiny_spec(hidden_size=64, ffn_size=128, head_size=16))
    tokens = torch.randint(0, 96, (4, 24))
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 4
    assert losses[-1] < 1


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own compiler does it
def test_a_whole_model_is_one_graph_for_the_compiler() -> None:
    torch.manual_seed(0)
    model = build(tiny_spec(layers=1))
    tokens = torch.randint(0, 96, (2, 16))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    found, expected = (
        torch.autograd.grad(each(input_ids=tokens, use_cache=False).logits.square().mean(), weight)
        for each in (compiled, model)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_model_that_drops_numbers_is_compiled_once_and_drops_others_each_time() -> None:
    torch.manual_seed(0)
    model = build(tiny_spec(layers=1)).train()
    add_dropout(model, 0.25)
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    found = []
    for ends in (5, 9, 12):
        positions = torch.cat((torch.arange(ends), torch.arange(16 - ends))).expand(2, -1)
        inputs = {"input_ids": torch.ones(2, 16, dtype=torch.int64), "position_ids": positions, "use_cache": False}
        found.append([compiled(**inputs).logits for _ in range(2)])
    assert counter.frame_count == 1
    assert not any(torch.equal(*pair) for pair in found)


class TestLoading:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        huggingface.save(random_model(tiny_spec()), tmp_path)
        return tmp_path

    def test_packed_layers_are_never_unpacked(self, folder: Path) -> None:
        model = load(folder, "packed")
        packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
        assert len(packed) == 14
        assert not any(value.requires_grad for value in model.parameters())

    def test_masters_train(self, folder: Path) -> None:
        model = load(folder)
        assert sum(isinstance(module, BitLinear) for module in model.modules()) == 14
        assert all(value.requires_grad for value in model.parameters())

    def test_a_teacher_is_of_plain_floats(self, folder: Path) -> None:
        model, tokens = load(folder, "float"), some_tokens(tiny_spec(), 8)
        assert not any(isinstance(module, BitLinear | PackedLinear) for module in model.modules())
        core = bitnet_core.load(folder)
        dense = {
            name: weight.dense() if isinstance(weight, TernaryTensor) else weight
            for name, weight in core.weights.items()
        }
        np.testing.assert_allclose(logits(model, tokens), expected(replace(core, weights=dense), tokens), atol=1e-4)

    def test_floats_that_a_folder_calls_masters_stay_what_they_are(self, folder: Path) -> None:
        dense = {name: np.asarray(weight) for name, weight in to_core(load(folder), masters=True).weights.items()}
        dense["layers.0.attn.q"] = dense["layers.0.attn.q"] * np.float32(0.9)
        spec = replace(tiny_spec(), inputs="float")
        huggingface.save(Model(spec, dense), folder / "masters")
        weight = load(folder / "masters").get_parameter("model.layers.0.self_attn.q_proj.weight")
        np.testing.assert_array_equal(weight.detach(), dense["layers.0.attn.q"])

    def test_a_float_model_becomes_ternary(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        huggingface.save(to_core(build(LLAMA, None)), tmp_path)
        assert spec_of(load(tmp_path)) == LLAMA
        assert spec_of(load(tmp_path, "float")) == replace(LLAMA, inputs="float")

    def test_a_gguf_file_of_floats_is_a_teacher_or_becomes_ternary(self, data: Path) -> None:
        path = data / "models" / "stories260K" / "stories260K.gguf"
        core = bitnet_core.load(path)
        tokens = some_tokens(core.spec, 8)
        np.testing.assert_allclose(logits(load(path, "float"), tokens), expected(core, tokens), atol=1e-3)
        assert spec_of(load(path)) == replace(core.spec, inputs="int8")

    def test_a_packed_base_must_be_ternary(self, tmp_path: Path) -> None:
        huggingface.save(to_core(build(LLAMA, None)), tmp_path)
        with pytest.raises(UnsupportedError, match="a packed base has ternary weights that multiply int8"):
            load(tmp_path, "packed")


class TestNorms:
    def test_a_llama_with_sub_norms_is_a_bitnet(self) -> None:
        model = with_norms(random_model(LLAMA), "block")
        made, tokens = from_core(model), some_tokens(LLAMA, 24)
        assert type(made).__name__ == "BitNetForCausalLM"
        assert spec_of(made) == replace(LLAMA, family="bitnet", sub_norms="block")
        assert_parity(logits(made, tokens), expected(model, tokens))

    def test_a_norm_in_front_of_each_projection(self) -> None:
        model = with_norms(random_model(LLAMA), "projection")
        made, tokens = from_core(model), some_tokens(LLAMA, 24)
        assert type(made).__name__ == "LlamaForCausalLM"
        assert spec_of(made) == replace(LLAMA, sub_norms="projection")
        assert_parity(logits(made, tokens), expected(model, tokens))

    def test_what_has_norms_gets_no_others(self) -> None:
        with pytest.raises(ValueError, match="norms: expected a model without sub-norms"):
            with_norms(random_model(tiny_spec()), "block")

    def test_families_without_a_class_for_them_are_refused(self) -> None:
        spec = tiny_spec(family="qwen3", activation="silu", sub_norms="none", qk_norm=True)
        with pytest.raises(UnsupportedError, match="can be inserted in llama, not in qwen3"):
            with_norms(random_model(spec), "block")


class TestRefusals:
    def test_of_forms_and_norms_that_there_are_not(self) -> None:
        with pytest.raises(ValueError, match="form: expected one of masters, packed, float, got 'int8'"):
            from_core(random_model(LLAMA), "int8")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="norms: expected block or projection, got 'all'"):
            with_norms(random_model(LLAMA), "all")  # type: ignore[arg-type]

    def test_of_an_embedding_model(self) -> None:
        with pytest.raises(UnsupportedError, match="has no head to train"):
            build(replace(LLAMA, pooling="last"))

    def test_of_a_family_that_transformers_has_not(self) -> None:
        with pytest.raises(UnsupportedError, match="transformers has no class for minicpm"):
            build(replace(LLAMA, family="minicpm"))

    def test_of_heads_that_bitnet_cannot_have(self) -> None:
        with pytest.raises(UnsupportedError, match="heads as wide as its stream: 128, not 4 x 64"):
            build(tiny_spec(head_size=64))

    def test_of_floats_with_norms_that_only_ternary_layers_have(self) -> None:
        with pytest.raises(UnsupportedError, match="part of ternary layers"):
            from_core(with_norms(random_model(LLAMA), "projection"), "float")

    def test_of_what_is_no_model_of_transformers(self) -> None:
        with pytest.raises(UnsupportedError, match="a causal model of transformers has a shape that is known, not Lin"):
            to_core(nn.Linear(2, 2))

    def test_of_packed_weights_that_multiply_floats(self) -> None:
        spec = replace(LLAMA, inputs="float")
        with pytest.raises(UnsupportedError, match="a packed base has ternary weights that multiply int8"):
            from_core(random_model(spec), "packed")

    def test_of_a_weight_that_the_class_has_no_place_for(self) -> None:
        model = random_model(LLAMA)
        spec = replace(LLAMA, qk_norm=True)
        norms = {name: np.ones(shape, np.float32) for name, shape in spec.shapes().items() if "k_norm" in name}
        norms |= {name: np.ones(shape, np.float32) for name, shape in spec.shapes().items() if "q_norm" in name}
        makers = {name: (lambda weight=weight: weight) for name, weight in {**model.weights, **norms}.items()}
        with pytest.raises(UnsupportedError, match=r"LlamaForCausalLM has no place for model\.layers\.0"):
            from_core(Model(spec, Weights(makers)))

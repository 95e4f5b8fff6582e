from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from bitnet_core import arithmetic
from bitnet_core.reference import Matrix
from bitnet_training import linear
from bitnet_training.linear import BitLinear, quantize_activations, quantize_weight

GOLDEN = Path(__file__).parent / "golden"
KINDS = [torch.float32, torch.bfloat16, torch.float16]
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: torch sees no CUDA device")
# torch's compiler makes an instance of an autograd.Function, which torch itself advises against.
COMPILES = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def cases(key: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in json.loads((GOLDEN / "quant_math.json").read_text())[key]]


def layer(inputs: int = 64, outputs: int = 32, **options: Any) -> BitLinear:
    torch.manual_seed(5)
    return BitLinear(inputs, outputs, **options)


def numbers(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def obvious(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The straight-through estimator as it is usually written: rounding is a constant that is added."""
    steps = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    scale = weight.abs().mean().clamp(min=1e-5)
    x = x + ((x * steps).round().clamp(-128, 127) / steps - x).detach()
    weight = weight + ((weight / scale).round().clamp(-1, 1) * scale - weight).detach()
    return F.linear(x, weight)


@pytest.mark.parametrize("case", cases("weight_cases"))
def test_golden_weights_have_their_codes_and_scale(case: dict[str, Any]) -> None:
    codes, scale = quantize_weight(torch.tensor(case["w"]))
    np.testing.assert_array_equal(codes, case["ternary"])
    assert scale.item() == pytest.approx(case["absmean"], rel=1.2e-7)


@pytest.mark.parametrize("case", cases("activation_cases"))
def test_golden_activations_have_their_codes_and_scales(case: dict[str, Any]) -> None:
    codes, steps = quantize_activations(torch.tensor(case["x"]))
    np.testing.assert_array_equal(codes, case.get("q", case.get("q_fp32")))
    np.testing.assert_array_equal(steps.ravel(), np.array(case.get("scale", case.get("scale_fp32")), np.float32))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 250), (128, 512)])
def test_codes_and_scales_are_those_of_core_to_the_bit(shape: tuple[int, int], kind: torch.dtype) -> None:
    for seed in range(5):
        values = numbers(*shape, seed=seed).to(kind)
        for mine, core in ((quantize_weight, arithmetic.absmean), (quantize_activations, arithmetic.absmax)):
            codes, scale = mine(values)
            expected_codes, expected_scale = core(values.float().numpy())
            np.testing.assert_array_equal(codes, expected_codes)
            np.testing.assert_array_equal(scale, expected_scale)


def test_a_layer_gives_the_golden_results() -> None:
    golden = json.loads((GOLDEN / "linear_forward.json").read_text())
    made = BitLinear(16, 8)
    made.weight.data = torch.tensor(golden["w"])
    x = torch.tensor(golden["x"])
    np.testing.assert_allclose(made(x).detach(), golden["autobitlinear_offline_multiply"]["y"], rtol=1e-5)
    normed = BitLinear(16, 8, norm_eps=golden["with_use_rms_norm"]["eps"])
    normed.weight.data, normed.rms_norm.weight.data = (  # type: ignore[union-attr]
        torch.tensor(golden["w"]),
        torch.tensor(golden["with_use_rms_norm"]["rms_weight"]),
    )
    np.testing.assert_allclose(normed(x).detach(), golden["with_use_rms_norm"]["y"], rtol=1e-5)


@pytest.mark.parametrize("integers", [True, False])
def test_results_are_those_of_the_reference_but_for_one_rounding(
    integers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_multiplies_integers", lambda *_: integers)
    made, x = layer(1000, 48), numbers(33, 1000)
    tensor = made.tensor()
    expected = Matrix(tensor.codes(), tensor.scale).times(x.numpy(), "int8")
    np.testing.assert_allclose(made(x).detach(), expected, rtol=2.5e-7, atol=0)


def test_the_largest_sums_are_exact() -> None:
    codes = torch.full((32, 6912), 127, dtype=torch.int8)
    found = linear.sums(codes, torch.ones((8, 6912), dtype=torch.int8), torch.float32)
    assert (found == 127 * 6912).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_what_is_not_finite_does_not_become_so(device: str, bad: float) -> None:
    made, x = layer().to(device), numbers(4, 64).to(device)
    x[2, 5] = bad
    finite = made(x).isfinite()
    assert not finite[2].any()
    assert finite[[0, 1, 3]].all()
    with torch.no_grad():
        made.weight[3, 3] = bad
    assert not made(numbers(4, 64).to(device)).isfinite().any()


def test_bfloat16_differs_from_float32_by_roundings_of_the_result_alone() -> None:
    made, x = layer(256, 64), numbers(20, 256).bfloat16()
    half = BitLinear(256, 64, dtype=torch.bfloat16)
    half.weight.data = made.weight.data.bfloat16()
    made.weight.data = half.weight.data.float()
    y = half(x)
    assert y.dtype == torch.bfloat16
    np.testing.assert_allclose(y.float().detach(), made(x.float()).detach(), rtol=2**-7, atol=0)


def test_autocast_gives_its_type_and_gradients_of_the_masters_own() -> None:
    made, x = layer(64, 32), numbers(20, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y = made(x)
    assert y.dtype == torch.bfloat16
    np.testing.assert_allclose(y.float().detach(), made(x).detach(), rtol=2**-7, atol=1e-6)
    y.sum().backward()
    assert made.weight.grad is not None
    assert made.weight.grad.dtype == torch.float32


def test_a_norm_in_front_takes_what_autocast_gives() -> None:
    made, x = layer(norm_eps=1e-5), numbers(20, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = made(x)
    np.testing.assert_allclose(y.float().detach(), made(x.float()).detach(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("shape", [(9, 64), (2, 3, 64), (64,)])
def test_gradients_are_those_of_the_obvious_formulation(shape: tuple[int, ...]) -> None:
    made = layer()
    x = numbers(*shape).requires_grad_()
    back = numbers(*shape[:-1], 32, seed=9)
    found = torch.autograd.grad(made(x), (x, made.weight), back)
    expected = torch.autograd.grad(obvious(x, made.weight), (x, made.weight), back)
    for mine, its in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)


def test_only_what_needs_a_gradient_gets_one() -> None:
    made, x = layer(), numbers(4, 64)
    made(x).sum().backward()
    assert x.grad is None
    assert made.weight.grad is not None
    made.weight.requires_grad_(False).grad = None
    x.requires_grad_()
    made(x).sum().backward()
    assert x.grad is not None
    assert made.weight.grad is None


def test_a_gradient_of_a_gradient_is_refused_and_not_lost() -> None:
    x = numbers(4, 64).requires_grad_()
    (slope,) = torch.autograd.grad(layer()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("x", [torch.ones(4, 63), torch.ones(4, 128), torch.ones(()), torch.ones(4, 64).long()])
def test_what_a_layer_cannot_multiply_is_refused_with_what_it_takes(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"x: expected floats \(\.\.\., 64\), as the layer's weights are wide, got "):
        layer()(x)


def test_a_byte_a_number_is_kept_for_the_backward_pass() -> None:
    kept: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        layer()(numbers(100, 64).requires_grad_())
    assert sum(kept) == 100 * 64 + 32 * 64 + 100 * 4 + 4  # codes of both, and their scales


def test_a_bias_is_added_behind_the_scales() -> None:
    made, x = layer(bias=True), numbers(4, 64)
    plain = made(x)
    with torch.no_grad():
        made.bias += 1.5
    np.testing.assert_allclose(made(x).detach(), plain.detach() + 1.5, rtol=1e-6, atol=1e-6)


def test_the_state_is_that_of_a_linear_layer() -> None:
    made = layer(bias=True)
    assert list(made.state_dict()) == ["weight", "bias"]
    plain = torch.nn.Linear(64, 32)
    made.load_state_dict(plain.state_dict())
    assert isinstance(made, torch.nn.Linear)
    assert list(layer(norm_eps=1e-5).state_dict()) == ["weight", "rms_norm.weight"]


class TestStrength:
    def test_at_nothing_a_layer_is_a_linear_layer(self) -> None:
        made, x = layer(), numbers(4, 64)
        made.set_strength(0)
        torch.testing.assert_close(made(x), F.linear(x, made.weight))

    def test_in_between_both_factors_have_moved_as_far(self) -> None:
        made, x = layer(), numbers(4, 64)
        made.set_strength(0.25)
        (codes, steps), (trits, scale) = quantize_activations(x), quantize_weight(made.weight.detach())
        inputs = 0.75 * x + 0.25 * codes / steps
        torch.testing.assert_close(made(x), F.linear(inputs, 0.75 * made.weight + 0.25 * trits * scale))

    def test_near_to_whole_it_comes_to_the_same(self) -> None:
        made, x = layer(), numbers(4, 64)
        made.set_strength(1 - 1e-7)
        torch.testing.assert_close(made(x), obvious(x, made.weight))
        assert not made.whole
        made.set_strength(1)
        torch.testing.assert_close(made(x), obvious(x, made.weight))
        assert made.whole

    def test_what_is_no_share_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"strength: expected a number from 0 to 1, got 1\.5"):
            layer().set_strength(1.5)


@COMPILES
@pytest.mark.usefixtures("compiler")
class TestCompilation:
    def test_a_layer_is_one_graph_forwards_and_backwards(self) -> None:
        made = layer(norm_eps=1e-5)
        compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
        x = numbers(2, 3, 64).requires_grad_()
        found = torch.autograd.grad(compiled(x).square().sum(), (x, made.weight))
        expected = torch.autograd.grad(made(x).square().sum(), (x, made.weight))
        torch.testing.assert_close(found, expected)

    def test_a_strength_that_moves_is_compiled_once(self) -> None:
        made = layer()
        seen = torch._dynamo.testing.CompileCounter()
        compiled = torch.compile(made, fullgraph=True, backend=seen)
        for strength in (0.1, 0.2, 0.3, 0.9):
            made.set_strength(strength)
            compiled(numbers(4, 64))
        assert seen.frame_count == 1
        made.set_strength(1)
        torch.testing.assert_close(compiled(numbers(4, 64)), made(numbers(4, 64)))
        assert seen.frame_count == 2


@GPU
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # what float32 could do with fewer bits
class TestCuda:
    @pytest.mark.parametrize("kind", KINDS, ids=str)
    @pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 250), (777, 2048), (64, 10_000)])
    def test_codes_and_scales_are_those_of_core_to_the_bit(self, shape: tuple[int, int], kind: torch.dtype) -> None:
        values = numbers(*shape).to(kind)
        for mine, core in ((quantize_weight, arithmetic.absmean), (quantize_activations, arithmetic.absmax)):
            expected_codes, expected_scale = core(values.float().numpy())
            for way in (mine, torch.compile(mine)):
                codes, scale = way(values.cuda())
                np.testing.assert_array_equal(codes.cpu(), expected_codes)
                np.testing.assert_array_equal(scale.cpu(), expected_scale)

    @pytest.mark.parametrize("case", cases("activation_cases"))
    def test_golden_activations_have_their_codes_and_scales(self, case: dict[str, Any]) -> None:
        codes, steps = quantize_activations(torch.tensor(case["x"]).cuda())
        np.testing.assert_array_equal(codes.cpu(), case.get("q", case.get("q_fp32")))
        scales = np.array(case.get("scale", case.get("scale_fp32")), np.float32)
        np.testing.assert_array_equal(steps.ravel().cpu(), scales)

    @pytest.mark.parametrize("rows", [1, 8, 65, 300, 5000])
    @pytest.mark.parametrize("shape", [(2048, 1024), (250, 33), (6912, 2560)])
    def test_products_are_those_of_the_processor_to_the_bit(self, rows: int, shape: tuple[int, int]) -> None:
        (inputs, outputs), chosen = shape, torch.Generator().manual_seed(rows)
        codes = torch.randint(-127, 128, (rows, inputs), generator=chosen, dtype=torch.int8)
        trits = torch.randint(-1, 2, (outputs, inputs), generator=chosen, dtype=torch.int8)
        steps, scale = torch.rand(rows, 1, generator=chosen) + 0.5, torch.tensor(0.37)
        there = (tensor.cuda() for tensor in (codes, trits, scale, steps))
        expected = (codes.double() @ trits.double().T).float() * (scale / steps)
        assert torch.equal(linear.multiply(*there, torch.float32).cpu(), expected)

    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
    @pytest.mark.parametrize(("tokens", "compiled"), [(0, False), (8, False), (300, False), (8, True), (300, True)])
    def test_a_layer_gives_what_it_gives_on_the_processor(self, tokens: int, compiled: bool) -> None:
        made, x = layer(2048, 1024), numbers(tokens, 2048)
        there = layer(2048, 1024).cuda()
        run = torch.compile(there, fullgraph=True) if compiled else there
        y, expected = run(x.cuda()), made(x)
        np.testing.assert_allclose(y.detach().cpu(), expected.detach(), rtol=1e-6)
        (found,) = torch.autograd.grad(y.square().sum(), there.weight)
        (gradient,) = torch.autograd.grad(expected.square().sum(), made.weight)
        np.testing.assert_allclose(found.cpu(), gradient, atol=1e-4 * float(gradient.abs().max()))

    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
    @pytest.mark.parametrize("compiled", [False, True])
    def test_half_precision_differs_by_roundings_of_the_result_alone(self, compiled: bool) -> None:
        there, x = layer(2048, 1024).cuda(), numbers(300, 2048).bfloat16().cuda()
        run = torch.compile(there, fullgraph=True) if compiled else there
        with torch.autocast("cuda", torch.bfloat16):
            y = run(x)
        exact = there(x.float())
        np.testing.assert_allclose(y.float().detach().cpu(), exact.detach().cpu(), rtol=2**-7, atol=1e-6)
        back = numbers(300, 1024).cuda()
        (found,) = torch.autograd.grad(y, there.weight, back.bfloat16())
        (gradient,) = torch.autograd.grad(exact, there.weight, back)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.cpu(), gradient.cpu(), atol=0.01 * float(gradient.abs().max()))

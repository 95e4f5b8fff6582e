from __future__ import annotations

import numpy as np
import pytest
import torch

from bitnet_core import TernaryTensor, UnsupportedError
from bitnet_training import packed
from bitnet_training.linear import BitLinear
from bitnet_training.packed import PackedLinear


def ternary(rows: int, cols: int, layout: str = "hf_rows") -> TernaryTensor:
    codes = np.random.default_rng(3).integers(-1, 2, (rows, cols)).astype(np.int8)
    return TernaryTensor.from_codes(codes, 0.37, layout)


def numbers(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masters(tensor: TernaryTensor) -> BitLinear:
    """A BitLinear with the same codes, and the same scale but for an ulp."""
    made = BitLinear(tensor.shape[1], tensor.shape[0])
    codes = torch.from_numpy(tensor.codes()).float()
    made.weight.data = codes * (0.37 / codes.abs().mean())
    return made


@pytest.mark.parametrize("rows", [4, 30, 33, 128])  # whole quarters, and such as are filled up
@pytest.mark.parametrize("tile", [40, 1 << 20])  # weights: a row at a time, and all at once
def test_both_passes_are_those_of_masters(rows: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_TILE", tile)
    tensor = ternary(rows, 40)
    layer, twin = PackedLinear(tensor), masters(tensor)
    x, back = numbers(2, 9, 40).requires_grad_(), numbers(2, 9, rows, seed=8)
    y, expected = layer(x), twin(x)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(y, x, back), torch.autograd.grad(expected, x, back))


def test_any_layout_of_core_is_taken_and_given_back() -> None:
    tensor = ternary(16, 128, "i2_s_128")
    found = PackedLinear(tensor).tensor()
    np.testing.assert_array_equal(found.codes(), tensor.codes())
    assert found.scale == tensor.scale


def test_the_state_is_that_of_a_packed_folder() -> None:
    state = PackedLinear(ternary(32, 40)).state_dict()
    assert {name: (tuple(value.shape), value.dtype) for name, value in state.items()} == {
        "weight": ((8, 40), torch.uint8),
        "weight_scale": ((1,), torch.float32),
    }


def test_nothing_trains_and_nothing_of_the_input_is_kept() -> None:
    layer = PackedLinear(ternary(32, 40), bias=True, norm_eps=1e-5)
    assert not any(value.requires_grad for value in layer.parameters())
    kept: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    plain = PackedLinear(ternary(32, 40))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        plain(numbers(1000, 40).requires_grad_())
    assert sum(kept) == 8 * 40 + 4  # the packed bytes, which are there anyway, and the scale


def test_autocast_gives_bfloat16() -> None:
    layer, x = PackedLinear(ternary(32, 40)), numbers(20, 40).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    np.testing.assert_allclose(y.float().detach(), layer(x).detach(), rtol=2**-7, atol=1e-6)
    (grad,) = torch.autograd.grad(y.float().sum(), x)
    assert grad.dtype == torch.float32


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_is_one_graph_for_the_compiler() -> None:
    layer, x = PackedLinear(ternary(33, 40)), numbers(4, 40).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(each(x).square().sum(), x) for each in (compiled, layer))
    torch.testing.assert_close(found, expected)


def test_a_matrix_of_many_scales_is_refused() -> None:
    tensor = TernaryTensor.from_codes(np.ones((8, 4), np.int8), np.ones(8, np.float32))
    with pytest.raises(UnsupportedError, match="a matrix of 8 scales cannot be trained on"):
        PackedLinear(tensor)

from __future__ import annotations

import pytest

from bitnet_core.testing import tiny_spec
from bitnet_training.linear import BitLinear
from bitnet_training.models import build
from bitnet_training.schedule import Rates, Rounding


class TestRates:
    def test_two_stages_are_those_that_were_published(self) -> None:
        rates = Rates(steps=1000, peak=1.5e-3, warmup=0)
        assert rates.learning_rate(0) == pytest.approx(1.5e-3)
        assert rates.learning_rate(499) == pytest.approx(0.75e-3, rel=5e-3)
        assert rates.learning_rate(500) == pytest.approx(0.5e-3)
        assert rates.learning_rate(1000) == 0
        assert [rates.decay(step) for step in (0, 499, 500, 999)] == [0.1, 0.1, 0.0, 0.0]

    def test_two_stages_without_a_jump_are_one_line_of_which_the_second_half_does_not_decay(self) -> None:
        rates, line = Rates(steps=100, peak=2.0, second=1.0), Rates(steps=100, peak=2.0, kind="linear")
        assert [rates.learning_rate(step) for step in range(101)] == [line.learning_rate(step) for step in range(101)]
        assert [rates.decay(step) for step in (0, 49, 50, 99)] == [0.1, 0.1, 0.0, 0.0]

    def test_the_rate_rises_first(self) -> None:
        rates = Rates(steps=100, peak=1.0, kind="constant", warmup=0.1)
        assert [rates.learning_rate(step) for step in (0, 4, 9, 10, 99)] == pytest.approx([0.1, 0.5, 1, 1, 1])

    @pytest.mark.parametrize("kind", ["linear", "cosine", "two-stage"])
    def test_every_course_falls_from_the_peak_to_where_it_ends(self, kind: str) -> None:
        rates = Rates(steps=100, peak=2.0, kind=kind, warmup=0, final=0.1)  # type: ignore[arg-type]
        course = [rates.learning_rate(step) for step in range(101)]
        assert course[0] == pytest.approx(2.0)
        assert course[-1] == pytest.approx(0.2)
        assert course == sorted(course, reverse=True)

    def test_a_cosine_is_halfway_down_at_half_time(self) -> None:
        assert Rates(steps=100, peak=2.0, kind="cosine", warmup=0).learning_rate(50) == pytest.approx(1.0)

    def test_only_two_stages_end_the_decay(self) -> None:
        assert Rates(steps=100, peak=1, kind="linear", weight_decay=0.3).decay(99) == 0.3

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"steps": 0}, "steps: expected 1 or more, got 0"),
            ({"kind": "steps"}, "kind: expected one of two-stage, cosine, linear, constant, got 'steps'"),
            ({"warmup": 1.5}, r"warmup: expected a number from 0 to 1, got 1\.5"),
        ],
    )
    def test_what_makes_no_course_is_refused(self, values: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Rates(**{"steps": 10, "peak": 1.0, **values})


class TestRounding:
    def test_layers_move_together(self) -> None:
        rounding = Rounding(steps=10)
        assert [rounding.strength(step) for step in (0, 1, 5, 10, 99)] == pytest.approx([0, 0.1, 0.5, 1, 1])

    def test_layers_move_one_after_another(self) -> None:
        rounding = Rounding(steps=10, order="first layers first")
        assert [rounding.strength(3, layer, 2) for layer in (0, 1)] == pytest.approx([0.6, 0])
        assert [rounding.strength(7, layer, 2) for layer in (0, 1)] == pytest.approx([1, 0.4])
        last = Rounding(steps=10, order="last layers first")
        assert [last.strength(3, layer, 2) for layer in (0, 1)] == pytest.approx([0, 0.6])

    def test_no_steps_at_all_are_ternary_from_the_start(self) -> None:
        assert Rounding(steps=0).strength(0) == 1

    def test_a_model_is_given_its_strengths(self) -> None:
        model = build(tiny_spec())
        rounding = Rounding(steps=10, order="first layers first")
        assert rounding.apply(model, 6) == pytest.approx(0.6)
        layers = [model.get_submodule(f"model.layers.{at}.mlp.up_proj") for at in (0, 1)]
        assert [layer.strength.item() for layer in layers if isinstance(layer, BitLinear)] == pytest.approx([1, 0.2])
        assert rounding.apply(model, 10) == 1
        assert all(layer.whole for layer in layers if isinstance(layer, BitLinear))

    def test_a_model_of_floats_has_none(self) -> None:
        assert Rounding(steps=10).apply(build(tiny_spec(), None), 5) == 1

    def test_what_makes_no_order_is_refused(self) -> None:
        with pytest.raises(ValueError, match="order: expected one of together, first layers first, last layers first"):
            Rounding(steps=1, order="random")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="steps: expected 0 or more, got -1"):
            Rounding(steps=-1)

"""The page of a run stands alone, says what the log says, and takes any log."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_task import LOOK

from bitnet_training import page


def events(steps: int = 50) -> list[dict]:
    found: list[dict] = []
    for step in range(10, steps + 1, 10):
        found.append({"step": step, "loss": 5 / step, "gradient": 1.0, "learning_rate": 1e-3, "tokens": 100 * step})
        look = {key: value for key, value in asdict(LOOK).items() if key != "scale"}
        found.append({"step": step, "ternary": look, "matrices": {"layers.0.attn.q": asdict(LOOK)}})
        found.append({"step": step, "held_out": 6 / step, "bits_per_byte": 2.0})
    return [*found, {"step": steps, "alarm": "<b>90%</b> of a matrix"}]


def plots(text: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]  # noqa: S314


def test_a_page_fetches_nothing_and_has_both_lights():
    text = page.render("run", events())
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text


def test_a_page_shows_the_run():
    text = page.render("a <run>", events())
    assert "<h1>a &lt;run&gt;</h1>" in text
    assert "<b>5,000</b><span>tokens learned</span>" in text
    assert "&lt;b&gt;90%&lt;/b&gt; of a matrix" in text
    assert text.count("<figure>") == 3 + 7
    assert '<i class="first">in training</i><i class="second">held out</i>' in text
    assert "<td>layers.0.attn.q</td><td>30.0%</td>" in text


def test_shares_that_hardly_differ_are_told_apart():
    log = [{**event, "ternary": {**event["ternary"], "zeros": 0.3077 + step * 1e-4}} if "ternary" in event else event
           for step, event in enumerate(events())]  # fmt: skip
    (zeros,) = re.findall(r"Zeros among the codes.*?</svg>", page.render("run", log), re.DOTALL)
    ticks = re.findall(r">([\d.]+%)</text>", zeros)
    assert len(set(ticks)) == len(ticks) == 3


def test_every_point_lies_in_its_plot():
    for plot in plots(page.render("run", events())):
        lines = list(plot.iter("polyline"))
        assert lines
        for line in lines:
            for point in line.get("points", "").split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= 356
                assert 0 <= y <= 150


@pytest.mark.parametrize("log", [[], [{"step": 1, "loss": None}], [{"step": 1, "loss": 0.0}], events(10)])
def test_a_short_log_is_a_page_too(log):
    assert page.render("run", log).endswith("</html>\n")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20))
def test_any_numbers_can_be_drawn(values):
    log = [{"step": step, "loss": value} for step, value in enumerate(values)]
    for plot in plots(page.render("run", log)):
        for line in plot.iter("polyline"):
            assert "nan" not in line.get("points", "")

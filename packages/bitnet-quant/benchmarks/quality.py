"""Prints what each way of quantizing a float model costs: `python quality.py MODEL CALIBRATION TEXT [--page FILE]`.

CALIBRATION and TEXT are files of plain text; calibrate on one and measure on the other. The last row is the recipe
that a search finds for `--bits` a weight of the layers; `--page` writes its report.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import bitnet_core
from bitnet_quant import recipe, sensitivity
from bitnet_quant.calibrate import cut
from bitnet_quant.quality import Report, report
from bitnet_quant.recipe import BITS, Recipe, Rule, search
from bitnet_quant.ternarization import Method

WAYS = {
    "absmean, one scale": Rule("layers.*", "ternary"),
    "threshold, a scale a row": Rule("layers.*", "ternary", Method("threshold", "row")),
    "optimal, one scale": Rule("layers.*", "ternary", Method("optimal")),
    "optimal, a scale a row": Rule("layers.*", "ternary", Method("optimal", "row")),
    "compensated, one scale": Rule("layers.*", "ternary", Method("optimal"), compensate=True),
    "compensated, a scale a row": Rule("layers.*", "ternary", Method("optimal", "row"), compensate=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What each way of quantizing costs.")
    parser.add_argument("model")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=16, help="of 256 tokens, of each text")
    parser.add_argument("--bits", type=float, default=6, help="a weight, of the searched recipe")
    parser.add_argument("--by", choices=("output", "kl"), default="kl", help="what the search goes by")
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    model = bitnet_core.load(asked.model)
    known, text = (
        cut(model.tokenizer, path.read_text(encoding="utf-8")[: 4000 * asked.windows], count=asked.windows)
        for path in (asked.calibration, asked.text)
    )
    print(f"{'way':32}{'bits':>6}{'perplexity':>12}{'divergence':>12}{'agreement':>11}{'seconds':>9}")
    for name, rule in WAYS.items():
        row(name, model, Recipe((rule,)), known, text)
    harm = sensitivity.measure(model, known[:4], by=asked.by)
    found = search(model, asked.bits, harm, method=Method("optimal", "row"), compensate=True)
    last = row(f"searched, {asked.bits:g} bits", model, found, known, text)
    if asked.page:
        asked.page.write_text(last.html(f"{asked.model} at {asked.bits:g} bits"), encoding="utf-8")


def row(name: str, model: bitnet_core.Model, way: Recipe, known: list, text: list) -> Report:
    start = perf_counter()
    made = recipe.apply(model, way, known)
    seconds = perf_counter() - start
    found = report(made, model, text, recipe=way)
    layers = [weight for weight in found.weights if weight.name.startswith("layers.")]
    sizes = [weight.shape[0] * weight.shape[1] for weight in layers]
    bits = sum(BITS[weight.form] * size for weight, size in zip(layers, sizes, strict=True)) / sum(sizes)
    said = found.model
    print(
        f"{name:32}{bits:6.2f}{said.perplexity:12.3f}{said.divergence:12.4f}{said.agreement:11.1%}{seconds:9.1f}",
        flush=True,
    )
    return found


if __name__ == "__main__":
    main()

"""What ternary weights and int8 activations cost a training step, beside a linear layer of floats.

    python linear.py                       # on a GPU where there is one: 2048 wide, 16384 tokens
    python linear.py --device cpu --width 512 --tokens 2048

A step is forward and backward through one layer, with gradients of input and weight. All kinds take turns, and the
least of all rounds counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

from bitnet_training.linear import BitLinear, quantize_activations, quantize_weight


def step(layer: nn.Module, x: torch.Tensor, back: torch.Tensor, kind: torch.dtype) -> Callable[[], None]:
    """One forward and one backward pass, products in bfloat16 as autocast has them."""

    def run() -> None:
        x.grad = None
        layer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=kind == torch.bfloat16):
            y = layer(x)
        y.backward(back.to(y.dtype))

    return run


def least(runs: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Seconds of each, the least of so many rounds in which they take turns."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            if device == "cuda":
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                run()
                end.record()
                end.synchronize()
                seconds = begin.elapsed_time(end) / 1e3
            else:
                started = time.perf_counter()
                run()
                seconds = time.perf_counter() - started
            best[name] = min(best[name], seconds)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="The time of a training step through one layer.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--float32", action="store_true", help="products in float32, not in bfloat16")
    parser.add_argument("--no-compile", action="store_true", help="leave out what torch.compile makes of them")
    asked = parser.parse_args()
    torch.manual_seed(0)
    kind = torch.float32 if asked.float32 else torch.bfloat16
    x = torch.randn(asked.tokens, asked.width, device=asked.device, dtype=kind, requires_grad=True)
    back = torch.randn_like(x)
    plain = nn.Linear(asked.width, asked.width, bias=False, device=asked.device)
    half = nn.Linear(asked.width, asked.width, bias=False, device=asked.device, dtype=kind)
    ternary = BitLinear(asked.width, asked.width, device=asked.device)
    runs = {
        f"nn.Linear, {kind} weights": step(half, x, back, kind),
        "nn.Linear, float32 masters": step(plain, x, back, kind),
        "BitLinear": step(ternary, x, back, kind),
        "BitLinear, obvious": step(_Obvious(ternary), x, back, kind),
    }
    if not asked.no_compile:
        runs["nn.Linear, compiled"] = step(torch.compile(plain), x, back, kind)
        runs["BitLinear, compiled"] = step(torch.compile(ternary, fullgraph=True), x, back, kind)
    for run in runs.values():  # what is compiled is compiled now
        run()
        run()
    best = least(runs, asked.rounds, asked.device)
    floor = min(seconds for name, seconds in best.items() if name.startswith("nn.Linear"))
    name = torch.cuda.get_device_name() if asked.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{asked.tokens} tokens, {asked.width} wide, {kind}, {asked.device} ({name}), torch {torch.__version__}")
    print(f"{'':28}{'ms':>9}{'TFLOP/s':>9}{'over the quickest nn.Linear':>30}")
    for what, seconds in best.items():
        rate = 6 * asked.tokens * asked.width**2 / seconds / 1e12
        print(f"{what:28}{seconds * 1e3:9.3f}{rate:9.2f}{seconds / floor - 1:30.1%}")
    with torch.no_grad():
        parts: dict[str, Callable[[], object]] = {
            "quantize activations, eager": lambda: quantize_activations(x),
            "quantize weight, eager": lambda: quantize_weight(plain.weight),
        }
        for what, seconds in least(parts, asked.rounds, asked.device).items():
            print(f"{what:28}{seconds * 1e3:9.3f}")


class _Obvious(nn.Module):
    """The same layer by plain operations, as users write it."""

    def __init__(self, layer: BitLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer.blended(x)


if __name__ == "__main__":
    main()

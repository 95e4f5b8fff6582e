"""What ternary weights and int8 activations cost a training step, beside linear layers of floats.

    python linear.py                       # on a GPU where there is one: 2048 wide, 16384 tokens
    python linear.py --device cpu --width 512 --tokens 2048

A step is forward and backward through one layer, or through several after each other as in a model, with gradients of
input and weights. Steps follow each other without waiting for the device, as in training; all kinds take turns, and
the median of all rounds counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as all of torch's users call it
from torch import nn

from bitnet_training.linear import BitLinear, dequantize, multiply, quantize_activations, quantize_weight


def step(layer: nn.Module, x: torch.Tensor, back: torch.Tensor, kind: torch.dtype) -> Callable[[], None]:
    """One forward and one backward pass, products in bfloat16 as autocast has them."""

    def run() -> None:
        x.grad = None
        layer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=kind == torch.bfloat16):
            y = layer(x)
        y.backward(back.to(y.dtype))

    return run


def seconds_of(run: Callable[[], object], steps: int, device: str) -> float:
    """What a step takes among so many in a row."""
    began = time.perf_counter()
    for _ in range(steps):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int, steps: int, device: str) -> dict[str, list[float]]:
    """Seconds of each, in so many rounds."""
    for run in runs.values():  # what is compiled is compiled now
        seconds_of(run, 2, device)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(seconds_of(run, steps, device))
    return found


def busy(run: Callable[[], object], steps: int, device: str) -> float:
    """Seconds of a step in which the GPU computes: what remains where the processor is quick enough."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        seconds_of(run, steps, device)
    return sum(event.self_device_time_total for event in seen.key_averages()) / steps / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="The time of a training step through ternary layers.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=0, help="in a row; 0: of 200 layers on a GPU, else 1")
    parser.add_argument("--float32", action="store_true", help="products in float32, not in bfloat16")
    parser.add_argument("--no-compile", action="store_true", help="leave out what torch.compile makes of them")
    asked = parser.parse_args()
    torch.manual_seed(0)
    kind = torch.float32 if asked.float32 else torch.bfloat16
    x = torch.randn(asked.tokens, asked.width, device=asked.device, dtype=kind, requires_grad=True)
    name = torch.cuda.get_device_name() if asked.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{asked.tokens} tokens, {asked.width} wide, {kind}, {asked.device} ({name}), torch {torch.__version__}")
    for layers in asked.layers:
        print_steps(x, layers, asked)
    print_parts(x, asked)


def print_steps(x: torch.Tensor, layers: int, asked: argparse.Namespace) -> None:
    """A table of all kinds of layers, so many after each other."""

    def stacked(kind: type[nn.Linear], **options: Any) -> nn.Module:
        made = (kind(asked.width, asked.width, bias=False, device=asked.device, **options) for _ in range(layers))
        return nn.Sequential(*made)

    back, plain, ternary = torch.randn_like(x), stacked(nn.Linear), stacked(BitLinear)
    kinds = {
        f"nn.Linear, {x.dtype} weights": stacked(nn.Linear, dtype=x.dtype),
        "nn.Linear, float32 masters": plain,
        "BitLinear": ternary,
        "BitLinear, obvious": nn.Sequential(*(_Obvious(layer) for layer in ternary)),
    }
    if not asked.no_compile:
        kinds["nn.Linear, compiled"] = torch.compile(plain)
        kinds["BitLinear, compiled"] = torch.compile(ternary, fullgraph=True)
    steps = asked.steps or (max(1, 200 // layers) if asked.device == "cuda" else 1)
    runs = {name: step(model, x, back, x.dtype) for name, model in kinds.items()}
    found = in_turns(runs, asked.rounds, steps, asked.device)
    floor = min(statistics.median(seconds) for name, seconds in found.items() if name.startswith("nn.Linear"))
    print(f"\n{layers} layers, {asked.rounds} rounds of {steps} steps in a row: ms a layer, median, least and most")
    print(f"{'':36}{'ms':>7}{'from':>8}{'to':>8}{'TFLOP/s':>9}{'over the quickest nn.Linear':>29}{'GPU busy':>10}")
    for what, seconds in found.items():
        middle = statistics.median(seconds)
        spread = f"{min(seconds) / layers * 1e3:8.3f}{max(seconds) / layers * 1e3:8.3f}"
        rate = 6 * layers * asked.tokens * asked.width**2 / middle / 1e12
        line = f"{what:36}{middle / layers * 1e3:7.3f}{spread}{rate:9.1f}{middle / floor - 1:29.1%}"
        print(line + (f"{busy(runs[what], 10, 'cuda') / layers * 1e3:10.3f}" if asked.device == "cuda" else ""))


@torch.no_grad()
def print_parts(x: torch.Tensor, asked: argparse.Namespace) -> None:
    """What the parts of a step take on their own."""
    weight, back = torch.randn(asked.width, asked.width, device=asked.device), torch.randn_like(x)
    (codes, scales), (trits, scale) = quantize_activations(x), quantize_weight(weight)
    parts: dict[str, Callable[[], object]] = {
        "quantize activations": lambda: quantize_activations(x),
        "quantize weight": lambda: quantize_weight(weight),
        "multiply codes, with their scales": lambda: multiply(codes, trits, scale, scales, x.dtype),
        "multiply floats": lambda: F.linear(x, weight.to(x.dtype)),
        "codes as floats again": lambda: dequantize(codes, scales, x.dtype, divide=True),
        "gradient of the weight": lambda: back.T @ x,
    }
    print("\nparts of a step, in ms")
    for what, seconds in in_turns(parts, asked.rounds, asked.steps or 20, asked.device).items():
        print(f"{what:36}{statistics.median(seconds) * 1e3:7.3f}")


class _Obvious(nn.Module):
    """The same layer by plain operations, as users write it."""

    def __init__(self, layer: BitLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer.blended(x)


if __name__ == "__main__":
    main()

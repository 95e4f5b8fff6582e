"""How fast text is made: prompt and decode apart, at depths and batches, with load time, memory and energy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import bitnet_core
from bitnet_core import Model, OutOfMemory, device, memory
from bitnet_inference import energy

from . import machine
from .need import keys_and_values, needs
from .workers import Program, Setting, Worker, opened

_FIRST = 8  # tokens in front of a decode at depth 0: one must be there to go on from


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured."""

    prompt: int = 512
    tokens: int = 128
    depths: tuple[int, ...] = (0,)
    batches: tuple[int, ...] = (1,)
    rounds: int = 5

    def context(self) -> int:
        """Positions that a sequence needs."""
        return max(self.prompt, max(self.depths) + self.tokens + _FIRST) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What was measured of one engine at one depth and batch; the runs are seconds, the rest medians of them."""

    engine: str
    threads: int
    prompt: int
    tokens: int
    depth: int
    batch: int
    load_s: float
    peak_bytes: int
    first_token_cold_s: float  # from the begin of loading
    first_token_warm_s: float
    prompt_tokens_per_s: float
    decode_tokens_per_s: float  # of all sequences together
    prompt_runs: tuple[float, ...]
    decode_runs: tuple[float, ...]
    joules_per_token: float | None  # of decoding; None where the system does not tell
    bytes_per_token: int | None  # that a decode step reads at the least; None for other people's engines
    bandwidth: float  # bytes a second that so many threads read, measured between the runs
    bandwidth_share: float | None
    throughput_share: float | None


@dataclass(slots=True)
class _Taken:
    """One worker's runs as they come."""

    worker: Worker | Program
    cold: float = 0.0
    peak: int = 0
    prompts: list[float] = field(default_factory=list)
    decodes: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    joules: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    bandwidth: list[float] = field(default_factory=list)


Told = Callable[[int, int, str], None]


def measure(settings: Sequence[Setting], plan: Plan, *, progress: Told | None = None) -> list[Figure]:
    """Run every setting in turns, so that a drift of the machine meets all of them alike.

    Where the models of all do not fit into memory at once, one setting is measured after another.
    """
    models = {setting.path: _opened(setting.path) for setting in settings}
    for model in models.values():
        if model is not None and plan.context() > model.spec.context:
            raise ValueError(f"prompt, depth and tokens: expected at most {model.spec.context}, got {plan.context()}")
    together = [list(settings)] if _fits(settings, models) else [[setting] for setting in settings]
    multiplied = {
        threads: machine.throughput(bitnet_core.backends.get(), threads, 3).median
        for threads in {setting.threads for setting in settings}
    }
    count = len(settings) * plan.rounds
    done = 0
    figures: list[Figure] = []
    for group in together:
        for taken in _run(group, plan):
            if isinstance(taken, str):
                done += 1
                if progress:
                    progress(done, count, taken)
            else:
                figures += _figures(taken, plan, models[taken.worker.setting.path], multiplied)
    return figures


def _opened(path: str) -> Model | None:
    try:
        return bitnet_core.load(path)
    except bitnet_core.UnsupportedError:
        return None  # somebody else's engine may read it


def _fits(settings: Sequence[Setting], models: dict[str, Model | None]) -> bool:
    sizes = []
    for setting in settings:
        model, path = models[setting.path], Path(setting.path)
        held = needs(model, 1024).total if model else path.stat().st_size
        sizes.append(held * (8 if setting.kind == "transformer" else 1))  # float32 for two bits, and then some
    if max(sizes) > memory.available():
        raise OutOfMemory(f"{settings[0].path}: needs {max(sizes)} bytes, {memory.available()} are free")
    return sum(sizes) < memory.available() * 0.8


def _run(settings: Sequence[Setting], plan: Plan) -> Iterator[_Taken | str]:
    """The name of a setting after each of its rounds, and in the end all that was taken."""
    meter = energy.meter()
    with ExitStack() as stack:
        all_taken = []
        for setting in settings:
            worker = opened(setting)
            stack.callback(worker.close)
            taken = _Taken(worker)
            taken.worker.start()
            first = taken.worker.ask("prompt", count=plan.prompt)["seconds"]
            taken.cold = taken.worker.load["load_s"] + first
            all_taken.append(taken)
        for _ in range(plan.rounds):
            for taken in all_taken:
                _round(taken, plan, meter)
                yield taken.worker.setting.name
        for taken in all_taken:
            taken.peak = taken.worker.ask("peak")["peak_bytes"]
    yield from all_taken


def _round(taken: _Taken, plan: Plan, meter: energy.Meter) -> None:
    ask = taken.worker.ask
    taken.prompts.append(ask("prompt", count=plan.prompt)["seconds"])
    taken.bandwidth.append(device.bandwidth(256 << 20, taken.worker.setting.threads, 2).highest)
    for depth in plan.depths:
        for batch in plan.batches:
            meter.read()  # the next reading counts from here
            found = ask("decode", depth=max(depth, _FIRST), count=plan.tokens, batch=batch)
            taken.decodes.setdefault((depth, batch), []).append(found["seconds"])
            if meter:
                taken.joules.setdefault((depth, batch), []).append(meter.read() / (plan.tokens * batch))


def _figures(taken: _Taken, plan: Plan, model: Model | None, multiplied: dict[int, float]) -> Iterator[Figure]:
    setting = taken.worker.setting
    prompt, bandwidth = statistics.median(taken.prompts), statistics.median(taken.bandwidth)
    ours = model if setting.kind in ("runner", "engine") else None
    products = sum(rows * cols for rows, cols in ours.spec.projections().values()) * ours.spec.layers if ours else 0
    for (depth, batch), runs in taken.decodes.items():
        seconds = statistics.median(runs)
        read = None
        if ours:
            kept = keys_and_values(ours.spec, max(depth, _FIRST) + plan.tokens // 2)
            read = needs(ours, 1).a_token + batch * kept
        joules = taken.joules.get((depth, batch))
        yield Figure(
            engine=setting.name,
            threads=setting.threads,
            prompt=plan.prompt,
            tokens=plan.tokens,
            depth=depth,
            batch=batch,
            load_s=taken.worker.load["load_s"],
            peak_bytes=taken.peak,
            first_token_cold_s=taken.cold,
            first_token_warm_s=prompt,
            prompt_tokens_per_s=plan.prompt / prompt,
            decode_tokens_per_s=plan.tokens * batch / seconds,
            prompt_runs=tuple(taken.prompts),
            decode_runs=tuple(runs),
            joules_per_token=statistics.median(joules) if joules else None,
            bytes_per_token=read,
            bandwidth=bandwidth,
            bandwidth_share=read * plan.tokens / seconds / bandwidth if read else None,
            throughput_share=products * plan.prompt / prompt / multiplied[setting.threads] if ours else None,
        )

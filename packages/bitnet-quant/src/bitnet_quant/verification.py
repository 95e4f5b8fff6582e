"""Whether a model is what it should be: its trits, dead channels, the order of its bytes, and a backend's answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet_core import Backend, Model, Runner, Step, TernaryTensor, reference
from bitnet_core import load as load_model
from bitnet_core.model import Tokens

from . import groups
from .groups import Group

SAMPLE = (
    "Once upon a time there was a little girl who lived with her mother in a small house. One day she went to play in "
    "the garden. She saw a big red ball under a tree and was very happy. She ran to her mother and said that she had "
    "found it, and they played together until it was dark."
)
_DEAD = 1e-6  # of the largest weight of a norm: channels below it say nothing
_LOPSIDED = 0.3  # of what is not zero, how far the two signs may be apart
_FEW = 1000  # codes that are too few to say anything about signs


@dataclass(frozen=True, slots=True)
class Trits:
    """How many codes of a matrix are -1, 0 and 1."""

    name: str
    counts: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Channels:
    """Inputs of a projection that its norm has turned off: trained models have nothing but zeros behind them."""

    name: str  # of the projection
    dead: int
    used: int  # of those, how many have codes that are not 0


@dataclass(frozen=True, slots=True)
class Agreement:
    """A backend's answers to a prompt against the reference's."""

    backend: str
    tokens: int  # of the prompt, and likeliest ones that followed
    median: float  # of the differences of all logits, as a share of their spread
    worst: float  # the largest of them, likewise
    different: int  # tokens that the backend would have chosen otherwise, where the reference was sure

    @property
    def right(self) -> bool:
        """Whether the backend computes this model: roundings of activations apart."""
        return self.different == 0 and self.median < 0.01 and self.worst < 0.1


@dataclass(frozen=True, slots=True)
class Verification:
    """All that was found; `problems` is empty where all is well."""

    trits: tuple[Trits, ...]
    channels: tuple[Channels, ...]
    group: Group | None  # None where no weight is I2_S
    agreement: Agreement | None  # None where no backend was asked
    problems: tuple[str, ...]

    def table(self) -> str:
        """Plain text: a line a matrix, and what is wrong."""
        lines = [f"{'weight':26}{'-1':>12}{'0':>12}{'+1':>12}{'zeros':>8}"]
        for trits in self.trits:
            low, zero, high = trits.counts
            lines.append(f"{trits.name:26}{low:12}{zero:12}{high:12}{zero / sum(trits.counts):8.1%}")
        if dead := sum(channels.dead for channels in self.channels):
            lines.append(f"{dead} dead channels, {sum(channels.used for channels in self.channels)} with weights")
        if self.group:
            lines.append(self.group.said())
        if told := self.agreement:
            verdict = "agrees" if told.right else "does not agree"
            lines.append(
                f"backend {told.backend} {verdict} with the reference over {told.tokens} tokens: logits differ by "
                f"{told.median:.1e} of their spread, by {told.worst:.1e} at worst; {told.different} other choices"
            )
        return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in self.problems)]) + "\n"


def verify(
    source: str | os.PathLike[str] | Model,
    *,
    backend: Backend | None = None,
    text: str | None = None,
    count: int = 16,
    **options: Any,
) -> Verification:
    """Look a model over; options go to the reader.

    The group of I2_S files is told by how channels of different weights go together; where that leaves it open, or
    with a `text`, also by which reading predicts ordinary text. With a backend, its logits for a prompt and the
    `count` likeliest tokens after it are compared with the reference's.
    """
    model = source if isinstance(source, Model) else load_model(source, **options)
    trits = tuple(_trits(model))
    channels = tuple(_channels(model))
    other = None if isinstance(source, Model) else lambda group: load_model(source, **options | {"i2_s_group": group})
    group = groups.detect(model, other, text or SAMPLE, insist=text is not None)
    agreement = None if backend is None else agree(model, backend, _prompt(model, text or SAMPLE), count)
    problems = [*_problems(trits, channels), *([group.problem()] if group and group.wrong else [])]
    if agreement and not agreement.right:
        problems.append(f"backend {agreement.backend} does not compute this model as the reference does")
    return Verification(trits, channels, group, agreement, tuple(problems))


def agree(model: Model, backend: Backend, prompt: Tokens, count: int = 16) -> Agreement:
    """Logits of every token of a prompt and of the `count` likeliest that follow, one by one, from both."""
    count = max(0, min(count, model.spec.context - len(prompt)))
    runner = reference.BACKEND.load(model)
    try:
        expected, tokens = _answers(runner, prompt, count, None)
    finally:
        runner.close()
    runner = backend.load(model)
    try:
        found, _ = _answers(runner, prompt, count, tokens)
    finally:
        runner.close()
    spread = float(np.ptp(expected)) or 1.0
    apart = np.abs(found.astype(np.float64) - expected)
    apart[~np.isfinite(apart)] = np.inf
    # A choice between two that are nearer than the logits are apart is no choice.
    best = np.sort(expected, axis=1)
    sure = best[:, -1] - best[:, -2] > 2 * apart.max(axis=1)
    different = int((sure & (found.argmax(axis=1) != expected.argmax(axis=1))).sum())
    different += int((~np.isfinite(found)).any(axis=1).sum())
    median, worst = float(np.median(apart)) / spread, float(apart.max()) / spread
    return Agreement(backend.name, len(prompt) + count, median, worst, different)


def _answers(
    runner: Runner, prompt: Tokens, count: int, follow: list[int] | None
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Logits of a prompt and what follows, which are the likeliest tokens, or those to follow."""
    cache = runner.new_cache()
    rows = np.asarray(runner.forward([Step(prompt, cache, "all")])[0], np.float32)
    said, chosen = [rows], []
    for place in range(count):
        chosen.append(int(said[-1][-1].argmax()) if follow is None else follow[place])
        (logits,) = runner.forward([Step(np.array(chosen[-1:], np.int32), cache)])
        said.append(np.asarray(logits, np.float32)[None])
    cache.close()
    return np.concatenate(said), chosen


def _prompt(model: Model, text: str) -> Tokens:
    """The beginning of a text as tokens; where a model has no words, tokens from all over its vocabulary."""
    room = max(1, min(32, model.spec.context - 1))
    if model.tokenizer is not None:
        return model.tokenizer.encode(text)[:room]
    return np.linspace(0, model.spec.vocab_size - 1, min(room, 8)).astype(np.int32)


def _trits(model: Model) -> Iterator[Trits]:
    for name, shape in model.spec.shapes().items():
        weight = model.weights[name] if len(shape) == 2 else None
        if isinstance(weight, TernaryTensor):
            yield Trits(name, weight.counts())


def _channels(model: Model) -> Iterator[Channels]:
    """What block norms have turned off, for the projections behind them."""
    if model.spec.sub_norms != "block":
        return
    for layer in range(model.spec.layers):
        for norm, inner in (("attn.sub_norm", "attn.o"), ("ffn.sub_norm", "ffn.down")):
            gains = np.abs(np.asarray(model.weights[f"layers.{layer}.{norm}"], np.float32))
            dead = gains <= _DEAD * gains.max()
            weight = model.weights[f"layers.{layer}.{inner}"] if dead.any() else None
            if isinstance(weight, TernaryTensor):
                used = int(weight.codes()[:, dead].any(axis=0).sum())
                yield Channels(f"layers.{layer}.{inner}", int(dead.sum()), used)


def _problems(trits: tuple[Trits, ...], channels: tuple[Channels, ...]) -> Iterator[str]:
    for found in trits:
        low, _, high = found.counts
        if low + high == 0:
            yield f"{found.name}: all codes are 0"
        elif low + high > _FEW and abs(high - low) > _LOPSIDED * (low + high):
            yield f"{found.name}: {low} codes are -1 and {high} are 1, where training leaves them nearly even"
    for channel in channels:
        if channel.used:
            yield (
                f"{channel.name}: {channel.used} of {channel.dead} dead channels have weights, where training leaves "
                "none; the bytes may be in another layout"
            )

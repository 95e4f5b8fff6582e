"""A whole run, from its config to a model that can be used: the rooms in which the loop stands."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bitnet_core
from bitnet_core import FormatError, ModelSpec, Rope, UnsupportedError
from bitnet_core.chat import ChatTemplate
from bitnet_core.durable import replacing, sync_folder
from bitnet_core.hub import resolve
from bitnet_core.tokenizer import Tokenizer

from . import card, data, lora, models, options, page, state, tokenizer
from .checkpoint import Checkpoint, Checkpoints
from .config import Config
from .data import Data
from .distill import NOTHING, Distillation, Weighing
from .distributed import World, joined
from .export import check_form, export
from .loss import cross_entropy
from .recompute import recompute
from .replace import PROJECTIONS
from .schedule import Rates, Rounding
from .telemetry import Lines, Telemetry, Terminal, check_writers, open_writers, read_lines
from .train import Loss, Outcome, Plan, Task, adamw, explained, train
from .windows import Batch, Batches, in_order

_log = logging.getLogger(__name__)
# What may differ between a run and its going on: no weight depends on it, or the tokens' own hash tells.
_FREE = ("out", "export", "data.cache", "data.rows", "data.train", "data.valid", "tokenizer.path",
         "telemetry.", "checkpoints.", "compute.")  # fmt: skip


def run(config: Config, *, resume: bool = False) -> Outcome:
    """Do what a config says; with `resume`, from the newest whole checkpoint of its folder."""
    out = Path(config.out)
    with joined(config.compute.device) as world, ExitStack() as stack, explained(0):
        if config.compute.parallel == "shard":
            world.check_shards()
        check_writers(config.telemetry.writers)
        checkpoints = Checkpoints(out / "checkpoints", keep=config.checkpoints.keep)
        with world.first_alone():
            if world.is_first:
                _check_free(out, checkpoints)
                stack.enter_context(checkpoints)
                _begin(out, checkpoints, resume=resume)
            words, template = _language(config, out)
            given = data.prepare(config, words, template)
        about = {"config": options.toml(config), "data": given.key, "processes": world.processes}
        resumed = checkpoints.newest(partial(_check_same, config, about)) if resume else None
        if resume:
            _log.info(
                "going on from step %d" if resumed else "no checkpoint yet: from step %d",
                resumed.step if resumed else 0,
            )
        state.seed(config.seed)
        model = build(config, words).to(world.device)
        for form in config.export if config.method not in {"lora", "qlora"} else ():
            check_form(model, form)
        if config.compute.parallel == "shard":
            world.shard(model)
        task = _task(config, model, given, world)
        writers = _opened(config, out, resumed) if world.is_first else []
        telemetry = Telemetry(writers, zeros=config.telemetry.zeros, spike=config.telemetry.spike)
        stack.callback(telemetry.close)
        stop = stack.enter_context(_interrupts())
        checked = checkpoints if world.is_first else None
        if world.is_first:
            _say_beginning(config, model, given, world)
        outcome = train(task, _plan(config, world), world, telemetry, checked, resumed=resumed, about=about, stop=stop)
        _finish(config, out, model, words, template, outcome, world)
        if world.is_first:
            where = "all of it is" if outcome.is_finished else "--resume goes on from here;"
            _log.info("step %d of %d; %s in %s", outcome.step, config.schedule.steps, where, out)
    return outcome


def build(config: Config, words: Tokenizer) -> nn.Module:
    """The model that a config asks for, on the processor."""
    asked, adapter = config.model, config.adapter
    model = _loaded(config, words) if asked.base else _drawn(config, words)
    if asked.dropout:
        models.add_dropout(model, asked.dropout)
    if config.compute.recompute == "always" or (config.compute.recompute == "auto" and config.method == "qlora"):
        recompute(model)
    if config.method in {"lora", "qlora"}:
        model.requires_grad_(False)
        model = lora.add_adapter(model, rank=adapter.rank, alpha=adapter.alpha, targets=adapter.targets)
    return model


def _drawn(config: Config, words: Tokenizer) -> nn.Module:
    """A model of random numbers; without a recipe, it is the float twin."""
    shape = spec(config, words.vocab_size)
    recipe = PROJECTIONS if config.model.ternary else None
    return models.build(shape, recipe, embedding_std=config.model.embedding_std)


def _loaded(config: Config, words: Tokenizer) -> nn.Module:
    """A model that has learned before."""
    asked = config.model
    form: models.Form = "packed" if config.method == "qlora" else "masters" if asked.ternary else "float"
    model = models.load(asked.base, form, norms=None if asked.norms == "none" else asked.norms)
    if config.method == "lora" and bitnet_core.load(resolve(asked.base)).spec.inputs == "float":
        _log.warning(
            "%s: its floats are rounded to ternary as they stand, which it never learned (continue)", asked.base
        )
    size = model.config.vocab_size
    if words.vocab_size > size:
        raise FormatError("tokenizer", "vocabulary", f"at most the model's {size} tokens", words.vocab_size)
    if config.data.window > (context := model.config.max_position_embeddings):
        raise ValueError(f"data.window: at most the context of {asked.base}, {context}, got {config.data.window}")
    return model


def spec(config: Config, vocab_size: int) -> ModelSpec:
    """The shape that a config describes."""
    asked = config.model
    return ModelSpec(
        family="bitnet" if asked.sub_norms == "block" else "llama",
        vocab_size=vocab_size,
        hidden_size=asked.hidden_size,
        ffn_size=asked.ffn_size,
        layers=asked.layers,
        heads=asked.heads,
        kv_heads=asked.kv_heads,
        head_size=asked.hidden_size // asked.heads,
        context=asked.context,
        rope=Rope(theta=asked.rope_theta, size=asked.hidden_size // asked.heads),
        norm_eps=asked.norm_eps,
        sub_norm_eps=asked.norm_eps,
        activation=asked.activation,
        sub_norms=asked.sub_norms,
        tied=asked.tied,
    )


def report(out: str | os.PathLike[str]) -> Path:
    """Write the page of a run from its log."""
    path = Path(out) / "report.html"
    with replacing(path) as stream:
        stream.write(page.render(Path(out).resolve().name, read_lines(Path(out) / "log.jsonl")).encode())
    return path


def _check_free(out: Path, checkpoints: Checkpoints) -> None:
    """What a run makes anew may not be somebody else's."""
    made = [out / name for name in ("tokenizer", "model", "masters", "adapter")]
    if not checkpoints.folder.exists() and (theirs := [path for path in made if path.exists()]):
        raise UnsupportedError(f"{theirs[0]}: no run made it, and this one would write over it; choose another out")


def _say_beginning(config: Config, model: nn.Module, given: Data, world: World) -> None:
    """What is about to happen, so that who did not mean it need not wait."""
    learning = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    steps, asked = config.schedule.steps, config.data
    times = steps * asked.batch / len(given.learned)
    said = "%s weights learn on %s: %d steps of %d windows of %d tokens, which is the data %.3g times"
    _log.info(said, f"{learning:,}", world.device, steps, asked.batch, asked.window, times)


def _begin(out: Path, checkpoints: Checkpoints, *, resume: bool) -> None:
    """Make room for a run; an earlier one in the folder is not written over."""
    has_run = any(checkpoints.folder.glob("step-*"))
    if has_run and not resume:
        raise UnsupportedError(
            f"{out}: has a run's checkpoints; go on with it (--resume), or choose another folder (out)"
        )
    if not has_run:  # a vocabulary without a model may be of other texts
        shutil.rmtree(out / "tokenizer", ignore_errors=True)
    for left in (*out.glob(".*.*.part"), *(out / "tokenizer").glob(".*.part")):  # of a run that was killed
        left.unlink()


def _language(config: Config, out: Path) -> tuple[Tokenizer, ChatTemplate | None]:
    """How this run's model reads: as a file says, as its base does, or by a vocabulary that is learned now."""
    name = config.tokenizer.path or config.model.base
    found: Tokenizer | None
    if name:
        found, template = _known_language(name)
    else:
        folder, template = out / "tokenizer", None
        found = Tokenizer.from_folder(folder) if folder.is_dir() else None
        if found is None:
            _log.info("a vocabulary of %d tokens is learned from the training texts", config.tokenizer.size)
            texts = data.texts(config.data, chat=data.is_chat(config))
            found = tokenizer.train(texts, config.tokenizer.size, folder)
    if found is None:
        raise FormatError(name, "tokenizer", "one in the folder", "none")
    return found, data.template_in(config.tokenizer.template) if config.tokenizer.template else template


def _known_language(name: str) -> tuple[Tokenizer | None, ChatTemplate | None]:
    """The tokenizer and the chat template of a folder, of a model's name, of a GGUF file, or of a tokenizer's."""
    path = resolve(name)
    if path.is_dir():
        return Tokenizer.from_folder(path), ChatTemplate.from_folder(path)
    if path.suffix == ".gguf":
        model = bitnet_core.load(path)
        return model.tokenizer, model.template
    return Tokenizer.from_file(path), None


def _check_same(config: Config, about: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """A run goes on as what it was."""
    before = options.parse(Config, saved["about"]["config"], "the checkpoint's config")
    for path, was, now in options.differences(before, config):
        if not path.startswith(_FREE):
            raise UnsupportedError(f"{path}: the checkpoint was made with {was!r}, and the config now has {now!r}")
    for what in ("data", "processes"):
        was, now = saved["about"][what], about[what]
        if was == now:
            continue
        if what == "data":
            raise UnsupportedError(f"data: the checkpoint was made with tokens {was}, and now they are {now}")
        _log.warning("going on with %d processes instead of %d: sums may differ in their last bits", now, was)


def _task(config: Config, model: nn.Module, given: Data, world: World) -> Task:
    asked, schedule = config.optimizer, config.schedule
    rows = min(config.data.rows, -(-config.data.batch // world.processes))
    if config.data.batch % (rows * world.processes):
        raise ValueError(f"data.batch: a multiple of {rows} rows on each of {world.processes} processes")
    rounding = round(config.model.rounding * schedule.steps)
    learned, judged = given.learned, given.held_out
    if config.checkpoints.best and judged is None:
        raise ValueError("checkpoints.best: something held out to choose by (data.valid or data.held_out), got none")
    looked_at = None
    if judged is not None:
        looked_at = partial(in_order, judged, rows, config.telemetry.windows, world.process, world.processes)
    return Task(
        model=model,
        batches=Batches(learned, config.data.batch, rows, config.seed, world.process, world.processes),
        loss=_loss(config, model, world),
        optimizer=adamw(model, betas=(asked.beta1, asked.beta2), eps=asked.eps),
        rates=Rates(
            steps=schedule.steps,
            peak=asked.learning_rate,
            weight_decay=asked.weight_decay,
            kind=schedule.kind,
            warmup=schedule.warmup,
            final=schedule.final,
            second=schedule.second,
        ),
        draws=config.seed if config.model.dropout else None,
        rounding=Rounding(steps=rounding, order=config.model.order) if rounding else None,
        held_out=looked_at,
        bytes_a_token=given.bytes_a_token,
    )


def _loss(config: Config, model: nn.Module, world: World) -> Loss:
    if config.method != "distill":
        return cross_entropy
    asked = config.teacher
    weighing = Weighing(temperature=asked.temperature, task=asked.task, logits=asked.logits, attention=asked.attention)
    teachers: list[nn.Module] = [models.load(base, "float") for base in asked.base]
    distillation = Distillation([teacher.to(world.device) for teacher in teachers], model, weighing)
    if config.compute.compile:
        for teacher in teachers:
            teacher.compile()

    def loss(student: nn.Module, batch: Batch) -> Tensor:
        inputs = {"input_ids": batch.tokens, "position_ids": batch.positions, "use_cache": False}
        mean = distillation.loss(student(**inputs).logits, batch.targets, **inputs).total
        return mean * (batch.targets != NOTHING).sum()  # counted where it lies: nobody waits for the device

    return loss


def _plan(config: Config, world: World) -> Plan:
    asked, seen = config.compute, config.telemetry
    half = asked.precision == "bfloat16" or (asked.precision == "auto" and world.device.type == "cuda")
    return Plan(
        clip=config.optimizer.clip,
        bad_steps=config.optimizer.bad_steps,
        precision=torch.bfloat16 if half else torch.float32,
        report=seen.every,
        watch=seen.watch,
        evaluate=seen.evaluate,
        save=config.checkpoints.every,
        compile=asked.compile,
        best=config.checkpoints.best,
    )


def _opened(config: Config, out: Path, resumed: Checkpoint | None) -> list[Any]:
    """Who writes the run down, now that nothing can be refused any more: its config is that of what stands here."""
    with replacing(out / "config.toml") as stream:
        stream.write(options.toml(config).encode())
    others = open_writers(config.telemetry.writers, out)
    lines = Lines(out / "log.jsonl", resumed.step if resumed else 0)
    return [Terminal(config.schedule.steps), lines, *others]


def _finish(
    config: Config,
    out: Path,
    model: nn.Module,
    words: Tokenizer,
    template: ChatTemplate | None,
    outcome: Outcome,
    world: World,
) -> None:
    """The page of the run, and the model in forms that others can use."""
    if world.is_first:
        report(out)
    if not outcome.is_finished:
        return
    sharded = config.compute.parallel == "shard"
    learned = state.weights(model) if sharded and not config.checkpoints.best else outcome.best
    if not world.is_first:
        return
    if sharded:  # each process has but a part of each weight
        model = build(config, words)
    if learned is not None:
        state.load_weights(model, learned)
    if config.method in {"lora", "qlora"}:
        with _folder(out / "adapter") as aside:
            adapted: Any = model
            lora.save_adapter(adapted, aside)
        return
    for form in config.export:
        _export(config, out, partial(export, model, tokenizer=words, template=template), form)


def _export(config: Config, out: Path, write: Callable[..., None], form: str) -> None:
    """A folder with its card, or a GGUF file."""
    if form not in {"packed", "masters"}:
        write(out / f"{form}.gguf", form)
        return
    with _folder(out / ("model" if form == "packed" else form)) as aside:
        write(aside, form)
        said = card.write(config, read_lines(out / "log.jsonl"), aside)
        with replacing(aside / "README.md") as stream:
            stream.write(said.encode())


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A folder that takes its name when all is in it, and the place of an older one."""
    aside = path.with_name(f".{path.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    yield aside
    if path.exists():
        shutil.rmtree(path)
    aside.rename(path)
    sync_folder(path.parent)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether somebody asked for the end: the step is finished and saved; whoever asks twice ends it at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, _: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        _log.warning("%s: this step is finished and saved; once more ends at once", signal.Signals(number).name)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

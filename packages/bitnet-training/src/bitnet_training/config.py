"""What a training run is told: one frozen record, written as TOML and kept with the run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from . import options
from .options import option

FORMS = ("packed", "masters", "i2_s", "tq1_0", "tq2_0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The model: a base to begin from, or a shape to begin with random numbers."""

    base: str = option("", "a model's folder or its name on the hub; empty: random numbers of the shape below")
    ternary: bool = option(True, "false trains the float twin: the same shape and recipe without rounding")
    hidden_size: int = option(256, "elements of the residual stream", at_least=8, at_most=65536)
    ffn_size: int = option(768, "elements inside the feed-forward", at_least=8, at_most=1 << 20)
    layers: int = option(6, "decoder layers", at_least=1, at_most=512)
    heads: int = option(4, "query heads", at_least=1, at_most=1024)
    kv_heads: int = option(2, "heads of keys and values", at_least=1, at_most=1024)
    context: int = option(512, "positions that the model is made for", at_least=8, at_most=1 << 20)
    rope_theta: float = option(10000.0, "base of the rotary frequencies", at_least=1)
    norm_eps: float = option(1e-5, "added inside norms", at_least=1e-12, at_most=1)
    activation: Literal["relu2", "silu", "gelu"] = option("relu2", "of the feed-forward's gate")
    sub_norms: Literal["none", "block"] = option("block", "norms in front of attention's and the feed-forward's output")
    tied: bool = option(True, "the head is the embedding")
    norms: Literal["none", "block", "projection"] = option("none", "sub-norms that are put into a base without any")
    rounding: float = option(0.0, "share of the steps in which rounding comes in", at_least=0, at_most=1)
    dropout: float = option(
        0.0,
        "part of what embedding, attention and feed-forward put out that is dropped in training",
        at_least=0,
        at_most=0.9,
    )
    embedding_std: float = option(0.02, "of the random numbers that the embedding begins with", at_least=0, at_most=1)

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads or self.hidden_size // self.heads % 2:
            raise ValueError(f"hidden_size: an even number of elements for each of the {self.heads} heads")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: a number that divides the {self.heads} heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """How text becomes tokens: as a file says, as the base does, or by a vocabulary of the training text's own."""

    path: str = option("", "a tokenizer's file, a model's folder or name; empty: the base's, or one that is trained")
    size: int = option(2048, "tokens of one that is trained (byte-level BPE)", at_least=257, at_most=1 << 20)
    template: str = option("", "a chat template's file (Jinja), where the tokenizer's folder has none")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The records, and how they are laid into windows."""

    train: tuple[str, ...] = option((), 'files (.txt, .jsonl, .parquet, also .gz), or "datasets:NAME:SPLIT"')
    valid: tuple[str, ...] = option((), "the same, held out")
    held_out: float = option(
        0.05, "part of the training records held out where valid is empty", at_least=0, at_most=0.5
    )
    form: Literal["text", "chat"] = option(
        "text", "texts, or conversations of which the answers are learned (sft: always)"
    )
    field: str = option("text", "the key or column that holds a text")
    separator: str = option("", "what stands between documents of a text file; empty: the file is one document")
    overlap: Literal["report", "leave out"] = option("report", "training documents that share a paragraph with valid")
    bad_records: int = option(0, "records at most that are left out as bad before the run stops", at_least=0)
    window: int = option(512, "tokens of a window", at_least=8, at_most=1 << 20)
    packing: Literal["stream", "whole"] = option(
        "stream", "cut the stream of tokens, or keep documents whole (conversations: always)"
    )
    document_mask: bool = option(True, "documents in one window do not see each other")
    batch: int = option(32, "windows a step, over all processes", at_least=1, at_most=1 << 20)
    rows: int = option(32, "windows that one process computes at once; gradients add up to the batch", at_least=1)
    cache: str = option("", "where tokens are kept; empty: ~/.cache/bitnet/tokens, or BITNET_TOKENS")

    def __post_init__(self) -> None:
        if self.batch % self.rows:
            raise ValueError(f"rows: a number that divides the batch of {self.batch}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW, whose weight decay leaves norms, scales and biases alone."""

    learning_rate: float = option(2e-3, "the peak", at_least=0, at_most=10)
    weight_decay: float = option(0.1, "of matrices; the schedule may end it", at_least=0, at_most=10)
    beta1: float = option(0.9, "how long the mean of gradients remembers", at_least=0, at_most=0.99999)
    beta2: float = option(0.95, "how long the mean of their squares remembers", at_least=0, at_most=0.999999)
    eps: float = option(1e-8, "added under the root", at_least=1e-16, at_most=1)
    clip: float = option(1.0, "the gradient's norm at most; 0: unclipped", at_least=0)
    bad_steps: int = option(
        0, "steps in a row that may be left out for a loss or gradient that is not finite", at_least=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """How the rates move."""

    steps: int = option(1000, "updates of the weights", at_least=1, at_most=1 << 40)
    kind: Literal["two-stage", "cosine", "linear", "constant"] = option("two-stage", "the course of the learning rate")
    warmup: float = option(0.02, "share of the steps in which the rate rises", at_least=0, at_most=1)
    final: float = option(0.0, "where the rate ends, as a share of the peak", at_least=0, at_most=1)
    second: float = option(
        2 / 3,
        "of two-stage: the line of the second half, in which nothing decays, over the first's",
        at_least=0,
        at_most=1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeConfig:
    """Where and how numbers are computed."""

    device: str = option("auto", "cpu, cuda or mps; auto: the first that is there of cuda, mps and cpu")
    precision: Literal["auto", "float32", "bfloat16"] = option("auto", "of products; auto: bfloat16 on cuda")
    compile: bool = option(False, "compile the model with torch.compile")
    recompute: Literal["auto", "always", "never"] = option(
        "auto",
        "compute layers again in the backward pass, which takes a third more time and saves memory; auto: for qlora",
    )
    parallel: Literal["replicate", "shard"] = option("replicate", "several processes hold copies, or shards (FSDP2)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved, and how many are kept."""

    every: int = option(200, "steps between checkpoints", at_least=1)
    keep: int = option(2, "checkpoints kept, the newest", at_least=1, at_most=1000)
    best: bool = option(False, "the model at the end is that of the look at which the held-out loss was least")


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryConfig:
    """What is watched, how often, and where it is written."""

    every: int = option(10, "steps between lines of the log", at_least=1)
    watch: int = option(50, "steps between looks at the ternary weights", at_least=1)
    evaluate: int = option(100, "steps between losses on what is held out", at_least=1)
    windows: int = option(64, "windows held out that are evaluated; 0: all", at_least=0)
    writers: tuple[str, ...] = option((), "besides the terminal and log.jsonl: tensorboard, mlflow, trackio")
    zeros: float = option(0.8, "share of zeros in a matrix above which it is called collapsed", at_least=0, at_most=1)
    spike: float = option(2.0, "loss over its running mean above which it is called a spike", at_least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """Low-rank changes on a base that stays (lora, qlora)."""

    rank: int = option(16, "of each change", at_least=1, at_most=4096)
    alpha: float = option(32.0, "the change is multiplied by alpha over rank", at_least=0)
    targets: tuple[str, ...] = option(("q", "k", "v", "o", "gate", "up", "down"), "projections that get one")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """Whom the model learns from (distill)."""

    base: tuple[str, ...] = option((), "the teacher's folder or name on the hub; of several, the mean is learned")
    temperature: float = option(5.0, "both distributions are softened by it", at_least=0.01, at_most=100)
    task: float = option(1.0, "weight of the tokens that really follow; 0: the teacher alone is learned", at_least=0)
    logits: float = option(10.0, "weight of the teacher's expectations", at_least=0)
    attention: float = option(0.0, "weight of the relations inside attention", at_least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole run."""

    method: Literal["pretrain", "continue", "sft", "lora", "qlora", "distill"] = option("pretrain", "how it is trained")
    out: str = option("run", "the run's folder")
    seed: int = option(0, "of weights and of the data's order", at_least=0, at_most=2**63 - 1)
    export: tuple[str, ...] = option(
        ("packed",), "what a finished model is written as: packed, masters, i2_s, tq1_0, tq2_0"
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    def __post_init__(self) -> None:
        if self.method not in {"pretrain", "distill"} and not self.model.base:
            raise ValueError(f"method: pretrain or distill where there is no base to {self.method} from")
        if unknown := sorted(set(self.export) - set(FORMS)):
            raise ValueError(f"export: some of {', '.join(FORMS)}, not {unknown[0]}")
        if self.method == "distill" and not all(self.teacher.base or [""]):
            raise ValueError("method: a teacher's base to distill from")


def load(path: str | os.PathLike[str], changes: Iterable[str] = ()) -> Config:
    """The run that a TOML file describes; `changes` are later words, as in "optimizer.learning_rate=1e-3"."""
    return options.load(Config, path, changes)


def template() -> str:
    """Every setting with its default and what it is for, as TOML."""
    return options.toml(Config(), about=True)

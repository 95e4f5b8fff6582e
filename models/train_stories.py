"""Train the model of this folder, from random numbers to packed files.

    python models/train_stories.py --data STORIES... --valid STORIES --out FOLDER --minutes 7 --device cuda

The model is BitNet b1.58 as transformers' BitNetForCausalLM computes it. Weights train as float32 masters, which
every step rounds to -1, 0 or 1 times their mean magnitude. The stories are few, so models of the same shape with
float weights learn them first, and the ternary model learns what these expect on average: it overfits less. The
shape is that of config.json beside this file, which is published with the weights.
"""

import argparse
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from bitnet_core.tensor import TernaryTensor

say = logging.getLogger("stories").info
HERE = Path(__file__).parent
SHAPE = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
VOCAB, HIDDEN, FFN = SHAPE["vocab_size"], SHAPE["hidden_size"], SHAPE["intermediate_size"]
LAYERS, HEADS, KV_HEADS = SHAPE["num_hidden_layers"], SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"]
CONTEXT, THETA, EPS = SHAPE["max_position_embeddings"], SHAPE["rope_theta"], SHAPE["rms_norm_eps"]
HEAD = HIDDEN // HEADS
END = "<|endoftext|>"  # id 0: before each story, and after it
STRAIGHT = {"â€œ": '"', "â€™": "'", "â€˜": "'", "â€": '"', "“": '"', "”": '"', "’": "'", "‘": "'", "–": "-", "—": "-"}


@dataclass(frozen=True)
class Recipe:
    """How one model trains; the clock cools the schedule where the epochs would take longer than their share."""

    epochs: int
    peak: float  # learning rate
    decay: float  # of the weights, in the first half
    dropout: float
    share: float  # of the time
    rows: int = 32  # of CONTEXT tokens, a step
    seed: int = 0


TEACHERS = [Recipe(epochs=15, peak=2e-3, decay=1.0, dropout=0.2, share=0.1, seed=seed) for seed in (1, 2, 3, 4)]
STUDENT = Recipe(epochs=60, peak=5e-3, decay=1.0, dropout=0.05, share=0.6)
CHECKS, WARMUP = 12, 0.02  # looks at the stories held out; the part of the time in which the rate rises


def read_stories(path: Path) -> list[str]:
    """Stories with a line a paragraph and straight quotes, also from copies decoded as cp1252 on their way."""
    text = path.read_text(encoding="utf-8")
    for wrong, right in STRAIGHT.items():
        text = text.replace(wrong, right)
    seam = re.escape(END) if END in text else r"(?<!\n)\n(?!\n)|\n+(?=Once )"
    stories = (re.sub(r"\s*\n\s*", "\n", piece.strip()) for piece in re.split(seam, text))
    return [story for story in stories if len(story) >= 200 and story.isascii()]


def leave_out(stories: list[str], held_out: list[str]) -> list[str]:
    """Each story once, without those that share a paragraph with the ones held out."""
    seen = {line for story in held_out for line in story.split("\n") if len(line) > 50}
    return [story for story in dict.fromkeys(stories) if seen.isdisjoint(story.split("\n"))]


def train_tokenizer(stories: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[END], initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(stories, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return tokenizer


def pack(stories: Sequence[list[int]]) -> Tensor:
    """Whole stories in rows of CONTEXT + 1, the end of one the beginning of the next; zeros fill them up."""
    rows, row = [], [0]
    for story in stories:
        if len(row) + len(story) > CONTEXT + 1:
            rows.append(row)
            row = [0]
        row = [*row, *story, 0][: CONTEXT + 1]
    rows.append(row)
    return torch.tensor([row + [0] * (CONTEXT + 1 - len(row)) for row in rows])


def shifted(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs, and what follows each; -100 where a row is only filled up."""
    inputs, targets = rows[:, :-1], rows[:, 1:]
    return inputs, torch.where((inputs == 0) & (targets == 0), -100, targets)


def ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in -1, 0, 1 and their scale, the mean magnitude."""
    scale = weight.abs().mean().clamp(min=1e-5)
    return (weight / scale).round().clamp(-1, 1), scale


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * turns[0] - second * turns[1], second * turns[0] + first * turns[1]), -1)


class Projection(nn.Linear):
    """Ternary weights with one scale, times int8 activations with one scale a token; or plain floats."""

    scale: Tensor | None

    def __init__(self, inputs: int, outputs: int, is_ternary: bool) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.is_ternary = is_ternary
        self.register_buffer("scale", None, persistent=False)  # set where `weight` holds codes

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_ternary:
            return F.linear(x, self.weight).float()
        steps = 127 / x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
        x = x * steps
        codes, scale = ternary(self.weight.detach()) if self.scale is None else (self.weight, self.scale)
        if self.scale is None:  # gradients pass through the rounding
            codes = self.weight / scale + (codes - self.weight / scale).detach()
        # Both factors are small whole numbers, which bfloat16 holds exactly.
        return F.linear(x + (x.round() - x).detach(), codes) * (scale / steps)


class Attention(nn.Module):
    def __init__(self, is_ternary: bool) -> None:
        super().__init__()
        self.q_proj = Projection(HIDDEN, HIDDEN, is_ternary)
        self.k_proj = Projection(HIDDEN, KV_HEADS * HEAD, is_ternary)
        self.v_proj = Projection(HIDDEN, KV_HEADS * HEAD, is_ternary)
        self.o_proj = Projection(HIDDEN, HIDDEN, is_ternary)
        self.attn_sub_norm = nn.RMSNorm(HIDDEN, EPS)

    def forward(self, x: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (rotate(k, turns), v))
        mixed = F.scaled_dot_product_attention(rotate(q, turns), k, v, mask).float()
        out: Tensor = self.o_proj(self.attn_sub_norm(mixed.transpose(1, 2).flatten(2)))
        return out


class FeedForward(nn.Module):
    def __init__(self, is_ternary: bool) -> None:
        super().__init__()
        self.gate_proj = Projection(HIDDEN, FFN, is_ternary)
        self.up_proj = Projection(HIDDEN, FFN, is_ternary)
        self.down_proj = Projection(FFN, HIDDEN, is_ternary)
        self.ffn_sub_norm = nn.RMSNorm(FFN, EPS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.ffn_sub_norm(F.relu(self.gate_proj(x)).square() * self.up_proj(x)))
        return out


class Layer(nn.Module):
    def __init__(self, is_ternary: bool, dropout: float) -> None:
        super().__init__()
        self.self_attn, self.input_layernorm = Attention(is_ternary), nn.RMSNorm(HIDDEN, EPS)
        self.mlp, self.post_attention_layernorm = FeedForward(is_ternary), nn.RMSNorm(HIDDEN, EPS)
        self.dropout = dropout

    def forward(self, x: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), turns, mask), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, self.training)


class Decoder(nn.Module):
    turns: Tensor

    def __init__(self, is_ternary: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed_tokens, self.dropout = nn.Embedding(VOCAB, HIDDEN), dropout
        self.layers = nn.ModuleList(Layer(is_ternary, dropout) for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, EPS)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                into_stream = "o_proj" in name or "down_proj" in name
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * LAYERS) if into_stream else 0.02)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)
        angles = torch.outer(torch.arange(CONTEXT), THETA ** -(torch.arange(0, HEAD, 2) / HEAD))
        self.register_buffer("turns", torch.stack((angles.cos(), angles.sin())), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        story = (tokens == 0).cumsum(1)  # a token sees its own story alone
        mask = (story[:, :, None] == story[:, None, :]).tril()[:, None]
        x = F.dropout(self.embed_tokens(tokens), self.dropout, self.training)
        for layer in self.layers:
            x = layer(x, self.turns[:, : tokens.shape[1]], mask)
        return F.linear(self.norm(x), self.embed_tokens.weight).float()


@torch.no_grad()
def evaluate(model: Callable[[Tensor], Tensor], rows: Tensor) -> float:
    """Nats a token."""
    total = 0.0
    for at in range(0, len(rows), 32):
        inputs, targets = shifted(rows[at : at + 32])
        total += F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum").item()
    return total / int((shifted(rows)[1] >= 0).sum())


def loss_of(logits: Tensor, inputs: Tensor, targets: Tensor, teachers: list[Decoder]) -> Tensor:
    """How far off the next tokens, or what the teachers expect on average."""
    if not teachers:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    with torch.no_grad():
        expected = torch.stack([teacher(inputs).softmax(-1) for teacher in teachers]).mean(0)
    return -(expected * logits.log_softmax(-1)).sum(-1)[targets >= 0].mean()


def batches(stories: list[list[int]], rows: int, seed: int) -> Iterator[Tensor]:
    """Endless: all stories in an order of their own each time."""
    rng = np.random.default_rng(seed)
    while True:
        packed = pack([stories[i] for i in rng.permutation(len(stories))])
        yield from (packed[at : at + rows] for at in range(0, len(packed) - rows + 1, rows))


def fit(recipe: Recipe, stories: list[list[int]], held_out: Tensor, minutes: float, teachers: list[Decoder]) -> Decoder:
    """The masters where they did best on the stories held out: a ternary model, or without teachers a float one."""
    torch.manual_seed(recipe.seed)
    device = held_out.device.type
    model = Decoder(bool(teachers), recipe.dropout).to(device)
    model.compile(disable=device == "cpu")
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.ndim == n]} for n in (2, 1)]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    half = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    steps = recipe.epochs * (len(pack(stories)) // recipe.rows)
    best, kept, checks, began = math.inf, model.state_dict(), 0, 0.0
    for step, rows in enumerate(batches(stories, recipe.rows, recipe.seed)):
        began = time.monotonic() if step < 2 else began  # the first step compiles
        done = min(1.0, max(step / steps, (time.monotonic() - began) / (60 * minutes)))
        if done * CHECKS >= checks + 1:
            checks, paused = int(done * CHECKS), time.monotonic()
            with half:
                loss = evaluate(model.eval(), held_out)
            say("  step %d, %.0f%%: %.4f nats a token held out", step, 100 * done, loss)
            if loss < best:
                best, kept = loss, {name: weight.clone() for name, weight in model.state_dict().items()}
            began += time.monotonic() - paused  # looking costs no training time
        if done == 1:
            break
        adam.param_groups[0]["weight_decay"] = recipe.decay if done < 0.5 else 0.0
        for group in adam.param_groups:
            group["lr"] = recipe.peak * min(done / WARMUP, 1 - done)
        inputs, targets = shifted(rows.to(device))
        with half:
            distance = loss_of(model.train()(inputs), inputs, targets, teachers)
        distance.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
    model.load_state_dict(kept)
    return model.eval()


def publish(model: Decoder, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder as microsoft/bitnet-b1.58-2B-4T is laid out: packed codes, scales that multiply, bfloat16."""
    tensors = {}
    for name, weight in model.cpu().state_dict().items():
        tensors[f"model.{name}"] = weight.bfloat16()
        if "_proj" in name:
            codes, scale = ternary(weight)
            packed = TernaryTensor.from_codes(codes.numpy().astype(np.int8), layout="hf_rows")
            tensors[f"model.{name}"] = torch.from_numpy(packed.data)
            tensors[f"model.{name}_scale"] = scale.bfloat16().reshape(1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        (folder / name).write_bytes((HERE / name).read_bytes())


def read_back(folder: Path) -> Decoder:
    """The model of a published folder, in float32."""
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    model = Decoder().eval()
    for name, part in model.named_modules():
        if isinstance(part, Projection):
            part.scale = tensors.pop(f"{name}.weight_scale").float()
            data, shape = tensors[f"{name}.weight"].numpy(), (part.out_features, part.in_features)
            codes = TernaryTensor(data, np.ones((1, 1), np.float32), shape, "hf_rows").codes()
            tensors[f"{name}.weight"] = torch.from_numpy(codes)
    model.load_state_dict(tensors)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small ternary model on short stories.")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of stories to learn")
    parser.add_argument("--valid", type=Path, required=True, help="a file of stories to hold out")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--minutes", type=float, default=7.0, help="for training, compilation apart")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    held_out = read_stories(arguments.valid)
    stories = leave_out([story for path in arguments.data for story in read_stories(path)], held_out)
    tokenizer = train_tokenizer(stories)
    learned, checked = ([e.ids[1:] for e in tokenizer.encode_batch(some)] for some in (stories, held_out))
    rows = pack(checked).to(arguments.device)
    for part, some in (("learned", learned), ("held out", checked)):
        say("%d stories of %d tokens are %s", len(some), sum(map(len, some)), part)

    teachers: list[Decoder] = []
    for recipe in (*TEACHERS, STUDENT):
        say("%s", recipe)
        given = teachers if recipe is STUDENT else []
        teachers.append(fit(recipe, learned, rows, arguments.minutes * recipe.share, given))
    publish(teachers.pop(), tokenizer, arguments.out)

    packed = read_back(arguments.out)
    loss = evaluate(packed.to(arguments.device), rows)
    size = sum(len(tokenizer.decode(ids[:CONTEXT]).encode()) for ids in checked)
    bits = loss * int((shifted(rows)[1] >= 0).sum()) / math.log(2) / size
    say("packed: %.4f nats a token, perplexity %.3f, %.4f bits a byte", loss, math.exp(loss), bits)


if __name__ == "__main__":
    main()

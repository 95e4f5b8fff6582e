"""Make the model in stories/ with bitnet-training: clean the stories, train, and write the packed files with figures.

    python make_stories.py --data STORIES... --valid STORIES --out FOLDER [--twin] [--resume] [--set KEY=VALUE]

The stories are few, so models of the same shape with float weights learn them first, and the ternary model learns
what these expect on average: it overfits less. `--twin` teaches a float model in the same way, to compare. What is
held out is compared with what is learned, and stories that share a paragraph are left out.
"""

import argparse
import json
import logging
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import bitnet_core
from bitnet_core import BitNetError
from bitnet_core.formats import huggingface
from bitnet_core.tokenizer import Tokenizer
from bitnet_training import config, distributed, models
from bitnet_training.evaluate import Perplexity, torch_scorer
from bitnet_training.run import run

HERE = Path(__file__).parent
END = "<|endoftext|>"
STRAIGHT = {"â€œ": '"', "â€™": "'", "â€˜": "'", "â€": '"', "“": '"', "”": '"', "’": "'", "‘": "'", "–": "-", "—": "-"}
say = logging.getLogger("stories").info
SAMPLING = {"temperature": 0.8, "top_p": 0.9}


def read_stories(path: Path) -> list[str]:
    """Stories with a line a paragraph and straight quotes, also from copies decoded as cp1252 on their way."""
    text = path.read_text(encoding="utf-8")
    for wrong, right in STRAIGHT.items():
        text = text.replace(wrong, right)
    seam = re.escape(END) if END in text else r"(?<!\n)\n(?!\n)|\n+(?=Once )"
    stories = (re.sub(r"\s*\n\s*", "\n", piece.strip()) for piece in re.split(seam, text))
    return [story for story in stories if len(story) >= 200 and story.isascii()]


def write_stories(paths: list[Path], target: Path) -> str:
    """Each story once, as a line of JSON; gives the file's name."""
    stories = dict.fromkeys(story for path in paths for story in read_stories(path))
    target.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories), encoding="utf-8")
    return str(target)


def plan_runs(asked: argparse.Namespace) -> dict[Path, list[str]]:
    """The folder of each run, and what its config has otherwise than stories.toml."""
    learned = write_stories(asked.data, asked.out / "learned.jsonl")
    held_out = write_stories([asked.valid], asked.out / "held_out.jsonl")
    usual = [*asked.set, f"data.train={json.dumps([learned])}", f"data.valid={json.dumps([held_out])}"]
    unlike = tomllib.loads((HERE / "teachers.toml").read_text(encoding="utf-8"))
    float_ones = [f"{name}.{key}={json.dumps(value)}" for name, some in unlike.items() for key, value in some.items()]
    teachers = [asked.out / f"teacher-{seed}" for seed in range(1, asked.teachers + 1)]
    runs = {folder: [*float_ones, f"seed={seed}"] for seed, folder in enumerate(teachers, 1)}
    taught = ["method=distill", f"teacher.base={json.dumps([str(one / 'model') for one in teachers])}"]
    runs[asked.out / "ternary"] = ['export=["packed", "masters"]', *(taught if teachers else [])]
    if asked.twin:
        runs[asked.out / "float"] = ["model.ternary=false", *(taught if teachers else [])]
    first = next(iter(runs))  # whose vocabulary is everybody's
    known = f"tokenizer.path={first / 'tokenizer'}"
    return {
        folder: [*changes, *([] if folder == first else [known]), *usual, f"out={folder}"]
        for folder, changes in runs.items()
    }


def publish(ternary: Path, folder: Path) -> None:
    """The packed model with halves for floats, as the files beside the code have them."""
    huggingface.save(replace(bitnet_core.load(ternary), sampling=SAMPLING), folder, floats="bfloat16")


def measure(folder: Path, form: models.Form, stories: Sequence[str]) -> Perplexity:
    """How well a model expects stories, each from its own beginning and cut at the context's size; in float32."""
    model: Any = models.load(folder, form)
    model.to(distributed.choose("auto"))
    words = Tokenizer.from_folder(folder)
    if words is None:
        raise ValueError(f"{folder}: expected a tokenizer in the folder, got none")
    most = model.config.max_position_embeddings
    tokens = [words.encode(story, eos=True) for story in stories]
    said = torch_scorer(model)([ids[: most + 1] for ids in tokens])
    size = sum(len(words.decode(ids[1 : most + 1]).encode()) for ids in tokens)
    return Perplexity(sum(map(len, said)), size, -sum(float(row.astype(float).sum()) for row in said))


def say_results(out: Path, folders: Sequence[Path], stories: Sequence[str]) -> None:
    """A line for each model, as its card can quote it."""
    judged: list[tuple[str, Path, models.Form]] = [(one.name, one / "model", "float") for one in folders]
    at = folders.index(out / "ternary")
    judged[at : at + 1] = [
        ("ternary, masters", out / "ternary" / "masters", "masters"),
        ("packed", out / "model", "packed"),
    ]
    say("%d stories held out, each from its own beginning, cut at the context's size:", len(stories))
    for name, folder, form in judged:
        found = measure(folder, form, stories)
        said = (
            f"{found.loss:.4f} nats a token, perplexity {found.perplexity:.3f}, {found.bits_per_byte:.4f} bits a byte"
        )
        say("%-17s %s (%s tokens, %s bytes)", name, said, f"{found.tokens:,}", f"{found.text_bytes:,}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a small ternary model on short stories.")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of stories to learn")
    parser.add_argument("--valid", type=Path, required=True, help="a file of stories to hold out")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs, and of the model")
    parser.add_argument("--teachers", type=int, default=4, help="float models to learn from; 0: none")
    parser.add_argument("--twin", action="store_true", help="teach a float model in the same way, too")
    parser.add_argument("--resume", action="store_true", help="go on where a run was interrupted")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in schedule.steps=100")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)

    asked.out.mkdir(parents=True, exist_ok=True)
    try:
        runs = plan_runs(asked)
        for folder, changes in runs.items():
            if not folder.name.startswith(
                "teacher"
            ):  # which share what is compiled; torch compiles only so many variants
                torch.compiler.reset()
            if not run(config.load(HERE / "stories.toml", changes), resume=asked.resume).is_finished:
                return 1
        publish(asked.out / "ternary" / "model", asked.out / "model")
        say_results(asked.out, list(runs), read_stories(asked.valid))
    except (BitNetError, ValueError) as error:
        sys.stderr.write(f"bitnet: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

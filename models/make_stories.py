"""Make the model in stories/ with bitnet-training: clean the stories, train, and write the packed files with a card.

    python make_stories.py --data STORIES... --valid STORIES --out FOLDER [--teacher] [--set KEY=VALUE]

`--teacher` trains the float twin first, which then teaches the ternary model; what is held out is compared with what
is learned, and stories that share a paragraph are left out.
"""

import argparse
import json
import logging
import re
import sys
from pathlib import Path

from bitnet_core import BitNetError
from bitnet_training import config
from bitnet_training.run import run

HERE = Path(__file__).parent
END = "<|endoftext|>"
STRAIGHT = {"â€œ": '"', "â€™": "'", "â€˜": "'", "â€": '"', "“": '"', "”": '"', "’": "'", "‘": "'", "–": "-", "—": "-"}


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


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a small ternary model on short stories.")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of stories to learn")
    parser.add_argument("--valid", type=Path, required=True, help="a file of stories to hold out")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--teacher", action="store_true", help="learn from the float twin, which is trained first")
    parser.add_argument("--resume", action="store_true", help="go on where a run was interrupted")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in schedule.steps=100")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    asked.out.mkdir(parents=True, exist_ok=True)
    learned = write_stories(asked.data, asked.out / "learned.jsonl")
    held_out = write_stories([asked.valid], asked.out / "held_out.jsonl")
    usual = [*asked.set, f"data.train={json.dumps([learned])}", f"data.valid={json.dumps([held_out])}"]
    twin, ternary = asked.out / "float", asked.out / "ternary"
    taught = ["method=distill", f"teacher.base={twin / 'model'}", f"tokenizer.path={twin / 'tokenizer'}"]
    runs = [[f"out={ternary}", *(taught if asked.teacher else [])]]
    if asked.teacher:
        runs.insert(0, [f"out={twin}", "model.ternary=false"])
    try:
        for changes in runs:
            outcome = run(config.load(HERE / "stories.toml", [*usual, *changes]), resume=asked.resume)
            if not outcome.is_finished:
                return 1
    except (BitNetError, ValueError) as error:
        sys.stderr.write(f"bitnet: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

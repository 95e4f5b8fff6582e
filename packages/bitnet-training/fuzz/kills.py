"""Kill training runs at random moments until they end, and compare each with one that was never killed.

    python kills.py --kills 200 --seed 1

Runs are copies of this process, since the imports take longer than a run. What is compared: the files of the last
checkpoint, the model that is exported, and every line of the log but for times.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from bitnet_training import config as configs
from bitnet_training.config import Config
from bitnet_training.run import run

TIMES = {"tokens_per_second", "memory_gb"}
TEXT = "".join(
    f"The {number % 7}th of {number % 11} dogs likes {number % 13} cats, and {number} more.\n" for number in range(800)
)
CONFIG = Path(__file__).parents[1] / "tests" / "tiny_run.toml"
LONGER = ("schedule.steps=40", "checkpoints.every=3", "telemetry.watch=4", "telemetry.evaluate=5")


def main() -> int:
    """0 where every run ended as the one that was never killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))  # noqa: S311
    asked = parser.parse_args()
    dice = random.Random(asked.seed)  # noqa: S311
    say(f"seed {asked.seed}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        if attempt(config(folder, "whole"), None) != 0:
            return 1
        lasts = time.monotonic() - began
        expected = fingerprint(folder / "whole")
        for _ in range(2):  # the first makes the tokens, and waits for disks
            shutil.rmtree(folder / "whole")
            began = time.monotonic()
            attempt(config(folder, "whole"), None)
            lasts = min(lasts, time.monotonic() - began)
            if fingerprint(folder / "whole") != expected:
                say("two runs that were not killed differ")
                return 1
        kills = runs = 0
        while kills < asked.kills:
            runs += 1
            while (status := attempt(config(folder, "killed"), dice.uniform(0, lasts))) == -signal.SIGKILL:
                kills += 1
                if kills >= asked.kills:  # the last run ends in peace
                    status = attempt(config(folder, "killed"), None)
                    break
            found = fingerprint(folder / "killed") if status == 0 else {"status": str(status)}
            if found != expected:
                wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
                say(f"run {runs} differs after {kills} kills: {', '.join(wrong)}")
                return 1
            shutil.rmtree(folder / "killed")
    say(f"{kills} kills over {runs} runs: all ended as the run of {lasts:.1f} s that was never killed")
    return 0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def config(folder: Path, out: str) -> Config:
    """A run of a few seconds."""
    text = folder / "text.txt"
    if not text.exists():
        text.write_text(TEXT)
    changes = [f"out={folder / out}", f"data.train={json.dumps([str(text)])}", f"data.cache={folder / 'cache'}"]
    return configs.load(CONFIG, (*LONGER, *changes))


def attempt(asked: Config, moment: float | None) -> int:
    """Run in a copy of this process, which is killed after so many seconds; gives its exit status."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            logging.disable(logging.WARNING)
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
                run(asked, resume=True)
            status = 0
        finally:
            os._exit(status)
    if moment is not None:
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fingerprint(out: Path) -> dict[str, str]:
    """A hash of everything that a run leaves and that does not tell the time."""
    last = json.loads((out / "checkpoints" / "latest").read_text())["checkpoint"]
    files = [
        *(out / "checkpoints" / last).glob("*.safetensors"),
        *(path for path in out.rglob("*") if path.is_file() and "checkpoints" not in path.parts),
    ]
    found = {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}
    state = json.loads((out / "checkpoints" / last / "state.json").read_text())
    del state["about"]  # names the folder
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    log = [{name: value for name, value in event.items() if name not in TIMES} for event in events]
    for name, value in (("state.json", state), ("log.jsonl", log)):
        found[name] = hashlib.sha256(json.dumps(value).encode()).hexdigest()
    found["checkpoints"] = str(sorted(path.name for path in (out / "checkpoints").iterdir()))
    for name in ("model/README.md", "config.toml", "report.html"):  # these name the folder, or tell the time
        found.pop(name)
    return found


if __name__ == "__main__":
    sys.exit(main())

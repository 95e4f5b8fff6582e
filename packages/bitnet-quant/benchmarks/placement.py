"""How long a model of the 2B shape takes from files in the page cache to weights in the order of the kernels.

    python benchmarks/placement.py --folder FOLDER

Every figure is the median of processes that open and place once, on as many cores as it says, with the extremes.
Beside it: what this system asks for as much fresh memory, touched once by the same cores and not used, because a
virtual machine may give fresh memory more slowly than the weights are placed; and the most private memory that the
process took, over what was placed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bitnet_core
from bitnet_core.formats import gguf, huggingface
from bitnet_core.memory import Pool
from bitnet_quant.cpu import load

sys.path.insert(0, str(Path(__file__).parent))
from shapes import bitnet_2b, synthetic

FORMS = ("i2_s_128", "tq1_0", "tq2_0", "hf_rows")


def main() -> None:
    options = _parse()
    if options.once:
        print(json.dumps(_measure(options.folder, options.heads[0], options.cores[0])))
        return
    files = {form: _file(options.folder, form) for form in options.forms}
    for form, path in files.items():
        for head in options.heads:
            for cores in options.cores:
                command = [sys.executable, __file__, "--once", "--folder", str(path), "--heads", head, "--cores"]
                runs = [json.loads(subprocess.check_output([*command, str(cores)])) for _ in range(options.rounds)]
                print(f"{form}, head {head}, {cores} core{'s' if cores > 1 else ''}: {_line(runs)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the models are made, and kept: 4 GB")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--heads", nargs="+", default=["f16", "int8"])
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _file(folder: Path, form: str) -> Path:
    """The model in one form; made the first time."""
    path = folder / ("placed-hf_rows" if form == "hf_rows" else f"placed-{form}.gguf")
    if not path.exists():
        model = synthetic(bitnet_2b())
        if form == "hf_rows":
            huggingface.save(model, path, floats="float16")
        else:
            gguf.save(model, path, layout=form)
    return path


def _measure(path: Path, head: str, cores: int) -> dict[str, float]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        with file.open("rb") as stream:
            while stream.read(1 << 20):  # now it is in the page cache
                pass
    pool = Pool(name="placement")
    before = _private()
    with _Peak() as peak:
        begun = time.perf_counter()
        runner = load(bitnet_core.load(path), memory=pool, threads=cores, head=head)
        seconds = time.perf_counter() - begun
    placed = pool.stats().in_use
    fresh = _touch(placed, cores)
    runner.close()
    return {"seconds": seconds, "fresh": fresh, "placed": placed, "peak": (peak.most - before) / placed}


def _touch(nbytes: int, cores: int) -> float:
    """Seconds in which the system gives that much memory to so many threads."""
    pool = Pool(name="fresh")
    begun = time.perf_counter()
    parts = [pool.take(nbytes // cores, "u1") for _ in range(cores)]
    with ThreadPoolExecutor(cores) as crew:
        list(crew.map(lambda part: part.array[::4096].fill(1), parts))
    return time.perf_counter() - begun


class _Peak:
    """The most private memory while it is open."""

    def __enter__(self) -> _Peak:
        self.most = _private()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._ended.wait(0.002):
            self.most = max(self.most, _private())
        self.most = max(self.most, _private())


def _private() -> int:
    """Bytes that are resident and no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def _line(runs: list[dict[str, float]]) -> str:
    seconds, fresh = ([run[name] for run in runs] for name in ("seconds", "fresh"))
    return (
        f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}); fresh memory alone "
        f"{statistics.median(fresh):.2f} s ({min(fresh):.2f} to {max(fresh):.2f}); {runs[0]['placed'] / 1e6:.0f} MB "
        f"placed, at most {max(run['peak'] for run in runs):.2f} times that taken"
    )


if __name__ == "__main__":
    main()

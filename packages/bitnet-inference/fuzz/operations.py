"""Random operations on an engine: every page has the owners that it counts, and every text is right, after each.

python fuzz/operations.py --operations 50000
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_stateful import run

STEPS = 100  # operations of one engine's life, at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=50_000)
    options = parser.parse_args()
    logging.getLogger("bitnet_inference").setLevel(logging.CRITICAL)  # failures are made on purpose
    seen: dict[str, int] = {}
    begun, lives = time.monotonic(), 0
    while seen.get("operations", 0) < options.operations:
        for name, times in run(20, STEPS).items():
            seen[name] = seen.get(name, 0) + times
        lives += 20
        sys.stdout.write(f"{seen['operations']} operations, {lives} engines, {time.monotonic() - begun:.0f} s\n")
        sys.stdout.flush()
    lines = [f"{times:8d} {name}\n" for name, times in sorted(seen.items(), key=lambda item: -item[1])]
    found = {
        "operations": seen.get("operations", 0),
        "engines": lives,
        "seconds": time.monotonic() - begun,
        "seen": seen,
    }
    sys.stdout.write("".join(lines) + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

"""Prints what a conversion takes: `python conversion.py MODEL TARGET [--layout LAYOUT] [--lossy] [--replace]`.

The last line is JSON: seconds, the peak of resident memory, and the digest of all trits before and after.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys

from bitnet_quant.conversion import Progress, convert


def main() -> None:
    parser = argparse.ArgumentParser(description="What a conversion takes.")
    parser.add_argument("model")
    parser.add_argument("target")
    parser.add_argument("--layout")
    parser.add_argument("--lossy", action="store_true")
    parser.add_argument("--replace", action="store_true")
    parser.add_argument("--i2s-group", type=int, choices=(64, 128), help="of an I2_S file; 64 where ARM wrote it")
    asked = parser.parse_args()
    options = {"i2_s_group": asked.i2s_group} if asked.i2s_group else {}
    done = convert(
        asked.model,
        asked.target,
        layout=asked.layout,
        lossy=asked.lossy,
        replace=asked.replace,
        progress=show if sys.stderr.isatty() else None,
        **options,
    )
    figures = {
        "layout": done.layout,
        "seconds": round(done.seconds, 2),
        "peak_rss_mb": round(peak_bytes() / 1e6),
        "written_mb": round(done.nbytes / 1e6, 1),
        "rounded": len(done.rounded),
        "before": done.before,
        "after": done.after,
    }
    print(f"{done.weights} weights as {done.layout} in {done.seconds:.1f} s, peak {figures['peak_rss_mb']} MB")
    print(f"trits before {done.before}\ntrits after  {done.after}")
    print(json.dumps(figures))


def peak_bytes() -> int:
    """The most memory that this process ever had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def show(progress: Progress) -> None:
    print(f"\r{progress.stage} {progress.done}/{progress.total} {progress.weight:40}", end="", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Runs a fuzz target: under atheris where it is installed, otherwise with plain random mutations of the seeds.

    python fuzz/fuzz_gguf.py --seconds 60 [--engine atheris|random] [--seed 0]

A target takes bytes, and may raise BitNetError; anything else is a finding, and ends with exit code 1. Each
finding is printed as hexadecimal, ready to become a test.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import random
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

Target = Callable[[bytes], object]
_EXTREMES = (0, 1, 2, 3, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
_FINDINGS = 10  # enough to stop at


def imports() -> AbstractContextManager[Any]:
    """Wraps the imports of what is tested, so that atheris sees which lines run."""
    if _engine(sys.argv[1:]) != "atheris":
        return nullcontext()
    import atheris  # noqa: PLC0415

    found: AbstractContextManager[Any] = atheris.instrument_imports(include=["bitnet_core"])
    return found


def run(name: str, target: Target, seeds: Sequence[bytes], argv: Sequence[str]) -> None:
    """Try `target` for as long as `argv` says, and exit."""
    options = _options(name, argv)
    refusals = _refusals()
    logging.disable(logging.CRITICAL)  # a warning for each run would be all that is seen

    def allowed(data: bytes) -> None:
        try:
            target(data)
        except refusals:
            return

    if options.engine == "atheris":
        _run_atheris(allowed, seeds, options)
    sys.exit(1 if _run_random(name, allowed, seeds, options) else 0)


def _options(name: str, argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--engine", choices=("atheris", "random"), default=_engine(argv))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def _engine(argv: Sequence[str]) -> str:
    if "random" in argv or importlib.util.find_spec("atheris") is None:
        return "random"
    return "atheris"


def _refusals() -> type[Exception]:
    from bitnet_core.errors import BitNetError  # noqa: PLC0415  # after `imports` could wrap it

    return BitNetError


def _run_atheris(target: Target, seeds: Sequence[bytes], options: argparse.Namespace) -> None:
    """Guided by coverage; ends the process, with another code than 0 on the first finding."""
    import atheris  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        for index, seed in enumerate(seeds):
            (Path(folder) / f"seed{index}").write_bytes(seed)
        flags = [
            f"-max_total_time={int(options.seconds)}",
            f"-seed={options.seed or 1}",
            "-timeout=5",
            "-rss_limit_mb=1024",
        ]
        atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={tempfile.gettempdir()}/", folder], target)
        atheris.Fuzz()


def _run_random(name: str, target: Target, seeds: Sequence[bytes], options: argparse.Namespace) -> int:
    """The number of findings."""
    chance = random.Random(options.seed)  # noqa: S311
    begin = time.monotonic()
    runs, slowest, findings = 0, 0.0, set[str]()
    while time.monotonic() - begin < options.seconds and len(findings) < _FINDINGS:
        data = _mutated(chance, seeds)
        start = time.perf_counter()
        try:
            target(data)
        except Exception as error:  # noqa: BLE001  # whatever comes is a finding
            place = traceback.extract_tb(error.__traceback__)[-1]
            finding = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
            if finding not in findings:
                findings.add(finding)
                sys.stdout.write(f"{finding}: {error}\n{data.hex()}\n")
        slowest = max(slowest, time.perf_counter() - start)
        runs += 1
    seconds = time.monotonic() - begin
    sys.stdout.write(
        f"{name}: {runs} runs in {seconds:.1f} s, {runs / seconds:.0f} a second, slowest {slowest * 1000:.0f} ms, "
        f"{len(findings)} findings (seed {options.seed})\n"
    )
    return len(findings)


def _mutated(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5, 8))):
        chance.choice(_MUTATIONS)(chance, data, seeds)
    return bytes(data)


def _place(chance: random.Random, data: bytearray) -> int:
    # Headers stand in front: half of the damage goes there.
    end = len(data) if chance.random() < 0.5 else min(len(data), 512)
    return chance.randrange(max(end, 1))


def _flip(chance: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[_place(chance, data)] ^= 1 << chance.randrange(8)


def _set_byte(chance: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[_place(chance, data)] = chance.choice((0, 1, 7, 9, 127, 128, 255, chance.randrange(256)))


def _set_number(chance: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    number, at = chance.choice(_EXTREMES) + chance.randrange(-2, 3), _place(chance, data)
    raw = struct.pack("<Q", number % 2**64)[: chance.choice((2, 4, 8))]
    data[at : at + len(raw)] = raw


def _cut(chance: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_place(chance, data) :]


def _remove(chance: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(chance, data)
    del data[at : at + chance.randrange(1, 33)]


def _repeat(chance: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(chance, data)
    data[at:at] = data[at : at + chance.randrange(1, 65)] * chance.choice((1, 1, 2, 50))


def _splice(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = chance.choice(seeds)
    data[_place(chance, data) :] = other[chance.randrange(max(len(other), 1)) :]


_MUTATIONS = (_flip, _set_byte, _set_byte, _set_number, _set_number, _cut, _remove, _repeat, _splice)

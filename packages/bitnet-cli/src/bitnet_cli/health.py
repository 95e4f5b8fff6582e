"""What `bitnet doctor` looks at: each check says what it found, and what would help."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .amounts import size

_PACKAGES = ("core", "quant", "inference", "benchmarks", "cli")
_WIDE_SETS = ("avx512vnni", "avx512_vnni", "avxvnni", "avx_vnni", "i8mm", "dotprod", "avx2")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `fine` is None for what is worth knowing and no fault."""

    what: str
    fine: bool | None
    said: str
    advice: str | None = None


def checks(*, measure: bool = True, online: bool = False) -> Iterator[Check]:
    """All checks, the machine's first."""
    yield from _machine(measure)
    yield from _packages()
    yield from _backends()
    yield from _cache()
    yield from _settings()
    yield _network(online)


def _machine(measure: bool) -> Iterator[Check]:
    from bitnet_core import device, memory  # noqa: PLC0415

    machine = device.describe()
    cpu = machine.cpu
    yield Check("system", sys.version_info >= (3, 11), f"{machine.system}, Python {sys.version.split()[0]}")
    wide = next((name for name in _WIDE_SETS if name in cpu.instruction_sets), None)
    slow = None if wide else "no vector instructions that kernels know: expect little speed"
    name = f"{cpu.name or cpu.architecture}, {cpu.usable_cores} usable cores, {wide or 'plain'}"
    yield Check("processor", bool(wide), name, slow)
    if cpu.logical_cores and cpu.usable_cores < cpu.logical_cores:
        said = f"{cpu.usable_cores} of {cpu.logical_cores} logical cores may be used"
        yield Check("cores", None, said, "affinity or a container's quota keeps the others away")
    state = memory.pressure()
    fine = {"none": True, "some": None, "critical": False}[state.level]
    advice = None if state.level == "none" else "end other programs, or run a smaller model"
    yield Check("memory", fine, f"{size(state.available)} free of {size(state.limit)}", advice)
    for gpu in machine.gpus:
        yield Check("graphics", None, f"{gpu.name}, {size(gpu.memory)}, driver {gpu.driver or 'unknown'}")
    if measure:
        read = device.bandwidth(threads=cpu.usable_cores, passes=3)
        said = f"{read.median / 1e9:.1f} GB/s read by {read.threads} threads"
        yield Check("bandwidth", read.median > 4e9 or None, said, None if read.median > 4e9 else "the machine is busy")


def _packages() -> Iterator[Check]:
    found, lost = {}, []
    for name in (f"bitnet-{short}" for short in _PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lost.append(name)
    alike = len(set(found.values())) == 1
    short = ", ".join(name.removeprefix("bitnet-") for name in found)
    each = ", ".join(f"{name} {version}" for name, version in found.items())
    said = f"bitnet {next(iter(found.values()))}: {short}" if alike else each
    old = {".".join(version.split(".")[:2]) for version in found.values()}
    advice = f"not installed by pip: {', '.join(lost)}" if lost else None
    yield Check("packages", None if lost else len(old) == 1, said or "none of ours", advice)


def _backends() -> Iterator[Check]:
    import bitnet_core  # noqa: PLC0415

    reasons = bitnet_core.backends.available()
    for name, why in reasons.items():
        usual = name in ("cpu", "numpy")
        yield Check(f"backend {name}", True if why is None else False if usual else None, why or "can run here")
    chosen = bitnet_core.backends.get()
    apart = _difference(chosen)
    wrong = None if apart < 0.02 else "its kernels compute something else: --backend numpy is slow and right"
    yield Check(
        "answers", apart < 0.02, f"{chosen.name} is the reference within {apart:.1e} of its logits' spread", wrong
    )
    if chosen.name == "numpy":
        yield Check("speed", None, "only the reference can run: it is exact and slow", reasons.get("cpu"))


def _difference(backend: Any) -> float:
    """The largest difference of a small model's logits to the reference's."""
    import numpy as np  # noqa: PLC0415

    from bitnet_core import Step, reference  # noqa: PLC0415
    from bitnet_core.testing import CASES  # noqa: PLC0415

    model = CASES[0].model()
    tokens = np.arange(24, dtype=np.int32)
    both = []
    for one in (reference.BACKEND, backend):
        runner = one.load(model)
        (logits,) = runner.forward([Step(tokens, runner.new_cache(), "all")])
        both.append(np.asarray(logits, np.float64))
        runner.close()
    return float(np.abs(both[0] - both[1]).max() / np.ptp(both[0]))


def _cache() -> Iterator[Check]:
    from bitnet_core import BitNetError, hub  # noqa: PLC0415

    try:
        usage = hub.disk_usage()
    except (BitNetError, OSError) as error:
        yield Check("cache", False, str(error), "set HF_HUB_CACHE to a folder of yours")
        return
    place = next(path for path in (usage.path, *usage.path.parents) if path.exists())
    writable = os.access(place, os.W_OK)
    said = f"{usage.path}: {size(usage.used)} used, {size(usage.free)} free"
    advice = None if writable else "models cannot be fetched: set HF_HUB_CACHE to a folder of yours"
    yield Check("cache", writable or None, said, advice)
    if usage.free < 4 << 30:
        yield Check("disk", None, f"{size(usage.free)} free", "bitnet rm --unused-for 30d makes room")
    if usage.unfinished:
        yield Check("downloads", None, f"{size(usage.unfinished)} are unfinished", "bitnet rm --leftovers removes them")
    temporary = Path(tempfile.gettempdir())
    free = shutil.disk_usage(temporary).free
    yield Check("temporary", free > 64 << 20 or None, f"{temporary}: {size(free)} free")


def _settings() -> Iterator[Check]:
    from .settings import default_file  # noqa: PLC0415

    path = default_file()
    if path is not None and path.is_file():
        yield Check("settings", None, str(path))
    ours = sorted(name for name in os.environ if name.startswith("BITNET_"))
    if ours:
        yield Check("variables", None, ", ".join(ours))


def _network(online: bool) -> Check:
    from bitnet_core import BitNetError, hub  # noqa: PLC0415
    from bitnet_core.hub.transfer import is_offline  # noqa: PLC0415

    if is_offline():
        return Check("hub", None, "the network is off (BITNET_OFFLINE or HF_HUB_OFFLINE)")
    if not online:
        return Check("hub", None, "not asked; --online does")
    try:
        hub.search("bitnet", limit=1)
    except BitNetError as error:
        return Check("hub", False, str(error), "models on this machine still run")
    return Check("hub", True, "answers")

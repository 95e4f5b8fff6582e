"""`bitnet bench machine`: the ceilings that every other figure is held to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ... import amounts, models
from ...amounts import Counts
from ...console import FLAGS, Flags, pairs, table
from ...failures import Refused
from .kept import KEEPING, Keeping

if TYPE_CHECKING:
    from bitnet_benchmarks.machine import Ceilings


def machine(
    *,
    threads: Annotated[Counts, Parameter(name=["--threads", "-t"])] = (),
    backend: str = "auto",
    keeping: Keeping = KEEPING,
    flags: Flags = FLAGS,
) -> None:
    """The ceilings: bandwidth of memory, multiplications of int8 by trits, caches; measured now.

    Parameters
    ----------
    threads
        How many threads, as 1,2,4; one and all by default.
    backend
        What multiplies.
    """
    if any(count > 1024 for count in threads):
        raise Refused("--threads: expected at most 1024")
    keeping.check()
    from bitnet_benchmarks import machine as machines  # noqa: PLC0415
    from bitnet_benchmarks import record  # noqa: PLC0415

    models.backend(backend)
    flags.remark("measuring, for a second or two")
    found = machines.measure(threads, backend=backend)
    made = record.make("machine", found, threads=threads, backend=backend)
    keeping.keep(made, flags)
    flags.answer(made.figures[0], *_shown(found))


def _shown(found: Ceilings) -> list[Any]:
    cpu = found.machine.cpu
    said = {
        "processor": cpu.name or cpu.architecture,
        "cores": f"{cpu.usable_cores} usable, {cpu.physical_cores or '?'} physical, {cpu.logical_cores or '?'} logical",
        "instructions": ", ".join(sorted(cpu.instruction_sets)),
        "memory": amounts.size(found.machine.memory),
    }
    read = table("reading memory", "GB/s", "spread", numbers=(1, 2))
    for one in found.bandwidth:
        spread = f"{one.lowest / 1e9:.1f} to {one.highest / 1e9:.1f}"
        read.add_row(_threads(one.threads), f"{one.median / 1e9:.1f}", spread)
    for kept in found.caches:
        if speed := kept.bandwidth:
            name = f"level {kept.cache.level} cache, {amounts.size(kept.cache.size)}"
            read.add_row(name, f"{speed.median / 1e9:.1f}", f"{speed.lowest / 1e9:.1f} to {speed.highest / 1e9:.1f}")
    multiplied = table("int8 by trits", "G/s", "spread", numbers=(1, 2))
    for rate in found.throughput:
        spread = f"{rate.lowest / 1e9:.0f} to {rate.highest / 1e9:.0f}"
        multiplied.add_row(f"{rate.backend}, {_threads(rate.threads)}", f"{rate.median / 1e9:.0f}", spread)
    return [pairs(said), "", read, "", multiplied]


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"

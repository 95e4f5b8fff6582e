"""`bitnet bench kernels`: conformance cases on every instruction set."""

from __future__ import annotations

from ... import models
from ...console import FLAGS, Flags, table
from .kept import KEEPING, Keeping


def kernels(
    *,
    backend: str = "auto",
    case: tuple[str, ...] = (),
    keeping: Keeping = KEEPING,
    flags: Flags = FLAGS,
) -> None:
    """Conformance cases on every instruction set, and what each set reaches on a wide layer.

    Parameters
    ----------
    backend
        Whose kernels.
    case
        Only these cases.
    """
    keeping.check()
    from bitnet_benchmarks import kernels as measured  # noqa: PLC0415
    from bitnet_benchmarks import record  # noqa: PLC0415
    from bitnet_core.testing import CASES  # noqa: PLC0415

    known = [one.name for one in CASES]
    if lost := [name for name in case if name not in known]:
        raise ValueError(f"--case: expected some of {', '.join(known)}, got {lost[0]!r}")
    cases = [one for one in CASES if not case or one.name in case]
    with flags.progress("kernels") as tell:
        found = measured.measure(models.backend(backend), cases=cases, progress=tell)
    made = record.make("kernels", found, backend=backend, cases=case)
    keeping.keep(made, flags)
    sets = [one.isa for one in found.wide]
    shown = table("us a token", *sets, "difference", numbers=tuple(range(1, len(sets) + 2)))
    for one in cases:
        rows = [figure for figure in found.cases if figure.case == one.name]
        worst = max(figure.difference for figure in rows)
        shown.add_row(one.name, *(f"{figure.decode_us:.1f}" for figure in rows), f"{worst:.1e}")
    wide = table("wide layer", "G/s", "of the best", "GB/s read", "of what is read", numbers=(1, 2, 3, 4))
    for rate in found.wide:
        wide.add_row(
            rate.isa,
            f"{rate.multiplications_per_s / 1e9:.1f}",
            f"{rate.throughput_share:.0%}",
            f"{rate.bytes_per_s / 1e9:.1f}",
            f"{rate.bandwidth_share:.0%}",
        )
    flags.answer(made.figures[0], shown, "", wide)

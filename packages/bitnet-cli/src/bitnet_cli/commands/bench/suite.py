"""`bitnet bench suite`: run what a TOML file lists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ...console import FLAGS, Flags
from .kept import KEEPING, Keeping, history, write


def suite(
    file: Annotated[Path, Parameter(help="Tables [[machine]], [[kernels]], [[generate]], [[serve]] and [[quality]].")],
    *,
    keeping: Keeping = KEEPING,
    flags: Flags = FLAGS,
) -> None:
    """Run what a TOML file lists: a record for each table."""
    keeping.check()
    from bitnet_benchmarks import report, suites  # noqa: PLC0415

    listed = suites.load(file)
    records = []
    with flags.progress("suite") as tell:
        for record in suites.run(listed, progress=tell):
            records.append(record)
            if keeping.save:
                history(keeping.base).add(record)
    write(records, keeping.output)
    flags.answer(records, report.markdown(records))

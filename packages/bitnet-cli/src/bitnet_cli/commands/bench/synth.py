"""`bitnet bench synth`: a model of a real shape with random trits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ... import amounts
from ...amounts import Count
from ...console import FLAGS, Flags, pairs
from ...failures import Refused


def synth(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    shape: Literal["tiny", "700m", "2b4t", "falcon3-1b", "llama3-8b"] = "2b4t",
    layout: Literal["i2_s_128", "i2_s_64", "tq1_0", "tq2_0", "q2_0_64", "q2_0_128"] = "i2_s_128",
    layers: Count | None = None,
    embedding: Literal["f16", "bf16", "f32", "q6_k"] = "f16",
    seed: int = 0,
    force: Annotated[bool, Parameter(name=["--force", "-f"])] = False,
    flags: Flags = FLAGS,
) -> None:
    """Write a model of a real shape with random trits: it says nothing, and costs what the real one costs.

    Parameters
    ----------
    output
        The file, which ends in .gguf.
    shape
        Whose sizes.
    layout
        bitnet.cpp loads i2_s_*, llama.cpp tq1_0, tq2_0 and q2_0_64.
    layers
        How many layers, if not all.
    embedding
        The type of embedding and head; llama.cpp's own files mostly have q6_k.
    seed
        Of the random numbers.
    force
        Write over a file that is there.
    """
    if output.suffix != ".gguf":
        raise Refused(f"--output: expected a name that ends in .gguf, got {output}")
    if output.exists() and not force:
        raise Refused(f"{output}: is there already; --force writes over it")
    if layers is not None and layers > 200:
        raise Refused(f"--layers: expected at most 200, got {layers}")
    if seed < 0:
        raise Refused(f"--seed: expected 0 or more, got {seed}")
    from bitnet_benchmarks import synth as making  # noqa: PLC0415

    flags.remark("making random trits")
    made = making.write(output, shape=shape, layout=layout, layers=layers, embedding=embedding, seed=seed)
    said = {
        "file": made.path,
        "architecture": made.architecture,
        "parameters": amounts.amount(made.parameters),
        "size": amounts.size(made.nbytes),
    }
    flags.answer(made, pairs(said))

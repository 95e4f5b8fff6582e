"""`bitnet quantize`: make a model ternary by a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from .. import models
from ..amounts import Count
from ..console import FLAGS, Flags
from ..failures import Refused
from ..models import ModelName, Window, Windows
from .convert import Layout, answer, full_name, telling

if TYPE_CHECKING:
    from bitnet_core import Model
    from bitnet_quant import Recipe


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Ways:
    """How weights become ternary, where no recipe says it."""

    method: Literal["absmean", "threshold", "optimal", "exact"] = "absmean"
    """How floats become -1, 0 and 1: absmean is BitNet's own, optimal has the least squared error."""
    scales: Literal["tensor", "row", "block"] = "tensor"
    """What shares a scale."""
    block: Count | None = None
    """Columns that share one, with --scales block."""
    compensate: bool = False
    """Let later columns take up the errors of earlier ones, on the text of --calibrate."""
    budget: float | None = None
    """Bits a weight on average: search which weights become ternary, int4, int8 or stay."""

    def check(self, recipe: Path | None, calibrate: str | None) -> None:
        """Refuse what does not go together."""
        if recipe is not None and (self.budget is not None or self.compensate or self.block is not None):
            raise Refused("--recipe says all: --budget, --compensate and --block do not go with it")
        if (self.scales == "block") != (self.block is not None):
            raise Refused("--block N goes with --scales block, and only with it")
        if self.budget is not None and not 1 <= self.budget <= 16:
            raise Refused(f"--budget: expected 1 to 16 bits a weight, got {self.budget}")
        if (self.compensate or self.budget is not None) and calibrate is None:
            raise Refused("--compensate and --budget need a text: --calibrate FILE")


WAYS = Ways()


def quantize(  # noqa: PLR0913  # each is a flag
    source: ModelName,
    target: Annotated[Path, Parameter(help="A file that ends in .gguf, or a folder for Hugging Face's form.")],
    *,
    ways: Ways = WAYS,
    recipe: Path | None = None,
    calibrate: str | None = None,
    windows: Windows = 32,
    window: Window = 256,
    save_recipe: Path | None = None,
    to: Annotated[Layout | None, Parameter(name=["--to", "-t"])] = None,
    force: Annotated[bool, Parameter(name=["--force", "-f"])] = False,
    flags: Flags = FLAGS,
) -> None:
    """Make a model ternary: all projections by one method, by a recipe, or by the best recipe under a budget.

    Parameters
    ----------
    recipe
        A TOML file of rules, instead of one method.
    calibrate
        A text to calibrate on.
    save_recipe
        Write the recipe that was used.
    to
        The layout of what is written.
    force
        Write over what is there.
    """
    ways.check(recipe, calibrate)
    import bitnet_quant  # noqa: PLC0415

    found = models.load(source, flags)
    texts = models.windows(found, calibrate, window, windows)
    chosen = _recipe(found, recipe, ways, texts)
    with flags.progress("quantizing") as tell:
        # What becomes ternary is rounded by intention; embeddings at 16 bits are what every reader has.
        done = bitnet_quant.convert(
            found,
            target,
            layout=full_name(to),
            recipe=chosen,
            windows=texts,
            lossy=True,
            replace=force,
            progress=telling(tell),
        )
    if save_recipe is not None:
        chosen.save(save_recipe)
    answer(flags, done)


def _recipe(found: Model, file: Path | None, ways: Ways, texts: list[Any]) -> Recipe:
    from bitnet_quant import Method, Recipe, Rule, sensitivity  # noqa: PLC0415
    from bitnet_quant import recipe as recipes  # noqa: PLC0415

    if file is not None:
        return recipes.load(file)
    method = Method(ways.method, ways.scales, ways.block or 0)
    if ways.budget is not None:
        harm = sensitivity.measure(found, texts, method=method)
        return recipes.search(found, ways.budget, harm, method=method, compensate=ways.compensate)
    return Recipe((Rule("layers.*", "ternary", method, ways.compensate),))

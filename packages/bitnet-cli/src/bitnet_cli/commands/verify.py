"""`bitnet verify`: look a model over for damage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import amounts, models
from ..console import FLAGS, Flags, mark, pairs
from ..failures import FAILED
from ..models import ModelName

if TYPE_CHECKING:
    from bitnet_quant.verification import Verification


def verify(
    model: ModelName,
    *,
    against: str | None = None,
    backend: str | None = None,
    text: str | None = None,
    all_weights: bool = False,
    flags: Flags = FLAGS,
) -> int:
    """Look a model over for damage; exit code 1 if there is any.

    Parameters
    ----------
    against
        Another form of the same model, whose trits must be the same.
    backend
        A backend whose answers to a prompt are compared with the reference's.
    text
        The prompt, ordinary text; by default a story.
    all_weights
        The counts of every weight.
    """
    import bitnet_quant  # noqa: PLC0415

    chosen = None if backend is None else models.backend(backend)
    path = models.find(model, flags)
    flags.remark(f"reading all of {path}")
    damage = _damage(path)
    found = bitnet_quant.verify(path, backend=chosen, text=text)
    problems = [*damage, *found.problems]
    own = bitnet_quant.digest(models.load(str(path), flags))
    other = None
    if against is not None:
        other = bitnet_quant.digest(models.load(against, flags))
        if other != own:
            problems.append(f"its trits are not those of {against}")
    record = {"path": path, "digest": own, "against": other, "problems": problems, "verification": found}
    shown = [found.table()] if all_weights else []
    flags.answer(record, *shown, pairs(_lines(found, own, against, other)), *[mark(False, one) for one in problems])
    return FAILED if problems else 0


def _damage(path: Any) -> list[str]:
    """What reading every tensor of a GGUF file finds."""
    from bitnet_core.formats import gguf  # noqa: PLC0415

    if path.is_dir() or path.suffix == ".safetensors":
        return []
    return [f"{finding.tensor}: {finding.problem}" for finding in gguf.verify(path) if finding.problem]


def _lines(found: Verification, own: str, against: str | None, other: str | None) -> dict[str, Any]:
    codes = sum(sum(trits.counts) for trits in found.trits)
    zeros = sum(trits.counts[1] for trits in found.trits)
    dead = sum(channels.dead for channels in found.channels)
    told = found.agreement
    return {
        "ternary weights": f"{len(found.trits)}, {amounts.amount(codes)} codes" if found.trits else "none",
        "zeros": f"{zeros / codes:.1%}" if codes else None,
        "dead channels": f"{dead}, {sum(c.used for c in found.channels)} of them with weights" if dead else None,
        "order of bytes": found.group.said() if found.group else None,
        "trits": f"sha256 {own}",
        "against": None if against is None else mark(own == other, against),
        "backend": told
        and mark(
            told.right,
            f"{told.backend}: logits of {told.tokens} tokens differ by {told.median:.1e} of their spread, "
            f"by {told.worst:.1e} at worst",
        ),
        "verdict": mark(not found.problems, "no damage found" if not found.problems else "damaged"),
    }

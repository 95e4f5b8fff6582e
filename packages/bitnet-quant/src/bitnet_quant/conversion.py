"""Any model that can be read, as any form that can be written: the same trits, proven by their digest."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from bitnet_core import BitNetError, FormatError, Model, TernaryTensor, UnsupportedError, layouts
from bitnet_core import load as load_model
from bitnet_core.durable import sync_folder
from bitnet_core.formats import gguf, huggingface
from bitnet_core.model import Tokens

from .recipe import Recipe, apply
from .targets import FolderTarget, GgufTarget, Rounding, Target

FOLDERS = ("hf_multiply", "hf_divide", "hf_floats")
_PART = re.compile(r"(.+)-\d{5}-of-\d{5}\.gguf")  # of a split file
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FILES = tuple(name for name in layouts.LAYOUTS if name != "hf_rows")


class Progress(NamedTuple):
    """How far a conversion is: stages are recipe, look, write and check."""

    stage: str
    done: int
    total: int
    weight: str


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done."""

    target: Path
    layout: str
    before: str  # the digest of all trits, as `digest` gives it
    after: str  # that of what was written, read back
    weights: int
    nbytes: int  # of what was written
    seconds: float
    rounded: tuple[Rounding, ...]  # what the target holds only nearly


def convert(
    source: str | os.PathLike[str] | Model,
    target: str | os.PathLike[str],
    *,
    layout: str | None = None,
    recipe: Recipe | None = None,
    windows: Sequence[Tokens] = (),
    lossy: bool = False,
    replace: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Conversion:
    """Write a model as a GGUF file, where the target ends in .gguf, or as a Hugging Face folder.

    `layout` is one of FILES or FOLDERS; None is i2_s_128 for a file, and for a folder hf_multiply, or hf_floats where
    the model does not multiply int8. A recipe says what becomes of floats; `windows` are the texts that it
    calibrates on. What the layout would round is refused by name unless `lossy`. What stands at the target stays
    unless `replace`, and the source is only read. The target is complete and read back before it has its name, and
    the same input always makes the same bytes. Options go to the reader: `i2_s_group`, `masters`, `inputs`.
    """
    start, target = perf_counter(), _place(target)
    model = source if isinstance(source, Model) else _opened(source, target, options)
    form = _form(model, target, layout)
    _check_vacant(target, replace)
    said = _Teller(progress, model)
    changed: dict[str, str] = {}
    if recipe is not None:
        changed = _changed(model, recipe, form)
        model = apply(model, recipe, windows, progress=said.stage("recipe"))
    writer: Target = FolderTarget(model, form) if form in FOLDERS else GgufTarget(model, form, changed)
    ternary, rounded = _look(model, writer, said.stage("look"))
    # What the recipe has just rounded to ternary may have its scale rounded, too: that is no surprise.
    if (surprises := [rounding for rounding in rounded if rounding.name not in changed]) and not lossy:
        raise _refusal(surprises)
    before = _whole(ternary)
    with _staged(target) as staged:
        writer.write(staged, said.stage("write"))
        after = _whole(_digests(_read_back(staged, form), ternary, said.stage("check")))
        if after != before:
            raise BitNetError(f"{target}: what was written has other trits than the source; nothing was kept")
        nbytes = sum(file.stat().st_size for file in ([*staged.iterdir()] if staged.is_dir() else [staged]))
        _put(staged, target)
    count = len(model.spec.shapes())
    return Conversion(target, form, before, after, count, nbytes, perf_counter() - start, tuple(rounded))


def digest(model: Model) -> str:
    """SHA-256 over the names and trits of all ternary weights: the same in every layout, whatever scales became."""
    return _whole(_digests(model, model.spec.shapes()))


class _Teller:
    """Counts weights for whoever wants to hear of progress."""

    def __init__(self, progress: Callable[[Progress], None] | None, model: Model) -> None:
        self._progress = progress
        self._total = len(model.spec.shapes())

    def stage(self, name: str) -> Callable[[str], None]:
        """What hears the weights of one stage."""
        done = 0

        def said(weight: str) -> None:
            nonlocal done
            done += 1
            if self._progress:
                self._progress(Progress(name, done, self._total, weight))

        return said


def _place(target: str | os.PathLike[str]) -> Path:
    """Where to write, if anything can have that name."""
    try:
        os.lstat(target)
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise FormatError(target, "target", "a path", "one with a NUL character") from error
    except OSError as error:
        raise FormatError(target, "target", "a path to write at", error.strerror or error) from error
    return Path(target)


def _opened(source: str | os.PathLike[str], target: Path, options: dict[str, Any]) -> Model:
    """The source, which must not be what is written."""
    from bitnet_core.hub import resolve  # noqa: PLC0415  # looking at a local file should not pay for the hub's client

    path = resolve(os.fspath(source))
    here, place = path.resolve(), target.resolve()
    kept = {here, *(here.iterdir() if here.is_dir() else ())}
    if part := _PART.fullmatch(here.name):
        kept |= {file for file in here.parent.iterdir() if file.name.startswith(part[1]) and _PART.fullmatch(file.name)}
    if place in kept or place in here.parents:
        raise UnsupportedError(f"{target}: is the source, or a part of it; name another target")
    return load_model(path, **options)


def _form(model: Model, target: Path, layout: str | None) -> str:
    is_file = target.suffix == ".gguf"
    if layout is None:
        return "i2_s_128" if is_file else "hf_multiply" if model.spec.inputs == "int8" else "hf_floats"
    known = FILES if is_file else FOLDERS
    if layout not in known:
        what = "a .gguf file" if is_file else "a folder (only names that end in .gguf are files)"
        raise UnsupportedError(f"{target}: {what} is written as {', '.join(known)}, got {layout!r}")
    return layout


def _check_vacant(target: Path, replace: bool) -> None:
    is_file = target.suffix == ".gguf"
    if target.exists() and target.is_dir() == is_file:
        raise UnsupportedError(f"{target}: is a {'folder' if is_file else 'file'}; name a target that is not there")
    taken = target.exists() if is_file else target.is_dir() and any(target.iterdir())
    if taken and not replace:
        raise UnsupportedError(f"{target}: is there already; replace=True writes over it")


def _changed(model: Model, recipe: Recipe, form: str) -> dict[str, str]:
    """What floats become that a recipe changes."""
    found: dict[str, str] = {}
    for name, shape in model.spec.shapes().items():
        chosen = recipe.rule(name).form
        if len(shape) == 2 and chosen != "float" and not isinstance(model.weights[name], TernaryTensor):
            if form in FOLDERS and chosen != "ternary":
                raise UnsupportedError(f"{name}: folders hold ternary weights and floats; a .gguf file holds {chosen}")
            found[name] = chosen
    return found


def _look(model: Model, writer: Target, said: Callable[[str], None]) -> tuple[dict[str, str], list[Rounding]]:
    """The digest of every ternary weight, and what would be rounded, in one pass over the weights."""
    rounded: list[Rounding] = []
    digests: dict[str, str] = {}
    for name in model.spec.shapes():
        said(name)
        weight = model.weights[name]
        if (found := writer.look(name, weight)) is not None:
            rounded.append(found)
        if isinstance(weight, TernaryTensor):
            digests[name] = weight.digest()
    return digests, rounded


def _digests(model: Model, names: Iterable[str], said: Callable[[str], object] = str) -> dict[str, str]:
    """The digests of those of these weights that are ternary."""
    found: dict[str, str] = {}
    for name in names:
        said(name)
        weight = model.weights[name]
        if isinstance(weight, TernaryTensor):
            found[name] = weight.digest()
    return found


def _whole(digests: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {value}\n" for name, value in digests.items()).encode()).hexdigest()


def _refusal(rounded: Sequence[Rounding]) -> UnsupportedError:
    shown = ", ".join(rounding.name for rounding in rounded[:3]) + (", ..." if len(rounded) > 3 else "")
    worst = max(rounding.error for rounding in rounded)
    return UnsupportedError(
        f"{len(rounded)} weights would be rounded, by up to {worst:.2g} of their size: {shown} ({rounded[0].what}); "
        "lossy=True accepts it, and layout i2_s_128 rounds no single scale"
    )


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A path beside the target to write at, which is gone in the end."""
    staged = _aside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield staged
    except OSError as error:
        name = Path(error.filename) if isinstance(error.filename, str) else Path()
        if staged in (name, *name.parents) or name in (target, *target.parents):
            helps = "; make room, or write elsewhere" if error.errno in _FULL else ""
            raise BitNetError(f"{target}: {error.strerror}; nothing was kept{helps}") from error
        raise  # of the source, or of whoever hears of progress
    finally:
        if staged.is_dir():
            shutil.rmtree(staged)
        else:
            staged.unlink(missing_ok=True)


def _read_back(path: Path, form: str) -> Model:
    if form in FOLDERS:
        return huggingface.load(path)
    return gguf.load(path, i2_s_group=64 if form == "i2_s_64" else None)


def _put(staged: Path, target: Path) -> None:
    """Give what was written its name; an old folder is moved away first, since no folder replaces a full one."""
    old = _aside(target) if target.is_dir() and any(target.iterdir()) else None
    if old:
        target.rename(old)
    try:
        staged.replace(target)
    except BaseException:
        if old:
            old.rename(target)
        raise
    sync_folder(target.parent)
    if old:
        shutil.rmtree(old)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.part")

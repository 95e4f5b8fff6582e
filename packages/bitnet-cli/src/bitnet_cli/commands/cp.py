"""`bitnet cp`: copy a model out of the cache."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from .. import amounts, models
from ..console import FLAGS, Flags
from ..failures import Failed, Refused
from ..models import ModelName
from ..stored import read


def cp(model: ModelName, target: Path, *, force: bool = False, flags: Flags = FLAGS) -> None:
    """Copy a model to a file or folder of yours: real files, whole or not there.

    Parameters
    ----------
    target
        A new file or folder, or a folder to put the file in.
    force
        Write over a file that is there.
    """
    source = models.find(model, flags)
    read(source)  # what is no model is refused before anything is written
    place = target / source.name if target.is_dir() and source.is_file() else target
    _check(source, place, force)
    files = [file for file in sorted(source.rglob("*")) if file.is_file()] if source.is_dir() else [source]
    total = sum(file.stat().st_size for file in files)
    place.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(place.parent).free < total:
        raise Failed(f"{place.parent}: expected {amounts.size(total)} of free space, got less")
    aside = place.with_name(f".{place.name[:100]}.{secrets.token_hex(8)}.part")
    try:
        with flags.progress(f"copying {place.name}", nbytes=True) as tell:
            done = 0
            for file in files:
                tell(done, total, file.name)
                end = aside / file.relative_to(source) if source.is_dir() else aside
                end.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, end)
                done += file.stat().st_size
        aside.replace(place)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)
    record = {"source": source, "target": place, "size": total, "files": len(files)}
    flags.answer(record, f"{place}: {amounts.size(total)} in {len(files)} files")


def _check(source: Path, place: Path, force: bool) -> None:
    if place.exists() and place.resolve() == source.resolve():
        raise Refused(f"{place}: is the source itself")
    if source.is_dir() and source.resolve() in place.resolve().parents:
        raise Refused(f"{place}: lies inside the source")
    if source.is_dir() and place.exists():
        raise Refused(f"{place}: is there already; name a folder that is not")
    if place.exists() and not force:
        raise Refused(f"{place}: is there already; --force writes over it")

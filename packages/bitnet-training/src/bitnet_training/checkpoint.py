"""Checkpoints that survive a kill at any moment: whole and proven, or passed over with a word.

A checkpoint is a folder of safetensors and JSON. Its manifest, with the size and the SHA-256 of every file, is written
last; all of it gets its name at once, is read back, and only then does `latest` name it and do old ones go.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from bitnet_core import FormatError
from bitnet_core.durable import replacing, sync_folder
from bitnet_core.formats import safetensors
from bitnet_core.formats.strictjson import read_json

from .errors import TrainingStopped

_log = logging.getLogger(__name__)
_FORMAT = 1
_LIMIT = 64 << 20  # bytes of a JSON file
_NAME = re.compile(r"step-(\d{12})")
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run's state at the end of a step."""

    step: int
    tensors: Mapping[str, Tensors]  # "model", "optimizer" and others: a file each
    state: Mapping[str, Any]  # what is no tensor


class Checkpoints:
    """The checkpoints of one run, in one folder, which one trainer at a time may write."""

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep: at least 1 checkpoint, got {keep}")
        self.folder = Path(folder)
        self.keep = keep
        self._lock = FileLock(self.folder / "lock")
        # Some network disks give a lock to everybody: a lease that is looked at before each save tells, too.
        self._lease = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"

    def __enter__(self) -> Checkpoints:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise TrainingStopped(
                f"{self.folder}: another trainer writes here; wait for it, or use another folder"
            ) from error
        with replacing(self.folder / "lease") as stream:
            stream.write(self._lease.encode())
        for left in self.folder.glob(".*.part"):  # of a trainer that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, prove it, and let it be the latest; the oldest beyond `keep` go."""
        self._check_lease()
        name = f"step-{checkpoint.step:012d}"
        aside, final = self._aside(name), self.folder / name
        aside.mkdir()
        try:
            _write(aside, checkpoint, self._lease)
            if final.exists():  # damaged, or this run would have begun behind it
                self._discard(final)
            aside.rename(final)
            sync_folder(self.folder)
            verify(final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        self._name_latest(final, checkpoint.step)
        self._rotate()
        return final

    def newest(self, usable: Callable[[Mapping[str, Any]], None] | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where none was ever made.

        `usable` raises where a state is of another run.
        """
        found = self._found()
        for step, path in reversed(found):
            try:
                whole = _read(path, step, usable)
            except FormatError as error:
                _log.warning("passed over: %s", error)
                continue
            if self._lock.is_locked:  # a kill may have prevented what follows a checkpoint
                self._name_latest(path, step)
                if step == found[-1][0]:
                    self._rotate()
            return whole
        if found:
            raise FormatError(self.folder, "checkpoints", "one that is whole", f"{len(found)} that are damaged")
        return None

    def _name_latest(self, checkpoint: Path, step: int) -> None:
        with replacing(self.folder / "latest") as stream:
            stream.write(json.dumps({"checkpoint": checkpoint.name, "step": step}).encode())

    def _found(self) -> list[tuple[int, Path]]:
        """Checkpoints by their step, the oldest first."""
        named = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted((int(match[1]), path) for match, path in named if match)

    def _check_lease(self) -> None:
        holder = (self.folder / "lease").read_text(encoding="utf-8")
        if holder != self._lease:
            raise TrainingStopped(f"{self.folder}: another trainer ({holder}) has taken over; this one saves no more")

    def _rotate(self) -> None:
        """Let the oldest beyond `keep` go, now that the newest is proven."""
        for _, old in self._found()[: -self.keep]:
            self._discard(old)

    def _aside(self, name: str) -> Path:
        return self.folder / f".{name}.{secrets.token_hex(4)}.part"

    def _discard(self, path: Path) -> None:
        """Take the name away first: what is half deleted is no checkpoint."""
        aside = self._aside(path.name)
        path.rename(aside)
        shutil.rmtree(aside)


def verify(path: Path) -> Mapping[str, Any]:
    """The manifest of a checkpoint of which every file is as it says; raises FormatError for any other."""
    manifest: Any = read_json(path / "manifest.json", limit=_LIMIT)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("format") != _FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise FormatError(path / "manifest.json", "format", f"{_FORMAT}, with files", got)
    if manifest.get("sha256") != _seal(manifest):
        raise FormatError(path / "manifest.json", "content", f"sha256 {manifest.get('sha256')}", "other words")
    there = {one.name for one in path.iterdir()} - {"manifest.json"}
    if odd := sorted(there ^ set(files)):
        state = "a file that the manifest lacks" if odd[0] in there else "no such file"
        raise FormatError(path / odd[0], "file", "the files of the manifest", state)
    for name, said in files.items():
        if (size := (path / name).stat().st_size) != said["bytes"]:
            raise FormatError(path / name, "size", said["bytes"], size)
        if _digest(path / name) != said["sha256"]:
            raise FormatError(path / name, "content", f"sha256 {said['sha256']}", "other bytes")
    return dict(manifest)


def _read(path: Path, step: int, usable: Callable[[Mapping[str, Any]], None] | None) -> Checkpoint:
    manifest = verify(path)
    if manifest.get("step") != step:
        raise FormatError(path / "manifest.json", "step", step, manifest.get("step"))
    state = read_json(path / "state.json", limit=_LIMIT)
    if usable is not None:
        usable(state)
    names = [Path(name) for name in manifest["files"] if name.endswith(".safetensors")]
    return Checkpoint(step, {name.stem: _tensors(path / name) for name in names}, state)


def _write(folder: Path, checkpoint: Checkpoint, lease: str) -> None:
    """All files of a checkpoint, each on the disk before the manifest is."""
    for name, tensors in checkpoint.tensors.items():
        room = 512 + sum(160 + len(key) for key in tensors)
        safetensors.write(folder / f"{name}.safetensors", _arrays(tensors), header_room=room)
        _compare(folder / f"{name}.safetensors", tensors)
    _write_json(folder / "state.json", checkpoint.state)
    files = {one.name: {"bytes": one.stat().st_size, "sha256": _digest(one)} for one in sorted(folder.iterdir())}
    manifest = {"format": _FORMAT, "step": checkpoint.step, "lease": lease, "files": files}
    _write_json(folder / "manifest.json", {**manifest, "sha256": _seal(manifest)})


def _write_json(path: Path, value: object) -> None:
    with replacing(path) as stream:
        stream.write(json.dumps(value, allow_nan=False).encode())


def _seal(manifest: Mapping[str, Any]) -> str:
    """The hash of all that a manifest says."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _arrays(tensors: Tensors) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        if held.dtype == torch.bfloat16:
            yield name, held.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        else:
            yield name, held.numpy()


def _compare(path: Path, tensors: Tensors) -> None:
    """Whether a file holds what it was given, to the bit."""
    file = safetensors.SafetensorsFile(path)
    try:
        for name, array in _arrays(tensors):
            if file.array(name).tobytes() != array.tobytes():
                raise FormatError(path, name, "the tensor that was written", "another")
    finally:
        file.close()


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in memory of their own."""
    file = safetensors.SafetensorsFile(path)
    try:
        return {name: _tensor(file.array(name)) for name in file.entries}
    finally:
        file.close()


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.array(array.view(np.uint16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))

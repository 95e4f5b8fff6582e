"""GGUF files as they lie: their values and tensors, in one file or split over several."""

from __future__ import annotations

import logging
import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ...errors import FormatError, UnsupportedError
from ...model import Weight
from ..ranges import RangeFile
from . import types
from .blocks import Bytes
from .header import Entry, Header, padded, read_header
from .types import Kind

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_SPLIT_LIMITS = {"split.no": 999, "split.count": 1000, "split.tensors.count": 65_536}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies; proven to be inside its file, and to overlap no other."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    start: int  # in its file
    nbytes: int
    shard: int = 0


class File:
    """An opened GGUF file, or all the files of a split one, whichever of them is named.

    Nothing but the header is read before a tensor is asked for, and a tensor is read anew each time.
    """

    metadata: Mapping[str, object]
    tensors: Mapping[str, Tensor]

    def __init__(self, path: str | os.PathLike[str], *, strict: bool = False, i2_s_group: int = 128) -> None:
        """`strict` refuses bytes behind the last tensor; `i2_s_group` is 64 for I2_S files of bitnet.cpp on ARM."""
        if i2_s_group not in (64, 128):
            raise ValueError(f"I2_S comes in groups of 64 and of 128, got {i2_s_group}")
        self.path = os.fspath(path)
        self._files: list[RangeFile] = []
        # Weights that are made late hold on to this object; the files are closed when the last of them goes.
        self._finalizer = weakref.finalize(self, _close, self._files)
        try:
            self._open(strict, i2_s_group)
        except BaseException:
            self.close()
            raise

    def _open(self, strict: bool, i2_s_group: int) -> None:
        headers = [self._read(self.path)]
        count = _split_number(headers[0], self.path, "split.count", 1)
        if count > 1:
            self._files.pop().close()
            headers = _read_shards(self.path, count, self._read)
        self.version = headers[0].version
        self.metadata = headers[0].metadata
        places = [_Places(file, header) for file, header in zip(self._files, headers, strict=True)]
        kinds = _decide(places, i2_s_group)
        found: dict[str, Tensor] = {}
        for shard, place in enumerate(places):
            for tensor in place.located(kinds, shard, strict):
                if tensor.name in found:
                    got = f"{tensor.name!r} again, after shard {found[tensor.name].shard + 1}"
                    raise FormatError(place.file.path, "tensors", "every name once in all shards", got)
                found[tensor.name] = tensor
        self.tensors = MappingProxyType(found)

    def _read(self, path: str) -> Header:
        file = RangeFile(path)
        self._files.append(file)
        return read_header(file)

    def raw(self, name: str) -> Bytes:
        """The bytes of a tensor as they lie in the file."""
        tensor = self.tensors[name]
        file = self._files[tensor.shard]
        return file.read(tensor.start, tensor.start + tensor.nbytes, f"tensor {name!r}")

    def tensor(self, name: str) -> Weight:
        """A tensor: F32, F16 and BF16 as they are stored, ternary ones as such, all others as float32."""
        place = self.tensors[name]
        return types.decode(place.kind, self.raw(name), place.shape, self.path_of(name), f"tensor {name!r}")

    def rows(self, name: str, first: int, last: int) -> npt.NDArray[np.floating[Any]]:
        """Some rows of a matrix that is neither ternary nor scaled by its tail, as `tensor` gives them."""
        place = self.tensors[name]
        size = place.nbytes // place.shape[0]
        raw = self._files[place.shard].read(place.start + first * size, place.start + last * size, f"tensor {name!r}")
        return types.numbers(place.kind, raw).reshape(last - first, place.shape[1])

    def path_of(self, name: str) -> str:
        """The file that holds a tensor: one of the shards of a split file."""
        return self._files[self.tensors[name].shard].path

    def close(self) -> None:
        """Let go of the file; arrays that were made stay valid."""
        self._finalizer()

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(files: Sequence[RangeFile]) -> None:
    for file in files:
        file.close()


def _split_number(header: Header, path: str, key: str, default: int | None = None) -> int:
    value = header.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _SPLIT_LIMITS[key]:
        got = "none" if value is None else value
        raise FormatError(path, f"kv {key!r}", f"an integer in 0..{_SPLIT_LIMITS[key]}", got)
    return value


def _read_shards(path: str, count: int, read: Callable[[str], Header]) -> list[Header]:
    """The headers of all files of a split one, in order; each says itself which it is."""
    folder, name = os.path.split(path)
    named = _SHARD.fullmatch(name)
    if not named or int(named[3]) != count:
        hint = "a file that was split is found by the names of its parts"
        raise FormatError(path, "file name", f"one that ends in -00001-of-{count:05d}.gguf", name, hint=hint)
    headers: list[Header] = []
    for number in range(count):
        shard = os.path.join(folder, f"{named[1]}-{number + 1:05d}-of-{count:05d}.gguf")  # noqa: PTH118 (bytes stay as given)
        try:
            header = read(shard)
        except FormatError as error:
            if error.field != "file":
                raise
            raise FormatError(shard, f"shard {number + 1} of {count}", error.expected, error.got) from error
        _check_shard(header, shard, number, count, headers)
        headers.append(header)
    total, expected = sum(len(header.entries) for header in headers), headers[0].metadata["split.tensors.count"]
    if total != expected:
        raise FormatError(path, "kv 'split.tensors.count'", f"{total}, as all {count} shards hold", expected)
    return headers


def _check_shard(header: Header, path: str, number: int, count: int, before: Sequence[Header]) -> None:
    field = f"shard {number + 1} of {count}"
    tensors = _split_number(header, path, "split.tensors.count")
    for key, expected in (("split.no", number), ("split.count", count)):
        if (got := _split_number(header, path, key)) != expected:
            raise FormatError(path, f"{field}: {key}", expected, got, hint="a shard was copied or renamed")
    if not before:
        return
    first = before[0].metadata
    if tensors != first["split.tensors.count"]:
        said = f"{first['split.tensors.count']}, as shard 1 says"
        raise FormatError(path, f"{field}: split.tensors.count", said, tensors, hint="it is of another model")
    for key in ("general.architecture", "general.name"):
        if key in header.metadata and header.metadata[key] != first.get(key):
            said, found = f"{first.get(key)}, as shard 1 says", header.metadata[key]
            raise FormatError(path, f"{field}: {key}", said, found, hint="it is of another model")


@dataclass(frozen=True, slots=True)
class _Places:
    """A file's tensors with the bytes that each has from its offset on."""

    file: RangeFile
    header: Header

    def rooms(self) -> list[tuple[Entry, int, bool]]:
        """Every tensor with the bytes to the next one, or to the end of the file, and whether it is the last."""
        entries = self.header.entries
        ends = [entry.offset for entry in entries[1:]] + [self.file.size - self.header.data_start]
        last = len(entries) - 1
        return [(entry, ends[i] - entry.offset, i == last) for i, entry in enumerate(entries)]

    def located(self, kinds: Mapping[int, Kind], shard: int, strict: bool) -> Iterator[Tensor]:
        """Every tensor, proven: they lie one after another without holes, and the file has all of them."""
        start, size, alignment = self.header.data_start, self.file.size, self.header.alignment
        end = 0
        for entry in self.header.entries:
            kind, field = kinds[entry.kind], f"tensor {entry.name!r}"
            nbytes = kind.nbytes(entry.shape)
            if nbytes is None:
                expected = (
                    f"a multiple of {kind.block} {'weights' if kind.tail else 'columns'}, which {kind.name} holds"
                )
                raise FormatError(self.file.path, field, expected, _said(entry.shape), offset=entry.at)
            if entry.offset != end:
                hint = "tensors lie one after another, without holes and overlaps"
                raise FormatError(self.file.path, f"{field} offset", end, entry.offset, offset=entry.at, hint=hint)
            if start + end + nbytes > size:
                expected = f"{nbytes} bytes at {start + end}"
                hint = "it may be truncated"
                raise FormatError(self.file.path, field, expected, f"a file that ends at {size}", hint=hint)
            yield Tensor(entry.name, entry.shape, kind, start + end, nbytes, shard)
            end = padded(end + nbytes, alignment)
        extra = size - (start + end)
        if extra > 0:
            if strict:
                raise FormatError(self.file.path, "end", f"the last tensor's at {start + end}", f"{extra} bytes more")
            _log.warning("%s: %d bytes behind the last tensor are not read", self.file.path, extra)


def _decide(places: Sequence[_Places], i2_s_group: int) -> dict[int, Kind]:
    """What each type's id means in these files: where forks differ, by the exact sizes of the tensors."""
    by_id: dict[int, list[tuple[_Places, Entry, int, bool]]] = {}
    for place in places:
        for entry, room, last in place.rooms():
            by_id.setdefault(entry.kind, []).append((place, entry, room, last))
    decided: dict[int, Kind] = {}
    for number, uses in by_id.items():
        place, entry = uses[0][:2]
        field = f"tensor {entry.name!r} type"
        candidates: Sequence[Kind] = types.readings(number, i2_s_group)
        if not candidates:
            _refuse_unread(place.file.path, field, number, entry.at)
        if len(candidates) > 1:
            candidates = _narrowed(candidates, uses)
        if len(candidates) > 1:
            both = " and ".join(kind.name for kind in candidates)
            raise FormatError(
                place.file.path, field, "a size that decides", f"{number}: ambiguous, it fits {both}", offset=entry.at
            )
        decided[number] = kind = candidates[0]
        if not kind.read:
            raise UnsupportedError(
                f"{place.file.path}: {field}: {number} is {kind.name} by its size, "
                "which ggml gave up; convert the model anew"
            )
    return decided


def _narrowed(candidates: Sequence[Kind], uses: Sequence[tuple[_Places, Entry, int, bool]]) -> list[Kind]:
    """Those that all tensors agree with; a file speaks one dialect, so one tensor can decide for all."""
    left = list(candidates)
    for place, entry, room, last in uses:
        alignment = place.header.alignment
        sizes = {kind: kind.nbytes(entry.shape) for kind in left}
        fits = [kind for kind, n in sizes.items() if n is not None and n <= room <= padded(n, alignment)]
        if last and not fits:  # there may be bytes behind it
            fits = [kind for kind, n in sizes.items() if n is not None and n <= room]
        if not fits:
            _refuse_sizes(place.file.path, entry, room, last, sizes)
        left = fits
    return left


def _refuse_sizes(path: str, entry: Entry, room: int, last: bool, sizes: Mapping[Kind, int | None]) -> NoReturn:
    texts = [
        f"{kind.name} ({f'a multiple of {kind.block} elements' if nbytes is None else f'{nbytes} bytes'})"
        for kind, nbytes in sizes.items()
    ]
    hint = (
        "it may be truncated"
        if last
        else "it may be TL2 of bitnet.cpp, which is not read"
        if entry.kind == 42
        else None
    )
    got = f"{room} bytes for {_said(entry.shape)}"
    raise FormatError(
        path, f"tensor {entry.name!r} type {entry.kind}", " or ".join(texts), got, offset=entry.at, hint=hint
    )


def _refuse_unread(path: str, field: str, number: int, at: int) -> NoReturn:
    if number not in types.UNREAD:
        raise FormatError(path, field, "a type that is known", number, offset=at)
    name, remedy = types.UNREAD[number]
    if name.startswith("ambiguous"):
        raise FormatError(path, field, "a type that is read", f"{number}: {name}", offset=at, hint=remedy)
    raise UnsupportedError(f"{path}: {field}: {number} is {name}, which is not read; {remedy}")


def _said(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)

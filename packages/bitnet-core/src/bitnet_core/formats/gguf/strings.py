"""Long arrays of strings: only their places are found when a file is opened; each is decoded when it is asked for."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from ...errors import FormatError

_LENGTH = struct.Struct("<Q")
_FEW = 64  # strings: a guess that finds fewer is not worth another
_WALK = 8192  # strings found one by one before the next guess


class Strings(Sequence[str]):
    """Strings as they lie in the header: a length of eight bytes, then UTF-8."""

    __slots__ = ("_data", "_field", "_file", "_starts")

    def __init__(self, data: bytes, starts: npt.NDArray[np.int64], file: str, field: str) -> None:
        self._data = data
        self._starts = starts
        self._file = file
        self._field = field

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Strings: ...
    def __getitem__(self, index: int | slice) -> str | Strings:
        if isinstance(index, slice):
            return Strings(self._data, self._starts[index], self._file, self._field)
        return self._decode(int(self._starts[index]), index)

    def __iter__(self) -> Iterator[str]:
        return (self._decode(start, index) for index, start in enumerate(self._starts.tolist()))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(mine == its for mine, its in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} strings of {self._field}>"

    def _decode(self, start: int, index: int) -> str:
        begin = start + 8
        data = self._data[begin : begin + _LENGTH.unpack_from(self._data, start)[0]]
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            got = f"byte {data[error.start]:#04x}"
            raise FormatError(
                self._file, f"{self._field}[{index}]", "UTF-8", got, offset=begin + error.start
            ) from error


class Found(NamedTuple):
    """How many strings were found, and where the next one begins."""

    found: int
    position: int


def find_strings(buffer: bytearray, position: int, starts: npt.NDArray[np.int64], limit: int) -> Found:
    """Fill `starts` with the places of the strings that lie in `buffer` from `position` on.

    Stops where the buffer or `starts` ends, and in front of a string longer than `limit`.
    """
    found = 0
    while found < len(starts):
        window = memoryview(buffer)
        guessed = _guess(window, position, starts[found:])
        found, position = found + guessed.found, guessed.position
        if guessed.found >= _FEW:
            continue
        walked = _walk(window, position, starts[found : found + _WALK], limit)
        found, position = found + walked.found, walked.position
        if walked.found == 0:
            break
    return Found(found, position)


def _walk(buffer: memoryview, position: int, starts: npt.NDArray[np.int64], limit: int) -> Found:
    """One string after another."""
    end = len(buffer)
    unpack = _LENGTH.unpack_from
    places: list[int] = []
    while len(places) < len(starts) and position + 8 <= end:
        (length,) = unpack(buffer, position)
        if length > limit or position + 8 + length > end:
            break
        places.append(position)
        position += 8 + length
    starts[: len(places)] = places
    return Found(len(places), position)


def _guess(buffer: memoryview, position: int, starts: npt.NDArray[np.int64]) -> Found:
    """Many strings at once: a guess of where they begin, kept as far as the chain of lengths proves it.

    The length of a string below 64 KiB ends in six zero bytes, which text does not hold. So a string begins
    seven bytes in front of the last zero of such a run. A wrong guess breaks the chain, and is not used.
    """
    # The window is no longer than that many usual strings take: else many short arrays would each cost a long look.
    data = np.frombuffer(buffer, np.uint8)[position:][: 64 * len(starts)]
    if len(starts) < _FEW:
        return Found(0, position)
    zero = data == 0
    begin = ~zero[8:]
    for back in range(2, 8):
        begin &= zero[back : back - 8]
    begins = np.flatnonzero(begin)[: len(starts) + 1]
    if len(begins) == 0 or begins[0] != 0:
        return Found(0, position)
    ends = begins + 8 + data[begins] + data[begins + 1].astype(np.int64) * 256
    links = ends[:-1] == begins[1:]
    count = len(links) if links.all() else int(np.argmin(links))
    starts[:count] = begins[:count] + position
    return Found(count, position + int(begins[count]))

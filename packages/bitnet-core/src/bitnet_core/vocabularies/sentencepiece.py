"""The SentencePiece model file: a protobuf message of pieces, read by a reader of its own with strict bounds."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..errors import FormatError, UnsupportedError, printable
from . import SPACE, TOKENS_LIMIT, Added, Spaces, Vocabulary, is_byte, merges_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # GGUF's token types are the same numbers

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the model
_BPE = 2  # a value of the trainer's model type
Value = int | bytes


def looks_like(data: bytes) -> bool:
    """Whether a tokenizer.model is of this kind: it begins with the message of a piece."""
    return data[:1] == b"\x0a"


def parse(data: bytes, file: str) -> Vocabulary:
    """The vocabulary in a SentencePiece model of the BPE kind."""
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, Value] = {}
    normalizer: dict[int, Value] = {}
    for number, value, at in _fields(data, file):
        if number == _PIECES:
            piece, score, kind = _piece(_message(value, file, at), len(pieces), file)
            pieces.append(piece)
            scores.append(score)
            types.append(kind)
            if len(pieces) > TOKENS_LIMIT:
                raise FormatError(file, "pieces", f"at most {TOKENS_LIMIT}", "more")
        elif number in {_TRAINER, _NORMALIZER}:
            into = trainer if number == _TRAINER else normalizer
            into.update({key: item for key, item, _ in _fields(_message(value, file, at), file)})
    _check_kind(trainer, normalizer, file)
    unk, bos, eos, pad = (_signed(trainer.get(key, default)) for key, default in _IDS)
    # Absent, both flags are true.
    spaces = Spaces(prefix=bool(normalizer.get(3, 1)), collapse=bool(normalizer.get(4, 1)))
    stops = frozenset(() if eos is None else (eos,))
    return from_pieces(file, pieces, scores, types, spaces=spaces, unk=unk, bos=bos, stops=stops, pad=pad)


_IDS = ((40, 0), (41, 1), (42, 2), (43, -1))  # the trainer's fields for unk, bos, eos and pad, and their defaults


def from_pieces(  # noqa: PLR0913  the columns and keys of two formats
    file: str,
    pieces: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    spaces: Spaces,
    unk: int | None,
    bos: int | None,
    stops: frozenset[int],
    pad: int | None,
    add_bos: bool = True,
    suffix: tuple[int, ...] = (),
) -> Vocabulary:
    """The vocabulary that merges neighbours into the piece of the highest score, the leftmost first."""
    _check_pieces(file, pieces, scores, types)
    ids = {piece: id_ for id_, piece in enumerate(pieces) if types[id_] == NORMAL}
    # A stable sort: of equal scores, the earlier piece.
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist()
    merges = merges_of((pieces[id_] for id_ in order if types[id_] == NORMAL), ids)
    # The user-defined pieces are looked for after the spaces are escaped, so as they are written.
    added = {id_: Added(special=kind != USER_DEFINED) for id_, kind in enumerate(types) if kind in _ADDED}
    return Vocabulary(
        file=file,
        tokens=pieces,
        merges=merges,
        alphabet="pieces",
        added=added,
        spaces=spaces,
        byte_fallback=BYTE in types,
        fuse_unk=True,
        unk=unk,
        bos=bos,
        eos=stops,
        pad=pad,
        prefix=(bos,) if add_bos and bos is not None else (),
        suffix=suffix,
    )


_ADDED = frozenset((UNKNOWN, CONTROL, USER_DEFINED))


def types_of(vocabulary: Vocabulary) -> list[int]:
    """The type of each token, as SentencePiece and GGUF number them."""
    types = []
    for id_, token in enumerate(vocabulary.tokens):
        added = vocabulary.added.get(id_)
        if added is not None:
            types.append(UNKNOWN if id_ == vocabulary.unk else CONTROL if added.special else USER_DEFINED)
        else:
            types.append(BYTE if vocabulary.byte_fallback and is_byte(token) else NORMAL)
    return types


def scores_of(vocabulary: Vocabulary) -> list[float]:
    """Scores that give the same order as the merges: minus the rank of the first that makes the token."""
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(vocabulary.merges):
        scores.setdefault(left + right, -float(rank))
    lowest = -float(len(vocabulary.merges))
    return [
        0.0 if id_ in vocabulary.added else scores.get(token, lowest) for id_, token in enumerate(vocabulary.tokens)
    ]


def _check_pieces(file: str, pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> None:
    if not np.isfinite(np.asarray(scores, np.float64)).all():
        raise FormatError(file, "scores", "finite numbers", "infinity or no number")
    for id_, (piece, kind) in enumerate(zip(pieces, types, strict=True)):
        if kind == BYTE and not is_byte(piece):
            raise FormatError(file, f"token {id_}", "a byte as <0x00> to <0xFF>", f"{piece!r}")
        if not NORMAL <= kind <= BYTE:
            raise FormatError(file, f"type of token {id_}", "1..6", kind)


def _check_kind(trainer: Mapping[int, Value], normalizer: Mapping[int, Value], file: str) -> None:
    kind = trainer.get(3, 1)
    if kind != _BPE:
        names = {1: "unigram", 3: "word", 4: "character"}
        raise UnsupportedError(
            f"{printable(file)}: only BPE models of SentencePiece are read, got {names.get(int(kind), kind)}"
        )
    if normalizer.get(2) or normalizer.get(6):
        raise UnsupportedError(
            f"{printable(file)}: only SentencePiece models that keep characters as they are (identity) are read"
        )
    if not normalizer.get(5, 1) or trainer.get(24, 0):
        raise UnsupportedError(
            f"{printable(file)}: only SentencePiece models that write a space as {SPACE} in front are read"
        )


def _piece(data: bytes, index: int, file: str) -> tuple[str, float, int]:
    text, score, kind = b"", 0.0, NORMAL
    for number, value, _ in _fields(data, file):
        if number == 1 and isinstance(value, bytes):
            text = value
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    try:
        return text.decode(), score, kind
    except UnicodeDecodeError as error:
        raise FormatError(file, f"token {index}", "UTF-8", repr(text[:40])) from error


def _fields(data: bytes, file: str) -> Iterator[tuple[int, Value, int]]:
    """The fields of a message: number, value (fixed sizes as bytes), and where it began."""
    at, end = 0, len(data)
    while at < end:
        start = at
        key, at = _varint(data, at, file)
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at, file)
            yield key >> 3, number, start
            continue
        if kind == 2:
            size, at = _varint(data, at, file)
        elif kind in {1, 5}:
            size = 8 if kind == 1 else 4
        else:
            raise FormatError(file, "protobuf field", "a wire type of 0, 1, 2 or 5", kind, offset=start)
        if size > end - at:
            raise FormatError(file, "protobuf field", f"at most {end - at} bytes", size, offset=start)
        yield key >> 3, data[at : at + size], start
        at += size


def _varint(data: bytes, at: int, file: str) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise FormatError(file, "protobuf number", "at most 10 bytes that end in the file", "none", offset=at)


def _message(value: Value, file: str, at: int) -> bytes:
    if isinstance(value, int):
        raise FormatError(file, "protobuf field", "a message", "a number", offset=at)
    return value


def _signed(value: Value) -> int | None:
    # A token that there is not is -1, as 64-bit two's complement.
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else None

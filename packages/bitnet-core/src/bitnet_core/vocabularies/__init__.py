"""What a tokenizer is made of, as data: every file format is read into a Vocabulary, and written from one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..errors import FormatError

TOKENS_LIMIT = 1 << 20  # the largest honest vocabulary, Gemma's, has a quarter of it
FILE_LIMIT = 64 << 20
SPACE = "\u2581"  # how SentencePiece writes a space

# Tokens that end a turn: models stop at them though their files name the end of the text alone.
_STOPS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end_of_text|>", "<|endoftext|>")
_BYTE_LIKE = re.compile(r"<0x[^>]*>")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")

JsonStep = Mapping[str, Any]  # a normalizer or pre-tokenizer as tokenizer.json writes it


class _Alphabet(dict[int, int]):
    """The characters that byte-level vocabularies write bytes with, to the bytes; others to none."""

    def __missing__(self, key: int) -> int:
        return 0xFFFF


def _byte_characters() -> list[str]:
    """The character of each byte: itself where it can be seen, else one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]


BYTE_CHARACTERS = tuple(_byte_characters())
_BYTES = _Alphabet({ord(character): byte for byte, character in enumerate(BYTE_CHARACTERS)})


@dataclass(frozen=True, slots=True)
class Added:
    """How a token is looked for in the text, before the text is split and merged."""

    special: bool  # steers the model: the user's text never becomes it
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True, slots=True)
class Spaces:
    """What SentencePiece does to spaces before it looks for pieces."""

    prefix: bool = True  # one more in front of the text
    collapse: bool = False  # runs become one, and those at the ends none

    def apply(self, text: str) -> str:
        """`text` with its spaces as the pieces write them."""
        if self.collapse:
            text = re.sub(" +", " ", text).strip(" ")
        if self.prefix and text:
            text = " " + text
        text = text.replace(" ", SPACE)
        # A mark for a space that the text itself ends with is a space too.
        return text.rstrip(SPACE) if self.collapse else text

    def strip(self, data: bytes) -> bytes:
        """The bytes of decoded pieces without what was put in front."""
        if self.prefix and self.collapse:
            return data.lstrip(b" ")
        return data.removeprefix(b" ") if self.prefix else data


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens, merges and rules; `check` refuses what cannot be a tokenizer."""

    file: str  # what errors name
    tokens: Sequence[str]  # by id, written in `alphabet`
    merges: Sequence[tuple[str, str]]  # the first is the most urgent
    alphabet: Literal["bytes", "pieces"]  # a character a byte; or text with SPACE, and bytes as <0x0A>
    added: Mapping[int, Added] = field(default_factory=dict)
    normalizer: JsonStep | None = None
    pre_tokenizer: JsonStep | None = None
    spaces: Spaces | None = None  # instead of a normalizer, where a SentencePiece model says so
    ignore_merges: bool = False  # a word that is a token is not merged from its parts
    byte_fallback: bool = False
    fuse_unk: bool = False
    unk: int | None = None
    bos: int | None = None
    eos: frozenset[int] = frozenset()
    pad: int | None = None
    prefix: tuple[int, ...] = ()  # ids that the files put in front of a text
    suffix: tuple[int, ...] = ()
    ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = {token: id_ for id_, token in enumerate(self.tokens)}
        object.__setattr__(self, "ids", ids)
        stops = {ids[name] for name in _STOPS if name in ids and self.is_special(ids[name])}
        object.__setattr__(self, "eos", self.eos | stops)
        # What begins or ends a text steers the model, whether or not its file marks it so.
        steering = {id_: _special(self.added.get(id_)) for id_ in {*self.eos, self.bos} if id_ is not None}
        object.__setattr__(self, "added", {**self.added, **steering})

    def check(self) -> None:
        """Raise FormatError for the first token or reference that is wrong."""
        check_count(len(self.tokens), self.file)
        self._check_tokens()
        self._check_references()

    def check_merges(self) -> None:
        """Raise FormatError for the first merge that is not of tokens; `check` leaves it out, for it takes long."""
        ids = self.ids
        for rank, (left, right) in enumerate(self.merges):
            if left not in ids or right not in ids or left + right not in ids:
                missing = next(token for token in (left, right, left + right) if token not in ids)
                raise FormatError(self.file, f"merges[{rank}]", "tokens of the vocabulary", f"{missing!r}")

    def is_special(self, token: int) -> bool:
        """Whether it steers the model, and is no text."""
        added = self.added.get(token)
        return added is not None and added.special

    def special_ids(self) -> dict[str, int]:
        """Every special token's text, and its id."""
        return {self.tokens[id_]: id_ for id_ in sorted(self.added) if self.added[id_].special}

    def bytes_by_id(self) -> tuple[bytes, ...]:
        """What each token stands for in the text."""
        added = self.added
        spell = _bytes_of_bytes if self.alphabet == "bytes" else self._bytes_of_piece
        return tuple(
            token.replace(SPACE, " ").encode() if id_ in added else spell(token)
            for id_, token in enumerate(self.tokens)
        )

    def _bytes_of_piece(self, piece: str) -> bytes:
        byte = _BYTE.fullmatch(piece) if self.byte_fallback else None
        return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()

    def _check_tokens(self) -> None:
        if len(self.ids) != len(self.tokens):
            first = next(id_ for id_, token in enumerate(self.tokens) if self.ids[token] != id_)
            token = self.tokens[first]
            raise FormatError(
                self.file, f"token {self.ids[token]}", "a text that no other token has", f"{token!r}, as token {first}"
            )
        if "" in self.ids:
            raise FormatError(self.file, f"token {self.ids['']}", "at least one character", "an empty text")
        for id_, token in enumerate(self.tokens):
            if not token.isascii() and not _is_unicode(token):
                raise FormatError(self.file, f"token {id_}", "text that UTF-8 can hold", ascii(token))
            if self.byte_fallback and token.startswith("<0x") and _BYTE_LIKE.fullmatch(token):
                _check_byte(self.file, id_, token, self.added)

    def _check_references(self) -> None:
        named = {"bos": self.bos, "pad": self.pad, "unk": self.unk}
        named |= {f"eos {id_}": id_ for id_ in self.eos} | {f"added token {id_}": id_ for id_ in self.added}
        named |= {f"post_processor token {id_}": id_ for id_ in (*self.prefix, *self.suffix)}
        for name, token in named.items():
            if token is not None and not 0 <= token < len(self.tokens):
                raise FormatError(self.file, name, f"an id of 0..{len(self.tokens) - 1}", token)


def _special(added: Added | None) -> Added:
    return replace(added, special=True) if added else Added(special=True)


def check_count(count: int, file: str) -> None:
    """Refuse a vocabulary of no tokens, or of more than any model has."""
    if not 1 <= count <= TOKENS_LIMIT:
        raise FormatError(file, "vocabulary", f"1..{TOKENS_LIMIT} tokens", count)


def is_byte(token: str) -> bool:
    """Whether a piece stands for one byte: <0x0A>."""
    return _BYTE.fullmatch(token) is not None


def byte_level(data: bytes) -> str:
    """Bytes as byte-level vocabularies write them, a character a byte."""
    return "".join(map(BYTE_CHARACTERS.__getitem__, data))


def merges_of(tokens: Iterable[str], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to make each of `tokens` of two others, the most urgent token first.

    Of one token's ways, that with the earlier left half comes first, as in the published tokenizer.json files.
    """
    found: list[tuple[str, str]] = []
    for token in tokens:
        ways = []
        for at in range(1, len(token)):
            left, right = ids.get(token[:at]), ids.get(token[at:])
            if left is not None and right is not None:
                ways.append((left, right, token[:at], token[at:]))
        ways.sort()
        found.extend((left_text, right_text) for _, _, left_text, right_text in ways)
    return found


def _bytes_of_bytes(token: str) -> bytes:
    try:
        return token.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()  # a token that is not written in the alphabet stands for its text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_byte(file: str, id_: int, token: str, added: Mapping[int, Added]) -> None:
    # Who added a token of that look as text knows why.
    if not is_byte(token) and id_ not in added:
        raise FormatError(file, f"token {id_}", "a byte as <0x00> to <0xFF>", f"{token!r}")

"""Text to token ids and back, exactly as the model's own files say."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from .errors import BitNetError, FormatError
from .vocabularies import Spaces, Vocabulary, folders, gguf, pipelines

Tokens = npt.NDArray[np.int32]
# Above this many characters the faster way, which keeps no offsets, is worth its worker threads.
_LONG = 1 << 16


class Tokenizer:
    """One model's tokenizer; it never changes, and any number of threads may use it.

    Special tokens steer a model. In a text they stay text, even where one is an ordinary word, unless `special=True`
    says that the text is trusted.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        vocabulary.check()
        self.vocabulary = vocabulary
        self._special = MappingProxyType(vocabulary.special_ids())
        with _contained(vocabulary.file, "tokenizer"):
            self._engine = _make_engine(vocabulary)
            self._splitter = _make_splitter(vocabulary)
        self._bytes = vocabulary.bytes_by_id()
        self._shown = tuple(b"" if vocabulary.is_special(id_) else text for id_, text in enumerate(self._bytes))
        # What decoding takes away in front; a byte-level text comes back as it was.
        prefixed = pipelines.adds_space(vocabulary.normalizer, vocabulary.pre_tokenizer)
        self._spaces = vocabulary.spaces or Spaces(prefix=prefixed and vocabulary.alphabet == "pieces")

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Tokenizer | None:
        """The tokenizer of a model's folder; None where it has none."""
        vocabulary = folders.read_folder(Path(folder))
        return None if vocabulary is None else cls(vocabulary)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer in a tokenizer.json, in a tokenizer.model (tiktoken or SentencePiece), or in a vocab.json."""
        return cls(folders.read_file(Path(path)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], file: str | os.PathLike[str]) -> Tokenizer | None:
        """The tokenizer in a GGUF file's metadata; None where it has none."""
        vocabulary = gguf.parse(metadata, file)
        return None if vocabulary is None else cls(vocabulary)

    def to_gguf(self) -> dict[str, object]:
        """The keys tokenizer.ggml.* of this tokenizer."""
        return gguf.write(self.vocabulary)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json into an existing folder."""
        folders.save(self.vocabulary, Path(folder))

    @property
    def vocab_size(self) -> int:
        """How many tokens there are; a model may have rows for more."""
        return len(self._bytes)

    @property
    def bos(self) -> int | None:
        """The token that begins a text."""
        return self.vocabulary.bos

    @property
    def eos(self) -> frozenset[int]:
        """Every token that ends a text or a turn."""
        return self.vocabulary.eos

    @property
    def pad(self) -> int | None:
        """The token that fills a batch."""
        return self.vocabulary.pad

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Every token that steers the model, by its text."""
        return self._special

    def token_id(self, token: str) -> int | None:
        """The id of a token as the files write it (with their byte characters or marks for spaces)."""
        return self.vocabulary.ids.get(token)

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for in the text."""
        if type(token) is int and 0 <= token < len(self._bytes):  # of every token that is written: no array for one
            return self._bytes[token]
        return self._bytes[self._checked([token])[0]]

    def vocabulary_bytes(self) -> Sequence[bytes]:
        """What each token stands for in the text, by id."""
        return self._bytes

    def encode(self, text: str, *, bos: bool | None = None, eos: bool | None = None, special: bool = False) -> Tokens:
        """The ids of `text`; special tokens in it are text, unless `special`.

        `bos` and `eos` say whether the tokens that begin and end a text are put around it; None: as the model's
        files say. What the text begins with already is not put before it again.
        """
        return self.encode_pieces([(text, special)], bos=bos, eos=eos)

    def encode_batch(self, texts: Sequence[str], *, bos: bool | None = None, eos: bool | None = None) -> list[Tokens]:
        """The ids of each text, as `encode` gives them, computed side by side."""
        return [self._around(ids, bos, eos) for ids in self._encode_plain(texts)]

    def encode_pieces(
        self, pieces: Iterable[tuple[str, bool]], *, bos: bool | None = None, eos: bool | None = None
    ) -> Tokens:
        """The ids of one text in pieces, each with whether special tokens are looked for in it.

        The pieces' borders mean nothing but that: words and merges run over them.
        """
        found: list[int] = []
        plain: list[str] = []

        def flush() -> None:
            text = "".join(plain)
            plain.clear()
            if text:
                found.extend(self._encode_plain([text])[0])

        for text, trusted in pieces:
            for part in self._split(text) if trusted else (text,):
                if isinstance(part, str):
                    plain.append(part)
                else:
                    flush()
                    found.append(part)
        flush()
        return self._around(found, bos, eos)

    def decode(self, tokens: Iterable[int] | Tokens, *, special: bool = False, continues: bool = False) -> str:
        """The text of `tokens`; special ones are left out, unless `special`.

        Bytes that are not UTF-8 become U+FFFD. Where the tokenizer puts a space in front of every text, that one is
        taken away, unless the tokens go on with a text that `continues`.
        """
        table = self._bytes if special else self._shown
        data = b"".join([table[token] for token in self._checked(tokens)])
        if not continues:
            data = self._spaces.strip(data)
        return data.decode("utf-8", "replace")

    def stream(self, tokens: Iterable[int], *, special: bool = False, continues: bool = False) -> Iterator[str]:
        """The text of `tokens` as they come, in pieces of whole characters."""
        stream = TextStream(self, special=special, continues=continues)
        for token in tokens:
            if piece := stream.feed(token):
                yield piece
        if rest := stream.finish():
            yield rest

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts in which nothing is special."""
        spaces = self.vocabulary.spaces
        if spaces is not None:
            texts = [spaces.apply(text) for text in texts]
        for text in texts:
            _check_text(text)
        with _contained(self.vocabulary.file, "text"):
            if len(texts) == 1 and len(texts[0]) < _LONG:
                return [self._engine.encode(texts[0], add_special_tokens=False).ids]
            return [one.ids for one in self._engine.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _split(self, text: str) -> Iterator[str | int]:
        """A text's special tokens as ids, and what lies between them as text."""
        _check_text(text)
        if self._splitter is None or not text:
            yield text
            return
        with _contained(self.vocabulary.file, "text"):
            found = self._splitter.encode(text, add_special_tokens=False)
        for token, (start, end) in zip(found.ids, found.offsets, strict=True):
            yield token if token < len(self._bytes) else text[start:end]

    def _around(self, ids: list[int], bos: bool | None, eos: bool | None) -> Tokens:
        prefix = self._asked(bos, self.vocabulary.prefix, self.bos, "BOS")
        suffix = self._asked(eos, self.vocabulary.suffix, min(self.eos, default=None), "EOS")
        if ids[: len(prefix)] == list(prefix):
            prefix = ()
        return np.array([*prefix, *ids, *suffix], np.int32)

    def _asked(self, wanted: bool | None, usual: tuple[int, ...], token: int | None, name: str) -> tuple[int, ...]:
        if wanted is None or (wanted and usual):
            return usual
        if wanted and token is None:
            raise FormatError(self.vocabulary.file, name, f"a tokenizer that has a token for {name}", "none")
        return (token,) if wanted and token is not None else ()

    def _checked(self, tokens: Iterable[int] | Tokens) -> list[int]:
        array = np.asarray(tokens if isinstance(tokens, np.ndarray | list | tuple) else list(tokens))
        if array.size == 0:
            return []
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise FormatError(self.vocabulary.file, "tokens", "one row of integers", f"{array.dtype} {array.shape}")
        for token in (array.min(), array.max()):
            if not 0 <= token < len(self._bytes):
                raise FormatError(self.vocabulary.file, "token", f"an id of 0..{len(self._bytes) - 1}", token)
        ids: list[int] = array.tolist()
        return ids


class TextStream:
    """Text from tokens that come one by one: whole characters only, in constant time a token."""

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._begun = continues
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that this token completes; a character that it begins is held back."""
        data = self._tokenizer.token_bytes(token)
        if not data or (not self._special and self._tokenizer.vocabulary.is_special(token)):
            return ""
        if not self._begun:
            data = self._tokenizer._spaces.strip(data)
            self._begun = bool(data) or not self._tokenizer._spaces.collapse
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What was held back, as U+FFFD: no more tokens come."""
        return self._decoder.decode(b"", final=True)


def _make_engine(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The library's tokenizer of texts in which nothing is special."""
    pipeline: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": vocabulary.normalizer,
        "pre_tokenizer": vocabulary.pre_tokenizer,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    engine = tokenizers.Tokenizer.from_str(json.dumps(pipeline))
    # A special token that the model knew could come out of ordinary text, as one character or as one word.
    known = {
        text: id_ for text, id_ in vocabulary.ids.items() if id_ == vocabulary.unk or not vocabulary.is_special(id_)
    }
    merges = [
        pair for pair in vocabulary.merges if pair[0] in known and pair[1] in known and pair[0] + pair[1] in known
    ]
    engine.model = tokenizers.models.BPE(
        known,
        merges,
        unk_token=None if vocabulary.unk is None else vocabulary.tokens[vocabulary.unk],
        fuse_unk=vocabulary.fuse_unk,
        byte_fallback=vocabulary.byte_fallback,
        ignore_merges=vocabulary.ignore_merges,
    )
    engine.add_tokens(_added_tokens(vocabulary, special=False))
    return engine


def _make_splitter(vocabulary: Vocabulary) -> tokenizers.Tokenizer | None:
    """A tokenizer that knows the special tokens alone, and gives one token beyond the vocabulary for all between."""
    specials = vocabulary.special_ids()
    if not specials:
        return None
    words = {**specials, "": len(vocabulary.tokens)}
    splitter = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=""))
    splitter.add_special_tokens(_added_tokens(vocabulary, special=True))
    return splitter


def _added_tokens(vocabulary: Vocabulary, *, special: bool) -> list[str | tokenizers.AddedToken]:
    return [
        tokenizers.AddedToken(
            vocabulary.tokens[id_],
            single_word=added.single_word,
            lstrip=added.lstrip,
            rstrip=added.rstrip,
            normalized=added.normalized and not special,
            special=special,
        )
        for id_, added in sorted(vocabulary.added.items())
        if added.special == special
    ]


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(
            "text", f"character {error.start}", "Unicode", f"the lone surrogate U+{ord(text[error.start]):04X}"
        ) from error


@contextmanager
def _contained(file: str, field: str) -> Iterator[None]:
    """Whatever the library raises, as one error: its panics are no Exceptions."""
    try:
        yield
    except (BitNetError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise FormatError(file, field, "what the tokenizers library takes", error) from error

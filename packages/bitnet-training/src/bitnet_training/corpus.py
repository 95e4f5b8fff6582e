"""Tokens on the disk: made once from records and a tokenizer, then mapped, whatever their size."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from bitnet_core import FormatError
from bitnet_core.durable import sync_folder
from bitnet_core.formats.strictjson import read_json
from bitnet_core.tokenizer import Tokenizer, Tokens

from .answers import Flags
from .records import Record

_log = logging.getLogger(__name__)
_FORMAT = 1
_AT_ONCE = 256  # records; their texts are in memory together

Conversation = Callable[[Record], tuple[Tokens, Flags] | None]  # None: it is left out


@dataclass(frozen=True, slots=True)
class Counts:
    """What a corpus holds, and how it is written."""

    dtype: str
    tokens: int
    documents: int
    text_bytes: int
    chat: bool
    overlapping: int  # documents that share a paragraph with those held out
    left_out: int  # of these


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents as tokens, one behind another."""

    key: str
    tokens: npt.NDArray[Any]
    starts: npt.NDArray[np.int64]  # of documents, and one more: the end
    learned: npt.NDArray[np.uint8] | None  # for each token of conversations: 1 in answers
    counts: Counts

    @property
    def bytes_a_token(self) -> float:
        """How much text a token stands for, on average."""
        return self.counts.text_bytes / max(1, self.counts.tokens)

    def part(self, low: int, high: int) -> Corpus:
        """The tokens from one place to another, as a corpus."""
        inside = self.starts[(self.starts > low) & (self.starts < high)]
        starts = np.concatenate(([low], inside, [high])) - low
        learned = None if self.learned is None else self.learned[low:high]
        share = (high - low) / max(1, self.counts.tokens)
        counts = replace(
            self.counts, tokens=high - low, documents=len(starts) - 1, text_bytes=round(share * self.counts.text_bytes)
        )
        return Corpus(f"{self.key}[{low}:{high}]", self.tokens[low:high], starts, learned, counts)

    def split(self, share: float) -> tuple[Corpus, Corpus]:
        """All but the last share, and that; documents stay whole where there are many."""
        border = round(len(self.tokens) * (1 - share))
        if len(self.starts) > 20:
            border = int(self.starts[np.searchsorted(self.starts, border)])
        return self.part(0, border), self.part(border, len(self.tokens))


def key_of(*parts: str) -> str:
    """A name for what is made of these parts."""
    return hashlib.sha256("\0".join((str(_FORMAT), *parts)).encode()).hexdigest()[:32]


def folder(path: str = "") -> Path:
    """Where corpora are kept."""
    usual = os.environ.get("BITNET_TOKENS") or "~/.cache/bitnet/tokens"
    return Path(path or usual).expanduser()


def prepare(key: str, cache: Path, make: Callable[[], Writer]) -> Corpus:
    """The corpus of a key: as it lies in the cache, or made now and kept there."""
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{key}.lock"):  # one makes, others wait; where locks do not work, each makes its own
        found = open_corpus(cache / key)
        if found is None:
            for left in cache.glob(f".{key}.*.part"):  # of a maker that was killed
                shutil.rmtree(left)
            began = time.monotonic()
            make().publish(cache / key)
            found = open_corpus(cache / key)
            if found is not None:
                counts, took = found.counts, time.monotonic() - began
                _log.info("%d tokens of %d documents in %.1f s", counts.tokens, counts.documents, took)
    if found is None:
        raise FormatError(cache / key, "corpus", "the files just written", "others")
    return found


def open_corpus(path: Path) -> Corpus | None:
    """The corpus in a folder, mapped; None where there is none that is whole."""
    if not (path / "corpus.json").is_file():
        return None
    value = read_json(path / "corpus.json", limit=1 << 16)
    try:
        counts = Counts(**value)
        tokens = _mapped(path / "tokens.bin", counts.dtype, counts.tokens)
        starts = _mapped(path / "starts.bin", "int64", counts.documents + 1)
        learned = _mapped(path / "learned.bin", "uint8", counts.tokens) if counts.chat else None
    except (TypeError, ValueError, OSError) as error:
        _log.warning("%s: made again, since it is not whole: %s", path, error)
        shutil.rmtree(path)
        return None
    return Corpus(path.name, tokens, starts, learned, counts)


def _mapped(path: Path, dtype: str, count: int) -> npt.NDArray[Any]:
    kind = np.dtype(dtype)
    if path.stat().st_size != kind.itemsize * count:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {kind.itemsize * count}")
    # As a plain array, of which parts are taken faster.
    return np.asarray(np.memmap(path, kind, "r")) if count else np.zeros(0, kind)


class Writer:
    """A corpus being made: documents go in one by one, memory holds a few of them."""

    def __init__(
        self,
        records: Iterable[Record],
        tokenizer: Tokenizer,
        *,
        conversation: Conversation | None = None,
        overlaps: Callable[[str], bool] | None = None,
        leave_out: bool = False,
    ) -> None:
        self._records = records
        self._tokenizer = tokenizer
        self._conversation = conversation
        self._overlaps = overlaps
        self._leave_out = leave_out
        self._dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        self._tokens = self._bytes = self._overlapping = 0
        self._starts = [0]

    def publish(self, path: Path) -> None:
        """Make it all and let it appear at once under its name."""
        aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        aside.mkdir()
        try:
            with ExitStack() as stack:
                names = ["tokens.bin", *(["learned.bin"] if self._conversation else [])]
                streams: list[BinaryIO] = [stack.enter_context((aside / name).open("wb")) for name in names]
                self._write(streams)
                (aside / "starts.bin").write_bytes(np.array(self._starts, np.int64).tobytes())
                (aside / "corpus.json").write_text(json.dumps(asdict(self._counts())), encoding="utf-8")
            for name in (*names, "starts.bin", "corpus.json"):
                _sync(aside / name)
            sync_folder(aside)
            if not path.exists():
                aside.rename(path)
                sync_folder(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _counts(self) -> Counts:
        documents = len(self._starts) - 1
        if not documents or not self._tokens:
            raise FormatError("data", "records", "at least one that can be used", "none")
        left_out = self._overlapping if self._leave_out else 0
        chat = self._conversation is not None
        return Counts(self._dtype.name, self._tokens, documents, self._bytes, chat, self._overlapping, left_out)

    def _write(self, streams: list[BinaryIO]) -> None:
        for tokens, learned, is_new in self._documents():
            if is_new and self._tokens:
                self._starts.append(self._tokens)
            self._tokens += len(tokens)
            streams[0].write(tokens.astype(self._dtype).tobytes())
            if learned is not None:
                streams[1].write(learned.astype(np.uint8).tobytes())
        if self._tokens:
            self._starts.append(self._tokens)

    def _documents(self) -> Iterator[tuple[Tokens, Flags | None, bool]]:
        """Tokens, whether each is learned, and whether a document begins with them."""
        records = (record for record in self._records if self._is_wanted(record))
        if self._conversation is not None:
            for record in records:
                if made := self._conversation(record):
                    self._bytes += sum(len(message["content"].encode()) for message in record.messages)
                    yield *made, True
            return
        first = self._tokenizer.encode("", eos=False)
        last = self._tokenizer.encode("", bos=False, eos=bool(self._tokenizer.eos))
        begun = False
        while some := list(islice(records, _AT_ONCE)):
            self._bytes += sum(len(record.text.encode()) for record in some)
            texts = self._tokenizer.encode_batch([record.text for record in some], bos=False, eos=False)
            for record, ids in zip(some, texts, strict=True):
                if record.continues:
                    yield ids, None, False
                    continue
                if begun and len(last):  # only now is it known that the document before has ended
                    yield last, None, False
                yield np.concatenate((first, ids)), None, True
                begun = True
        if begun and len(last):
            yield last, None, False

    def _is_wanted(self, record: Record) -> bool:
        text = record.text or "\n".join(message["content"] for message in record.messages)
        if self._overlaps is None or not self._overlaps(text):
            return True
        self._overlapping += 1
        return not self._leave_out


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())

"""From the records that a config names to windows of tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bitnet_core import FormatError
from bitnet_core.chat import ChatTemplate
from bitnet_core.tokenizer import Tokenizer, Tokens

from . import answers, corpus, records
from .config import Config, DataConfig
from .corpus import Corpus, Writer
from .overlap import Paragraphs
from .records import BadRecords, Record
from .windows import Stream, Whole, Windows

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Data:
    """What is learned, and what is held out."""

    key: str  # of the tokens that are learned: the same key, the same tokens
    learned: Windows
    held_out: Windows | None
    bytes_a_token: float  # of what is held out


def texts(config: DataConfig, *, chat: bool) -> Iterator[str]:
    """The texts of the training records, as a tokenizer learns from them."""
    for record in _records(config, config.train, chat=chat):
        yield record.text or "\n".join(message["content"] for message in record.messages)


def prepare(config: Config, tokenizer: Tokenizer, template: ChatTemplate | None) -> Data:
    """Tokens from the cache or made now, laid into windows."""
    asked, chat = config.data, is_chat(config)
    if not asked.train:
        raise FormatError("config", "data.train", "at least one file", "none")
    if chat and template is None:
        _log.warning(
            "the tokenizer has no chat template (tokenizer.template): questions and answers are joined as they stand"
        )
    key = _hash(tokenizer, template if chat else None)
    valid = _corpus(asked, asked.valid, tokenizer, template, key, chat=chat) if asked.valid else None
    learned = _corpus(asked, asked.train, tokenizer, template, key, chat=chat, apart_from=asked.valid)
    if valid is not None:
        _say_overlap(learned, asked)
    elif asked.held_out:
        learned, valid = learned.split(asked.held_out)
    windows = _windows(learned, asked, chat=chat)
    if not len(windows) and chat:
        raise FormatError("data", "windows", f"an answer in the first {asked.window} tokens of a conversation", "none")
    if not len(windows):
        raise FormatError("data", "windows", f"at least {asked.window + 1} tokens to learn", len(learned.tokens))
    if isinstance(windows, Whole) and windows.cut:
        said = f"; {windows.left_out} lose their answers and are left out" if windows.left_out else ""
        _log.warning(
            "%d documents are longer than a window of %d tokens and are cut%s", windows.cut, asked.window, said
        )
    held_out = None if valid is None else _windows(valid, asked, chat=chat)
    if held_out is not None and not len(held_out):
        raise FormatError("data", "held out", f"at least {asked.window + 1} tokens", len(valid.tokens) if valid else 0)
    return Data(learned.key, windows, held_out, 0.0 if chat or valid is None else valid.bytes_a_token)


def is_chat(config: Config) -> bool:
    """Whether answers are learned, not texts."""
    return config.method == "sft" or config.data.form == "chat"


def _windows(made: Corpus, asked: DataConfig, *, chat: bool) -> Windows:
    if chat or asked.packing == "whole":
        return Whole.of(made, asked.window, asked.document_mask)
    return Stream(made, asked.window, asked.document_mask)


def _records(
    asked: DataConfig, sources: tuple[str, ...], *, chat: bool, bad: BadRecords | None = None
) -> Iterator[Record]:
    bad = bad or BadRecords(asked.bad_records)
    return records.read(records.find(sources), key=asked.field, separator=asked.separator, chat=chat, bad=bad)


def _corpus(
    asked: DataConfig,
    sources: tuple[str, ...],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    made_by: str,
    *,
    chat: bool,
    apart_from: tuple[str, ...] = (),
) -> Corpus:
    """The tokens of some sources; those that are learned are compared with what is held out."""
    parts = [made_by, records.digest(records.find(sources)), asked.field, asked.separator, str(chat)]
    if apart_from:
        parts += [records.digest(records.find(apart_from)), asked.overlap]

    def make() -> Writer:
        bad = BadRecords(asked.bad_records)
        judged = _records(asked, apart_from, chat=chat) if apart_from else iter(())
        paragraphs = Paragraphs(one.text or "\n".join(m["content"] for m in one.messages) for one in judged)
        return Writer(
            _records(asked, sources, chat=chat, bad=bad),
            tokenizer,
            conversation=partial(_conversation, tokenizer, template, bad) if chat else None,
            overlaps=paragraphs.any_in if apart_from else None,
            leave_out=asked.overlap == "leave out",
        )

    return corpus.prepare(corpus.key_of(*parts, str(asked.bad_records)), corpus.folder(asked.cache), make)


def _conversation(
    tokenizer: Tokenizer, template: ChatTemplate | None, bad: BadRecords, record: Record
) -> tuple[Tokens, answers.Flags] | None:
    try:
        return answers.encode(record.messages, tokenizer, template, record.where, record.tools)
    except FormatError as error:  # of the template, which does not know where a record stands
        bad.leave_out(FormatError(record.where, error.field, error.expected, error.got, hint=error.hint))
        return None


def _say_overlap(learned: Corpus, asked: DataConfig) -> None:
    counts = learned.counts
    done = "left out" if asked.overlap == "leave out" else "learned all the same"
    said = f"{counts.overlapping} of {counts.documents + counts.left_out} training documents share a paragraph"
    _log.info("overlap: %s with those held out%s", said, f"; they are {done}" if counts.overlapping else "")


def _hash(tokenizer: Tokenizer, template: ChatTemplate | None) -> str:
    """What tells one way from text to tokens from another."""
    known = tokenizer.vocabulary
    said = (known.tokens, known.merges, sorted(known.added.items()), known.normalizer, known.pre_tokenizer)
    roles = (known.prefix, known.suffix, known.bos, sorted(known.eos))
    return corpus.key_of(repr(said), repr(roles), template.source if template else "")


def template_in(path: str) -> ChatTemplate:
    """A chat template that a config names."""
    file = Path(path)
    if not file.is_file():
        raise FormatError(path, "file", "a chat template", "no such file")
    return ChatTemplate(file.read_text(encoding="utf-8"), file=path)

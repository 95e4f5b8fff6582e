"""Answers in a form that is asked for: JSON of a schema or a type, a regex, a grammar, one of several choices."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bitnet_core.errors import UnsupportedError, printable
from bitnet_core.tokenizer import Tokenizer

from . import schemas
from .sampling import SamplingError
from .schemas import Schema, check_pattern, check_schema, check_text, close_objects, refusal, schema_of

if TYPE_CHECKING:
    import llguidance

GRAMMAR_LIMIT = 64 << 10  # characters
CHOICES_LIMIT = 1000
COMPILE_LIMIT = 0.5  # seconds of work, after which a grammar is refused
_WORD = 32  # bytes of the longest token that is looked for where text is split by hand
_NOTHING = "NoExtensionBias"  # llguidance's word for a grammar that no text fits
# One line, as most JSON in calls is: a model that may indent writes spaces for half of its tokens, a small one no end.
_JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer must be, and how it is read back."""

    grammar: str  # as llguidance takes it
    parse: Callable[[str], Any]  # the whole answer as what was asked for; FormatError where it is not whole
    kind: str  # what errors call it: "schema", "regex", "grammar" or "choices"
    schema: Schema | None = None

    @classmethod
    def of(cls, wanted: Any) -> Form:
        """The form that is meant: "json", a schema, a type, a compiled pattern, a list of choices, or a Form."""
        if isinstance(wanted, Form):
            return wanted
        if isinstance(wanted, str) and wanted != "json":
            raise refusal("form", '"json", a schema, a type, a compiled pattern or a list of choices', repr(wanted))
        if isinstance(wanted, str):
            return cls.json({"type": "object"})
        if isinstance(wanted, Mapping):
            return cls.json(wanted)
        if isinstance(wanted, re.Pattern):
            flags = "".join(letter for letter in "imsx" if wanted.flags & getattr(re, letter.upper()))
            return cls.regex(f"(?{flags}){wanted.pattern}" if flags else wanted.pattern)
        if isinstance(wanted, list | tuple):
            return cls.choices(wanted)
        return cls.type(wanted)

    @classmethod
    def json(cls, schema: Schema | str) -> Form:
        """JSON that fits a schema; parsed to what the json module makes of it. Objects have the keys that it names."""
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise refusal("schema", "JSON", error) from error
        checked = check_schema(schema)
        close_objects(checked)
        return _json_form(checked, json.loads)

    @classmethod
    def type(cls, kind: Any) -> Form:
        """JSON of a type: a pydantic model, a msgspec Struct, a dataclass, a TypedDict, or a built-in type of such."""
        schema, decode = schema_of(kind)
        return _json_form(check_schema(schema), decode)

    @classmethod
    def regex(cls, pattern: str) -> Form:
        r"""Text that a regex of Rust's syntax matches as a whole: no lookaround, no backreferences; \d is 0-9."""
        library = _library()
        lark = library.regex_to_lark(check_pattern(pattern), "d")
        return cls(library.LLMatcher.grammar_from_lark(f"start: /{lark}/"), str, "regex")

    @classmethod
    def lark(cls, grammar: str) -> Form:
        """Text of a Lark grammar, whose first rule is `start`."""
        if not isinstance(grammar, str) or not 1 <= len(grammar) <= GRAMMAR_LIMIT:
            got = f"{len(grammar)}" if isinstance(grammar, str) else type(grammar).__name__
            raise refusal("grammar", f"a Lark grammar of 1..{GRAMMAR_LIMIT} characters", got)
        check_text(grammar, "grammar")
        return cls(_library().LLMatcher.grammar_from_lark(grammar), str, "grammar")

    @classmethod
    def choices(cls, choices: Sequence[str]) -> Form:
        """One of these strings."""
        if not 1 <= len(choices) <= CHOICES_LIMIT or not all(isinstance(one, str) and one for one in choices):
            raise refusal("choices", f"1..{CHOICES_LIMIT} strings that are not empty", f"{len(choices)} values")
        if sum(map(len, choices)) > GRAMMAR_LIMIT:
            raise refusal("choices", f"at most {GRAMMAR_LIMIT} characters in all", sum(map(len, choices)))
        for one in choices:
            check_text(one, "choices")
        return cls.lark("start: " + " | ".join(map(json.dumps, choices)))


class Vocabulary:
    """A tokenizer as grammars need it; made once for a model, used by any number of threads.

    A model may have rows for fewer tokens than its tokenizer knows: those from `vocab_size` on never come.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None) -> None:
        library = _library()
        if not tokenizer.eos:
            raise UnsupportedError(
                "structured output needs a tokenizer with a token that ends a text, and this has none"
            )
        self._tokens = library.LLTokenizer(
            library.TokenizerWrapper(_Tokens(tokenizer)), eos_token=sorted(tokenizer.eos)
        )
        self._text = _text_words(tokenizer, vocab_size)
        self._limits = library.LLParserLimits(
            initial_lexer_fuel=500_000,
            step_lexer_fuel=100_000,
            step_max_items=25_000,
            max_lexer_states=30_000,
            max_grammar_size=200_000,
            verbose_errors=False,
        )

    def constraint(self, form: Form) -> Matcher:
        """The form as a constraint of one sequence; ValueError where it cannot be one, or takes too long."""
        start = time.thread_time()
        matcher = self._compile(form.grammar)
        error = matcher.get_error()
        if not error:
            # What is made late is made now, and counted: an engine must never wait for it.
            mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            error = matcher.get_error() or ("" if mask.any() else _NOTHING)
        if error:
            where, error = self._find(form.schema, start) or (form.kind, error)
            raise ValueError(f"{where}: cannot be made a grammar: {_one_line(error)}")
        seconds = time.thread_time() - start
        if seconds > COMPILE_LIMIT:
            raise refusal(form.kind, f"what is compiled in {COMPILE_LIMIT} s", f"{seconds:.1f} s; make it smaller")
        return Matcher(matcher, self._text)

    def _compile(self, grammar: str) -> llguidance.LLMatcher:
        matcher: llguidance.LLMatcher = _library().LLMatcher(self._tokens, grammar, log_level=0, limits=self._limits)
        return matcher

    def _find(self, schema: Schema | None, start: float) -> tuple[str, str] | None:
        """The innermost schema that cannot be compiled, and why; the path tells a user what to change."""
        found: tuple[str, str] | None = None
        inner = _inner(schema or {}, "schema")
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema} if schema else {}
        while inner and time.thread_time() - start < COMPILE_LIMIT:
            path, one = inner.pop(0)
            if error := self._compile(_json_grammar({**shared, **one})).get_error():
                found, inner = (path, error), _inner(one, path)
        return found


class Matcher:
    """Where one sequence is in its grammar: a sampler's Constraint."""

    def __init__(self, matcher: llguidance.LLMatcher, text: npt.NDArray[np.int32]) -> None:
        self._matcher = matcher
        self._text = text

    def mask(self) -> npt.NDArray[np.int32]:
        """One bit a token, set where it may come next: text, or the end where the answer is whole."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.int32)[: len(self._text)] & self._text
        if self._matcher.is_error():
            raise SamplingError(f"the grammar cannot go on: {_one_line(self._matcher.get_error())}; make it simpler")
        return mask

    def accept(self, token: int) -> None:
        """Go on with a token that the mask allowed."""
        if not self._matcher.consume_token(token):
            raise SamplingError(f"the grammar does not allow token {token}: {_one_line(self._matcher.get_error())}")

    @property
    def finished(self) -> bool:
        """Whether the answer is whole, and nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def whole(self) -> bool:
        """Whether the answer could end here."""
        return self._matcher.is_accepting()

    def fork(self) -> Matcher:
        """A second one at the same place."""
        return Matcher(self._matcher.deep_copy(), self._text)


class _Tokens:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos)
        self.bos_token_id = tokenizer.bos
        self.tokens = list(tokenizer.vocabulary_bytes())
        self.special_token_ids = sorted(tokenizer.special_tokens.values())

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of text that stands inside of another, where no space is put in front."""
        data = text if isinstance(text, bytes) else text.encode()
        for before in (b"", b"\n"):
            ids: list[int] = self._tokenizer.encode(
                (before + data).decode("utf-8", "replace"), bos=False, eos=False
            ).tolist()
            for skipped in range(min(len(ids), 3) + 1):
                if b"".join(self.tokens[id_] for id_ in ids[skipped:]) == data:
                    return ids[skipped:]
        return list(self._longest(data))

    def _longest(self, data: bytes) -> Iterator[int]:
        """Always the longest token that fits: for tokenizers that change texts before they split them."""
        place = 0
        while place < len(data):
            sizes = range(min(_WORD, len(data) - place), 0, -1)
            size = next((size for size in sizes if data[place : place + size] in self._ids), 0)
            if size:
                yield self._ids[data[place : place + size]]
            place += size or 1

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {text: id_ for id_, text in enumerate(self.tokens) if id_ not in special}


def _text_words(tokenizer: Tokenizer, vocab_size: int | None) -> npt.NDArray[np.int32]:
    """One bit a token: those of text, and those that end it. No grammar may bring in the others."""
    bits = np.zeros(-(-tokenizer.vocab_size // 32) * 32, np.uint8)
    bits[: tokenizer.vocab_size] = [len(text) > 0 for text in tokenizer.vocabulary_bytes()]
    bits[list(tokenizer.special_tokens.values())] = 0
    bits[sorted(tokenizer.eos)] = 1
    bits[len(bits) if vocab_size is None else vocab_size :] = 0
    return np.packbits(bits, bitorder="little").view(np.int32)


def _inner(schema: Schema, where: str) -> list[tuple[str, Schema]]:
    """The schemas inside of a schema; what only refers to others comes last, for those are to blame."""
    found = [(path, one) for path, one in schemas.subschemas(schema, where) if isinstance(one, Mapping)]
    return sorted(found, key=lambda each: "$ref" in each[1])


def _json_form(schema: Schema, decode: Callable[[str], Any]) -> Form:
    return Form(_json_grammar(schema), lambda text: schemas.read(text, decode), "schema", schema)


def _json_grammar(schema: Schema) -> str:
    grammar: str = _library().LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON_OPTIONS)
    return grammar


def _one_line(error: str) -> str:
    """What went wrong, of a message with a picture of where."""
    if error.startswith(_NOTHING):
        return "no text fits it"
    lines = [line.strip() for line in error.splitlines() if line.strip() and line.strip() != "<non-verbose/>"]
    said = [line for line in lines if line.startswith("error: ")]
    return printable(said[0].removeprefix("error: ") if said else lines[0] if lines else "unknown", 160)


def _library() -> Any:
    try:
        import llguidance  # noqa: PLC0415  has no wheel for every system
    except ImportError as error:
        raise UnsupportedError(
            "structured output needs llguidance, which is not installed: pip install llguidance "
            "(where there is no wheel of it, with a Rust compiler)"
        ) from error
    return llguidance

"""Structured output: whatever is drawn under the mask fits the form, with every tokenizer."""

from __future__ import annotations

import copy
import decimal
import enum
import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypedDict, get_origin

import jsonschema
import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core.errors import FormatError, UnsupportedError
from bitnet_core.tokenizer import TextStream, Tokenizer
from bitnet_inference.sampling import Sampler, SamplingError
from bitnet_inference.schemas import _repeats
from bitnet_inference.settings import Sampling
from bitnet_inference.structured import Form, Matcher, Vocabulary

STORIES = Path(__file__).parents[3] / "models" / "stories"


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class Point(msgspec.Struct):
    x: int
    y: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


@dataclass
class Person:
    name: str
    age: int | None
    colors: list[Color]


class Movie(TypedDict):
    title: Annotated[str, msgspec.Meta(max_length=12)]
    year: Annotated[int, msgspec.Meta(ge=1900, le=2030)]


class Tree(pydantic.BaseModel):
    kind: Literal["leaf", "node"]
    children: Annotated[list[Tree], pydantic.Field(max_length=2)] = []


class Order(pydantic.BaseModel):
    id: int = pydantic.Field(ge=1, le=999)
    items: list[Annotated[str, pydantic.Field(pattern="^[a-z]{1,8}$")]] = pydantic.Field(max_length=3)
    paid: bool


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    tame: bool


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]


AS_PYDANTIC_2_12 = {"anyOf": [{"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}]}


class Kept(pydantic.BaseModel):
    pet: Cat | Dog = pydantic.Field(discriminator="kind")
    id: pydantic.UUID4
    shots: dict[Literal["rabies", "flu"], bool]
    price: Annotated[decimal.Decimal, pydantic.Field(json_schema_extra=AS_PYDANTIC_2_12)]
    word: Annotated[pydantic.SecretStr, pydantic.Field(max_length=5)]


@dataclass
class Rated:
    stars: Annotated[int, pydantic.Field(ge=1, le=3)]  # of pydantic, in a type that is not


SHORT = {"type": "string", "maxLength": 8}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object"},
    {"type": "boolean"},
    {"type": "null"},
    {"type": "integer", "minimum": -5, "maximum": 300},
    {"type": "integer", "exclusiveMinimum": 0, "multipleOf": 7, "maximum": 1000},
    {"type": "number", "minimum": 0.5, "maximum": 2.25},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": "string", "pattern": "^(foo|ba[rz])-[0-9]{2,3}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"enum": ["a", 1, None, True, 2.5, {"b": []}, 'quote " and \\', "\u00fc\n\U0001f642"]},
    {"const": {"a": [1, "x"]}},
    {"type": ["integer", "null"], "maximum": 9, "minimum": 0},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "boolean"}, SHORT], "items": False, "minItems": 2},
    {"type": "array", "items": {"type": "array", "items": {"enum": [0, 1]}, "maxItems": 3}, "maxItems": 3},
    {"type": "object", "properties": {"a": SHORT, "b": {"type": "boolean"}}, "additionalProperties": False},
    {"type": "object", "properties": {"a": SHORT}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"enum": [1, 2]}, "maxProperties": 3},
    {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a", "b"], "additionalProperties": {"const": 2}},
    {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "null"}}, "additionalProperties": False},
    {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"const": "x"}, "maxItems": 2}]},
    {"oneOf": [{"type": "boolean"}, {"type": "null"}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 12}]},
    {
        "type": "object",
        "properties": {"kind": {"const": "circle"}, "radius": {"type": "integer", "minimum": 1, "maximum": 50}},
        "required": ["kind", "radius"],
        "additionalProperties": False,
    },
    {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "value": {"enum": [0, 1]},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]},
                },
                "required": ["value", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    {
        "type": "object",
        "properties": {
            "name": SHORT,
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
            "address": {
                "type": "object",
                "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
                "required": ["zip"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "age", "address"],
        "additionalProperties": False,
    },
]
TYPES: list[Any] = [
    Point,
    Person,
    Movie,
    Tree,
    Order,
    Color,
    int | None,
    list[Point],
    dict[str, bool],
    Literal["a", "b"],
    Kept,
    Rated,
    set[bool],
    frozenset[Literal["a", "b"]],
    bytes,
    decimal.Decimal,
    dict[Annotated[str, msgspec.Meta(pattern="^x[0-9]$")], bool],
    tuple[bool, Color],
]


@cache
def opened_stories() -> tuple[Tokenizer, Vocabulary]:
    tokenizer = Tokenizer.from_folder(STORIES)
    assert tokenizer is not None
    return tokenizer, Vocabulary(tokenizer)


@pytest.fixture
def stories() -> Tokenizer:
    return opened_stories()[0]


@pytest.fixture
def vocabulary() -> Vocabulary:
    return opened_stories()[1]


@cache
def random_rows(size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.random.default_rng(0).standard_normal((16, size)) * 3).astype(np.float32)


def draw(tokenizer: Tokenizer, matcher: Matcher, seed: int, *, size: int | None = None, most: int = 400) -> str:
    """A text drawn from random logits under the mask; after a while, whatever ends it is preferred."""
    size = tokenizer.vocab_size if size is None else size
    sampler = Sampler(Sampling(seed=seed), np.zeros(0, np.int32), size, tokenizer.eos, constraint=matcher)
    rows = random_rows(size)
    stream = TextStream(tokenizer, special=True, continues=True)
    text = ""
    closing = [id_ for text in ('"', "}", "]", "null") if (id_ := tokenizer.token_id(text)) is not None]
    for position in range(most):
        logits = rows[(seed + position) % len(rows)].copy()
        if position > 25:
            logits[closing] += 20
            logits[sorted(tokenizer.eos)] += 60
        token = sampler.choose(logits).token
        sampler.accept(token)
        if token in tokenizer.eos:
            break
        assert token not in tokenizer.special_tokens.values()
        text += stream.feed(token)
        if sampler.finished:
            break
    else:
        pytest.fail(f"no end after {most} tokens: {text!r}")
    assert matcher.whole
    return text + stream.finish()


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_json_drawn_at_random_fits_its_schema(
    schema: dict[str, Any], stories: Tokenizer, vocabulary: Vocabulary
) -> None:
    form = Form.json(schema)
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for seed in range(4):
        text = draw(stories, vocabulary.constraint(form), seed)
        checker.validate(form.parse(text))


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_json_drawn_at_random_is_read_as_its_type(kind: Any, stories: Tokenizer, vocabulary: Vocabulary) -> None:
    form = Form.of(kind)
    assert form.schema is not None
    for seed in range(4):
        text = draw(stories, vocabulary.constraint(form), seed)
        value = form.parse(text)
        if isinstance(kind, type) and not hasattr(kind, "__required_keys__") and get_origin(kind) is None:
            assert isinstance(value, kind)
        jsonschema.validate(json.loads(text), form.schema)


@pytest.mark.parametrize("kind", ["llama3", "tok512"])
def test_it_holds_with_other_tokenizers(kind: str, data: Path) -> None:
    tokenizers: dict[str, Callable[[], Tokenizer | None]] = {
        "llama3": lambda: Tokenizer.from_folder(data / "tokenizers" / "llama3"),
        "tok512": lambda: Tokenizer.from_folder(data / "models" / "bitllama2c-1M-hf"),
    }
    tokenizer = tokenizers[kind]()
    assert tokenizer is not None
    vocabulary = Vocabulary(tokenizer)
    for seed, schema in enumerate(SCHEMAS):
        form = Form.json(schema)
        jsonschema.validate(form.parse(draw(tokenizer, vocabulary.constraint(form), seed)), schema)
    for seed, pattern in enumerate(PATTERNS):
        text = draw(tokenizer, vocabulary.constraint(Form.regex(pattern)), seed)
        assert re.fullmatch(pattern, text)


PATTERNS = [
    "[a-z]+",
    "^(yes|no)$",
    r"\(\d{3}\) \d{3}-\d{4}",
    "[\u4e00-\u4e20]{2,5}",
    "a|b|",
    ".{0,5}",
    "[^a]{1,6}z",
    "(ab)*c?",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_text_drawn_at_random_matches_its_regex(pattern: str, stories: Tokenizer, vocabulary: Vocabulary) -> None:
    form = Form.of(re.compile(pattern))
    for seed in range(5):
        text = draw(stories, vocabulary.constraint(form), seed)
        assert re.fullmatch(pattern, form.parse(text))


def test_flags_of_a_compiled_regex_are_kept(stories: Tokenizer, vocabulary: Vocabulary) -> None:
    form = Form.of(re.compile("[a-c]{8}.d", re.IGNORECASE | re.DOTALL))
    texts = [draw(stories, vocabulary.constraint(form), seed) for seed in range(10)]
    assert all(re.fullmatch("[a-cA-C]{8}(.|\n)[dD]", text) for text in texts)
    assert any(text != text.lower() for text in texts)


def test_text_drawn_at_random_is_of_its_grammar(stories: Tokenizer, vocabulary: Vocabulary) -> None:
    form = Form.lark('start: sum\nsum: term ("+" term)*\nterm: /[0-9]{1,3}/ | "(" sum ")"')
    for seed in range(10):
        text = draw(stories, vocabulary.constraint(form), seed, most=2000)
        assert set(text) <= set("0123456789+()")
        compile(re.sub(r"0*(\d)", r"\1", text), "sum", "eval")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_one_of_the_choices_is_drawn(choices: list[str]) -> None:
    tokenizer, vocabulary = opened_stories()
    form = Form.of(choices)
    assert form.parse(draw(tokenizer, vocabulary.constraint(form), 1)) in choices


def test_json_is_any_object(stories: Tokenizer, vocabulary: Vocabulary) -> None:
    form = Form.of("json")
    for seed in range(5):
        assert isinstance(form.parse(draw(stories, vocabulary.constraint(form), seed)), dict)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a":null,"b":[1,2]}', True),
        ('{"a": null, "b": [1, 2]}', True),
        ('{ "a"', False),
        ('{"a" :', False),
        ('{"a":  ', False),
        ('{"a": null,\n', False),
        ('{"a": null }', False),
    ],
)
def test_json_is_one_line_with_a_space_at_most_behind_commas_and_colons(
    text: str, fits: bool, stories: Tokenizer, vocabulary: Vocabulary
) -> None:
    numbers = {"type": "array", "items": {"type": "integer"}}
    matcher = vocabulary.constraint(Form.json({"properties": {"a": {"type": "null"}, "b": numbers}, "type": "object"}))
    taken = 0
    with suppress(SamplingError):
        for token in stories.encode(text, bos=False, eos=False):
            matcher.accept(token)
            taken += 1
    assert (taken == len(stories.encode(text, bos=False, eos=False))) is fits
    assert matcher.whole is fits


def test_masks_cover_models_with_more_rows_than_tokens(stories: Tokenizer, vocabulary: Vocabulary) -> None:
    for extra in (0, 1, 31, 32, 100):
        size = stories.vocab_size + extra
        text = draw(stories, vocabulary.constraint(Form.choices(["yes", "no"])), 3, size=size)
        assert text in ("yes", "no")


def test_text_that_must_come_is_written_with_the_models_own_words(data: Path) -> None:
    text = "the little girl was happy"
    for tokenizer in (
        Tokenizer.from_folder(data / "models" / "bitllama2c-1M-hf"),
        Tokenizer.from_folder(STORIES),
        Tokenizer.from_file(data / "tokenizers" / "llama2" / "tokenizer.model"),
    ):
        assert tokenizer is not None
        matcher = Vocabulary(tokenizer).constraint(Form.choices([text]))
        tokens: list[int] = []
        while not matcher.finished:
            allowed = np.flatnonzero(np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")).tolist()
            tokens.append(max(allowed, key=lambda id_: len(tokenizer.token_bytes(id_))))
            matcher.accept(tokens[-1])
        assert b"".join(map(tokenizer.token_bytes, tokens)) == text.encode()
        assert len(tokens) <= len(tokenizer.encode(text, bos=False)) + 1


def test_tokens_that_the_model_has_no_rows_for_never_come(stories: Tokenizer) -> None:
    for size in (100, 1500, stories.vocab_size + 100):
        bits = np.unpackbits(
            Vocabulary(stories, size).constraint(Form.regex(".*")).mask().view(np.uint8), bitorder="little"
        )
        assert bits[:size].any()
        assert not bits[size:].any()


def test_special_tokens_never_come_even_where_a_grammar_names_them(data: Path) -> None:
    tokenizer = Tokenizer.from_folder(data / "models" / "bitllama2c-1M-hf")
    assert tokenizer is not None
    unknown = tokenizer.special_tokens["<unk>"]
    assert unknown not in tokenizer.eos
    matcher = Vocabulary(tokenizer).constraint(Form.lark(f'start: <[{unknown}]> "a"'))
    assert not matcher.mask().any()


def test_a_fork_goes_its_own_way(vocabulary: Vocabulary, stories: Tokenizer) -> None:
    first = vocabulary.constraint(Form.choices(["abc", "xyz"]))
    second = first.fork()
    a, x = (stories.token_id(letter) for letter in "ax")
    assert a is not None
    assert x is not None
    first.accept(a)
    second.accept(x)
    assert not (first.mask() == second.mask()).all()


def test_the_end_may_come_only_where_the_answer_is_whole(vocabulary: Vocabulary, stories: Tokenizer) -> None:
    matcher = vocabulary.constraint(Form.regex("ab?"))
    (end,) = stories.eos
    a, b = (stories.token_id(letter) for letter in "ab")
    assert a is not None
    assert b is not None

    def allows_end() -> bool:
        return bool(np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")[end])

    assert not allows_end()
    assert not matcher.whole
    matcher.accept(a)
    assert allows_end()
    assert matcher.whole
    assert not matcher.finished
    matcher.accept(b)
    assert matcher.finished


def test_a_token_that_is_not_allowed_is_refused(vocabulary: Vocabulary, stories: Tokenizer) -> None:
    matcher = vocabulary.constraint(Form.regex("a"))
    wrong = stories.token_id("b")
    assert wrong is not None
    with pytest.raises(SamplingError, match=f"does not allow token {wrong}"):
        matcher.accept(wrong)
    with pytest.raises(SamplingError, match="cannot go on"):
        matcher.mask()


# --- what cannot be a form


def refused(vocabulary: Vocabulary, make: Callable[[], Form]) -> str:
    start = time.thread_time()
    with pytest.raises(ValueError, match=r".") as caught:
        vocabulary.constraint(make())
    assert time.thread_time() - start < 2
    return check_refusal(caught.value)


def check_refusal(error: Exception, start: str = "") -> str:
    message = str(error)
    assert message.startswith(start)
    assert "\n" not in message
    assert len(message) < 500
    return message


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def nested_list(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


BAD_SCHEMAS: list[tuple[Any, str]] = [
    ({"type": "strin"}, "schema: cannot be made a grammar: Invalid type: strin"),
    (
        {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "strin"}}}},
        "schema.properties.a.items: cannot be made a grammar: Invalid type",
    ),
    ({"anyOf": [{"type": "null"}, {"not": {}}]}, "schema.anyOf[1]: cannot be made a grammar"),
    (
        {"$defs": {"x": {"uniqueItems": True}}, "properties": {"a": {"$ref": "#/$defs/x"}}},
        "schema.$defs.x: cannot be made a grammar",
    ),
    ({"type": "object", "properties": 5}, "schema: cannot be made a grammar: properties must be an object"),
    ({"$ref": "#"}, "no text fits it"),
    ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "schema"),
    ({"$ref": "http://localhost/x.json"}, "schema: cannot be made a grammar"),
    ({"$ref": "#/$defs/none"}, "schema: cannot be made a grammar"),
    ({"enum": []}, "schema: cannot be made a grammar"),
    ({"minimum": 5, "maximum": 3, "type": "integer"}, "minimum (5) is greater than maximum (3)"),
    ({"type": "string", "pattern": "((("}, "schema: cannot be made a grammar: unclosed group"),
    ({"properties": {"b": {"pattern": "a{1,2000000000}"}}}, "schema.properties.b.pattern: expected at most 2000"),
    ({"patternProperties": {"(a{50}){50}": {}}}, "schema.patternProperties: expected at most 2000 repetitions"),
    ({"minimum": float("nan")}, "schema.minimum: expected a finite number, got nan"),
    ({"a": {1: 2}}, "schema.a: expected keys that are strings"),
    ({"a": [object()]}, "schema.a[0]: expected an object, a list, a string"),
    (nested(33), "expected at most 32 schemas inside of each other"),
    (nested(100_000), "expected at most 32 schemas inside of each other"),
    ({"enum": nested_list(10_000)}, "expected at most 32 schemas inside of each other"),
    ({"enum": list(range(5000))}, "schema: expected at most 5000 values"),
    ({"const": "x" * 300_000}, "schema: expected at most 262144 bytes"),
    ({"minimum": 10**5000}, "schema.minimum: expected a number of at most 1024 bits, got 16610 bits"),
    ({"const": "\ud800"}, "schema.const: expected Unicode text without lone surrogates"),
    ({"properties": {"\ud800": {}}}, "schema.properties: expected Unicode text without lone surrogates"),
    ({"pattern": "\ud800"}, "schema.pattern: expected Unicode text without lone surrogates"),
    ({"x-guidance": {"nothing": 1}}, "schema: cannot be made a grammar: unknown field"),
    ([], "schema: expected an object, got list"),
    (None, "schema: expected an object, got NoneType"),
    ("{", "schema: expected JSON"),
    ("[" * 100_000, "schema: expected JSON"),
    ("5", "schema: expected an object, got int"),
]


@pytest.mark.parametrize("number", range(len(BAD_SCHEMAS)))  # what is so deep cannot be printed as an id
def test_a_bad_schema_is_one_error_with_its_path(number: int, vocabulary: Vocabulary) -> None:
    schema, message = BAD_SCHEMAS[number]
    assert message in refused(vocabulary, lambda: Form.json(schema))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("((((", "regex: cannot be made a grammar: unclosed group"),
        ("(" * 4000, "regex: cannot be made a grammar"),
        (
            "a{1,2000000000}",
            "regex: expected at most 2000 repetitions, those inside of others multiplied, got 2000000000",
        ),
        ("(a{2000}){2000}", "regex: expected at most 2000 repetitions"),
        ("a{" + "9" * 4000 + "}", "regex: expected at most 2000 repetitions"),
        ("(?=a)b", "regex: cannot be made a grammar: look-around"),
        (r"(a)\1", "regex: cannot be made a grammar: backreferences are not supported"),
        ("", "regex: expected 1..4096 characters, got 0"),
        ("a" * 4097, "regex: expected 1..4096 characters, got 4097"),
        ("\ud800", "regex: expected Unicode text without lone surrogates"),
        (5, "regex: expected a string, got int"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_regex_is_one_error(pattern: Any, message: str, vocabulary: Vocabulary) -> None:
    assert message in refused(vocabulary, lambda: Form.regex(pattern))


@pytest.mark.parametrize(
    "grammar",
    ["start: (", "start: start", "start: nobody", 'x: "a"', "start: @other", 'start: "\ud800"', "", 5, "x" * 100_000],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_grammar_is_one_error(grammar: Any, vocabulary: Vocabulary) -> None:
    assert refused(vocabulary, lambda: Form.lark(grammar)).startswith("grammar: ")


@pytest.mark.parametrize(
    "choices", [[], ["a", ""], [1], ["x"] * 1001, ["x" * 70_000], ["\ud800"]], ids=lambda value: str(value)[:20]
)
def test_bad_choices_are_one_error(choices: Any, vocabulary: Vocabulary) -> None:
    assert "choices: expected" in refused(vocabulary, lambda: Form.of(choices))


@pytest.mark.parametrize("wanted", ["yaml", object(), Tokenizer, 5], ids=str)
def test_what_is_no_form_is_refused(wanted: Any, vocabulary: Vocabulary) -> None:
    assert re.match("form|type", refused(vocabulary, lambda: Form.of(wanted)))


@pytest.mark.parametrize(
    "form",
    [
        lambda: Form.lark('start: A\nA: B{2000}\nB: "x"{2000}'),
        lambda: Form.lark("start: /(a{2000}){2000}/"),
        lambda: Form.lark("start: a{1,1000000}\na: /[a-z]{0,2000}/"),
        lambda: Form.lark('start: e\ne: e e | e e e | "a" | ""'),
        lambda: Form.lark("start: A0\n" + "".join(f"A{i}: A{i + 1} A{i + 1}\n" for i in range(40)) + 'A40: "x"'),
        lambda: Form.regex("(.{1,30}a|.{1,40}b|.{1,50}c)*z"),
        lambda: Form.regex("((.?x?){40}){40}"),
        lambda: Form.regex("(x+x+)+y"),
        lambda: Form.regex(r"(\w+\s)*\w+@"),
        lambda: Form.regex("(a|aa|aaa){2000}"),
        lambda: Form.regex("(a?){40}a{40}"),
        lambda: Form.regex("[^a]*a.{30}"),
        lambda: Form.json({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2400)}}),
        lambda: Form.json({"enum": [f"value {i}" for i in range(4900)]}),
        lambda: Form.json({"type": "array", "items": {}, "minItems": 10**9, "maxItems": 10**18}),
        lambda: Form.json({"type": "string", "minLength": 5000, "maxLength": 10**12}),
    ],
)
def test_hostile_forms_are_compiled_and_followed_in_bounded_time(
    form: Callable[[], Form], stories: Tokenizer, vocabulary: Vocabulary
) -> None:
    """Each step either goes on soon, or says that the grammar is too complex."""
    rng = np.random.default_rng(0)
    start = time.thread_time()
    try:
        matcher = vocabulary.constraint(form())
        assert time.thread_time() - start < 2
        for _ in range(30):
            start = time.thread_time()
            allowed = np.flatnonzero(np.unpackbits(matcher.mask().view(np.uint8), bitorder="little"))
            if matcher.finished or not len(allowed):
                break
            token = int(rng.choice(allowed))
            matcher.accept(token)
            assert time.thread_time() - start < 1
            if token in stories.eos:
                break
    except (SamplingError, ValueError) as error:
        check_refusal(error)
        assert time.thread_time() - start < 2


@given(st.text("(){}[]*+?|\\^$.,09ab-&~dpwL", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_string_is_a_regex_or_one_error(pattern: str) -> None:
    _, vocabulary = opened_stories()
    try:
        vocabulary.constraint(Form.regex(pattern)).mask()
    except (ValueError, SamplingError) as error:
        check_refusal(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "items", "anyOf", "$ref", "$defs", "enum", "const", "pattern", "required", "not",
                 "minimum", "maxItems", "minLength", "additionalProperties", "format", "allOf", "x-guidance"]
            ),
            inner | st.sampled_from(["object", "array", "string", "#", "#/$defs/a", "a{5}", "date"]),
            max_size=5,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["type", "properties", "anyOf", "$defs", "$ref", "items", "enum"]), json_values))
@settings(max_examples=300, deadline=None)
def test_any_object_is_a_schema_or_one_error(schema: dict[str, Any]) -> None:
    _, vocabulary = opened_stories()
    try:
        vocabulary.constraint(Form.json(schema)).mask()
    except ValueError as error:
        check_refusal(error, "schema")


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("abc", 1),
        (r"\d{3}-\d{4}", 4),
        ("(a{3}b{4}){5}", 20),
        ("((a{3}){2}|b{9}){2}", 18),
        (r"\{5000}", 1),
        ("[{5000}]x{2}", 2),
        ("[]{5000}]x{2}", 2),
        ("[[a]{500}]{3}", 3),
        ("a{,7}", 7),
        ("a{2,}", 2),
        ("a{x}", 1),
        ("a{5}{6}", 30),
        ("(a{5})+b", 5),
        ("(((((a{3}", 3),
        ("a)))){4}", 4),
        ("a{", 1),
    ],
)
def test_repetitions_inside_of_others_are_multiplied(pattern: str, count: int) -> None:
    assert _repeats(pattern) == count


# --- reading back


@pytest.mark.parametrize("text", ["", "{", '{"x": 1', '{"x": "1"}', '{"x": 1} {', "[" * 100_000])
@pytest.mark.parametrize(
    "form", [Form.of(Point), Form.of(Order), Form.of(dict[str, int])], ids=["msgspec", "pydantic", "dict"]
)
def test_a_text_that_was_cut_or_is_wrong_is_one_error(text: str, form: Form) -> None:
    with pytest.raises(FormatError, match="answer: JSON: expected text that fits its schema") as caught:
        form.parse(text)
    assert "\n" not in str(caught.value)


def test_a_schema_without_a_type_gives_what_the_json_says() -> None:
    assert Form.json('{"type": "object"}').parse('{"a": [1, null]}') == {"a": [1, None]}


def test_objects_of_a_type_take_no_other_keys() -> None:
    for kind in (Point, Person, Movie, Order):
        schema = Form.of(kind).schema
        assert schema is not None
        named = schema if "properties" in schema else schema["$defs"][kind.__name__]
        assert named["additionalProperties"] is False


def test_a_schema_may_be_of_mappings_of_any_kind_and_is_the_callers_no_more() -> None:
    inner = {"a": {"type": "null"}}
    form = Form.json(MappingProxyType({"properties": MappingProxyType(inner)}))
    inner.clear()
    assert form.schema == {"properties": {"a": {"type": "null"}}, "additionalProperties": False}


NAMED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "schema",
    [
        NAMED,
        {"type": "array", "items": NAMED, "minItems": 1},
        {"$ref": "#/$defs/a", "$defs": {"a": NAMED}},
        {"anyOf": [NAMED, {"type": "null"}]},
        {"allOf": [NAMED]},
    ],
)
def test_objects_that_name_their_keys_take_no_others(schema: dict[str, Any]) -> None:
    asked = copy.deepcopy(schema)
    made = Form.json(schema).schema
    assert schema == asked
    assert made is not None
    for value, fits in (({"a": None}, True), ({"a": None, "b": None}, False)):
        answer = [value] if "items" in schema else value
        jsonschema.validate(answer, schema)
        assert jsonschema.Draft202012Validator(made).is_valid(answer) is fits


@pytest.mark.parametrize(
    "schema",
    [
        NAMED | {"additionalProperties": True},
        NAMED | {"required": ["a", "b"]},
        NAMED | {"minProperties": 2},
        {"allOf": [NAMED, {"properties": {"b": {"type": "null"}}}]},
        {"$ref": "#/$defs/a", "properties": {"b": {"type": "null"}}, "$defs": {"a": NAMED}},
        {"type": "object"},
    ],
)
def test_an_object_is_left_open_where_more_keys_may_be_meant(schema: dict[str, Any]) -> None:
    assert Form.json(schema).schema == schema


def test_a_form_is_taken_as_it_is() -> None:
    form = Form.choices(["a"])
    assert Form.of(form) is form


def test_without_llguidance_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch, stories: Tokenizer) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for make in (lambda: Form.of("json"), lambda: Form.regex("a"), lambda: Form.lark("start: /a/")):
        with pytest.raises(UnsupportedError, match="structured output needs llguidance, which is not installed"):
            make()
    with pytest.raises(UnsupportedError, match="pip install llguidance"):
        Vocabulary(stories)

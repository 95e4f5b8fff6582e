"""Functions as tools: how they are described, how their calls are found, and what calling them gives."""

from __future__ import annotations

import asyncio
import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core.errors import FormatError
from bitnet_core.tokenizer import TextStream, Tokenizer
from bitnet_inference.sampling import Sampler
from bitnet_inference.settings import Sampling
from bitnet_inference.structured import Form, Vocabulary
from bitnet_inference.tools import ANSWER_LIMIT, Call, Toolbox, form_of

STORIES = Path(__file__).parents[3] / "models" / "stories"


class Unit(enum.Enum):
    CELSIUS = "celsius"
    KELVIN = "kelvin"


@dataclass
class Place:
    city: str
    country: str = "FR"


class Point(msgspec.Struct):
    x: int
    y: int


class Filter(pydantic.BaseModel):
    minimum: int = pydantic.Field(ge=0)
    tags: list[str] = []


def weather(city: str, unit: Unit = Unit.CELSIUS, days: int = 1) -> dict[str, Any]:
    """The weather of a city,
    for some days.

    Args:
        city: the name, in
            any language
        unit (Unit): of the temperature
        days: how many: from today on

    Returns:
        The weather.
    """
    return {"city": city, "unit": unit.value, "days": days}


def now() -> str:
    """The time."""
    return "12:00"


def add(a: int, b: int | None = None, *, scale: float = 1.0, kind: Literal["x", "y"] = "x", big: bool = False) -> float:
    """Add two numbers.

    :param a: the first
    :param int b: the second,
        or none
    :returns: the sum
    """
    return (a + (b or 0)) * scale


def find(place: Place, points: list[Point], options: dict[str, int], names: list[str] = ["a"]) -> str:  # noqa: B006
    names.append("b")
    return f"{place.city} {place.country} {points[0].x + points[0].y} {options} {names}"


def search(query: str, only: Filter) -> list[str]:
    return [query, *only.tags, str(only.minimum)]


def broken(text: str) -> str:
    raise KeyError(text + "\n\x1b[31m" + "x" * 5000)


DESCRIBED = {
    "type": "function",
    "function": {
        "name": "lookup-2",
        "description": "Looks a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"$ref": "#/$defs/w"}},
            "$defs": {"w": {"type": "string"}},
        },
    },
}
ALL: list[Any] = [weather, now, add, find, search, broken, DESCRIBED]
BOX = Toolbox(ALL)


def schema_of(name: str) -> dict[str, Any]:
    (schema,) = (one["function"] for one in BOX.schemas if one["function"]["name"] == name)
    return schema


# --- descriptions


def test_a_function_is_described_by_its_types_and_its_docstring() -> None:
    schema = schema_of("weather")
    assert schema["description"] == "The weather of a city, for some days."
    parameters = schema["parameters"]
    assert parameters["type"] == "object"
    assert parameters["required"] == ["city"]
    assert parameters["additionalProperties"] is False
    properties = parameters["properties"]
    assert properties["city"] == {"type": "string", "description": "the name, in any language"}
    assert properties["unit"]["description"] == "of the temperature"
    assert properties["days"] == {"type": "integer", "default": 1, "description": "how many: from today on"}


def test_sphinx_docstrings_are_read_as_well() -> None:
    schema = schema_of("add")
    assert schema["description"] == "Add two numbers."
    properties = schema["parameters"]["properties"]
    assert properties["a"]["description"] == "the first"
    assert properties["b"]["description"] == "the second, or none"
    assert properties["kind"] == {"enum": ["x", "y"], "default": "x"}
    assert properties["big"] == {"type": "boolean", "default": False}


def test_a_function_without_arguments_takes_none() -> None:
    assert schema_of("now")["parameters"]["properties"] == {}
    assert schema_of("now")["description"] == "The time."


@pytest.mark.parametrize("name", [schema["function"]["name"] for schema in BOX.schemas])
def test_every_description_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema_of(name)["parameters"])
    json.dumps(schema_of(name))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("weather", {"city": "Paris", "unit": "kelvin"}, {"city": "Paris", "unit": "miles"}),
        ("add", {"a": 1, "b": None}, {"a": 1, "b": "two"}),
        ("find", {"place": {"city": "x"}, "points": [{"x": 1, "y": 2}], "options": {"a": 1}}, {"place": {"city": "x"}}),
        ("search", {"query": "q", "only": {"minimum": 0}}, {"query": "q", "only": {"minimum": -1}}),
    ],
)
def test_arguments_fit_the_schema_or_not(name: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
    parameters = schema_of(name)["parameters"]
    jsonschema.validate(good, parameters)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, parameters)
    assert not BOX.run(Call(name, good)).startswith("error")
    assert BOX.run(Call(name, bad)).startswith("error: ")


def test_descriptions_cannot_be_changed_from_outside() -> None:
    BOX.schemas[0]["function"]["parameters"]["properties"].clear()
    assert BOX.schemas[0]["function"]["parameters"]["properties"]


def test_a_description_has_no_function() -> None:
    assert BOX.can_run("weather")
    assert not BOX.can_run("lookup-2")
    assert not BOX.can_run("nothing")
    assert (
        BOX.run(Call("lookup-2", {"word": "a"}))
        == "error: ValueError: lookup-2: there is no function of this tool here"
    )


def test_a_toolbox_is_taken_as_it_is() -> None:
    assert Toolbox.of(BOX) is BOX
    assert list(Toolbox.of([now])) == ["now"]
    assert len(Toolbox.of(())) == 0
    assert "now" in BOX


def untyped(a) -> None:  # type: ignore[no-untyped-def]
    pass


def starred(*a: int) -> None:
    pass


def positional(a: int, /) -> None:
    pass


def odd(a: np.ndarray) -> None:  # type: ignore[type-arg]
    pass


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([untyped], "tool untyped: expected a type of its parameter a"),
        ([starred], "tool starred: expected parameters that have names"),
        ([positional], "tool positional: expected parameters that have names"),
        ([odd], "tool odd: an argument's type has no JSON schema"),
        ([5], "tools: expected functions or descriptions, got 5"),
        ([lambda x: x], "tools.name: expected 1..64 letters, digits, _ and -, got '<lambda>'"),
        ([now, now], "tools\\[1\\]: expected a name of its own, got 'now'"),
        ([{"name": "a" * 1_000_000}], "tools\\[0\\].name: expected 1..64 letters"),
        ([{"name": "a b"}], "tools\\[0\\].name"),
        ([{}], "tools\\[0\\].name"),
        ([{"function": 5}], "tools\\[0\\].function: expected an object"),
        ([{"name": "a", "description": 5}], "tools\\[0\\].description: expected a string"),
        ([{"name": "a", "parameters": [1]}], "tools\\[0\\].parameters: expected an object"),
        (
            [{"name": "a", "parameters": {"minimum": float("inf")}}],
            "tools\\[0\\].parameters.minimum: expected a finite",
        ),
        ([{"name": f"a{index}"} for index in range(10_000)], "tools: expected at most 128, got more"),
    ],
)
def test_what_is_no_tool_is_refused(tools: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Toolbox(tools)
    assert len(str(caught.value)) < 500


def test_what_stands_beside_a_type_describes_an_argument() -> None:
    def order(
        count: Annotated[int, "how many"], size: Annotated[int, pydantic.Field(ge=1, le=3, description="how big")]
    ) -> int:
        return count * size

    box = Toolbox([order])
    schema = box.schemas[0]["function"]["parameters"]["properties"]
    assert schema["count"]["description"] == "how many"
    assert schema["size"] == {"description": "how big", "minimum": 1, "maximum": 3, "type": "integer"}
    assert box.run(Call("order", {"count": 2, "size": 3})) == "6"
    assert box.run(Call("order", {"count": 2, "size": 4})).startswith("error: ValidationError")


def test_an_async_function_is_awaited_wherever_it_is_called() -> None:
    async def later(a: int) -> int:
        await asyncio.sleep(0)
        return a + 1

    async def within() -> str:
        return Toolbox([later]).run(Call("later", {"a": 1}))

    assert Toolbox([later]).run(Call("later", {"a": 1})) == asyncio.run(within()) == "2"


def test_a_description_may_be_written_as_anthropic_has_it() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    box = Toolbox([{"name": "weather", "description": "Tell it.", "input_schema": schema}])
    assert box.schemas[0]["function"] == {"name": "weather", "description": "Tell it.", "parameters": schema}


# --- calls in a text

WEATHER = {"name": "weather", "arguments": {"city": "Paris"}}
PARIS = ("weather", {"city": "Paris"})
NOW = ("now", {})
NOW_JSON = '{"name": "now", "arguments": {}}'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("It is sunny.", []),
        ("", []),
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>', [PARIS]),
        ('Let me see. <tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>', [PARIS]),
        (
            f"<tool_call>{NOW_JSON}</tool_call>\n<tool_call>{json.dumps(WEATHER)}</tool_call>",
            [NOW, PARIS],
        ),
        ('<tool_call>{"name": "now"}', [NOW]),
        ('<tool_call>{"name": "nobody", "arguments": {}}</tool_call>', [("nobody", {})]),
        ('<tool_call>{"name": "now", "arguments": {', []),
        ("<tool_call></tool_call>", []),
        ("<tool_call>[1, 2]</tool_call>", []),
        (
            '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call><tool_call>{}"}}</tool_call>',
            [("weather", {"city": "</tool_call><tool_call>{}"})],
        ),
        ('{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
        ('{"type": "function", "name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
        ('{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}', [PARIS]),
        ('{"name": "now", "parameters": {}}; {"name": "weather", "parameters": {"city": "Paris"}}', [NOW, PARIS]),
        ('[{"name": "now", "arguments": {}}, {"name": "weather", "arguments": {"city": "Paris"}}]', [NOW, PARIS]),
        ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]', [PARIS]),
        ('<function=weather>{"city": "Paris"}</function>', [PARIS]),
        ('```json\n{"name": "weather", "arguments": {"city": "Paris"}}\n```', [PARIS]),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}', [PARIS]),
        ('{"name": "weather", "arguments": "Paris"}', []),
        ('{"name": "nobody", "arguments": {}}', []),
        ('{"name": "Ann", "age": 5}', []),
        ('{"name": "now", "age": 5}', []),
        ('{"city": "Paris"}', []),
        ('The call would be {"name": "now", "arguments": {}}', []),
        ('{"name": 5, "arguments": {}}', []),
        ('{"name": "now", "arguments": [1]}', []),
        ('{"name": "now", "arguments": {}} and more', []),
        ("[" * 100_000, []),
        ("<tool_call>" + "[" * 100_000, []),
        ('{"a":' * 100_000, []),
    ],
    ids=lambda value: str(value)[:50],
)
def test_calls_are_found_as_models_write_them(text: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    found = BOX.parse(text)
    assert [(call.name, call.arguments) for call in found] == calls
    assert len({call.id for call in found}) == len(found)


def test_a_text_of_calls_without_end_has_a_bounded_number() -> None:
    assert len(BOX.parse('<tool_call>{"name": "now"}</tool_call>' * 5000)) == 64
    assert len(BOX.parse('{"name": "now"};' * 5000)) == 64
    assert len(BOX.parse("[" + ",".join(['{"name": "now"}'] * 5000) + "]")) == 64
    assert BOX.parse('<tool_call>{"a": "' * 20_000) == []


def test_without_tools_there_are_no_calls() -> None:
    assert Toolbox().parse(NOW_JSON) == []
    assert Toolbox().parse(f"<tool_call>{NOW_JSON}</tool_call>") == []


@given(st.text('<tool_call>{}[]":, nameargumtsw\\/\n;`json', max_size=200) | st.text(max_size=100))
@settings(max_examples=300, deadline=None)
def test_any_text_can_be_searched(text: str) -> None:
    for start in ("", "<tool_call>", '{"name": "now", "arguments": '):
        for call in BOX.parse(start + text):
            assert isinstance(BOX.run(call), str)


# --- calling


def test_arguments_become_what_the_function_takes() -> None:
    assert json.loads(BOX.run(Call("weather", {"city": "Paris", "unit": "kelvin"}))) == {
        "city": "Paris",
        "unit": "kelvin",
        "days": 1,
    }
    arguments = {"place": {"city": "Nice"}, "points": [{"x": 1, "y": 2}], "options": {"a": 1}}
    assert BOX.run(Call("find", arguments)) == "Nice FR 3 {'a': 1} ['a', 'b']"
    assert BOX.run(Call("search", {"query": "q", "only": {"minimum": 3, "tags": ["t"]}})) == '["q","t","3"]'
    assert BOX.run(Call("now", {})) == "12:00"
    assert BOX.run(Call("add", {"a": 2, "scale": 1.5})) == "3.0"


def test_defaults_are_new_for_each_call() -> None:
    arguments = {"place": {"city": "Nice"}, "points": [{"x": 1, "y": 2}], "options": {}}
    first = BOX.run(Call("find", arguments))
    assert BOX.run(Call("find", arguments)) == first


def test_a_number_written_as_a_string_is_taken_as_the_number() -> None:
    assert BOX.run(Call("add", {"a": "2", "big": "true"})) == "2.0"


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (Call("nobody", {}), "error: ValueError: tool: expected one of weather, now, add"),
        (Call("weather", {}), "error: ValidationError: Object missing required field `city`"),
        (Call("weather", {"city": 5}), "error: ValidationError: Expected `str`, got `int` - at `$.city`"),
        (Call("weather", {"town": "x"}), "error: ValueError: weather has no argument 'town'; it has city, unit, days"),
        (Call("now", {"a": 1}), "error: ValueError: now has no argument 'a'; it has none"),
        (Call("weather", {"city": "x", "days": 1.5}), "error: ValidationError"),
        (Call("weather", {"city": object()}), "error: TypeError"),
        (Call("broken", {"text": "oops"}), "error: KeyError: 'oops\\n\\x1b[31mxxx"),
    ],
)
def test_what_goes_wrong_is_the_answer(call: Call, answer: str) -> None:
    got = BOX.run(call)
    assert got.startswith(answer)
    assert len(got) < 1100
    assert "\n" not in got


def test_what_ends_the_program_is_not_kept_from_it() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Toolbox([stop]).run(Call("stop", {}))


def test_answers_are_text_of_a_bounded_length() -> None:
    def give(kind: Literal["none", "list", "object", "long"]) -> Any:
        return {"none": None, "list": [1, {"a": None}], "object": {1, 2}.__iter__, "long": "x" * 10**6}[kind]

    box = Toolbox([give])
    assert box.run(Call("give", {"kind": "none"})) == "null"
    assert box.run(Call("give", {"kind": "list"})) == '[1,{"a":null}]'
    assert "object" in box.run(Call("give", {"kind": "object"}))
    assert len(box.run(Call("give", {"kind": "long"}))) == ANSWER_LIMIT + len("... (cut)")


# --- a call that is asked for


def drawn(box: Toolbox, name: str | None, seed: int) -> list[Call]:
    tokenizer, vocabulary = TOKENIZER()
    form = box.form(name)
    sampler = Sampler(
        Sampling(seed=seed),
        np.zeros(0, np.int32),
        tokenizer.vocab_size,
        tokenizer.eos,
        constraint=vocabulary.constraint(form),
    )
    rng, stream, text = np.random.default_rng(seed), TextStream(tokenizer, continues=True), ""
    closing = [id_ for mark in ('"', "}", "]") if (id_ := tokenizer.token_id(mark)) is not None]
    for position in range(500):
        logits = rng.standard_normal(tokenizer.vocab_size).astype(np.float32)
        logits[closing] += 30.0 * (position > 40)
        token = sampler.choose(logits).token
        sampler.accept(token)
        if token in tokenizer.eos:
            break
        text += stream.feed(token)
        if sampler.finished:
            break
    calls: list[Call] = form.parse(text)
    return calls


def opened() -> Callable[[], tuple[Tokenizer, Vocabulary]]:
    found: list[tuple[Tokenizer, Vocabulary]] = []

    def get() -> tuple[Tokenizer, Vocabulary]:
        if not found:
            tokenizer = Tokenizer.from_folder(STORIES)
            assert tokenizer is not None
            found.append((tokenizer, Vocabulary(tokenizer)))
        return found[0]

    return get


TOKENIZER = opened()


@pytest.mark.parametrize("name", ["weather", "now", "find", "search", "lookup-2"])
def test_a_call_that_is_forced_is_one_of_that_tool(name: str) -> None:
    for seed in range(3):
        (call,) = drawn(BOX, name, seed)
        assert call.name == name
        jsonschema.validate(dict(call.arguments), schema_of(name)["parameters"])


def test_a_call_that_is_required_is_one_of_any_tool() -> None:
    calls = [drawn(BOX, None, seed)[0] for seed in range(12)]
    assert len({call.name for call in calls}) > 2
    for call in calls:
        jsonschema.validate(dict(call.arguments), schema_of(call.name)["parameters"])


def test_a_forced_call_that_was_cut_is_one_error() -> None:
    with pytest.raises(FormatError, match="answer: JSON: expected text that fits its schema"):
        BOX.form("now").parse('{"name": "now", "argu')


def test_a_tool_whose_arguments_are_put_together_leaves_others_closed() -> None:
    part = {"type": "object", "properties": {"a": {"type": "null"}}}
    whole = {"allOf": [part, {"properties": {"b": {"type": "null"}}}]}
    box = Toolbox({"name": name, "parameters": parameters} for name, parameters in (("one", part), ("two", whole)))
    schema = box.form().schema
    assert schema is not None
    assert schema["$defs"]["one"]["additionalProperties"] is False
    assert schema["$defs"]["two"] == whole


def test_an_answer_in_a_form_leaves_the_model_free_to_call() -> None:
    wanted = {"type": "object", "properties": {"sky": {"$ref": "#/$defs/s"}}, "$defs": {"s": {"enum": ["blue"]}}}
    form = form_of(wanted, BOX, "auto")
    assert form is not None
    assert form.parse('{"sky": "blue"}') == {"sky": "blue"}
    call = {"name": "now", "arguments": {}}
    assert form.schema is not None
    for fine in ({"sky": "blue"}, call):
        jsonschema.validate(fine, form.schema)
    for wrong in ({"sky": "red"}, {"sky": "blue", "sea": "blue"}, {"name": "nobody", "arguments": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, form.schema)
    for toolbox, choice in ((BOX, "none"), (None, "auto"), (Toolbox(), "auto")):
        alone = form_of(wanted, toolbox, choice)
        assert alone is not None
        assert alone.schema == Form.json(wanted).schema


def test_a_call_that_must_come_needs_no_other_form() -> None:
    form = form_of({"type": "object"}, BOX, "now")
    assert form is not None
    assert form.grammar == BOX.form("now").grammar


def test_only_tools_that_there_are_can_be_forced() -> None:
    with pytest.raises(ValueError, match="tool: expected one of weather, now"):
        BOX.form("nobody")
    with pytest.raises(ValueError, match="tools: expected at least one, got none"):
        Toolbox().form()

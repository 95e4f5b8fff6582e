"""Functions that a model may ask to have called: described to it, found in its text, and called."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import re
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass, field, make_dataclass
from typing import Any, get_type_hints

import msgspec

from bitnet_core.errors import printable

from .schemas import Schema, check_schema, close_objects, read, refusal, schema_of
from .structured import Form

Tool = Callable[..., Any] | Mapping[str, Any]

TOOLS_LIMIT = 128
CALLS_LIMIT = 64  # in one text
ANSWER_LIMIT = 64 << 10  # characters
_ERROR_LIMIT = 1000
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_OTHER = "answer."  # among the names of tools, what is no call: no tool is called so
# What stands in front of a call: of Hermes and Qwen, of Mistral, and Llama's way to write the name apart.
_MARKS = re.compile(r"<tool_call>|\[TOOL_CALLS\]|<function=([a-zA-Z0-9_-]{1,64})>")
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}  # the parameters of what has none
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """What a model wants called."""

    name: str
    arguments: Mapping[str, Any]
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")  # by which its answer is known


class Toolbox:
    """Tools by name: Python functions, whose types and docstrings say how to call them, or OpenAI's descriptions.

    A description has no function: its calls are found in a text, and whoever gave it answers them.
    """

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, _Tool] = {}
        for place, tool in enumerate(tools):
            made = _described(tool, f"tools[{place}]") if isinstance(tool, Mapping) else _function(tool)
            if made.name in self._tools:
                raise refusal(f"tools[{place}]", "a name of its own", repr(made.name))
            self._tools[made.name] = made
            if len(self._tools) > TOOLS_LIMIT:
                raise refusal("tools", f"at most {TOOLS_LIMIT}", "more")

    @classmethod
    def of(cls, tools: Toolbox | Iterable[Tool] | None) -> Toolbox:
        """A toolbox of tools, or the one that is given."""
        if isinstance(tools, Toolbox):
            return tools
        if isinstance(tools, str | Mapping) or not (tools is None or isinstance(tools, Iterable)):
            raise refusal("tools", "a list of functions or descriptions", type(tools).__name__)
        return cls(() if tools is None else tools)

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools as OpenAI describes them, which is what chat templates take."""
        return [copy.deepcopy(tool.schema) for tool in self._tools.values()]

    def can_run(self, name: str) -> bool:
        """Whether there is a function to call."""
        return name in self._tools and self._tools[name].call is not None

    def parse(self, text: str) -> list[Call]:
        """The calls in a text: marked as Hermes, Qwen, Mistral or Llama mark them, or the whole text as JSON.

        Without a mark only what names one of these tools is a call.
        """
        if not self._tools:
            return []
        if marked := [call for value, name in _marked(text) for call in _calls(value, name)]:
            return marked[:CALLS_LIMIT]
        fenced = _FENCE.fullmatch(text.strip())
        values = _values(fenced[1] if fenced else text.strip())
        calls = [call for value in values for call in _calls(value, None)]
        return calls[:CALLS_LIMIT] if all(call.name in self._tools for call in calls) else []

    def form(self, name: str | None = None, *, other: Form | None = None) -> Form:
        """A text that is one call, of this tool or of any; `Form.parse` gives it in a list.

        `other`: JSON that it may be instead, which is then what `Form.parse` reads.
        """
        chosen = self._tools if name is None else {name: self._named(name)}
        if not chosen:
            raise refusal("tools", "at least one", "none")
        known = {tool: _placed(made.parameters, tool) for tool, made in chosen.items()}
        either = [_call_schema(tool) for tool in chosen]
        if other is not None and other.schema is not None:
            known[_OTHER] = _placed(other.schema, _OTHER)
            either.append({"$ref": f"#/$defs/{_OTHER}"})
        made = Form.json({"anyOf": either, "$defs": known})
        parse = (lambda text: read(text, _calls_of)) if other is None else other.parse
        return Form(made.grammar, parse, "tools", made.schema)

    def run(self, call: Call) -> str:
        """What the tool answers, as text; JSON where it is no string. What goes wrong is the answer, too."""
        try:
            answer = self._run(call)
        except Exception as error:  # noqa: BLE001  the model is told, and may do better
            return "error: " + printable(f"{type(error).__name__}: {error}", _ERROR_LIMIT)
        return answer if len(answer) <= ANSWER_LIMIT else answer[:ANSWER_LIMIT] + "... (cut)"

    def _run(self, call: Call) -> str:
        tool = self._named(call.name)
        if tool.call is None:
            raise ValueError(f"{call.name}: there is no function of this tool here")
        known = tool.parameters.get("properties", {})
        for argument in call.arguments:
            if argument not in known:
                raise ValueError(f"{call.name} has no argument {argument!r}; it has {', '.join(known) or 'none'}")
        answer = tool.call(call.arguments)
        return answer if isinstance(answer, str) else _written(answer)

    def _named(self, name: str) -> _Tool:
        if name not in self._tools:
            raise refusal("tool", f"one of {', '.join(self._tools) or 'none'}", repr(name))
        return self._tools[name]


def form_of(wanted: Any, toolbox: Toolbox | None, choice: object) -> Form | None:
    """What an answer must be: what is wanted, or a call, where the `choice` of a tool lets one come, or says it must.

    With a call that must come there is no other answer that could have a form.
    """
    form = None if wanted is None else Form.of(wanted)
    if toolbox is None or choice in ("auto", "none"):
        if form is None or form.schema is None or not toolbox or choice == "none":
            return form
        return toolbox.form(other=form)
    if not isinstance(choice, str) or not toolbox:
        got = f"{printable(repr(choice))} with {len(toolbox)} tools"
        raise ValueError(f"tool_choice: expected auto, none, or with tools required or one's name, got {got}")
    return toolbox.form(None if choice == "required" else choice)


@dataclass(frozen=True, slots=True)
class _Tool:
    name: str
    schema: dict[str, Any]  # OpenAI's description
    call: Callable[[Mapping[str, Any]], Any] | None

    @property
    def parameters(self) -> dict[str, Any]:
        parameters: dict[str, Any] = self.schema["function"]["parameters"]
        return parameters


def _described(tool: Mapping[str, Any], where: str) -> _Tool:
    function = tool.get("function", tool)
    if not isinstance(function, Mapping):
        raise refusal(f"{where}.function", "an object", type(function).__name__)
    name, text = _checked_name(function.get("name"), where), function.get("description", "")
    parameters = function.get("parameters") or function.get("input_schema") or dict(_NOTHING)
    if not isinstance(text, str):
        raise refusal(f"{where}.description", "a string", type(text).__name__)
    check_schema(parameters, f"{where}.parameters")
    return _Tool(name, _description(name, text, parameters), None)


def _function(function: Callable[..., Any]) -> _Tool:
    if not callable(function):
        raise refusal("tools", "functions or descriptions", repr(function))
    name = _checked_name(getattr(function, "__name__", None), "tools")
    description, arguments = _documentation(
        (function.__dict__.get("__doc__") if inspect.isclass(function) else inspect.getdoc(function)) or ""
    )
    kind = _arguments_type(function, name)
    try:
        schema, decode = schema_of(kind, strict=False)
    except ValueError as error:
        raise ValueError(f"tool {name}: an argument's type has no JSON schema ({error})") from error
    # The type of all arguments stands apart where types refer to each other.
    if (own := schema.pop("$ref", "").rpartition("/")[2]) and own in schema["$defs"]:
        schema = {**schema["$defs"].pop(own), **({"$defs": schema["$defs"]} if schema["$defs"] else {})}
    schema.pop("title", None)
    for argument, about in schema["properties"].items():
        about.pop("title", None)
        said = arguments.get(argument) or _said(kind, argument)
        if said:
            about.setdefault("description", said)

    def call(given: Mapping[str, Any]) -> Any:
        values = decode(json.dumps(given))
        answer = function(**{name: getattr(values, name) for name in schema["properties"]})
        return _awaited(answer) if inspect.iscoroutine(answer) else answer

    return _Tool(name, _description(name, description, schema), call)


def _description(name: str, text: str, parameters: Schema) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": text, "parameters": dict(parameters)}}


def _checked_name(name: object, where: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise refusal(f"{where}.name", "1..64 letters, digits, _ and -", repr(name))
    return name


def _arguments_type(function: Callable[..., Any], name: str) -> type:
    """A dataclass of a function's parameters, so that types are read by those who know them."""
    hints = get_type_hints(function, include_extras=True)
    fields: list[tuple[str, Any, Any]] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise refusal(f"tool {name}", "parameters that have names", str(parameter))
        if parameter.name not in hints:
            raise refusal(f"tool {name}", f"a type of its parameter {parameter.name}", "none")
        fields.append((parameter.name, hints[parameter.name], _field(parameter.default)))
    return make_dataclass(name.replace("-", "_"), fields, kw_only=True, slots=True)


def _said(kind: type, name: str) -> str:
    """What stands beside a parameter's type: Annotated[int, "how many"]."""
    notes = getattr(get_type_hints(kind, include_extras=True)[name], "__metadata__", ())
    return next((note for note in notes if isinstance(note, str)), "")


def _field(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return field(default=MISSING)
    return field(default_factory=lambda: copy.deepcopy(default)) if _is_mutable(default) else field(default=default)


def _is_mutable(value: Any) -> bool:
    return type(value).__hash__ is None


def _awaited(answer: Coroutine[Any, Any, Any]) -> Any:
    """What an async function gives, in a loop of its own: there may be one in this thread already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, answer).result()


def _documentation(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of the function, and of each argument: Google's and Sphinx's ways to write them."""
    head, *rest = re.split(r"^\s*(?:Args|Arguments|Parameters):\s*$|^(?=\s*:\w+[^:\n]*:)", text, maxsplit=1, flags=re.M)
    head = re.split(r"^\s*(?:Returns|Raises|Yields|Examples?|Notes?):\s*$", head, maxsplit=1, flags=re.M)[0]
    body = rest[0] if rest else ""
    found = {}
    for match in re.finditer(r"^\s*:param\s+(?:\S+\s+)?(\w+):\s*(.+(?:\n(?!\s*:).+)*)", body, re.M):
        found[match[1]] = " ".join(match[2].split())
    indent = re.match(r"\n*([ \t]+)", body)
    if indent and not found:
        section = re.split(r"^\S", body, maxsplit=1, flags=re.M)[0]
        own = re.escape(indent[1])
        for match in re.finditer(rf"^{own}\*{{0,2}}(\w+)[^:\n]*:[ \t]*(.*(?:\n{own}[ \t]+.+)*)", section, re.M):
            found[match[1]] = " ".join(match[2].split())
    return " ".join(head.split()), found


def _placed(schema: Schema, name: str) -> dict[str, Any]:
    """A copy of a schema as `name` among the definitions of another."""
    moved: dict[str, Any] = _moved(schema, f"#/$defs/{name}")
    close_objects(moved)
    return moved


def _call_schema(name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{name}"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, root: str) -> Any:
    """A schema whose references to parts of itself are right where `root` is its place."""
    if isinstance(schema, Mapping):
        return {
            key: root + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, root)
            for key, value in schema.items()
        }
    return [_moved(one, root) for one in schema] if isinstance(schema, list | tuple) else schema


def _marked(text: str) -> Iterator[tuple[Any, str | None]]:
    """The JSON behind each mark, and the name that stands in it."""
    end, tries = 0, 0
    for match in _MARKS.finditer(text):
        if match.start() < end or tries >= CALLS_LIMIT:
            continue  # inside of a call, or too many
        tries += 1
        found = _decode(text, match.end())
        if found is not None:
            value, end = found
            yield value, match[1]


def _values(text: str) -> list[Any]:
    """A text that is JSON values, several with a semicolon between; none where it is anything else."""
    values: list[Any] = []
    place = 0
    while place < len(text) and len(values) < CALLS_LIMIT:
        found = _decode(text, place)
        if found is None:
            return []
        value, place = found
        values.append(value)
        rest = re.compile(r"\s*;?\s*").match(text, place)
        place = rest.end() if rest else place
    return values


def _decode(text: str, place: int) -> tuple[Any, int] | None:
    start = re.compile(r"\s*").match(text, place)
    try:
        return json.JSONDecoder().raw_decode(text, start.end() if start else place)
    except (ValueError, RecursionError):
        return None


def _calls(value: Any, name: str | None) -> list[Call]:
    """The calls that a JSON value is; none where it is something else."""
    if name is not None:
        value = {"name": name, "arguments": value}
    calls = [_call(one) for one in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call is not None] if None not in calls else []


def _call(value: Any) -> Call | None:
    if not isinstance(value, Mapping):
        return None
    value = value["function"] if isinstance(value.get("function"), Mapping) else value
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        found = _decode(arguments, 0)
        arguments = found[0] if found else None
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(arguments, Mapping | None):
        return None
    return None if arguments is None and len(value) > 1 else Call(name, dict(arguments or {}))


def _calls_of(text: str) -> list[Call]:
    calls = _calls(json.loads(text), None)
    if not calls:
        raise ValueError("no call of a tool")
    return calls


def _written(answer: Any) -> str:
    try:
        return msgspec.json.encode(answer).decode()
    except (TypeError, ValueError, RecursionError):
        return str(answer)

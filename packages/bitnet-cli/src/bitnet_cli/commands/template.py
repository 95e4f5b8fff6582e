"""`bitnet template`: a model's chat template, or a conversation rendered by it."""

from __future__ import annotations

import json
from typing import Annotated, Any

from cyclopts import Parameter

from .. import models
from ..console import FLAGS, Flags
from ..failures import Refused
from ..models import ModelName


def template(
    model: ModelName,
    *,
    messages: Annotated[str | None, Parameter(name=["--messages", "-m"])] = None,
    user: Annotated[str | None, Parameter(name=["--user", "-u"])] = None,
    system: Annotated[str | None, Parameter(name=["--system", "-s"])] = None,
    tools: str | None = None,
    generation: Annotated[bool, Parameter(negative="--no-generation")] = True,
    tokens: bool = False,
    flags: Flags = FLAGS,
) -> None:
    """A model's chat template, or a conversation rendered by it.

    Parameters
    ----------
    messages
        A JSON file with a list of messages, "-" for stdin.
    user
        What the user says, instead of a file of messages.
    system
        What comes before it.
    tools
        A JSON file with a list of tools.
    generation
        End where the model is to go on.
    tokens
        The ids of the rendered text as well.
    """
    found = models.load(model, flags)
    if found.template is None:
        raise Refused(f"{model}: this model has no chat template")
    said = _messages(messages, user, system)
    if said is None:
        if tools or tokens:
            raise Refused("--tools and --tokens go with a conversation: name one by --messages or --user")
        flags.answer({"file": found.template.file, "source": found.template.source}, _plain(found.template.source))
        return
    listed = None if tools is None else _read(tools, "tools")
    rendered = found.template.render(said, tools=listed, add_generation_prompt=generation)
    record: dict[str, Any] = {"text": rendered.text}
    shown = [_plain(rendered.text)]
    if tokens:
        if found.tokenizer is None:
            raise Refused(f"{model}: this model has no tokenizer")
        record["tokens"] = rendered.encode(found.tokenizer).tolist()
        shown.append(_plain(" ".join(map(str, record["tokens"]))))
    flags.answer(record, *shown)


def _messages(file: str | None, user: str | None, system: str | None) -> list[Any] | None:
    if file is not None and (user is not None or system is not None):
        raise Refused("the conversation is given twice: by --messages and by --user or --system")
    if file is not None:
        return _read(file, "messages")
    if user is None:
        if system is not None:
            raise Refused("--system comes before what a user says: add --user")
        return None
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": user}]


def _read(file: str, what: str) -> list[Any]:
    try:
        value = json.loads(models.read_text(file, what))
    except (json.JSONDecodeError, RecursionError) as error:
        raise Refused(f"{file}: expected {what} as JSON, got {error}") from error
    if not isinstance(value, list):
        raise Refused(f"{file}: expected a list of {what}, got {type(value).__name__}")
    return value


def _plain(text: str) -> Any:
    from rich.text import Text  # noqa: PLC0415

    return Text(text)

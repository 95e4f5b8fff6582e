"""`bitnet run`: what a model says to a prompt."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .. import models
from ..console import FLAGS, Flags
from ..failures import Refused
from ..writers import RUNNING, WISHES, Running, Wishes, record_of, said_of

if TYPE_CHECKING:
    from bitnet_inference.llm import LLM
    from bitnet_inference.writing import Writing

_STORY = "Once upon a time"


def run(  # noqa: PLR0913  # each is a flag
    model: Annotated[
        str | None, Parameter(help="A folder, a GGUF file or a name on the hub; a small one by default.")
    ] = None,
    prompt: str | None = None,
    *,
    file: Annotated[str | None, Parameter(name=["--file", "-f"])] = None,
    system: Annotated[str | None, Parameter(name=["--system", "-s"])] = None,
    raw: bool = False,
    stats: bool = False,
    wishes: Wishes = WISHES,
    running: Running = RUNNING,
    flags: Flags = FLAGS,
) -> None:
    """What a model says to a prompt, written as it comes; with no prompt on a terminal, a chat.

    A lone argument of several words is a prompt for the small model: no model's name has spaces. What is piped in is
    the prompt, or follows the one that is given behind an empty line; the end of its last line is left out.

    Parameters
    ----------
    prompt
        The prompt, or how it begins where a file or a pipe has the rest; "-" for stdin.
    file
        A file with the prompt or the rest of it, "-" for stdin.
    system
        What a chat model is told before.
    raw
        Go on with the text of the prompt, even where the model knows how to chat.
    stats
        Say on stderr how fast it was.
    """
    if raw and system is not None:
        raise Refused("--raw goes on with the prompt alone, without --system")
    options = wishes.options(running)
    model, prompt = _told_apart(model, prompt)
    if prompt is None and file is None and sys.stdin.isatty() and model is not None and not flags.json:
        from .chat import chat  # noqa: PLC0415  # its line editor is not needed for a prompt

        chat(model, system=system, wishes=wishes, running=running, flags=flags)
        return
    text = _text(prompt, file)
    with running.opened(model, flags) as llm, _begin(llm, text, system, raw, options) as writing:
        if not flags.json:
            _show(writing, text if raw or llm.model.template is None else "")
        reply = writing.reply
        if flags.json:
            flags.answer({"model": llm.name, "backend": llm.backend.name, "prompt": text, **record_of(reply)})
        if stats:
            flags.remark(said_of(reply))


def _told_apart(model: str | None, prompt: str | None) -> tuple[str | None, str | None]:
    """The model and the prompt: a lone argument of several words is no model's name."""
    if prompt is not None or model is None or models.is_local(model):
        return model, prompt
    if " " in model.strip():
        return None, model
    if "/" not in model:
        raise Refused(f"{model}: no file, folder or name on the hub; for a prompt of one word, --prompt '{model}'")
    return model, prompt


def _show(writing: Writing, before: str) -> None:
    """The text as it comes."""
    sys.stdout.write(before)
    for piece in writing:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _text(prompt: str | None, file: str | None) -> str:
    """The prompt: what was said, and behind it the text of a file or of a pipe."""
    if prompt == models.STDIN:
        if file is not None:
            raise Refused("the prompt is given twice: by - and by --file")
        prompt, file = None, models.STDIN
    if prompt is None and file is None and sys.stdin.isatty():
        return _STORY
    text = prompt or ""
    if prompt is None or file is not None or models.is_piped():
        text = "\n\n".join(filter(None, (text, models.read_text(file, "a prompt").removesuffix("\n"))))
    if not text.strip():
        raise Refused("the prompt is empty: give a text, or pipe one in")
    return text


def _begin(llm: LLM, text: str, system: str | None, raw: bool, options: dict[str, Any]) -> Writing:
    """An answer of a model that knows how to chat, or the text gone on with."""
    if raw or llm.model.template is None:
        if system is not None:
            raise Refused("--system is for chat models, and this one has no chat template")
        return llm.write(text, **options)
    said = [] if system is None else [{"role": "system", "content": system}]
    return llm.stream([*said, {"role": "user", "content": text}], **options)

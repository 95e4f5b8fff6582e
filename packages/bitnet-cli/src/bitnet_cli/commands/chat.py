"""`bitnet chat`: a conversation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..console import FLAGS, Flags
from ..failures import Refused
from ..talking import NAMES, Talk, failed, lines
from ..writers import RUNNING, WISHES, Running, Wishes

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession


def chat(
    model: Annotated[
        str | None, Parameter(help="A folder, a GGUF file or a name on the hub; a small one by default.")
    ] = None,
    *,
    system: Annotated[str | None, Parameter(name=["--system", "-s"])] = None,
    load: Path | None = None,
    save: Path | None = None,
    wishes: Wishes = WISHES,
    running: Running = RUNNING,
    flags: Flags = FLAGS,
) -> None:
    """A conversation: on a terminal with history and many lines, from a pipe a question a line. /help lists commands.

    Parameters
    ----------
    system
        What the model is told before all else.
    load
        Go on with a conversation that was kept.
    save
        Keep the conversation in the end.
    """
    if load is not None and not load.is_file():
        raise Refused(f"{load}: expected a conversation that was kept, got no such file")
    options = wishes.options(running)
    with running.opened(model, flags) as llm:
        talk = Talk(llm, llm.conversation(system, **options), sys.stdout)
        if load is not None:
            talk.conversation.load(load)
        typed = sys.stdin.isatty() and sys.stdout.isatty()
        if typed:
            flags.remark(f"{llm.name} on {llm.backend.name}; /help lists commands, Ctrl-D leaves")
        if flags.json:
            talk.out = sys.stderr
        _converse(talk, lines(sys.stdin, _editor() if typed else None), typed)
        if save is not None:
            talk.conversation.save(save)
        if flags.json:
            flags.answer({"model": llm.name, "messages": talk.conversation.messages})


def _converse(talk: Talk, read: Callable[[], str | None], typed: bool) -> None:
    from bitnet_core import BitNetError  # noqa: PLC0415

    while True:
        try:
            text = read()
            if text is None or not talk.hear(text):
                return
        except KeyboardInterrupt:
            if not typed:
                raise
        except (BitNetError, Refused, ValueError, OSError) as error:
            if not typed or isinstance(error, BrokenPipeError):
                raise
            failed(error)


def _editor() -> Callable[[str], str]:
    """A line editor with history, and names of commands and files to complete."""
    from prompt_toolkit import PromptSession  # noqa: PLC0415  # 100 ms
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory  # noqa: PLC0415
    from prompt_toolkit.completion import WordCompleter  # noqa: PLC0415
    from prompt_toolkit.history import FileHistory, InMemoryHistory  # noqa: PLC0415

    path = _history()
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(path)) if path else InMemoryHistory(),
        completer=WordCompleter(list(NAMES), sentence=True),
        complete_while_typing=False,
        auto_suggest=AutoSuggestFromHistory(),
    )
    return lambda prompt: str(session.prompt(prompt))


def _history() -> Path | None:
    """Where questions are remembered; None where nothing can be written."""
    folder = os.environ.get("XDG_STATE_HOME")
    with suppress(OSError, RuntimeError):
        place = (Path(folder) if folder else Path.home() / ".local" / "state") / "bitnet"
        place.mkdir(parents=True, exist_ok=True)
        path = place / "history"
        path.touch(mode=0o600)
        return path if os.access(path, os.W_OK) else None
    return None

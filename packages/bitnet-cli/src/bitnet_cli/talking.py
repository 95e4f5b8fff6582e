"""A conversation at a prompt: what is typed, commands that begin with a slash, and what they do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TextIO

from .failures import Refused, one_line
from .writers import read_schema, said_of

if TYPE_CHECKING:
    from bitnet_inference.conversation import Conversation
    from bitnet_inference.llm import LLM

HELP = """\
/system TEXT     what the model is told before all else; alone, what that is
/save FILE       keep the conversation
/load FILE       go on with a kept one
/fork            leave a mark to come back to
/back            go back to the last mark
/undo            take the last question and its answer back
/clear           begin anew
/stats           how fast the last answer was
/adapter PATH    write with a LoRA adapter; /adapter off without
/schema FILE     answer in JSON of a schema, "json" for any; /schema off in words
/help            this list
/exit            leave; so does Ctrl-D
\"\"\"             begins and ends a text of several lines; so does a backslash at a line's end"""


class Talk:
    """A conversation, and the commands that change it; whoever reads lines gives them to `hear`."""

    def __init__(self, llm: LLM, conversation: Conversation, out: TextIO) -> None:
        self.llm = llm
        self.conversation = conversation
        self.out = out
        self._marks: list[Conversation] = []

    def hear(self, text: str) -> bool:
        """Answer a text, or do what a command says; False where that was to leave."""
        if not text.startswith("/"):
            if text.strip():
                self._say(text)
            return True
        name, _, rest = text[1:].strip().partition(" ")
        if name in ("exit", "quit", "bye"):
            return False
        act = _COMMANDS.get(name)
        if act is None:
            raise Refused(f"/{name}: there is no such command; /help lists them")
        act(self, rest.strip())
        return True

    def _say(self, text: str) -> None:
        try:
            begun = False
            for piece in self.conversation.stream(text):
                # A model that goes on with a text begins with a space.
                said = piece if begun else piece.lstrip()
                begun = begun or bool(said)
                self.out.write(said)
                self.out.flush()
        finally:
            self.out.write("\n")
            self.out.flush()

    def _tell(self, text: str) -> None:
        self.out.write(text + "\n")

    def system(self, text: str) -> None:
        """Show or change the system message."""
        messages = self.conversation.messages
        has_one = bool(messages) and messages[0]["role"] == "system"
        if not text:
            self._tell(messages[0]["content"] if has_one else "nothing")
            return
        messages[: 1 if has_one else 0] = [{"role": "system", "content": text}]

    def save(self, name: str) -> None:
        """Keep the conversation in a file."""
        path = _file(name, "/save")
        self.conversation.save(path)
        self._tell(f"{len(self.conversation.messages)} messages in {path}")

    def load(self, name: str) -> None:
        """Go on with a conversation from a file."""
        self.conversation.load(_file(name, "/load"))
        self._tell(f"{len(self.conversation.messages)} messages")

    def fork(self, _: str) -> None:
        """Leave a mark."""
        self._marks.append(self.conversation.fork())
        self._tell(f"mark {len(self._marks)} at {len(self.conversation.messages)} messages; /back returns to it")

    def back(self, _: str) -> None:
        """Go back to the last mark."""
        if not self._marks:
            raise Refused("/back: there is no mark; /fork leaves one")
        self.conversation = self._marks.pop()
        self._tell(f"{len(self.conversation.messages)} messages")

    def undo(self, _: str) -> None:
        """Take back the last question and all that followed."""
        messages = self.conversation.messages
        asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
        if not asked:
            raise Refused("/undo: nothing was asked yet")
        del messages[asked[-1] :]

    def clear(self, _: str) -> None:
        """Forget all but the system message."""
        self.conversation.messages = [m for m in self.conversation.messages[:1] if m["role"] == "system"]

    def stats(self, _: str) -> None:
        """How fast the last answer was."""
        last = self.conversation.last
        self._tell(f"{len(self.conversation.messages)} messages" + (f"; {said_of(last)}" if last is not None else ""))

    def adapter(self, name: str) -> None:
        """Write with an adapter, or without."""
        if not name:
            self._tell(str(self.conversation.options.get("adapter") or "none"))
        elif name == "off":
            self.conversation.options.pop("adapter", None)
        else:
            path = _file(name, "/adapter")
            if path.name not in self.llm.adapters:
                self.llm.load_adapter(path.name, path)
            self.conversation.options["adapter"] = path.name

    def schema(self, name: str) -> None:
        """Answer in JSON of a schema, or in words."""
        if name == "off":
            self.conversation.options.pop("form", None)
        elif name:
            self.conversation.options["form"] = read_schema(name)
        else:
            self._tell("JSON" if "form" in self.conversation.options else "words")

    def help(self, _: str) -> None:
        """The list of commands."""
        self._tell(HELP)


_COMMANDS: Mapping[str, Callable[[Talk, str], None]] = MappingProxyType(
    {
        "system": Talk.system,
        "save": Talk.save,
        "load": Talk.load,
        "fork": Talk.fork,
        "back": Talk.back,
        "undo": Talk.undo,
        "clear": Talk.clear,
        "stats": Talk.stats,
        "adapter": Talk.adapter,
        "schema": Talk.schema,
        "help": Talk.help,
    }
)
NAMES = tuple(f"/{name}" for name in (*_COMMANDS, "exit"))


def _file(name: str, command: str) -> Path:
    if not name:
        raise Refused(f"{command}: name a file")
    return Path(name).expanduser()


def lines(stream: TextIO, ask: Callable[[str], str] | None = None) -> Callable[[], str | None]:
    """What gives the next text: one line, several that end with a backslash, or those between two lines of \"\"\".

    `ask` reads a line behind a prompt; without it, lines come from the stream. None is the end.
    """

    def one(prompt: str) -> str | None:
        if ask is not None:
            try:
                return ask(prompt)
            except EOFError:
                return None
        line = stream.readline()
        return line.removesuffix("\n") if line else None

    def text() -> str | None:
        first = one(">>> ")
        if first is None:
            return None
        parts = [first]
        if first.lstrip().startswith('"""'):
            parts = [first.lstrip().removeprefix('"""')]
            while not parts[-1].rstrip().endswith('"""'):
                more = one("... ")
                if more is None:
                    break
                parts.append(more)
            return "\n".join(parts).rstrip().removesuffix('"""').strip("\n")
        while parts[-1].endswith("\\"):
            parts[-1] = parts[-1].removesuffix("\\")
            parts.append(one("... ") or "")
        return "\n".join(parts)

    return text


def failed(error: BaseException) -> None:
    """A failure inside a conversation is said, and does not end it."""
    sys.stderr.write(one_line(error) + "\n")

"""Conversations as text: a model's chat template, rendered under limits, with the users' words kept apart from its own.

A template is a program: it comes from the model or from the operator of a server, never from a client.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import FormatError, TemplateError, UnsupportedError
from .formats.strictjson import read_bounded
from .messages import Message, check_messages
from .tokenizer import Tokenizer, Tokens
from .vocabularies import folders

_SOURCE_LIMIT = 1 << 20
_WALL_LIMIT = 10.0  # seconds; the renderer limits its own processor time much tighter, where the system can

# Characters that stand for pieces of the users' words while a template runs: a private plane of Unicode.
_MARKS = range(0xF0000, 0xFFFFE)

# The converter of bitnet.cpp writes this into files in place of a template.
_PLACEHOLDER = "BITNETAssistant"
_BITNET = frozenset(("bitnet-b1.58", "bitnet-25"))
_TURN_END = "<|eot_id|>"
# How microsoft/bitnet-b1.58-2B-4T is spoken to.
_BITNET_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message.role | capitalize }}: {{ message.content | trim }}" + _TURN_END + "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the text that a model reads."""

    text: str
    _template: ChatTemplate = field(repr=False)
    _variables: Mapping[str, Any] = field(repr=False)

    def encode(self, tokenizer: Tokenizer) -> Tokens:
        """The ids of the text, in which only the template's own special tokens are special."""
        bos = True if self._template.needs_bos and tokenizer.bos is not None else None
        return tokenizer.encode_pieces(self.pieces(tokenizer.special_tokens), bos=bos, eos=False)

    def pieces(self, special: Mapping[str, int]) -> Iterable[tuple[str, bool]]:
        """The text in pieces, each with whether the template wrote it.

        The template is run again with marks in the users' words, in place of every character that a special token
        begins with: then none can begin there, wherever the template puts them. If it gives the same text, the marks
        show whose each character is. If not, the template looks at such characters; then marks for whole special
        tokens, which it can hardly look for, keep its text, unless that brings special tokens to light which the
        safer rendering lacks.
        """
        starts = {token[0] for token in special}
        words = "\0".join(_words(self._variables))
        if not starts.intersection(words):
            return [(self.text, True)]
        strict = _Marks(starts, special)
        text = self._run(strict)
        if strict.restore(text) == self.text:
            return strict.pieces(text)
        loose = _Marks(special, special)
        whole = self._run(loose)
        found = re.compile(_any_of(special))
        return loose.pieces(whole) if found.findall(whole) == found.findall(text) else strict.pieces(text)

    def _run(self, marks: _Marks) -> str:
        return self._template.run(marks.variables(self._variables))


class ChatTemplate:
    """A chat template; threads may share it.

    It runs in a process of its own, started when first needed, so that no template can take the program's time or
    memory: 200 ms, 64 MiB, and 1 MiB of text.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        file: str | os.PathLike[str] = "chat_template",
    ) -> None:
        self.source = source
        self.file = os.fspath(file)
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        self._process: _Process | None = None
        # The format of BitNet b1.58 2B4T: it names no BOS, and its model was made to see one.
        self.needs_bos = "capitalize" in source and _TURN_END in source and "bos_token" not in source
        if len(source) > _SOURCE_LIMIT:
            raise TemplateError(self.file, "chat_template", f"at most {_SOURCE_LIMIT} characters", len(source))
        if any(ord(character) in _MARKS for character in source):
            raise TemplateError(self.file, "chat_template", "no characters of U+F0000 to U+FFFFD", "one of them")

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> ChatTemplate | None:
        """The template of a model's folder; None where it has none."""
        path = Path(folder)
        config = folders.read_config(path / "tokenizer_config.json")
        found = _source_in(path, config)
        if found is None:
            return None
        file, source = found
        special = {**folders.read_config(path / "special_tokens_map.json"), **config}
        bos, eos = (folders.token_text(special.get(f"{role}_token"), f"{role}_token", file) for role in ("bos", "eos"))
        if _PLACEHOLDER in source:
            source = _BITNET_TEMPLATE
        return cls(source, bos_token=bos, eos_token=eos, file=file)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], file: str | os.PathLike[str]) -> ChatTemplate | None:
        """The template in a GGUF file's metadata, or the one that its model was made for; None where there is none."""
        source = metadata.get("tokenizer.chat_template")
        if source is not None and not isinstance(source, str):
            raise FormatError(file, "tokenizer.chat_template", "a string", type(source).__name__)
        tokens = metadata.get("tokenizer.ggml.tokens", ())
        if source is None or _PLACEHOLDER in source:
            known = source is not None or metadata.get("general.architecture") in _BITNET
            # Other models are of that architecture, too. Special tokens are the last, and there are many others.
            if not known or not isinstance(tokens, Sequence) or _TURN_END not in reversed(tokens):
                return None
            source = _BITNET_TEMPLATE
        bos, eos = (_token_at(tokens, metadata.get(f"tokenizer.ggml.{role}_token_id")) for role in ("bos", "eos"))
        return cls(source, bos_token=bos, eos_token=eos, file=file)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> Rendered:
        """The conversation as text; `variables` are what the template knows beyond the usual."""
        everything = {
            "documents": None,
            **variables,
            **self._tokens,
            "messages": check_messages(messages),
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        return Rendered(self.run(everything), self, everything)

    def run(self, variables: Mapping[str, Any]) -> str:
        """The text that the template makes of its variables, as they are."""
        try:
            request = json.dumps(variables, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise FormatError("messages", "values", "text, numbers, lists and objects, not too deep", error) from error
        process = self._process
        # A process that another one forked from is not ours to talk to.
        if process is None or not process.alive():
            self._process = process = _Process(self.source, self.file)
        return process.render(request)


class _Marks:
    """Marks in the users' words: one private character for each different string that is replaced."""

    def __init__(self, strings: Iterable[str], special: Mapping[str, int]) -> None:
        # A mark that a user writes is marked too; so every mark in a rendered text is one of these.
        self._pattern = re.compile(f"{_any_of(strings)}|[{chr(_MARKS[0])}-{chr(_MARKS[-1])}]")
        self._special = special
        self._marks: dict[str, str] = {}

    def variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables with marks in all that users write; roles and the model's own tokens are no such thing."""
        marked = {name: value if name.endswith("s_token") else self._mark(value) for name, value in variables.items()}
        for message, original in zip(marked["messages"], variables["messages"], strict=True):
            message["role"] = original["role"]
        return marked

    def restore(self, text: str) -> str:
        """The text with the strings in place of the marks."""
        return "".join(piece for piece, _ in self.pieces(text))

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """The text in pieces: what was marked is not trusted."""
        strings = {mark: string for string, mark in self._marks.items()}
        parts = re.split(f"([{chr(_MARKS[0])}-{chr(_MARKS[-1])}])", text)
        return [(strings[part], False) if part in strings else (part, True) for part in parts]

    def _mark(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._pattern.sub(self._mark_of, value)
        if isinstance(value, list | tuple):
            return [self._mark(item) for item in value]
        if isinstance(value, Mapping):
            return {self._mark_key(str(key)): self._mark(item) for key, item in value.items()}
        return value

    def _mark_key(self, key: str) -> str:
        # Templates ask for keys by name: those that could be such names stay.
        return key if key.isidentifier() and key not in self._special else str(self._mark(key))

    def _mark_of(self, match: re.Match[str]) -> str:
        if len(self._marks) == len(_MARKS):
            raise FormatError("messages", "text", f"fewer than {len(_MARKS)} kinds of private characters", "more")
        return self._marks.setdefault(match[0], chr(_MARKS[0] + len(self._marks)))


def _any_of(strings: Iterable[str]) -> str:
    """A pattern of these strings, the longest that fits."""
    return "|".join(re.escape(string) for string in sorted(strings, key=len, reverse=True))


def _words(value: Any) -> Iterable[str]:
    """Every string in a value, keys as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in {"role", "bos_token", "eos_token"}:
                yield str(key)
                yield from _words(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _words(item)


class _Process:
    """One renderer with its template compiled; one request at a time."""

    def __init__(self, source: str, file: str) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._owner = os.getpid()
        library = importlib.util.find_spec("minijinja")
        if not sys.executable or library is None or library.origin is None:
            raise UnsupportedError(
                "chat templates run in a process of their own, which needs an interpreter and minijinja"
            )
        # -S and -P: neither the folder of this package nor what site-packages start belongs on its path.
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-P", os.fspath(Path(__file__).with_name("renderer.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.fspath(Path(library.origin).parents[1])},
        )
        self._close = weakref.finalize(self, _end, self._process, self._owner)
        self._ask(json.dumps(source).encode())

    def alive(self) -> bool:
        """Whether it can be asked, from this process."""
        return self._owner == os.getpid() and self._close.alive

    def render(self, request: bytes) -> str:
        """The text for variables as JSON."""
        return str(self._ask(request)["text"])

    def _ask(self, request: bytes) -> dict[str, Any]:
        with self._lock:
            answer = self._exchange(request)
        if "got" in answer:
            where = f"chat_template line {answer['line']}" if answer["line"] else "chat_template"
            expected = "a conversation that it takes" if answer["raised"] else "a template that renders"
            raise TemplateError(self._file, where, expected, answer["got"])
        return answer

    def _exchange(self, request: bytes) -> dict[str, Any]:
        source, sink = self._process.stdin, self._process.stdout
        if source is None or sink is None or not self._close.alive:
            raise TemplateError(self._file, "chat_template", "a running renderer", "one that has ended")
        timer = threading.Timer(_WALL_LIMIT, self._process.kill)
        timer.start()
        try:
            source.write(request + b"\n")
            source.flush()
            line = sink.readline()
        except OSError:
            line = b""
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            self._close()
            raise TemplateError(
                self._file, "chat_template", "a template that renders", _cause(self._process.returncode)
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def _cause(status: int) -> str:
    """Why a renderer ended, from its exit status."""
    if status == -getattr(signal, "SIGPROF", 0):
        return "one that takes more than 200 ms of processor time"
    if status == -signal.SIGABRT:
        return "one that takes more than 64 MiB of memory"
    return f"one that ends the renderer (status {status}), for time or for memory"


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a renderer and forget it; a forked copy of this program leaves it alone."""
    if owner != os.getpid():
        return
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    if process.poll() is None:
        process.kill()
    process.wait()


def _source_in(folder: Path, config: Mapping[str, Any]) -> tuple[Path, str] | None:
    """A folder's template and the file that it stands in: what newer releases write comes first."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path, read_bounded(path, 4 * _SOURCE_LIMIT).decode()
        except UnicodeDecodeError as error:
            raise TemplateError(path, "chat_template", "UTF-8", "other bytes", offset=error.start) from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        values = config if name == "tokenizer_config.json" else folders.read_config(folder / name)
        source = values.get("chat_template")
        if isinstance(source, list):
            named = {one.get("name"): one.get("template") for one in source if isinstance(one, Mapping)}
            source = named.get("default")
        if isinstance(source, str):
            return folder / name, source
        if source is not None:
            raise TemplateError(
                folder / name, "chat_template", "a string, or a list with one named default", type(source)
            )
    return None


def _token_at(tokens: Any, index: Any) -> str | None:
    if isinstance(index, int) and hasattr(tokens, "__len__") and 0 <= index < len(tokens):
        return str(tokens[index])
    return None

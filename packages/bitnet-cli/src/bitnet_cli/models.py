"""The models that commands are given: a folder, a file, or a name on the hub."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .amounts import Count
from .console import Flags
from .failures import Refused

if TYPE_CHECKING:
    from bitnet_core import Backend, Model, ModelSpec
    from bitnet_core.hub import Progress

_TEXT_LIMIT = 1 << 28  # bytes of a text that is read as a whole
_PATIENCE_S = 2.0  # until somebody who did not mean to pipe anything in is told what is waited for

_HANDED = ("/dev/fd", "/proc/self/fd")  # where a shell has the pipes of <(command)

BUILT_IN = "stories"  # the small model that comes with bitnet-inference
STDIN = "<stdin>"  # what a lone "-" on the command line becomes

Windows = Annotated[Count, Parameter(help="How many pieces of the text are used.")]
Window = Annotated[Count, Parameter(help="Tokens of each.")]
ModelName = Annotated[str, Parameter(help="A folder, a GGUF file, or org/model[@revision][:file] on the hub.")]


def find(name: str, flags: Flags, *, revision: str | None = None) -> Path:
    """The files of a model on this machine; what is missing is fetched, and said."""
    from bitnet_core import hub  # noqa: PLC0415

    if is_local(name):
        if revision:
            raise Refused(f"--revision is for models of the hub, and {name} is on this machine")
        path = Path(placed(name)).expanduser()
        try:
            path.stat()
        except OSError as error:  # a link that leads nowhere, or in a circle
            raise Refused(f"{name}: {(error.strerror or 'cannot be looked at').lower()}") from error
        return path
    check_name(name, revision)
    with flags.progress(f"fetching {name}", nbytes=True) as tell:

        def told(now: Progress) -> None:
            tell(now.all_done, now.all_total, now.file)

        return hub.resolve(name, revision=revision, progress=told)


def is_local(name: str) -> bool:
    """Whether a name is that of a file, of a folder, or of the built-in model."""
    return name == BUILT_IN or _exists(name)


def placed(name: str) -> str:
    """A name as the libraries take it: the built-in model's is its folder, where no other file is called so."""
    found = importlib.util.find_spec("bitnet_inference") if name == BUILT_IN and not _exists(name) else None
    return name if found is None else os.fspath(Path(str(found.origin)).parent / BUILT_IN)


def _exists(name: str) -> bool:
    path = os.path.expanduser(name)  # noqa: PTH111  # a name may be anything at all
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL inside
        return False


def is_piped() -> bool:
    """Whether somebody gave this command a pipe or a file to read, rather than a terminal or nothing."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def check_name(name: str, revision: str | None = None) -> None:
    """Raise where a name can be none of the hub's."""
    from bitnet_core import HubError  # noqa: PLC0415
    from bitnet_core.hub import names  # noqa: PLC0415

    try:
        names.parse(name, revision)
    except HubError as error:
        raise Refused(str(error)) from error


def load(name: str, flags: Flags, **options: Any) -> Model:
    """A model whose weights are read when they are asked for."""
    import bitnet_core  # noqa: PLC0415  # 150 ms

    return bitnet_core.load(find(name, flags), **options)


def backend(name: str) -> Backend:
    """A backend by its name, "auto" for the best that can run here."""
    import bitnet_core  # noqa: PLC0415

    known = bitnet_core.backends.names()
    if name != "auto" and name not in known:
        raise Refused(f"--backend: expected auto, {', '.join(known)}, got '{name}'")
    return bitnet_core.backends.get(name)


def parameters(spec: ModelSpec) -> int:
    """How many weights a model has."""
    import math  # noqa: PLC0415

    return sum(math.prod(shape) for shape in spec.shapes().values())


def windows(model: Model, source: str | None, size: int, count: int) -> list[Any]:
    """The text of a file in pieces of so many tokens; none without a file."""
    from bitnet_quant.calibrate import cut  # noqa: PLC0415

    if source is None:
        return []
    if model.tokenizer is None:
        raise Refused(f"{source}: this model has no tokenizer to read a text with")
    return list(cut(model.tokenizer, read_text(source, "text"), size=size, count=count))


def read_text(source: str | None, what: str) -> str:
    """The text of a file, or of stdin for STDIN and for nothing."""
    try:
        return read_bytes(source, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{source or 'stdin'}: expected UTF-8, got other bytes (byte {error.start})") from error


def read_object(line: str, where: str, expected: str = "an object") -> dict[str, Any]:
    """The JSON object that a line is."""
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise Refused(f"{where}: expected JSON, got {error}") from error
    if not isinstance(value, dict):
        raise Refused(f"{where}: expected {expected}, got {type(value).__name__}")
    return value


def read_bytes(source: str | None, what: str) -> bytes:
    """The bytes of a file, or of stdin for STDIN and for nothing; never more than can be meant."""
    if source in (None, STDIN):
        data = _read_stdin(what)
    else:
        path = Path(str(source)).expanduser()
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not (stat.S_ISFIFO(mode) and os.fspath(path.parent) in _HANDED):
            raise Refused(f"{path}: expected a file with {what}, got a folder, a pipe or a device")
        with path.open("rb") as stream:
            data = stream.read(_TEXT_LIMIT + 1)
    if len(data) > _TEXT_LIMIT:
        raise Refused(f"{source or 'stdin'}: expected at most {_TEXT_LIMIT} bytes of {what}, got more")
    return data


def _read_stdin(what: str) -> bytes:
    """All of stdin; whoever does not know that it is read is told."""
    told = threading.Timer(_PATIENCE_S, sys.stderr.write, [f"waiting for {what} from stdin; </dev/null is none\n"])
    if sys.stdin.isatty():
        sys.stderr.write(f"reading {what} from the terminal; end it with Ctrl-D\n")
    else:
        told.start()
    try:
        data = getattr(sys.stdin, "buffer", sys.stdin).read(_TEXT_LIMIT + 1)
    finally:
        told.cancel()
    return data.encode() if isinstance(data, str) else data

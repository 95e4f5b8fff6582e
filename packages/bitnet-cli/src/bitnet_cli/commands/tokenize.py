"""`bitnet tokenize`: text as a model's tokens, and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from .. import models
from ..console import FLAGS, Flags
from ..failures import Refused
from ..models import ModelName

if TYPE_CHECKING:
    from bitnet_core.tokenizer import Tokenizer


def tokenize(  # noqa: PLR0913  # each is a flag
    model: ModelName,
    text: str | None = None,
    *,
    file: Annotated[str | None, Parameter(name=["--file", "-f"])] = None,
    bos: Annotated[bool | None, Parameter(negative="--no-bos")] = None,
    eos: Annotated[bool | None, Parameter(negative="--no-eos", help="End with the token that ends one.")] = None,
    special: bool = False,
    decode: bool = False,
    ids: bool = False,
    count: bool = False,
    flags: Flags = FLAGS,
) -> None:
    """Text as a model's tokens, and back.

    Parameters
    ----------
    model
        A folder, a GGUF file, a tokenizer.json, or org/model[@revision][:file] on the hub.
    text
        The text, or with --decode the tokens' ids; stdin by default.
    file
        A file with the text, "-" for stdin.
    bos
        Begin with the token that begins a text; by default as the model's files say.
    special
        Trust the text: special tokens in it are special.
    decode
        From ids to text.
    ids
        Nothing but the ids, on one line.
    count
        Nothing but the number of tokens.
    """
    if text is not None and file is not None:
        raise Refused("the text is given twice: as an argument and by --file")
    if decode and (bos or eos or ids or count):
        raise Refused("--decode gives text: --bos, --eos, --ids and --count are for tokens")
    tokenizer = _tokenizer(model, flags)
    given = models.read_text(file, "text") if text in (None, models.STDIN) else text
    if decode:
        tokens = _ids(given)
        said = tokenizer.decode(tokens, special=special)
        flags.answer({"tokens": tokens, "text": said}, said)
        return
    tokens = tokenizer.encode(given, bos=bos, eos=eos, special=special).tolist()
    if flags.json or not (ids or count):
        _answer(tokenizer, tokens, flags)
    else:
        sys.stdout.write(f"{len(tokens)}\n" if count else " ".join(map(str, tokens)) + "\n")


def _answer(tokenizer: Tokenizer, tokens: list[int], flags: Flags) -> None:
    pieces = [tokenizer.token_bytes(token).decode("utf-8", "backslashreplace") for token in tokens]
    if flags.json:
        flags.answer({"count": len(tokens), "tokens": tokens, "pieces": pieces})
        return
    # Not a table of rich: a book has a hundred thousand tokens.
    sys.stdout.writelines(f"{token:>8}  {piece!r}\n" for token, piece in zip(tokens, pieces, strict=True))
    sys.stdout.write(f"{len(tokens)} tokens\n")


def _tokenizer(name: str, flags: Flags) -> Tokenizer:
    from bitnet_core.tokenizer import Tokenizer  # noqa: PLC0415

    if Path(name).suffix in (".json", ".model") and models.is_local(name):
        return Tokenizer.from_file(Path(name))
    tokenizer = models.load(name, flags).tokenizer
    if tokenizer is None:
        raise Refused(f"{name}: this model has no tokenizer")
    return tokenizer


def _ids(text: str) -> list[int]:
    words = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    wrong = [word for word in words if not word.isascii() or not word.isdecimal() or len(word) > 10]
    if wrong:
        raise Refused(f"--decode: expected ids of tokens, got '{wrong[0]}'")
    return [int(word) for word in words]

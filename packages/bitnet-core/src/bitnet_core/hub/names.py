"""What a model is called, and the one way by which a name becomes a path.

Names come from users and, for files, from the server, which may be hostile. Whatever is joined to a path goes
through `inside`, which refuses every name that could lead out of the cache, on this system or on another.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import HubError, UnsupportedError, printable

_REPO_PIECE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz", ".npy", ".joblib")
_RESERVED = frozenset(["con", "prn", "aux", "nul", "conin$", "conout$"]) | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}
_FORBIDDEN = frozenset('/\\:*?"<>|')
# Characters that look like a separator and that compatibility normalization leaves as they are.
_LOOKALIKES = frozenset(
    "\u2044\u2215\u2216\u2571\u2572\u27cb\u27cd\u29f5\u29f8\u29f9\u2afd\u3033\ua789\u0589\u05c3\u2236"
)


@dataclass(frozen=True, slots=True)
class Name:
    """A model of the hub: `org/model[@revision][:file]`."""

    repo: str
    revision: str | None = None
    file: str | None = None

    @property
    def full(self) -> str:
        """The name as `parse` takes it apart."""
        revision = f"@{self.revision}" if self.revision else ""
        file = f":{self.file}" if self.file else ""
        return f"{self.repo}{revision}{file}"

    def __str__(self) -> str:
        return printable(self.full, 160)  # messages are one line


def parse(text: str, revision: str | None = None) -> Name:
    """`text` taken apart and checked; `revision` may stand apart from it."""
    rest, _, file = text.partition(":")
    repo, _, inner = rest.partition("@")
    pieces = repo.split("/")
    if len(pieces) != 2 or len(repo) > 96 or "--" in repo or not all(_is_repo_piece(p) for p in pieces):
        raise HubError(
            f"model name: expected a folder, a file or org/model[@revision][:file], got '{printable(text)}'; "
            "no such file or folder is here, and the hub has no such names"
        )
    if revision is not None and inner and revision != inner:
        raise HubError(
            f"{printable(text)}: the name asks for one revision, revision={printable(revision)!r} for another"
        )
    _check(rest.endswith("@"), "revision", text, "the name after '@' is empty")
    _check(text.endswith(":"), "file", text, "the name after ':' is empty")
    chosen = revision or inner or None
    if chosen:
        check_path(chosen, "revision")
    if file:
        check_path(file, "file")
        refuse_pickle(file)
    return Name(repo, chosen, file or None)


def _is_repo_piece(piece: str) -> bool:
    return bool(_REPO_PIECE.fullmatch(piece)) and ".." not in piece and not piece.endswith(".git") and not _flaw(piece)


def is_commit(revision: str) -> bool:
    """Whether `revision` is a full commit id, which always means the same files."""
    return bool(_COMMIT.fullmatch(revision))


def check_commit(commit: str) -> str:
    """`commit` itself, if it is a full commit id."""
    _check(not is_commit(commit), "commit", commit, "40 hexadecimal digits were expected")
    return commit


def check_digest(digest: str) -> str:
    """`digest` itself, if it is a sha1 or a sha256 in lower-case hexadecimal: it names a blob."""
    _check(not _DIGEST.fullmatch(digest), "digest", digest, "40 or 64 hexadecimal digits were expected")
    return digest


def refuse_pickle(file: str) -> None:
    """Raises for files that only Python's pickle reads: those can run code when they are opened."""
    if file.casefold().endswith(_PICKLES):
        raise UnsupportedError(f"{printable(file)}: pickle-based format not supported; convert to safetensors")


def is_pickle(file: str) -> bool:
    """Whether the name is that of a pickle-based file."""
    return file.casefold().endswith(_PICKLES)


def check_path(name: str, what: str) -> tuple[str, ...]:
    """The pieces of a relative, slash-separated name of which each is safe on every file system."""
    _check(len(name.encode("utf-8", "surrogatepass")) > 1000, what, name, "it is longer than 1000 bytes")
    pieces = tuple(name.split("/"))
    for piece in pieces:
        flaw = _flaw(piece)
        _check(flaw is not None, what, name, flaw or "")
    return pieces


def check_distinct(files: Iterable[str]) -> None:
    """Raises where two names are one on a file system that ignores case, or one is a folder of the other."""
    seen: dict[str, str] = {}
    for file in sorted(files):
        folded = file.casefold()
        pieces = folded.split("/")
        above = ["/".join(pieces[:k]) for k in range(1, len(pieces) + 1)]
        other = next((seen[name] for name in above if name in seen), None)
        _check(other is not None, "file", file, f"it collides with '{printable(other)}'")
        seen[folded] = file


def inside(root: Path, *pieces: str, link: bool = False) -> Path:
    """The path of `pieces` under `root`, which none of them leaves; only the last may be a link, if `link` says so."""
    path = root
    for index, piece in enumerate(pieces):
        flaw = _flaw(piece)
        _check(flaw is not None, "path", "/".join(pieces), flaw or "")
        path = path / piece
        if path.is_symlink() and not (link and index == len(pieces) - 1):
            raise HubError(
                f"{shown(path)}: expected a folder of the cache, got a symbolic link; "
                "move the whole cache instead (HF_HUB_CACHE)"
            )
    return path


def shown(path: Path) -> str:
    """A path as messages show it: its end tells most."""
    text = printable(path, 4096)
    return text if len(text) <= 200 else "..." + text[-197:]


def walk(root: Path) -> Iterator[Path]:
    """Every file under `root`, as it is there; folders behind links are not entered."""
    for folder, _, files in os.walk(root):
        yield from (Path(folder, file) for file in files)


def _flaw(piece: str) -> str | None:
    """Why one piece of a path may not be used, or None."""
    if not piece or piece in {".", ".."}:
        return "a piece of it is empty, '.' or '..'"
    if len(piece.encode("utf-8", "surrogatepass")) > 255:
        return "a piece of it is longer than 255 bytes"
    if any(_is_invisible(c) for c in piece):
        return "it holds a control or invisible character"
    plain = unicodedata.normalize("NFKC", piece)
    if _FORBIDDEN & set(piece) or _LOOKALIKES & set(piece) or any(plain.count(c) > piece.count(c) for c in "./\\:"):
        return "it holds a separator, a wildcard or a character that looks like one"
    if unicodedata.normalize("NFC", piece) != piece:
        return "it is not in Unicode's composed form"
    if piece != piece.strip() or piece.endswith("."):
        return "a piece of it begins or ends with a space, or ends with a dot"
    if piece.partition(".")[0].rstrip().casefold() in _RESERVED:
        return "a piece of it is a device name on Windows"
    return None


def _is_invisible(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "C" or (category[0] == "Z" and character != " ")


def _check(wrong: bool, what: str, name: str, flaw: str) -> None:
    if wrong:
        raise HubError(f"{what} name '{printable(name)}' is refused: {flaw}")

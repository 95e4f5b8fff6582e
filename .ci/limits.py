"""Limits on the tree: files of 400 lines, functions of 50, no module that is named for nothing, no private paths.

Tests are free of the lengths, and so are tables: the lines of a constant at the top of a module do not count.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES = 400
FUNCTION_LINES = 50
NAMES = {"base", "common", "factory", "helper", "helpers", "manager", "misc", "util", "utils"}
PRIVATE = re.compile(r"(?<![\w.])/(?:work|root|home/\w+)/")
OPEN_ENDS = re.compile(r"\b(?:TODO|FIXME|XXX)\b")  # limits: allowed


def main() -> int:
    """Print what passes a limit; 1 if anything does."""
    files = [ROOT / name for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")]
    findings = [finding for path in sorted(set(files)) if path.is_file() for finding in check(path)]
    print("\n".join(findings) or f"{len(files)} files within the limits")
    return 1 if findings else 0


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.rstrip("\0")


def check(path: Path) -> Iterator[str]:
    """What is wrong with one file, a line each."""
    name = path.relative_to(ROOT)
    data = path.read_bytes()
    if b"\0" in data[:8192]:
        return
    text = data.decode()
    for number, line in enumerate(text.splitlines(), 1):
        if PRIVATE.search(line):
            yield f"{name}:{number}: a path of one machine: {line.strip()[:80]}"
        if OPEN_ENDS.search(line) and "limits: allowed" not in line:
            yield f"{name}:{number}: an open end: {line.strip()[:80]}"
    if path.suffix == ".py" and not {"tests", "fuzz"} & set(name.parts):
        yield from lengths(name, text)


def lengths(name: Path, text: str) -> Iterator[str]:
    """What is too long in a source file, or named for nothing."""
    if name.stem in NAMES:
        yield f"{name}: {name.stem!r} says nothing; name the file for the noun that it serves"
    tree = ast.parse(text)
    tables = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    count = len(text.splitlines()) - sum(lines_of(table) - 1 for table in tables)
    if count > FILE_LINES:
        yield f"{name}: {count} lines without its tables, the limit is {FILE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > FUNCTION_LINES:
            yield f"{name}:{node.lineno}: {node.name} has {lines_of(node)} lines, the limit is {FUNCTION_LINES}"


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


if __name__ == "__main__":
    sys.exit(main())

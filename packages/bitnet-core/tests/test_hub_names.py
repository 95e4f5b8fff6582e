"""No name, from a user or from a server, leads out of the cache."""

from __future__ import annotations

import ast
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core import errors, hub
from bitnet_core.hub import Patience, names

EVIL_PIECES = [
    "",
    ".",
    "..",
    "...",
    "a..",
    "C:",
    "C:model.gguf",
    "a\\b",
    "..\\..\\x",
    "a\0b",
    "a\nb",
    "a\rb",
    "\x1b[31m",
    "\u202egguf.model",
    "a\u200bb",
    "a\u00a0b",
    "\udc80",
    "con",
    "CON.gguf",
    "nul.tar.gz",
    "aux ",
    "com1.gguf",
    "LPT\u00b9",
    "a" * 256,
    "\u00e9" * 128,
    "e\u0301",
    "..\u2215..\u2215etc",
    "a\u2044b",
    "a\uff0fb",
    "a\uff3cb",
    "a\ufe68b",
    "\u2025",
    "\u2024\u2024",
    "\uff0e\uff0e",
    "a\uff1ab",
    "a*",
    "what?",
    "a|b",
    "<a>",
    '"',
    " a",
    "a ",
    "a.",
]
EVIL_PATHS = [
    "../x",
    "../../../../etc/passwd",
    "/etc/passwd",
    "//server/share",
    "a//b",
    "a/",
    "a/./b",
    "a/../../b",
    "a/b/../../../c",
    "C:/Windows/x",
    "x" * 200 + "/" + "/".join(["y" * 200] * 5),
]
GOOD_FILES = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "Q4_K_M/Model é.gguf",
    "a.b.c",
    "模型.gguf",
    "-x",
    "..a",
]
QUICK = Patience(connect_s=2, retries=0, pause=lambda _: None)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


def fetch(server: HubServer, name: str, cache: Path, **options: Any) -> Path:
    return hub.resolve(name, cache=cache, endpoint=server.url, token=False, patience=QUICK, **options)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("piece", EVIL_PIECES, ids=ascii)
def test_a_piece_that_is_not_safe_everywhere_is_refused(piece: str, tmp_path: Path) -> None:
    with pytest.raises(errors.HubError) as caught:
        names.inside(tmp_path, piece)
    message = str(caught.value)
    assert "refused" in message
    assert not any(unicodedata.category(c)[0] == "C" for c in message)
    assert len(message) <= 500


@pytest.mark.parametrize("name", EVIL_PATHS + EVIL_PIECES, ids=lambda name: ascii(name)[:40])
def test_a_file_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(errors.HubError):
        names.check_path(name, "file")


@pytest.mark.parametrize("name", GOOD_FILES)
def test_an_honest_file_name_is_kept(name: str, tmp_path: Path) -> None:
    path = names.inside(tmp_path, *names.check_path(name, "file"))
    assert path.relative_to(tmp_path).as_posix() == name


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_whatever_is_accepted_stays_under_the_root(name: str) -> None:
    root = Path("/cache/of/models")
    try:
        path = names.inside(root, *names.check_path(name, "file"))
    except errors.HubError:
        return
    assert path.relative_to(root).as_posix() == name
    assert ".." not in path.parts
    assert name.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "model",
        "org/",
        "/model",
        "org/model/more",
        "../model",
        "org/..",
        "org/.hidden",
        "org/a--b",
        "org/a..b",
        "org/model.git",
        "org/mod el",
        "org/modèle",
        "org/con",
        "org\\model",
        "org\u2215model",
        "C:\\models\\x",
        "https://huggingface.co/org/model",
        "org/model@",
        "org/model:",
        "org/model@../../x",
        "org/model@/etc",
        "org/model@a\0b",
        "org/model:../x.gguf",
        "org/model:/etc/passwd",
        "org/model:C:\\x.gguf",
        "org/" + "m" * 100,
        "x" * 10_000,
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_a_model_name_that_no_hub_has_is_refused_before_the_network(
    text: str, server: HubServer, tmp_path: Path
) -> None:
    with pytest.raises(errors.HubError) as caught:
        fetch(server, text, tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 500
    assert server.requests == []
    assert tree(tmp_path) == set()


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("org/model", names.Name("org/model")),
        ("org/model@v1.0", names.Name("org/model", "v1.0")),
        ("org/model@refs/pr/3", names.Name("org/model", "refs/pr/3")),
        ("org/model:q/x.gguf", names.Name("org/model", None, "q/x.gguf")),
        ("My-Org_1/m.1@dev:x@2.gguf", names.Name("My-Org_1/m.1", "dev", "x@2.gguf")),
    ],
)
def test_a_model_name_is_taken_apart_and_put_together(text: str, parsed: names.Name) -> None:
    assert names.parse(text) == parsed
    assert str(parsed) == text


def test_two_different_revisions_are_refused() -> None:
    assert names.parse("org/model", "v1") == names.Name("org/model", "v1")
    with pytest.raises(errors.HubError, match="one revision"):
        names.parse("org/model@v1", "v2")


LISTED = [
    "../../../evil.gguf",
    "/tmp/evil.gguf",
    "a/../../../../evil.gguf",
    "..\\..\\evil.gguf",
    "C:evil.gguf",
    "evil\0.gguf",
    "evil\n.gguf",
    "con.gguf",
    "..\u2215..\u2215evil.gguf",
    "e" * 300 + ".gguf",
]


@pytest.mark.parametrize("name", LISTED, ids=lambda name: ascii(name)[:40])
def test_a_server_that_lists_an_evil_name_writes_nothing(name: str, server: HubServer, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache"
    cache.mkdir(parents=True)
    server.add("org/m", {name: b"evil"})
    with pytest.raises(errors.HubError, match="refused") as caught:
        fetch(server, "org/m", cache)
    assert str(caught.value).isprintable()
    assert tree(tmp_path) == {"deep", "deep/cache"}
    with pytest.raises(errors.HubError, match="refused"):
        hub.describe("org/m", endpoint=server.url, token=False)


@pytest.mark.parametrize(
    "oid", ["../../../../evil", "a" * 63, "A" * 64, "g" * 64, "", "a" * 64 + "\n", "a" * 64 + "/.."]
)
def test_a_digest_that_is_no_digest_never_becomes_a_path(oid: str, server: HubServer, tmp_path: Path) -> None:
    server.add("org/m", {"m.gguf": b"content"})
    server.repos["org/m"].lies["m.gguf"] = {"lfs": {"oid": oid, "size": 7, "pointerSize": 1}}
    with pytest.raises(errors.HubError, match="digest"):
        fetch(server, "org/m", tmp_path)
    assert server.asked("resolve") == []


@pytest.mark.parametrize("sha", ["../../evil", "abc", "", "A" * 40, "0" * 41])
def test_a_commit_that_is_no_commit_never_becomes_a_path(sha: str, server: HubServer, tmp_path: Path) -> None:
    server.add("org/m", {"m.gguf": b"content"}, sha=sha)
    with pytest.raises(errors.HubError, match="commit"):
        fetch(server, "org/m", tmp_path)
    assert tree(tmp_path) == set()


def test_a_commit_other_than_the_one_asked_for_is_refused(server: HubServer, tmp_path: Path) -> None:
    commit = server.add("org/m", {"m.gguf": b"content"})
    server.repos["org/m"].facts["sha"] = "1" * 40
    with pytest.raises(errors.HubError, match="expected that commit"):
        fetch(server, f"org/m@{commit}", tmp_path)


def test_names_that_are_one_where_case_is_ignored_are_refused(server: HubServer, tmp_path: Path) -> None:
    names.check_distinct(["a/b", "a/c", "d"])
    with pytest.raises(errors.HubError, match="collides"):
        names.check_distinct(["Model.gguf", "model.gguf"])
    with pytest.raises(errors.HubError, match="collides"):
        names.check_distinct(["a.gguf/x", "A.gguf"])
    server.add("org/m", {"config.json": b"{}", "model.safetensors": b"m", "X.jinja": b"1", "x.jinja": b"2"})
    with pytest.raises(errors.HubError, match="collides"):
        fetch(server, "org/m", tmp_path)


@pytest.mark.parametrize(
    "folder", ["models--org--m", "models--org--m/blobs", "models--org--m/snapshots", "models--org--m/refs", ".locks"]
)
def test_a_folder_of_the_cache_that_is_a_link_is_not_entered(folder: str, server: HubServer, tmp_path: Path) -> None:
    outside, cache = tmp_path / "outside", tmp_path / "cache"
    outside.mkdir()
    (cache / folder).parent.mkdir(parents=True, exist_ok=True)
    (cache / folder).symlink_to(outside)
    server.add("org/m", {"m.gguf": b"content"})
    with pytest.raises(errors.HubError, match="symbolic link"):
        fetch(server, "org/m", cache)
    assert tree(outside) == set()


def test_a_cache_that_is_a_link_as_a_whole_is_used(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    server.add("org/m", {"m.gguf": b"content"})
    assert fetch(server, "org/m", tmp_path / "cache").read_bytes() == b"content"


def test_a_link_in_a_snapshot_that_leads_outside_is_not_given_out(server: HubServer, tmp_path: Path) -> None:
    secret, cache = tmp_path / "secret", tmp_path / "cache"
    secret.write_bytes(b"private")
    server.add("org/m", {"m.gguf": b"content"})
    path = fetch(server, "org/m", cache)
    path.unlink()
    path.symlink_to(secret)
    for offline in (True, False):
        with pytest.raises(errors.HubError):
            fetch(server, "org/m", cache, offline=offline)
    assert secret.read_bytes() == b"private"


@pytest.mark.parametrize("text", ["../../../outside", "x" * 40, "", "\xff"])
def test_a_ref_that_somebody_wrote_is_not_believed(text: str, server: HubServer, tmp_path: Path) -> None:
    server.add("org/m", {"m.gguf": b"content"})
    fetch(server, "org/m", tmp_path)
    (tmp_path / "models--org--m/refs/main").write_text(text, "latin-1")
    with pytest.raises(errors.Offline):
        fetch(server, "org/m", tmp_path, offline=True)
    assert fetch(server, "org/m", tmp_path).read_bytes() == b"content"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format_version":2,"files":{}}',
        '{"format_version":1,"files":{"../x.gguf":{"size":1,"blob_id":"x"}}}',
    ],
)
def test_a_list_of_files_that_somebody_wrote_leads_nowhere(text: str, server: HubServer, tmp_path: Path) -> None:
    server.add("org/m", {"m.gguf": b"content"})
    fetch(server, "org/m", tmp_path)
    (found,) = (tmp_path / "models--org--m/trees").iterdir()
    found.write_text(text)
    try:
        assert fetch(server, "org/m", tmp_path, offline=True).read_bytes() == b"content"
    except errors.HubError as error:
        assert "refused" in str(error)  # noqa: PT017


def test_one_module_builds_every_path() -> None:
    sources = {path.name: path for path in Path(names.__file__).parent.glob("*.py") if path.name != "names.py"}
    assert len(sources) >= 5
    for name, path in sources.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            assert not _joins(node), f"{name}:{getattr(node, 'lineno', 0)} joins a path; names.inside does that"


def _joins(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return not isinstance(node.right, ast.Constant)
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        return node.func.id == "Path" and len(node.args) > 1
    if not isinstance(node.func, ast.Attribute):
        return False
    joins_text = isinstance(node.func.value, ast.Constant) or ast.unparse(node.func.value).endswith("url")
    return node.func.attr in {"joinpath", "with_name", "with_suffix"} or (node.func.attr == "join" and not joins_text)

"""Backups come back byte for byte or not at all; what is no backup changes nothing; projects and settings begin."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from command import Bitnet

from bitnet_benchmarks import record
from bitnet_benchmarks.record import History
from bitnet_cli import restoring


@pytest.fixture
def used(home: Path) -> Path:
    """A home with settings, records, and a model in the cache."""
    settings = home / "config" / "bitnet" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("[ls]\nquiet = true\n")
    History(record.default_path()).add(record.make("machine", {"n": 1}))
    content = b'{"model": true}'
    digest = hashlib.sha256(content).hexdigest()
    model = home / "huggingface" / "hub" / "models--org--model"
    commit = "1" * 40
    (model / "blobs").mkdir(parents=True)
    (model / "blobs" / digest).write_bytes(content)
    (model / "snapshots" / commit).mkdir(parents=True)
    (model / "snapshots" / commit / "config.json").symlink_to(f"../../blobs/{digest}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    return home


def contents(home: Path) -> dict[str, Any]:
    """All that a backup must bring back."""
    base = History(record.default_path())
    settings = home / "config" / "bitnet" / "config.toml"
    return {
        "settings": settings.read_text() if settings.exists() else None,
        "records": [one.id for one in base.all()] if base.path.exists() else None,
    }


def test_a_backup_brings_everything_back(bitnet: Bitnet, used: Path, tmp_path: Path) -> None:
    before = contents(used)
    made = bitnet("backup", tmp_path / "b.tar", "--model", "org/model", "--json")
    assert made.code == 0, made
    assert made.json["models"][0]["name"] == "org/model"
    (used / "config" / "bitnet" / "config.toml").write_text("[ls]\njson = true\n")
    History(record.default_path()).add(record.make("machine", {"n": 2}))
    bitnet("rm", "org/model")
    changed = contents(used)
    assert bitnet("restore", tmp_path / "b.tar", "--dry-run").code == 0
    assert contents(used) == changed
    assert bitnet("restore", tmp_path / "b.tar").code == 0
    assert contents(used) == before
    (model,) = bitnet("ls", "--json").json
    assert (model["name"], model["refs"]) == ("org/model", ["main"])
    assert (Path(model["path"]) / "config.json").read_bytes() == b'{"model": true}'
    assert bitnet("restore", "--rollback").code == 0
    assert contents(used) == changed
    assert bitnet("restore", "--rollback").code == 2


def test_what_was_not_there_is_gone_again_after_a_rollback(bitnet: Bitnet, used: Path, tmp_path: Path) -> None:
    assert bitnet("backup", tmp_path / "b.tar").code == 0
    (used / "config" / "bitnet" / "config.toml").unlink()
    record.default_path().unlink()
    assert bitnet("restore", tmp_path / "b.tar").code == 0
    assert bitnet("restore", "--rollback").code == 0
    assert contents(used) == {"settings": None, "records": None}


def test_a_restore_that_is_broken_off_is_old_or_new(
    bitnet: Bitnet, used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(used)
    assert bitnet("backup", tmp_path / "b.tar").code == 0
    (used / "config" / "bitnet" / "config.toml").write_text("[ls]\njson = true\n")
    History(record.default_path()).add(record.make("machine", {"n": 2}))
    changed = contents(used)
    real = {name: getattr(Path, name) for name in ("replace", "rename", "mkdir", "unlink")}
    seen = set()
    for index in range(40):
        calls = 0

        def broken(name: str) -> Any:
            def call(path: Path, *arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > index:  # noqa: B023  # called before the next turn
                    raise OSError(5, "the power is off")
                return real[name](path, *arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(Path, name, broken(name))
            ended = bitnet("restore", tmp_path / "b.tar").code
        restoring.finish()  # as the next restore does first
        found = contents(used)
        assert found in (before, changed), index
        seen.add(found == before)
        if ended == 0:
            break
        if found == before:
            assert bitnet("restore", "--rollback").code == 0
            assert contents(used) == changed
    assert seen == {True, False}


def archive(path: Path, *members: tuple[Any, bytes], manifest: Any = None) -> Path:
    """A tar file of these members, with a manifest that fits them unless another is given."""
    entries = [
        {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in members
        if isinstance(name, str)
    ]
    whole = {"kind": "bitnet backup", "format": 1, "time": "now", "models": [], "entries": entries}
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        data = json.dumps(whole | (manifest or {})).encode()
        info = tarfile.TarInfo("manifest.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return path


def linked(kind: bytes, name: str = "config.toml") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "members",
    [
        [("../config.toml", b"x")],
        [("/etc/config.toml", b"x")],
        [("models/../../x", b"x")],
        [("config.toml/../../x", b"x")],
        [("other.txt", b"x")],
        [("con", b"x")],
        [("models/a\\b/c", b"x")],
        [("config.toml", b"x"), ("config.toml", b"y")],
        *([[(linked(kind), b"")] for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)]),
        *([[(linked(kind), b"")] for kind in (tarfile.FIFOTYPE, tarfile.DIRTYPE)]),
    ],
    ids=str,
)
def test_an_archive_cannot_leave_its_place(members: Any, bitnet: Bitnet, used: Path, tmp_path: Path) -> None:
    before = contents(used)
    said = bitnet("restore", archive(tmp_path / "b.tar", *members))
    assert said.code == 2, said
    assert contents(used) == before
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "manifest",
    [
        {"kind": "other"},
        {"format": 2},
        {"entries": []},
        {"entries": None},
        {"entries": [{"name": "config.toml"}]},
        {"models": [3]},
        {"entries": [{"name": "config.toml", "size": 1, "sha256": "0" * 64}]},
    ],
    ids=str,
)
def test_a_manifest_that_does_not_fit_is_refused(manifest: Any, bitnet: Bitnet, used: Path, tmp_path: Path) -> None:
    before = contents(used)
    path = archive(tmp_path / "b.tar", ("config.toml", b"x"), manifest=manifest)
    assert bitnet("restore", path).code == 2
    assert contents(used) == before


def test_every_cut_and_many_flips_of_a_backup_are_noticed(bitnet: Bitnet, used: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "b.tar", tmp_path / "bad.tar"
    assert bitnet("backup", good, "--model", "org/model").code == 0
    data = good.read_bytes()
    before = contents(used)
    with tarfile.open(good) as tar:
        spans = [(member.offset_data, member.size) for member in tar]
    for start, size in spans:
        flipped = bytearray(data)
        flipped[start + size // 2] ^= 1
        bad.write_bytes(flipped)
        assert bitnet("restore", bad).code == 2
        bad.write_bytes(data[: start + size // 2])
        assert bitnet("restore", bad).code == 2
    bad.write_bytes(b"")
    assert bitnet("restore", bad).code == 2
    assert bitnet("restore", tmp_path).code == 2
    assert contents(used) == before


def test_a_backup_under_writes_is_whole(bitnet: Bitnet, used: Path, tmp_path: Path) -> None:
    base = record.default_path()
    with sqlite3.connect(base) as writer:
        writer.execute("create table busy (n)")
        writer.executemany("insert into busy values (?)", [(n,) for n in range(1000)])
        assert bitnet("backup", tmp_path / "b.tar").code == 0  # while nothing is committed
    writer.close()
    assert bitnet("restore", tmp_path / "b.tar").code == 0
    assert len(History(base).all()) == 1


def test_what_cannot_be_backed_up_is_refused(bitnet: Bitnet, used: Path, tmp_path: Path) -> None:
    for arguments in (("b.zip",), (tmp_path / "no" / "b.tar",), (tmp_path / "b.tar", "--model", "org/other")):
        assert bitnet("backup", *arguments).code == 2
    (tmp_path / "b.tar").write_text("mine")
    assert bitnet("backup", tmp_path / "b.tar").code == 2
    assert (tmp_path / "b.tar").read_text() == "mine"
    assert bitnet("restore").code == 2
    assert bitnet("restore", tmp_path / "b.tar", "--rollback").code == 2


def test_each_project_runs_as_it_is(bitnet: Bitnet, tmp_path: Path) -> None:
    assert bitnet("new", "app", tmp_path / "app").code == 0
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path / "app", capture_output=True, timeout=120, check=True
    )
    assert done.stdout.startswith(b"Once upon a time")
    assert bitnet("new", "suite", tmp_path / "suite").code == 0
    model, page = tmp_path / "suite" / "model.gguf", tmp_path / "suite" / "page.html"
    assert bitnet("bench", "synth", "--shape", "tiny", "--output", model).code == 0
    assert bitnet("bench", "suite", tmp_path / "suite" / "suite.toml", "--output", page).code == 0
    assert "<svg" in page.read_text()
    assert bitnet("new", "quantize", tmp_path / "quantize").code == 0
    recipe = tmp_path / "quantize" / "recipe.toml"
    assert bitnet("quantize", model, tmp_path / "made.gguf", "--recipe", recipe).code == 0
    for arguments in (("app", tmp_path / "app"), ("other", tmp_path / "x"), ("app", tmp_path / "no" / "x")):
        assert bitnet("new", *arguments).code == 2


def test_settings_are_written_once(bitnet: Bitnet, home: Path, stories: Path) -> None:
    assert bitnet("setup").code == 2  # nobody to ask
    said = bitnet("setup", "--yes", "--model", stories, "--json")
    assert said.code == 0, said
    assert Path(said.json["file"]).is_relative_to(home)
    assert bitnet("run", "--prompt", "Once upon a time", "-n", "2", "--json").json["model"] == str(stories)
    assert bitnet("setup", "--yes").code == 2
    assert bitnet("setup", "--yes", "--force").code == 0


def test_newer_packages_are_found(bitnet: Bitnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "bitnet_core-99.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        info = "bitnet_core-99.0.0.dist-info/"
        file.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: bitnet-core\nVersion: 99.0.0\n")
        file.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(info + "RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    rows = {row["name"]: row for row in bitnet("update", "--check", "--json", online=True).json["packages"]}
    assert rows["bitnet-core"]["newest"] == "99.0.0"
    assert rows["bitnet-quant"]["newest"] in (None, rows["bitnet-quant"]["here"])
    assert bitnet("update", "--check").code == 1  # offline
    assert bitnet("update").code == 2

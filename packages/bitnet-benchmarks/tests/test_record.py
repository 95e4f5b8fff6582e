"""Records are whole, come back as they were, and what is no record is refused."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from bitnet_benchmarks import record
from bitnet_benchmarks.record import History
from bitnet_core import BitNetError, FormatError

STORIES = Path(__file__).parents[3] / "models" / "stories"


def test_a_record_says_what_ran_where(tmp_path: Path) -> None:
    made = record.make("generate", [{"speed": np.float32(2.5), "bad": float("nan")}], model=STORIES, threads=(1, 2))
    assert made.versions["bitnet-core"] == "0.1.0"
    assert made.machine["cpu"]["usable_cores"] >= 1
    assert made.model is not None
    assert len(made.model["sha256"]) == 64
    assert made.figures == ({"speed": 2.5, "bad": None},)
    path = tmp_path / "record.json"
    path.write_text(made.json())
    assert record.read(path) == made


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    first = record.describe_model(file)
    file.write_bytes(b"GGUG")
    assert record.describe_model(file)["sha256"] != first["sha256"]


def test_a_history_keeps_records_in_order(tmp_path: Path) -> None:
    history = History(tmp_path / "deep" / "base.sqlite")
    assert history.all() == []
    made = [record.make(kind, {"n": n}) for n, kind in enumerate(["machine", "generate", "machine"])]
    for one in made:
        history.add(one)
    assert history.all() == made
    assert history.all(kind="machine") == [made[0], made[2]]
    assert history.all(limit=1) == [made[2]]
    assert history.find("last") == made[2]
    assert history.find("last-2") == made[0]
    assert history.find(made[1].id[:8]) == made[1]
    for name in ("last-3", "%", "zz", "last-x"):
        with pytest.raises(FormatError):
            history.find(name)


def test_a_base_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.sqlite"
    path.write_text("no base at all, but long enough to look like something" * 40)
    with pytest.raises(BitNetError, match="cannot be used"):
        History(path).all()
    with pytest.raises(BitNetError, match="cannot be used"):
        History(tmp_path).all()


def test_a_record_in_a_base_survives_another_writer(tmp_path: Path) -> None:
    history = History(tmp_path / "base.sqlite")
    history.add(record.make("machine", {"n": 1}))
    with sqlite3.connect(history.path) as other:
        assert other.execute("select count(*) from records").fetchone() == (1,)
    other.close()
    with pytest.raises(BitNetError):
        history.add(history.find("last"))  # ids are unique


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": 2}', '{"format": 1}', '{"format": 1, "figures": [1]}', "[" * 100_000]
)
def test_what_is_no_record_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"record\.json"):
        record.read(path)
    with pytest.raises(FormatError):
        record.read(tmp_path)


def test_numbers_of_any_kind_are_plain() -> None:
    value = record.as_plain({"a": np.int64(3), "b": (1, {2}), "c": float("inf"), "d": Path("x"), "e": None})
    assert json.loads(json.dumps(value, allow_nan=False)) == {"a": 3, "b": [1, [2]], "c": None, "d": "x", "e": None}

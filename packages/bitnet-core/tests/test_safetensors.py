"""Hostile safetensors files: each is refused in one line that names file, field, expectation and finding."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from bitnet_core.errors import FormatError
from bitnet_core.formats.safetensors import SafetensorsFile, write

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def pack(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


VALID = pack({"a": ENTRY, "__metadata__": {"format": "pt"}}, bytes(range(24)))


def refusal(tmp_path: Path, data: bytes) -> FormatError:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        SafetensorsFile(path)
    error = caught.value
    assert error.file == str(path)
    assert str(error).startswith(str(path)) or str(error).startswith("...")
    assert len(str(error)) <= 500
    assert str(error).isprintable()
    return error


def test_arrays_are_those_of_the_formats_own_library(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "f": random.random((3, 5)).astype(np.float32),
        "h": random.random(7).astype(np.float16),
        "b": random.random((2, 2)).astype(ml_dtypes.bfloat16),
        "i": random.integers(0, 255, (4, 1, 2)).astype(np.uint8),
        "scalar": np.array(3.5),
        "empty": np.zeros((0, 9), np.int64),
    }
    save_file(arrays, tmp_path / "x.safetensors", {"made": "here"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.metadata == {"made": "here"}
    assert file.entries.keys() == arrays.keys()
    for name, array in arrays.items():
        found = file.array(name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(file.rows("f", 1, 3), arrays["f"][1:3])


def test_arrays_outlive_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(VALID)
    file = SafetensorsFile(tmp_path / "x.safetensors")
    array = file.array("a")
    file.close()
    del file
    assert array.tobytes() == bytes(range(24))


@pytest.mark.parametrize("data", [b"", b"\x00", b"1234567"])
def test_a_file_shorter_than_its_length_field(tmp_path: Path, data: bytes) -> None:
    assert f"header length: expected 8 bytes, got a file of {len(data)}" in str(refusal(tmp_path, data))


@pytest.mark.parametrize("length", [0, 1, len(VALID) - 7, 100_000_001, 2**63, 2**64 - 1])
def test_a_header_length_out_of_range(tmp_path: Path, length: int) -> None:
    error = refusal(tmp_path, length.to_bytes(8, "little") + VALID[8:])
    assert f"header length: expected 2..{len(VALID) - 8}, got {length} (byte 0)" in str(error)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"GGUF\x03\x00\x00\x00" + bytes(40), "this is a GGUF file"),
        (b"PK\x03\x04" + bytes(40), "zip archive"),
        (b"\x80\x04\x95" + b"\xff" * 40, "this is a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
    ],
)
def test_files_of_other_kinds_are_recognised(tmp_path: Path, data: bytes, hint: str) -> None:
    assert hint in str(refusal(tmp_path, data))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"\xff": 1}', "text: expected UTF-8, got byte 0xff"),
        (b"{nonsense}", "JSON: expected"),
        (b"[1, 2]", "header: expected to begin with {"),
        (b'  {"a": 1}', "header: expected to begin with {"),
        (b"\xef\xbb\xbf{}", "header: expected to begin with {"),
        (b"{} x", "extra data"),
        (b'{"a": NaN}', "expected a finite number, got NaN"),
        (b'{"a": 1e999}', "expected a finite number, got 1e999"),
        (b'{"a": ' + b"1" * 5000 + b"}", "an integer of at most 4300 digits"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "expected at most 64 levels"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "expected at most 64 levels"),
    ],
)
def test_headers_that_are_not_plain_json(tmp_path: Path, header: bytes, words: str) -> None:
    started = time.perf_counter()
    assert words in str(refusal(tmp_path, pack(header)))
    assert time.perf_counter() - started < 1


def test_a_tensor_named_twice(tmp_path: Path) -> None:
    entry = json.dumps(ENTRY)
    data = pack(f'{{"a": {entry}, "a": {entry}}}'.encode(), bytes(24))
    assert "key 'a': expected to stand once, got two values of it" in str(refusal(tmp_path, data))


def test_a_field_of_an_entry_named_twice(tmp_path: Path) -> None:
    data = pack(b'{"a": {"dtype": "F32", "shape": [2, 3], "shape": [6], "data_offsets": [0, 24]}}', bytes(24))
    assert "key 'shape': expected to stand once" in str(refusal(tmp_path, data))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "F13"}, "tensor 'a' dtype: expected one of BOOL, U8"),
        ({"dtype": 3}, "tensor 'a' dtype: expected one of"),
        ({"dtype": ["F32"]}, "tensor 'a' dtype: expected one of"),
        ({"shape": [-2, -3]}, "tensor 'a' shape: expected at most 8 counts"),
        ({"shape": [2.0, 3]}, "tensor 'a' shape: expected at most 8 counts"),
        ({"shape": ["2", 3]}, "tensor 'a' shape"),
        ({"shape": [True, 6]}, "tensor 'a' shape"),
        ({"shape": 6}, "tensor 'a' shape"),
        ({"shape": [1] * 100_000}, "tensor 'a' shape"),
        (
            {"shape": [2**60, 2**60]},
            "tensor 'a' shape: expected at most 8 counts of fewer than 281474976710656 elements",
        ),
        ({"shape": [0, 2**40, 2**40]}, "tensor 'a' shape"),
        ({"shape": [0, 2**62]}, "tensor 'a' shape"),
        ({"data_offsets": [24, 0]}, "expected two rising offsets up to 24, got [24, 0]"),
        ({"data_offsets": [-24, 0]}, "expected two rising offsets"),
        ({"data_offsets": [0, 25]}, "expected two rising offsets up to 24, got [0, 25]"),
        ({"data_offsets": [0, 2**70]}, "expected two rising offsets"),
        ({"data_offsets": [0]}, "expected two rising offsets"),
        ({"data_offsets": [0, 12, 24]}, "expected two rising offsets"),
        ({"data_offsets": [0.0, 24.0]}, "expected two rising offsets"),
        ({"data_offsets": [0, 20]}, "expected 24 bytes for F32 [2, 3], got 20"),
        ({"extra": 1}, "tensor 'a': expected dtype, shape and data_offsets"),
    ],
)
def test_entries_that_lie(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    assert words in str(refusal(tmp_path, pack({"a": ENTRY | change}, bytes(24))))


@pytest.mark.parametrize("missing", ["dtype", "shape", "data_offsets"])
def test_entries_that_lack_a_field(tmp_path: Path, missing: str) -> None:
    entry = {key: value for key, value in ENTRY.items() if key != missing}
    assert "expected dtype, shape and data_offsets" in str(refusal(tmp_path, pack({"a": entry}, bytes(24))))


@pytest.mark.parametrize("entry", [None, 3, "x", [], [1]])
def test_entries_that_are_no_objects(tmp_path: Path, entry: Any) -> None:
    assert "tensor 'a'" in str(refusal(tmp_path, pack({"a": entry}, bytes(24))))


@pytest.mark.parametrize(
    ("second", "size", "words"),
    [
        ([24, 48], 24 + 23, "two rising offsets up to 47"),
        ([20, 44], 44, "an overlap"),
        ([0, 24], 24, "an overlap"),
        ([32, 56], 56, "a hole"),
        ([24, 48], 49, "data: expected 48 bytes, got 49"),
    ],
)
def test_data_that_is_not_tiled_by_the_tensors(tmp_path: Path, second: list[int], size: int, words: str) -> None:
    assert words in str(refusal(tmp_path, pack({"a": ENTRY, "b": ENTRY | {"data_offsets": second}}, bytes(size))))


@pytest.mark.parametrize("size", [0, 23, 25])
def test_missing_and_trailing_bytes(tmp_path: Path, size: int) -> None:
    refusal(tmp_path, pack({"a": ENTRY}, bytes(size)))


@pytest.mark.parametrize("value", [{"a": 1}, {"a": None}, [], "x", {"a": "x" * (1 << 20), "b": "y"}])
def test_metadata_that_is_no_short_object_of_strings(tmp_path: Path, value: Any) -> None:
    assert "__metadata__: expected" in str(refusal(tmp_path, pack({"__metadata__": value, "a": ENTRY}, bytes(24))))


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a/../b", "x\x00", "a\nb", "\x1b[31mred", "n" * 10_000])
def test_names_that_could_be_paths_or_confuse_a_terminal(tmp_path: Path, name: str) -> None:
    assert "expected a name of 1..512 plain characters" in str(refusal(tmp_path, pack({name: ENTRY}, bytes(24))))


def test_a_million_entries_are_refused_in_bounded_time_and_memory(tmp_path: Path) -> None:
    entry = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    header = ("{" + ",".join(f'"t{number}": {entry}' for number in range(1_000_000)) + "}").encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack(header))
    del header
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(FormatError, match="at most 65536 tensors"):
        SafetensorsFile(path)
    seconds, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 2
    assert peak < 400 << 20


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    for size in range(len(VALID)):
        refusal(tmp_path, VALID[:size])


def test_every_edit_of_eight_bytes_of_the_header_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    values = [0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
    accepted = 0
    for at in range(len(VALID) - 24 - 8):
        for value in values:
            path.write_bytes(VALID[:at] + value.to_bytes(8, "little") + VALID[at + 8 :])
            try:
                file = SafetensorsFile(path)
            except FormatError:
                continue
            accepted += 1
            assert all(0 <= entry.start <= entry.end <= len(VALID) for entry in file.entries.values())
    assert accepted == 0


def test_every_flipped_bit_of_the_header_is_refused_or_stays_inside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for bit in range((len(VALID) - 24) * 8):
        damaged = bytearray(VALID)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            file = SafetensorsFile(path)
        except FormatError:
            continue
        # A letter of a name, or a type or shape of the same size, may have changed: nothing else can.
        assert sum(file.array(name).nbytes for name in file.entries) == 24


@given(
    arrays=st.dictionaries(
        st.text("abcxyz_0", min_size=1, max_size=12),
        hnp.arrays(st.sampled_from(["f4", "f2", "u1", "i8"]), hnp.array_shapes(max_dims=3, max_side=5)),
        max_size=6,
    )
)
def test_what_is_written_is_read_by_us_and_by_the_formats_own_library(
    arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    write(path, iter(arrays.items()), header_room=4096)
    theirs = load_file(path)
    ours = SafetensorsFile(path)
    assert theirs.keys() == ours.entries.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours.array(name), array)
        np.testing.assert_array_equal(theirs[name], array)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(VALID)

    def arrays() -> Any:
        yield "a", np.zeros(1000)
        raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        write(path, arrays(), header_room=1024)
    assert path.read_bytes() == VALID
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cases = {
        tmp_path: "expected a regular file, got a folder",
        tmp_path / "pipe": "expected a regular file, got a pipe",
        Path("/dev/zero"): "expected a regular file, got a device",
        tmp_path / "loop": "expected a readable file",
        tmp_path / "absent": "expected a readable file, got No such file or directory",
        "x\x00y": "expected a path, got one with a NUL character",
    }
    for path, words in cases.items():
        with pytest.raises(FormatError, match=words):
            SafetensorsFile(path)


def test_a_file_that_grew_or_shrank_since_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for size in (10, len(VALID) + 5):
        path.write_bytes(VALID)
        file = SafetensorsFile(path)
        os.truncate(path, size)
        with pytest.raises(FormatError, match=f"expected the file of {len(VALID)} bytes that was opened"):
            file.array("a")

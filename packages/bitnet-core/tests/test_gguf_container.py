"""GGUF files as they lie: values, strings, tensors, splits, and what happens to them while they are open."""

from __future__ import annotations

import gc
import logging
import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core.errors import FormatError
from bitnet_core.formats import gguf
from bitnet_core.formats.gguf.strings import find_strings
from bitnet_core.formats.gguf.writer import header

VALUES = {
    "general.architecture": "llama",
    "a.u8": np.uint8(255),
    "a.i8": np.int8(-128),
    "a.u16": np.uint16(65535),
    "a.i16": np.int16(-32768),
    "a.u32": np.uint32(2**32 - 1),
    "a.i32": np.int32(-(2**31)),
    "a.f32": np.float32(1.5),
    "a.bool": True,
    "a.string": "Gr\u00fc\u00dfe\n",
    "a.u64": np.uint64(2**64 - 1),
    "a.i64": np.int64(-(2**63)),
    "a.f64": np.float64(0.1),
    "a.floats": np.arange(3, dtype=np.float32),
    "a.bools": np.array([True, False]),
    "a.strings": ["", "one", "z\u00e9ro"],
    "a.none": np.zeros(0, np.int64),
}


def nothing() -> npt.NDArray[np.uint8]:
    return np.empty(0, np.uint8)


def small_file(path: Path, count: int = 3, extra: Mapping[str, object] | None = None) -> Path:
    tensors = [gguf.blob(f"t{i}", np.full((2, 4), i, np.float32)) for i in range(count)]
    gguf.write(path, {"general.architecture": "llama", **(extra or {})}, tensors)
    return path


def test_values_of_every_type_are_read(tmp_path: Path) -> None:
    gguf.write(tmp_path / "v.gguf", VALUES, [])
    with gguf.File(tmp_path / "v.gguf", strict=True) as file:
        assert list(file.metadata) == list(VALUES)
        for key, expected in VALUES.items():
            got = file.metadata[key]
            if isinstance(expected, np.ndarray):
                assert isinstance(got, np.ndarray)
                assert got.dtype == expected.dtype
                np.testing.assert_array_equal(got, expected)
            else:
                assert got == expected, key
        assert isinstance(file.metadata["a.bool"], bool)


def test_version_2_is_read_as_version_3(tmp_path: Path) -> None:
    gguf.write(tmp_path / "2.gguf", VALUES, [gguf.blob("t", np.ones((2, 3), np.float32))], version=2)
    with gguf.File(tmp_path / "2.gguf", strict=True) as file:
        assert file.version == 2
        assert file.metadata["a.strings"] == ["", "one", "z\u00e9ro"]
        np.testing.assert_array_equal(file.tensor("t"), np.ones((2, 3)))


def test_strings_are_a_sequence_that_decodes_late(tmp_path: Path) -> None:
    words = [f"word {i}" for i in range(1000)]
    gguf.write(tmp_path / "s.gguf", {"k": words}, [])
    with gguf.File(tmp_path / "s.gguf") as file:
        strings = file.metadata["k"]
    assert isinstance(strings, gguf.Strings)
    assert isinstance(strings, Sequence)
    assert len(strings) == 1000
    assert strings[0] == "word 0"
    assert strings[-1] == "word 999"
    assert list(strings[10:12]) == ["word 10", "word 11"]
    assert list(strings) == words
    assert strings != words[:-1]
    assert "1000 strings" in repr(strings)
    with pytest.raises(IndexError):
        strings[1000]


def test_a_string_that_is_not_utf8_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    gguf.write(tmp_path / "s.gguf", {"k": ["good", "baad"]}, [])
    data = (tmp_path / "s.gguf").read_bytes().replace(b"baad", b"ba\xffd")
    (tmp_path / "s.gguf").write_bytes(data)
    strings = gguf.File(tmp_path / "s.gguf").metadata["k"]
    assert isinstance(strings, gguf.Strings)
    assert strings[0] == "good"
    with pytest.raises(FormatError, match=r"s\.gguf: kv 'k'\[1\]: expected UTF-8, got byte 0xff"):
        strings[1]


def one_after_another(buffer: bytes, position: int) -> list[int]:
    starts = []
    while position + 8 <= len(buffer):
        (length,) = struct.unpack_from("<Q", buffer, position)
        if position + 8 + length > len(buffer):
            break
        starts.append(position)
        position += 8 + length
    return starts


TEXT = st.one_of(
    st.binary(min_size=1, max_size=20).map(lambda data: data.replace(b"\0", b"a")),
    st.binary(max_size=12),
    st.sampled_from([b"", b"\0", b"\0" * 16, b"x" * 255, b"x" * 256, b"x" * 257, b"x" * 65536]),
)


@given(
    texts=st.lists(st.one_of(TEXT, TEXT, TEXT), max_size=400), repeats=st.integers(1, 4), front=st.binary(max_size=9)
)
@settings(max_examples=60, deadline=None)
def test_the_places_of_strings_are_those_of_a_plain_walk(texts: list[bytes], repeats: int, front: bytes) -> None:
    texts *= repeats
    buffer = front + b"".join(struct.pack("<Q", len(text)) + text for text in texts) + b"\x05\0\0\0\0\0\0\0ab"
    starts = np.zeros(len(texts), np.int64)
    found = find_strings(bytearray(buffer), len(front), starts, 1 << 24)
    assert starts.tolist() == one_after_another(buffer, len(front))[: len(texts)]
    assert found == (len(texts), len(buffer) - 10)


def test_an_array_of_strings_larger_than_what_is_read_at_once_is_whole(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    words = ["w" * int(n) for n in random.integers(0, 60, 60_000)]
    words[100], words[200], words[30_000] = "long" * 50_000, "longer" * 400_000, "\0" * 3000
    gguf.write(tmp_path / "s.gguf", {"a": words, "b": ["x"] * 5000, "c": [""] * 5000, "d": np.uint32(7)}, [])
    with gguf.File(tmp_path / "s.gguf", strict=True) as file:
        assert list(file.metadata["a"]) == words  # type: ignore[call-overload]
        assert list(file.metadata["c"]) == [""] * 5000  # type: ignore[call-overload]
        assert file.metadata["d"] == 7


def test_a_tensor_is_read_anew_each_time(tmp_path: Path) -> None:
    with gguf.File(small_file(tmp_path / "m.gguf"), strict=True) as file:
        tensor = file.tensor("t1")
        assert isinstance(tensor, np.ndarray)
        tensor += 1
        np.testing.assert_array_equal(file.tensor("t1"), np.full((2, 4), 1))
        assert file.tensors["t1"].nbytes == 32


def test_a_custom_alignment_is_kept(tmp_path: Path) -> None:
    path = small_file(tmp_path / "m.gguf", extra={"general.alignment": np.uint32(128)})
    with gguf.File(path, strict=True) as file:
        assert [tensor.start % 128 for tensor in file.tensors.values()] == [0, 0, 0]
        np.testing.assert_array_equal(file.tensor("t2"), np.full((2, 4), 2))


def test_tensors_outlive_their_file(tmp_path: Path) -> None:
    file = gguf.File(small_file(tmp_path / "m.gguf"))
    tensor = file.tensor("t2")
    file.close()
    del file
    gc.collect()  # a file that was left open would warn here, and warnings are errors
    np.testing.assert_array_equal(tensor, np.full((2, 4), 2))


def test_a_file_that_nobody_closes_is_closed_without_a_warning(tmp_path: Path) -> None:
    file = gguf.File(small_file(tmp_path / "m.gguf"))
    before = psutil.Process().num_fds()
    del file
    gc.collect()
    assert psutil.Process().num_fds() < before


def test_bytes_behind_the_last_tensor_warn_or_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = small_file(tmp_path / "m.gguf")
    with path.open("ab") as stream:
        stream.write(bytes(7))
    with caplog.at_level(logging.WARNING):
        gguf.File(path).close()
    assert "7 bytes behind the last tensor" in caplog.text
    with pytest.raises(FormatError, match=r"m\.gguf: end: expected the last tensor's at \d+, got 7 bytes more"):
        gguf.File(path, strict=True)


def test_the_padding_of_the_last_tensor_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    gguf.write(path, {}, [gguf.blob("t", np.ones(3, np.float32))])
    path.write_bytes(path.read_bytes()[:-20])
    with gguf.File(path, strict=True) as file:
        np.testing.assert_array_equal(file.tensor("t"), np.ones(3))


# --- split files


def split_files(folder: Path, shards: int = 3, **changes: Mapping[str, object]) -> list[Path]:
    """Shards of one tensor each; `changes` are values by shard, "s2" for the second."""
    paths = []
    for number in range(shards):
        path = folder / f"m-{number + 1:05d}-of-{shards:05d}.gguf"
        values: dict[str, object] = {"general.architecture": "llama"} if number == 0 else {}
        values |= {"split.no": np.uint16(number), "split.count": np.uint16(shards)}
        values |= {"split.tensors.count": np.int32(shards), **changes.get(f"s{number + 1}", {})}
        gguf.write(path, values, [gguf.blob(f"t{number}", np.full(8, number, np.float32))])
        paths.append(path)
    return paths


@pytest.mark.parametrize("named", [0, 1, 2])
def test_any_shard_opens_the_whole(tmp_path: Path, named: int) -> None:
    with gguf.File(split_files(tmp_path)[named], strict=True) as file:
        assert file.metadata["general.architecture"] == "llama"
        assert list(file.tensors) == ["t0", "t1", "t2"]
        np.testing.assert_array_equal(file.tensor("t2"), np.full(8, 2))
        assert file.path_of("t1").endswith("m-00002-of-00003.gguf")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    paths = split_files(tmp_path)
    paths[1].unlink()
    with pytest.raises(
        FormatError, match=r"m-00002-of-00003\.gguf: shard 2 of 3: expected a readable file, got No such"
    ):
        gguf.File(paths[0])


def test_a_shard_in_the_place_of_another_is_named(tmp_path: Path) -> None:
    paths = split_files(tmp_path)
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(FormatError, match=r"m-00002-of-00003\.gguf: shard 2 of 3: split\.no: expected 1, got 2"):
        gguf.File(paths[0])


def test_a_shard_of_a_different_split_is_named(tmp_path: Path) -> None:
    paths = split_files(tmp_path, s3={"split.count": np.uint16(4)})
    with pytest.raises(FormatError, match=r"m-00003-of-00003\.gguf: shard 3 of 3: split\.count: expected 3, got 4"):
        gguf.File(paths[0])


def test_a_shard_that_is_damaged_is_named(tmp_path: Path) -> None:
    paths = split_files(tmp_path)
    paths[2].write_bytes(b"GGUF" + bytes(99))
    with pytest.raises(FormatError, match=r"m-00003-of-00003\.gguf: version: expected 2 or 3, got 0"):
        gguf.File(paths[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "qwen3"}, "shard 2 of 3: general.architecture: expected llama, as shard 1 says"),
        ({"split.tensors.count": np.int32(9)}, "shard 2 of 3: split.tensors.count: expected 3, as shard 1 says, got 9"),
    ],
)
def test_a_shard_of_another_model_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    paths = split_files(tmp_path, s2=changes)
    with pytest.raises(FormatError, match=message):
        gguf.File(paths[0])


def test_a_count_of_tensors_that_the_shards_do_not_hold_is_refused(tmp_path: Path) -> None:
    wrong = {"split.tensors.count": np.int32(4)}
    paths = split_files(tmp_path, s1=wrong, s2=wrong, s3=wrong)
    with pytest.raises(FormatError, match=r"'split\.tensors\.count': expected 3, as all 3 shards hold, got 4"):
        gguf.File(paths[0])


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    paths = split_files(tmp_path)
    values = {"split.no": np.uint16(1), "split.count": np.uint16(3), "split.tensors.count": np.int32(3)}
    gguf.write(paths[1], values, [gguf.blob("t0", np.ones(8, np.float32))])
    with pytest.raises(FormatError, match=r"m-00002-of-00003\.gguf: tensors: .* got 't0' again, after shard 1"):
        gguf.File(paths[0])


def test_a_renamed_shard_is_refused(tmp_path: Path) -> None:
    path = split_files(tmp_path)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(
        FormatError, match=r"file name: expected one that ends in -00001-of-00003\.gguf, got model\.gguf"
    ):
        gguf.File(path)


@pytest.mark.parametrize("count", [np.int32(-1), np.uint16(60_000), "3"])
def test_a_count_of_shards_without_sense_is_refused(tmp_path: Path, count: object) -> None:
    paths = split_files(tmp_path, s1={"split.count": count})
    with pytest.raises(FormatError, match=r"kv 'split\.count': expected an integer in 0\.\.1000, got"):
        gguf.File(paths[0])


# --- files that change while they are open


def test_a_file_cut_short_while_it_is_open_is_refused_not_fatal(tmp_path: Path) -> None:
    path = small_file(tmp_path / "m.gguf", count=5000)
    with gguf.File(path) as file:
        os.truncate(path, 100)
        with pytest.raises(
            FormatError, match=r"m\.gguf: tensor 't4999': expected the file of \d+ bytes.*changed to 100"
        ):
            file.tensor("t4999")
        assert file.metadata["general.architecture"] == "llama"


def test_a_file_written_over_while_it_is_open_is_refused(tmp_path: Path) -> None:
    path = small_file(tmp_path / "m.gguf")
    with gguf.File(path) as file:
        path.write_bytes(path.read_bytes())
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))
        with pytest.raises(FormatError, match="tensor 't0': expected the file"):
            file.tensor("t0")


def test_a_file_replaced_while_it_is_open_stays_what_it_was(tmp_path: Path) -> None:
    path = small_file(tmp_path / "m.gguf")
    with gguf.File(path) as file:
        gguf.write(path, {}, [gguf.blob("t0", np.full((2, 4), 99, np.float32))])
        np.testing.assert_array_equal(file.tensor("t0"), np.zeros((2, 4)))
    with gguf.File(path) as file:
        np.testing.assert_array_equal(file.tensor("t0"), np.full((2, 4), 99))


# --- what opening costs


def test_opening_reads_the_header_and_no_tensor(tmp_path: Path) -> None:
    process = psutil.Process()
    if not hasattr(process, "io_counters"):
        pytest.skip("this system does not count what a process reads")
    values: dict[str, object] = {"general.architecture": "llama", "words": ["a word"] * 100_000}
    tensors = [gguf.Blob(f"t{i}", (1 << 14, 1 << 14), gguf.KINDS["F32"], nothing) for i in range(4)]
    start, sizes = header(values, tensors)
    path = tmp_path / "big.gguf"
    with path.open("wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + sum(sizes))
    before = process.io_counters().read_chars
    gguf.File(path, strict=True).close()
    assert process.io_counters().read_chars - before < len(start) + (2 << 20)
    assert path.stat().st_size > 1 << 32


def seconds_to_open(path: Path, count: int) -> float:
    tensors = [gguf.Blob(f"tensor {i}", (8,), gguf.KINDS["F32"], nothing) for i in range(count)]
    start, sizes = header({f"key {i}": [f"{i}"] for i in range(count)}, tensors)
    with path.open("wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + sum(sizes))
    times = []
    for _ in range(3):
        begin = time.process_time()
        gguf.File(path).close()
        times.append(time.process_time() - begin)
    return min(times)


def test_time_grows_as_the_number_of_entries_does(tmp_path: Path) -> None:
    few, many = (seconds_to_open(tmp_path / f"{count}.gguf", count) for count in (4_000, 32_000))
    assert many / few < 24  # eight times as many; a quadratic search would take sixty-four times as long

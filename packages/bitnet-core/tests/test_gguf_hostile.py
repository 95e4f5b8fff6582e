"""GGUF files that are not what they must be: each is refused in one line, in bounded time and memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core.errors import BitNetError, FormatError, UnsupportedError
from bitnet_core.formats import gguf
from bitnet_core.formats.gguf import types
from bitnet_core.model import ModelSpec, Rope
from bitnet_core.tensor import TernaryTensor
from bitnet_core.testing import random_model, tiny_spec

U8, I8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 1, 4, 6, 7, 8, 9, 10
EXTREMES = (0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
SMALL = replace(
    tiny_spec(family="llama", activation="silu", sub_norms="none"),
    vocab_size=8,
    hidden_size=32,
    ffn_size=32,
    layers=1,
    heads=2,
    kv_heads=1,
    head_size=16,
    rope=Rope(theta=1e4, size=16),
    tied=False,
)


def text(data: str | bytes) -> bytes:
    raw = data.encode() if isinstance(data, str) else data
    return struct.pack("<Q", len(raw)) + raw


def value(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def tensor(name: str | bytes, lengths: Sequence[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(lengths)}QIQ", len(lengths), *lengths, kind, offset)


def whole(
    values: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A file put together without looking at what is in it."""
    tensor_count, value_count = counts or (len(tensors), len(values))
    header = magic + struct.pack("<IQQ", version, tensor_count, value_count) + b"".join([*values, *tensors])
    return header + bytes(-len(header) % 32 if tensors else 0) + data


def one_line(error: BitNetError, *parts: str) -> None:
    message = str(error)
    assert len(message) <= 500
    assert message.isprintable(), message
    for part in parts:
        assert part in message


def refused(path: Path, data: bytes, *parts: str, memory: int = 1 << 20, **options: Any) -> FormatError:
    """The error that opening these bytes gives: of one line with these parts, quick and small."""
    path.write_bytes(data)
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(FormatError) as caught:
            gguf.File(path, **options)
        seconds = time.perf_counter() - start
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < 1
    assert peak < memory
    one_line(caught.value, path.name, *parts)
    assert caught.value.file == os.fspath(path)
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bad.gguf"


# --- what is no GGUF file


@pytest.mark.parametrize("data", [b"", b"GGU", b"GGUF", b"GGUF" + bytes(19)], ids=len)
def test_a_file_shorter_than_a_header_is_refused(path: Path, data: bytes) -> None:
    refused(path, data, f"header: expected at least 24 bytes, got {len(data)}")


@pytest.mark.parametrize(
    ("data", "got", "hint"),
    [
        (b"FUGG" + bytes(40), "FUGG", "wrong order"),
        (b"<!DOCTYPE html><html><body>404 not found</body></html>", "<!DO", "this is a web page"),
        (b"<html><body>404 not found</body></html>", "<htm", "this is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "vers", "this is a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(40), "PK", "this is a zip archive"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "\\x1f\\x8b", "this is a gzip file"),
        (struct.pack("<Q", 60) + b'{"__metadata__":{"format":"pt"}}', "<", "this is a safetensors file"),
        (b"lmgg" + bytes(40), "lmgg", "before GGUF"),
        (b"\x1b[31mred" + bytes(40), "\\x1b[31", ""),
    ],
    ids=["reversed", "doctype", "html", "lfs", "zip", "gzip", "safetensors", "ggml", "escapes"],
)
def test_a_file_of_another_kind_is_called_what_it_is(path: Path, data: bytes, got: str, hint: str) -> None:
    refused(path, data, 'magic: expected "GGUF", got "', got if hint else "", hint)


@pytest.mark.parametrize("version", [0, 1, 4, 99])
def test_an_unknown_version_is_refused(path: Path, version: int) -> None:
    refused(path, whole(version=version), f"version: expected 2 or 3, got {version}")


@pytest.mark.parametrize("version", [2, 3])
def test_a_big_endian_file_is_refused_in_its_own_words(path: Path, version: int) -> None:
    refused(path, whole(version=version << 24), "version: expected 2 or 3", "looks big-endian, which is not supported")


# --- counts


@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 65_537, 3])
@pytest.mark.parametrize("which", [0, 1])
def test_a_count_that_the_file_has_no_room_for_is_refused(path: Path, which: int, count: int) -> None:
    counts = (count, 0) if which == 0 else (0, count)
    data = whole(counts=counts) + bytes(20)
    refused(path, data, f"{('tensor', 'value')[which]} count: expected 0..", f"got {count}")


@pytest.mark.parametrize("which", [0, 1])
def test_more_than_65536_entries_are_refused_whatever_the_file_s_size(path: Path, which: int) -> None:
    data = whole(counts=(65_537, 0) if which == 0 else (0, 65_537)) + bytes(33 * 65_537)
    refused(path, data, "count: expected 0..65536 in a file of", "got 65537", memory=16 << 20)


# --- keys


@pytest.mark.parametrize("length", [0, 65_536, 2**63, 2**64 - 1])
def test_a_key_of_no_length_or_too_much_is_refused(path: Path, length: int) -> None:
    values = [value(f"k{i}", U8, b"\1") for i in range(3)] + [struct.pack("<Q", length) + bytes(80_000)]
    refused(path, whole(values), f"kv[3].key length: expected 1..65535, got {length}")


@pytest.mark.parametrize(
    "key", [b"caf\xc3\xa9", b"\xff\xfe", b"a\0b", b"a\nb", b"\x1b[31m", b"x" * 65_535 + b""], ids=repr
)
def test_a_key_that_is_not_printable_ascii_is_refused(path: Path, key: bytes) -> None:
    data = whole([value(key, U8, b"\1")])
    if key.isascii() and key.decode().isprintable():
        path.write_bytes(data)
        assert list(gguf.File(path).metadata) == [key.decode()]
    else:
        refused(path, data, "kv[0].key: expected printable ASCII, got b'")


def test_a_key_that_stands_twice_is_refused_with_both_places(path: Path) -> None:
    values = [value(f"k{i}", U8, b"\1") for i in range(9)] + [value("k4", U8, b"\1")]
    refused(path, whole(values), "kv: expected every key once, got duplicate key 'k4' (entries 4 and 9)")


# --- values


@pytest.mark.parametrize("kind", [13, 77, 2**32 - 1])
def test_an_unknown_type_of_value_is_refused(path: Path, kind: int) -> None:
    refused(path, whole([value("x", kind, bytes(40))]), f"kv 'x' type: expected 0..12, got {kind}")


@pytest.mark.parametrize("length", [5, 2**20])
def test_a_string_longer_than_the_file_is_refused(path: Path, length: int) -> None:
    data = whole([value("x", STRING, struct.pack("<Q", length) + b"abcd")])
    refused(path, data, f"kv 'x': expected {length} bytes, got 4 to the end of the file")


@pytest.mark.parametrize("length", [2**24 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_string_longer_than_16_mib_is_refused(path: Path, length: int) -> None:
    data = whole([value("x", STRING, struct.pack("<Q", length))])
    refused(path, data, f"kv 'x' length: expected 0..16777216, got {length}")


def test_a_chat_template_longer_than_1_mib_is_refused(path: Path) -> None:
    for key in ("tokenizer.chat_template", "tokenizer.chat_template.tool_use"):
        data = whole([value(key, STRING, text(b"x" * (2**20 + 1)))])
        refused(path, data, f"kv '{key}' length: expected 0..1048576, got 1048577", memory=8 << 20)


def test_a_string_that_is_not_utf8_is_refused(path: Path) -> None:
    refused(path, whole([value("x", STRING, text(b"ab\xff"))]), "kv 'x': expected UTF-8, got byte 0xff")


@pytest.mark.parametrize("kind", [U8, F32, BOOL, STRING, U64])
@pytest.mark.parametrize("count", [2**26 + 1, 2**40, 2**63, 2**64 - 1])
def test_an_array_longer_than_the_file_is_refused_at_once(path: Path, kind: int, count: int) -> None:
    data = whole([value("x", ARRAY, struct.pack("<IQ", kind, count))])
    refused(path, data, "kv 'x' count: expected 0..0 elements, got", str(count))


def test_an_array_of_more_than_64_mi_elements_is_refused_whatever_the_file_s_size(path: Path) -> None:
    data = whole([value("x", ARRAY, struct.pack("<IQ", U8, 2**26 + 1))])
    path.write_bytes(data)
    os.truncate(path, 2**27)
    with pytest.raises(FormatError, match=r"kv 'x' count: expected 0\.\.67108864 elements, got 67108865"):
        gguf.File(path)


def test_a_string_in_an_array_longer_than_the_file_is_refused_by_its_index(path: Path) -> None:
    payload = struct.pack("<IQ", STRING, 3) + text("good") + struct.pack("<Q", 1000) + bytes(30)
    refused(path, whole([value("x", ARRAY, payload)]), "kv 'x'[1]: expected 1000 bytes, got 30 to the end of the file")
    payload = struct.pack("<IQ", STRING, 2) + text("good") + struct.pack("<Q", 2**63)
    refused(path, whole([value("x", ARRAY, payload)]), "kv 'x'[1] length: expected 0..16777216")


def test_arrays_of_arrays_are_refused_at_the_first_level(path: Path) -> None:
    nested = struct.pack("<IQ", ARRAY, 1) * 2000 + struct.pack("<IQ", U8, 1) + b"\1"
    refused(
        path, whole([value("x", ARRAY, nested)]), "kv 'x' element type: expected", "nested arrays are not supported"
    )


def test_an_unknown_type_of_elements_is_refused(path: Path) -> None:
    data = whole([value("x", ARRAY, struct.pack("<IQ", 13, 1) + bytes(8))])
    refused(path, data, "kv 'x' element type: expected 0..12, got 13")


@pytest.mark.parametrize("byte", [2, 255])
def test_a_bool_that_is_neither_0_nor_1_is_refused(path: Path, byte: int) -> None:
    refused(path, whole([value("x", BOOL, bytes([byte]))]), f"kv 'x': expected a byte of 0 or 1, got {byte}")
    payload = struct.pack("<IQ", BOOL, 3) + bytes([0, 1, byte])
    refused(path, whole([value("x", ARRAY, payload)]), f"kv 'x'[2]: expected a byte of 0 or 1, got {byte}")


@pytest.mark.parametrize("alignment", [0, 13, 4, 8192, 2**31])
def test_an_alignment_that_is_no_power_of_two_in_8_to_4096_is_refused(path: Path, alignment: int) -> None:
    data = whole([value("general.alignment", U32, struct.pack("<I", alignment))])
    refused(path, data, "'general.alignment': expected a power of two in 8..4096 (uint32), got", str(alignment))


@pytest.mark.parametrize(("kind", "payload"), [(U64, struct.pack("<Q", 32)), (STRING, text("32")), (BOOL, b"\1")])
def test_an_alignment_of_another_type_is_refused(path: Path, kind: int, payload: bytes) -> None:
    refused(path, whole([value("general.alignment", kind, payload)]), f"(uint32), got a value of type {kind}")


def test_an_alignment_given_twice_is_refused(path: Path) -> None:
    twice = [value("general.alignment", U32, struct.pack("<I", 32))] * 2
    refused(path, whole(twice), "duplicate key 'general.alignment' (entries 0 and 1)")


# --- tensors


@pytest.mark.parametrize("axes", [0, 5, 2**31])
def test_a_number_of_axes_out_of_range_is_refused(path: Path, axes: int) -> None:
    entry = text("t") + struct.pack("<I", axes) + bytes(60)
    refused(path, whole((), [entry]), f"tensor 't' n_dims: expected 1..4, got {axes}")


@pytest.mark.parametrize("length", [0, 2**63, 2**64 - 1])
def test_a_length_of_an_axis_out_of_range_is_refused(path: Path, length: int) -> None:
    data = whole((), [tensor("t", (8, length), 0, 0)], bytes(64))
    refused(path, data, "tensor 't' dimension 1: expected 1..9223372036854775807", f"got {length}")


@pytest.mark.parametrize(
    "lengths",
    [(2**32, 2**32), (2**33, 2**31), (2**62, 4), (2**63 - 1, 2**63 - 1, 2**63 - 1, 2**63 - 1), (2**61,), (2**62, 2)],
)
def test_a_product_that_64_bits_cannot_hold_is_refused(path: Path, lengths: tuple[int, ...]) -> None:
    refused(path, whole((), [tensor("t", lengths, 0, 0)], bytes(64)), "tensor 't': expected", "it may be truncated")


@pytest.mark.parametrize("kind", [9999, 2**32 - 1, 2**31])
def test_an_unknown_type_of_tensor_is_refused(path: Path, kind: int) -> None:
    data = whole((), [tensor("t", (8,), kind, 0)], bytes(64))
    refused(path, data, f"tensor 't' type: expected a type that is known, got {kind}")


@pytest.mark.parametrize("lengths", [(130,), (126, 3)])
def test_a_count_of_weights_that_i2_s_does_not_hold_is_refused(path: Path, lengths: tuple[int, ...]) -> None:
    tensors = [tensor("t", lengths, 36, 0), tensor("u", (8,), 0, 96)]
    refused(path, whole((), tensors, bytes(128)), "tensor 't' type 36: expected I2_S (a multiple of 128 elements)")


def test_i2_s_without_its_tail_is_refused(path: Path) -> None:
    tensors = [tensor("t", (128, 8), 36, 0), tensor("u", (8,), 0, 256)]
    refused(path, whole((), tensors, bytes(288)), "tensor 't' type 36: expected I2_S (288 bytes)", "got 256 bytes")


@pytest.mark.parametrize(
    ("second", "expected"),
    [(33, "a multiple of 32, got 33"), (0, "32, got 0"), (64, "32, got 64"), (2**64 - 32, "32, got 184467")],
    ids=["unaligned", "overlapping", "hole", "wrapping"],
)
def test_an_offset_that_is_not_the_end_of_the_one_before_is_refused(path: Path, second: int, expected: str) -> None:
    tensors = [tensor("t", (8,), 0, 0), tensor("u", (8,), 0, second)]
    refused(path, whole((), tensors, bytes(96)), f"tensor 'u' offset: expected {expected}")


def test_tensors_out_of_order_are_refused(path: Path) -> None:
    tensors = [tensor("t", (8,), 0, 32), tensor("u", (8,), 0, 0)]
    refused(path, whole((), tensors, bytes(64)), "tensor 't' offset: expected 0, got 32")


def test_a_file_one_byte_short_is_refused(path: Path) -> None:
    data = whole((), [tensor("t", (8,), 0, 0)], bytes(32))
    path.write_bytes(data)
    gguf.File(path, strict=True).close()
    refused(path, data[:-1], "tensor 't': expected 32 bytes at 64, got a file that ends at 95; it may be truncated")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (b"", "tensor[0] name length: expected 1..64, got 0"),
        (b"x" * 65, "tensor[0] name length: expected 1..64, got 65"),
        (b"../../etc/passwd", "no control characters and no path, got ../../etc/passwd"),
        (b"a\\..\\b", "no control characters and no path"),
        (b"a\0b", "no control characters and no path, got a\\x00b"),
        (b"\x1b[2J", "got \\x1b[2J"),
        (b"\xff", "tensor[0] name: expected UTF-8, got byte 0xff"),
    ],
)
def test_a_name_that_could_do_harm_is_refused(path: Path, name: bytes, message: str) -> None:
    refused(path, whole((), [tensor(name, (8,), 0, 0)], bytes(32)), message)


def test_a_tensor_s_name_that_stands_twice_is_refused(path: Path) -> None:
    tensors = [tensor("t", (8,), 0, 0), tensor("u", (8,), 0, 32), tensor("t", (8,), 0, 64)]
    refused(
        path, whole((), tensors, bytes(96)), "tensors: expected every name once, got duplicate 't' (entries 0 and 2)"
    )


# --- models


def plain_model(
    spec: ModelSpec = SMALL,
) -> tuple[dict[str, object], dict[str, npt.NDArray[Any]]]:
    """The values and tensors of a small model of floats."""
    values: dict[str, object] = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": spec.hidden_size,
        "llama.feed_forward_length": spec.ffn_size,
        "llama.attention.head_count": spec.heads,
        "llama.attention.head_count_kv": spec.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "llama.rope.freq_base": np.float32(1e4),
        "llama.vocab_size": spec.vocab_size,
    }
    random = np.random.default_rng(0)
    names = dict(zip(spec.shapes(), stored_names(), strict=True))
    tensors = {names[name]: random.random(shape, np.float32) for name, shape in spec.shapes().items()}
    return values, tensors


def stored_names() -> list[str]:
    layer = ["attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    return ["token_embd.weight", *(f"blk.0.{name}.weight" for name in layer), "output_norm.weight", "output.weight"]


def refused_model(
    path: Path, values: Mapping[str, object], tensors: Mapping[str, npt.NDArray[Any]], *parts: str
) -> None:
    values = {key: found for key, found in values.items() if found is not ...}
    gguf.write(path, values, [gguf.blob(name, array) for name, array in tensors.items()])
    start = time.perf_counter()
    with pytest.raises(BitNetError) as caught:
        gguf.load(path)
    assert time.perf_counter() - start < 1
    assert isinstance(caught.value, FormatError | UnsupportedError)
    one_line(caught.value, path.name, *parts)


def test_the_small_model_itself_is_good(path: Path) -> None:
    values, tensors = plain_model()
    gguf.write(path, values, [gguf.blob(name, array) for name, array in tensors.items()])
    assert gguf.load(path, strict=True).spec == replace(SMALL, inputs="float", context=64)


@pytest.mark.parametrize(
    ("architecture", "got"),
    [
        (..., "got none"),
        (np.uint32(7), "got a int"),
        ("mamba", "'mamba' is not read"),
        ("x" * 2**20, "xxx..."),
        ("\x1b[31m\u202e", "\\x1b[31m\\u202e"),
    ],
    ids=["missing", "number", "unknown", "long", "escapes"],
)
def test_an_architecture_that_is_not_known_names_those_that_are(path: Path, architecture: object, got: str) -> None:
    values, tensors = plain_model()
    values["general.architecture"] = architecture
    refused_model(path, values, tensors, "general.architecture", got, "bitnet, bitnet-25, bitnet-b1.58, llama, qwen2")


@pytest.mark.parametrize(
    ("key", "bad", "message"),
    [
        ("block_count", 0, "an integer in 1..4096, got 0"),
        ("block_count", 2**31, "an integer in 1..4096, got 2147483648"),
        ("block_count", ..., "an integer in 1..4096, got none"),
        ("block_count", "1", "an integer in 1..4096, got '1'"),
        ("block_count", True, "an integer in 1..4096, got True"),
        ("block_count", np.float32(1), "an integer in 1..4096, got 1.0"),
        ("embedding_length", 0, "an integer in 1..16777216, got 0"),
        ("feed_forward_length", 2**40, "an integer in 1..16777216"),
        ("attention.head_count", 0, "an integer in 1..4096, got 0"),
        ("attention.head_count", 3, "a divisor of embedding_length = 32, got 3"),
        ("attention.head_count", 32, "expected an even number, got 1"),
        ("attention.head_count_kv", 0, "an integer in 1..4096, got 0"),
        ("attention.head_count_kv", 3, "a divisor of head_count = 2, got 3"),
        ("attention.key_length", 15, "an even number, got 15"),
        ("attention.layer_norm_rms_epsilon", np.float32(0), "a number above 0 and up to 0.5, got 0.0"),
        ("attention.layer_norm_rms_epsilon", np.float32(np.nan), "a number above 0 and up to 0.5, got nan"),
        ("attention.layer_norm_rms_epsilon", ..., "a number above 0 and up to 0.5, got none"),
        ("rope.freq_base", np.float32(0), "a number above 0 and up to 1e+12, got 0.0"),
        ("rope.freq_base", np.float32(np.nan), "a number above 0 and up to 1e+12, got nan"),
        ("rope.freq_base", np.float32(np.inf), "a number above 0 and up to 1e+12, got inf"),
        ("rope.dimension_count", 18, "an integer in 2..16, got 18"),
        ("rope.dimension_count", 7, "an even number, got 7"),
        ("context_length", 0, "an integer in 1..16777216, got 0"),
        ("context_length", 2**31, "an integer in 1..16777216, got 2147483648"),
        ("rope.scaling.factor", np.float32(-1), "a number above 0"),
        ("vocab_size", 0, "an integer in 1..16777216, got 0"),
        ("pooling_type", 9, "an integer in 0..4, got 9"),
    ],
)
def test_a_value_without_sense_is_refused_by_its_name(path: Path, key: str, bad: object, message: str) -> None:
    values, tensors = plain_model()
    values[f"llama.{key}"] = bad
    name = "head size" if message.startswith(("expected an even", "an even number, got 15")) else f"'llama.{key}'"
    refused_model(path, values, tensors, name, message)


@pytest.mark.parametrize(
    ("key", "bad", "message"),
    [
        ("rope.dimension_count", 8, "8 of 16 is not supported"),
        ("attention.value_length", 8, "8 beside keys of 16 is not supported"),
        ("rope.scaling.type", "su", "'su' is not supported"),
        ("rope.scaling.type", np.uint32(3), "'llama.rope.scaling.type': expected a string, got 3"),
        ("rope.scaling.type", "longrope", "tensor 'rope_factors_short.weight': expected a vector of 8, got none"),
    ],
)
def test_a_value_that_is_honest_but_not_supported_says_so(path: Path, key: str, bad: object, message: str) -> None:
    values, tensors = plain_model()
    refused_model(path, values | {"llama.attention.key_length": 16, f"llama.{key}": bad}, tensors, message)


def test_yarn_over_a_base_that_has_no_logarithm_is_refused(path: Path) -> None:
    values, tensors = plain_model()
    stretch = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": np.float32(2)}
    refused_model(
        path, values | stretch | {"llama.rope.freq_base": np.float32(1)}, tensors, "a number above 1 for yarn"
    )


def test_an_activation_that_is_not_known_is_refused(path: Path) -> None:
    gguf.save(random_model(tiny_spec(activation="silu")), path)
    with gguf.File(path) as file:
        values = {key: np.float32(found) if isinstance(found, float) else found for key, found in file.metadata.items()}
        tensors = {name: gguf.Blob(name, t.shape, t.kind, bytes_of(file, name)) for name, t in file.tensors.items()}
    gguf.write(path, values | {"bitnet.hidden_activation": "relu"}, list(tensors.values()))
    with pytest.raises(
        UnsupportedError, match=r"bitnet\.hidden_activation: 'relu' is not supported; silu and relu2 are"
    ):
        gguf.load(path)
    vector = TernaryTensor.from_codes(np.ones((1, 128), np.int8), 0.5)
    norm = gguf.Blob("output_norm.weight", (128,), gguf.KINDS["I2_S"], encoder("I2_S", vector))
    gguf.write(path, values, list((tensors | {norm.name: norm}).values()))
    with pytest.raises(UnsupportedError, match=r"'output_norm\.weight': a vector of ternary numbers is not read"):
        gguf.load(path).weights["norm"]


def bytes_of(file: gguf.File, name: str) -> Callable[[], npt.NDArray[np.uint8]]:
    raw = file.raw(name).copy()
    return lambda: raw


@pytest.mark.parametrize("pattern", [np.ones(3, np.bool_), np.ones(7, np.int32) * 2])
def test_a_pattern_of_windows_that_does_not_fit_the_layers_is_refused(
    path: Path, pattern: npt.NDArray[np.generic]
) -> None:
    values, tensors = plain_model()
    values = {key.replace("llama.", "gemma3."): found for key, found in values.items()}
    values |= {"general.architecture": "gemma3", "gemma3.attention.sliding_window": 8}
    values["gemma3.attention.sliding_window_pattern"] = pattern
    refused_model(path, values, tensors, "'gemma3.attention.sliding_window_pattern': expected a number, or 1 bools")


@pytest.mark.parametrize(
    ("factors", "message"),
    [(np.zeros(8), "finite numbers above 0"), (np.ones(7), "a vector of 8, got (7,)"), (np.full(8, np.nan), "finite")],
)
def test_divisors_of_the_rotation_without_sense_are_refused(
    path: Path, factors: npt.NDArray[np.float64], message: str
) -> None:
    values, tensors = plain_model()
    tensors["rope_freqs.weight"] = factors.astype(np.float32)
    refused_model(path, values, tensors, "tensor 'rope_freqs.weight'", message)


def test_missing_tensors_are_listed_and_counted(path: Path) -> None:
    values, tensors = plain_model()
    for name in list(tensors)[2:6]:
        del tensors[name]
    refused_model(path, values, tensors, "blk.0.ffn_norm.weight, blk.0.attn_q.weight, blk.0.attn_k.weight, 4 in all")


def test_unknown_tensors_are_listed_and_counted(path: Path) -> None:
    values, tensors = plain_model()
    extra = {f"blk.{i}.attn_sub_norm.weight": np.ones(32, np.float32) for i in range(5)}
    refused_model(path, values, tensors | extra, "5 more", "blk.0.attn_sub_norm.weight, blk.1.attn_sub_norm.weight")


@pytest.mark.parametrize(
    ("key", "bad", "first", "count"),
    [
        ("embedding_length", 64, "'token_embd.weight' shape: expected [8, 64], got [8, 32]", "12 in all"),
        ("attention.head_count_kv", 2, "'blk.0.attn_k.weight' shape: expected [32, 32], got [16, 32]", "2 in all"),
        ("vocab_size", 9, "'token_embd.weight' shape: expected [9, 32], got [8, 32]", "2 in all"),
        ("feed_forward_length", 31, "'blk.0.ffn_gate.weight' shape: expected [31, 32], got [32, 32]", "3 in all"),
    ],
)
def test_tensors_of_other_shapes_than_the_values_say_are_listed(
    path: Path, key: str, bad: int, first: str, count: str
) -> None:
    values, tensors = plain_model()
    refused_model(path, values | {f"llama.{key}": bad}, tensors, first, count)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"tokens": ["a"] * 7}, "'tokenizer.ggml.tokens': expected 8 entries, as vocab_size says, got 7"),
        ({"tokens": np.zeros(8, np.uint8)}, "'tokenizer.ggml.tokens': expected an array of strings, got uint8"),
        ({"tokens": "abcdefgh"}, "'tokenizer.ggml.tokens': expected an array of strings, got str"),
        ({"scores": np.zeros(9, np.float32)}, "'tokenizer.ggml.scores': expected 8 entries"),
        ({"scores": np.zeros(8, np.uint8)}, "'tokenizer.ggml.scores': expected an array of float32, got uint8"),
        (
            {"token_type": np.zeros(8, np.float32)},
            "'tokenizer.ggml.token_type': expected an array of int32, got float32",
        ),
        ({"token_type": np.zeros(1, np.int32)}, "'tokenizer.ggml.token_type': expected 8 entries"),
        ({"merges": np.zeros(3, np.int32)}, "'tokenizer.ggml.merges': expected an array of strings, got int32"),
    ],
)
def test_arrays_of_the_tokenizer_that_do_not_fit_are_refused(
    path: Path, arrays: dict[str, object], message: str
) -> None:
    values, tensors = plain_model()
    found: dict[str, object] = {
        "tokens": [f"t{i}" for i in range(8)],
        "scores": np.zeros(8, np.float32),
        "token_type": np.ones(8, np.int32),
        **arrays,
    }
    refused_model(path, values | {f"tokenizer.ggml.{key}": value for key, value in found.items()}, tensors, message)


# --- what is no file


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    fifo, loop = tmp_path / "fifo", tmp_path / "loop"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    for path, got in (
        (tmp_path, "a folder"),
        (fifo, "a pipe"),
        (Path("/dev/zero"), "a device"),
        (loop, "Too many levels of symbolic links"),
        (tmp_path / "none", "No such file or directory"),
    ):
        with pytest.raises(FormatError) as caught:
            gguf.File(path)
        one_line(caught.value, f"{path.name}: file: expected", got)
    with pytest.raises(FormatError, match="a path, got one with a NUL character"):
        gguf.File("a\0b")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(path: Path) -> None:
    path.write_bytes(whole())
    path.chmod(0)
    with pytest.raises(FormatError, match="file: expected a readable file, got Permission denied"):
        gguf.File(path)


# --- every small damage there is


def encoder(kind: str, weight: TernaryTensor) -> Callable[[], npt.NDArray[np.uint8]]:
    return lambda: types.encode(gguf.KINDS[kind], weight)


def good_file(path: Path, name: str) -> Path:
    """A small file with something of everything, or a model."""
    if name == "model":
        values, tensors = plain_model()
        blobs = [gguf.blob(name, array.astype(np.float16)) for name, array in tensors.items()]
    else:
        values = {"a": "text", "b": ["one", "two"], "c": np.arange(3, dtype=np.int32), "d": True}
        values["general.alignment"] = np.uint32(64)
        blobs = []
        for kind, rows in (("I2_S", 2), ("TQ2_0", 2), ("F16", 2), ("Q2_0 in blocks of 64", 16)):
            codes = np.random.default_rng(0).integers(-1, 2, (rows, 256)).astype(np.int8)
            make = encoder(kind, TernaryTensor.from_codes(codes, 0.5))
            blobs.append(gguf.Blob(f"of {kind}", (rows, 256), gguf.KINDS[kind], make))
        raw = np.random.default_rng(1).integers(0, 60, 210, dtype=np.uint8)
        blobs.append(gguf.Blob("t9", (256,), gguf.KINDS["Q6_K"], lambda: raw))
    gguf.write(path, values, blobs)
    return path


def read_all(path: Path, name: str) -> None:
    """Read everything, or be refused in one line; nothing else, and nothing from beyond the file."""
    try:
        if name == "model":
            model = gguf.load(path)
            for weight in model.weights:
                assert model.weights[weight].shape
            return
        with gguf.File(path) as file:
            for found in file.metadata.values():
                assert not isinstance(found, gguf.Strings) or all(isinstance(word, str) for word in found)
            for tensor_name, place in file.tensors.items():
                assert place.start + place.nbytes <= path.stat().st_size
                file.tensor(tensor_name)
    except BitNetError as error:
        one_line(error)


def first_data(path: Path) -> int:
    with gguf.File(path, strict=True) as file:
        return min(place.start for place in file.tensors.values())


@contextmanager
def damaged(stream: BinaryIO, index: int, data: bytes) -> Iterator[None]:
    """The file with some bytes changed for a while. Writing it anew each time would take most of the time."""
    stream.seek(index)
    before = stream.read(len(data))
    for written in (data, before):
        stream.seek(index)
        stream.write(written)
        stream.flush()
        if written is data:
            yield


@pytest.mark.parametrize("name", ["tensors", "model"])
def test_every_truncation_is_refused_or_loses_only_padding(path: Path, name: str) -> None:
    with gguf.File(good_file(path, name), strict=True) as file:
        tensors = {key: file.raw(key).tobytes() for key in file.tensors}
        last = max(place.start + place.nbytes for place in file.tensors.values())
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        if length < last:
            with pytest.raises(FormatError):
                gguf.File(path)
        else:
            with gguf.File(path, strict=True) as file:
                assert {key: file.raw(key).tobytes() for key in file.tensors} == tensors


@pytest.mark.parametrize("name", ["tensors", "model"])
def test_a_flipped_bit_in_the_header_is_refused_or_reads_inside_the_file(path: Path, name: str) -> None:
    end = first_data(good_file(path, name))
    data = path.read_bytes()
    with path.open("r+b") as stream:
        for index in range(end):
            for bit in range(8):
                with damaged(stream, index, bytes([data[index] ^ 1 << bit])):
                    read_all(path, name)


@pytest.mark.parametrize("name", ["tensors", "model"])
def test_eight_bytes_of_extremes_in_the_header_are_refused_or_read_inside_the_file(path: Path, name: str) -> None:
    end = first_data(good_file(path, name))
    with path.open("r+b") as stream:
        for index in range(end - 8):
            for extreme in EXTREMES:
                with damaged(stream, index, struct.pack("<Q", extreme)):
                    read_all(path, name)


@given(
    lengths=st.lists(st.integers(1, 2**63 - 1) | st.integers(1, 300), min_size=1, max_size=4),
    offset=st.integers(0, 2**64 - 1) | st.integers(0, 20).map(lambda blocks: blocks * 32),
    kind=st.sampled_from([0, 1, 8, 14, 30, 34, 35, 36, 37, 42]),
    room=st.integers(0, 3000),
)
@settings(max_examples=300, deadline=None)
def test_a_tensor_beyond_the_file_is_refused_by_all_that_read(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], offset: int, kind: int, room: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "m.gguf"
    path.write_bytes(whole((), [tensor("t", lengths, kind, offset)], b"\x55" * room))
    for read in (gguf.File, gguf.verify, gguf.load):
        try:
            found = read(path)
        except BitNetError:
            continue
        assert read is not gguf.load
        if isinstance(found, gguf.File):
            assert found.tensors["t"].start + found.tensors["t"].nbytes <= path.stat().st_size
            assert offset == 0


def test_many_short_arrays_cost_as_much_as_one_long_one(path: Path) -> None:
    short = struct.pack("<IQ", STRING, 70) + text("ab") * 70
    path.write_bytes(whole([value(f"key {i}", ARRAY, short) for i in range(8000)]))
    start = time.process_time()
    gguf.File(path).close()
    assert time.process_time() - start < 5  # a look over all that is loaded for each would take minutes


def test_an_array_of_empty_strings_is_read_in_one_go(path: Path) -> None:
    path.write_bytes(whole([value("k", ARRAY, struct.pack("<IQ", STRING, 1_000_000) + bytes(8_000_000))]))
    start = time.process_time()
    with gguf.File(path) as file:
        assert len(file.metadata["k"]) == 1_000_000  # type: ignore[arg-type]
    assert time.process_time() - start < 5


def test_the_fuzz_target_finds_nothing_in_a_short_run() -> None:
    script = Path(__file__).parents[1] / "fuzz" / "fuzz_gguf.py"
    command = [sys.executable, str(script), "--engine", "random", "--seconds", "2"]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 findings" in run.stdout


def test_random_models_survive_a_round_of_damage_in_their_data(path: Path) -> None:
    gguf.save(random_model(tiny_spec()), path)
    data = bytearray(path.read_bytes())
    random = np.random.default_rng(0)
    for index in random.integers(4000, len(data), 200):
        data[index] = random.integers(0, 256)
    path.write_bytes(data)
    loaded = gguf.load(path)
    for name in loaded.weights:
        try:
            loaded.weights[name]
        except FormatError as error:
            one_line(error, path.name, "tensor 'blk.")
    assert len(gguf.verify(path)) == len(loaded.weights)

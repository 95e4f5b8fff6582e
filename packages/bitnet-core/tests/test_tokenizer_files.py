"""Tokenizer files: what each kind and the configs beside it mean, and one line for whatever is wrong with them."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core.errors import BitNetError, FormatError, UnsupportedError
from bitnet_core.tokenizer import Tokenizer
from bitnet_core.vocabularies import BYTE_CHARACTERS, pipelines, sentencepiece, tiktoken

BOS, EOS, EOT = 258, 259, 260
TOKENS = [*BYTE_CHARACTERS, "th", "the", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def tokenizer_json() -> dict[str, Any]:
    """A small, whole tokenizer.json."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id_, "content": TOKENS[id_], **flags} for id_ in (BOS, EOS, EOT)],
        "normalizer": None,
        "pre_tokenizer": dict(BYTE_LEVEL),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": TOKENS[BOS], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        },
        "decoder": dict(BYTE_LEVEL),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "vocab": {token: id_ for id_, token in enumerate(TOKENS[:BOS])},
            "merges": ["t h", ["th", "e"]],
        },
    }


def gguf_metadata() -> dict[str, Any]:
    """The same tokenizer as GGUF metadata."""
    types = np.ones(len(TOKENS), np.int32)
    types[BOS:] = sentencepiece.CONTROL
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": list(TOKENS),
        "tokenizer.ggml.scores": np.zeros(len(TOKENS), np.float32),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
    }


def pieces_metadata() -> dict[str, Any]:
    """A small SentencePiece tokenizer as GGUF metadata."""
    pieces = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "▁a"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.array([0, 0, 0, 0, -1, -2, 0], np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3, 6, 1, 1, 1], np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def field(number: int, value: bytes | int | float) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def model_file(**trainer: int) -> bytes:
    """A small SentencePiece model of the BPE kind."""
    metadata = pieces_metadata()
    columns = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    pieces = b"".join(
        field(1, field(1, text.encode()) + field(2, float(score)) + field(3, int(kind)))
        for text, score, kind in zip(*columns, strict=True)
    )
    settings_ = {"kind": 2, "suffix": 0, "collapse": 0} | trainer
    normalizer = field(1, b"identity") + field(4, settings_["collapse"])
    return pieces + field(2, field(3, settings_["kind"]) + field(24, settings_["suffix"])) + field(3, normalizer)


def save(folder: Path, name: str, value: Any) -> Path:
    path = folder / name
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def load(folder: Path, value: Any, name: str = "tokenizer.json") -> Tokenizer:
    return Tokenizer.from_file(save(folder, name, value))


def from_folder(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer is not None
    return tokenizer


def from_gguf(metadata: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.from_gguf(metadata, "model.gguf")
    assert tokenizer is not None
    return tokenizer


def test_a_tokenizer_json_says_what_it_is(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, tokenizer_json())
    assert tokenizer.encode("the<|eot_id|>").tolist()[:2] == [BOS, 257]
    assert tokenizer.special_tokens == {TOKENS[BOS]: BOS, TOKENS[EOS]: EOS, TOKENS[EOT]: EOT}
    assert tokenizer.eos == {EOS, EOT}


def test_the_configs_of_a_folder_name_the_tokens_with_a_role(tmp_path: Path) -> None:
    assert Tokenizer.from_folder(tmp_path) is None
    save(tmp_path, "tokenizer.json", tokenizer_json())
    config: dict[str, Any] = {"bos_token": {"content": TOKENS[BOS]}, "eos_token": TOKENS[EOS], "pad_token": "the"}
    save(tmp_path, "tokenizer_config.json", config)
    save(tmp_path, "generation_config.json", {"eos_token_id": [EOS, 3], "pad_token_id": 5})
    save(tmp_path, "config.json", {"eos_token_id": 4, "bos_token_id": 7, "pad_token_id": -1})
    tokenizer = from_folder(tmp_path)
    assert (tokenizer.bos, set(tokenizer.eos), tokenizer.pad) == (BOS, {EOS, EOT, 3, 4}, 257)
    save(tmp_path, "tokenizer_config.json", {**config, "bos_token": None, "add_eos_token": True})
    silent = from_folder(tmp_path)
    assert silent.bos is None
    assert silent.encode("the")[-1] == EOS
    save(tmp_path, "tokenizer_config.json", {**config, "add_bos_token": False})
    assert from_folder(tmp_path).encode("the").tolist() == from_folder(tmp_path).encode("the", bos=False).tolist()


def test_what_a_config_calls_special_stays_text(tmp_path: Path) -> None:
    save(tmp_path, "tokenizer.json", tokenizer_json())
    save(tmp_path, "special_tokens_map.json", {"additional_special_tokens": ["the", {"content": "th"}]})
    tokenizer = from_folder(tmp_path)
    assert not {256, 257} & set(tokenizer.encode("the th").tolist())
    assert 257 in tokenizer.encode("the", special=True)


def test_gpt_2_comes_as_a_pair_of_files(tmp_path: Path) -> None:
    save(tmp_path, "vocab.json", tokenizer_json()["model"]["vocab"] | {"<|endoftext|>": 258})
    assert Tokenizer.from_folder(tmp_path) is None
    save(tmp_path, "merges.txt", b"#version: 0.2\nt h\r\nth e\n")
    for tokenizer in (from_folder(tmp_path), Tokenizer.from_file(tmp_path / "merges.txt")):
        assert tokenizer.encode("the").tolist() == [257]
        assert tokenizer.eos == {258}


def test_a_model_file_is_known_by_its_content(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, model_file(), "tokenizer.model")
    assert tokenizer.encode("a\n").tolist() == [1, 6, 3]
    assert (tokenizer.bos, set(tokenizer.eos), tokenizer.pad) == (1, {2}, None)
    decoder = {"7": {"content": "<pad>", "special": True}, "1": {"content": "<s>", "special": True}}
    save(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": decoder, "pad_token": "<pad>"})
    assert from_folder(tmp_path).pad == 7
    with pytest.raises(FormatError, match="a tiktoken or SentencePiece model"):
        load(tmp_path, b"<!DOCTYPE html>", "tokenizer.model")


def test_older_folders_name_the_tokens_they_add_in_a_file_of_their_own(tmp_path: Path) -> None:
    save(tmp_path, "tokenizer.model", model_file())
    save(tmp_path, "added_tokens.json", {"<pad>": 7, "<word>": 8})
    save(tmp_path, "special_tokens_map.json", {"pad_token": "<pad>"})
    tokenizer = from_folder(tmp_path)
    assert (tokenizer.pad, tokenizer.vocab_size) == (7, 9)
    assert set(tokenizer.special_tokens) >= {"<pad>"}
    assert "<word>" not in tokenizer.special_tokens
    assert tokenizer.encode("a<word>").tolist()[-1] == 8
    save(tmp_path, "added_tokens.json", {"<pad>": 70})
    with pytest.raises(FormatError, match="id 7, without a gap"):
        from_folder(tmp_path)


def test_a_pair_of_files_has_the_tokens_that_its_folder_adds(tmp_path: Path) -> None:
    save(tmp_path, "vocab.json", tokenizer_json()["model"]["vocab"] | {"<|endoftext|>": 258})
    save(tmp_path, "merges.txt", b"#version: 0.2\nt h\nth e\n")
    save(tmp_path, "added_tokens.json", {"<|im_end|>": 259})
    save(tmp_path, "special_tokens_map.json", {"additional_special_tokens": ["<|im_end|>"]})
    assert from_folder(tmp_path).encode("the<|im_end|>", special=True).tolist() == [257, 259]


def test_only_llama_3_says_by_its_size_which_special_tokens_follow() -> None:
    lines = [base64.b64encode(bytes([byte])) + b" %d" % byte for byte in range(256)]
    assert tiktoken.looks_like(b"\n".join(lines))
    with pytest.raises(UnsupportedError, match="128000"):
        tiktoken.parse(b"\n".join(lines), "tokenizer.model")
    for line, place in ((b"IQ==", "line 1"), (b"!!!! 0", "line 1"), (b"IQ== 1", "line 1"), (b"IQ== 00", "line 1")):
        with pytest.raises(FormatError, match=place):
            tiktoken.parse(b"\n".join([line, *lines[1:]]), "tokenizer.model")


def test_gguf_metadata_says_what_a_tokenizer_is() -> None:
    assert Tokenizer.from_gguf({"general.architecture": "llama"}, "model.gguf") is None
    assert Tokenizer.from_gguf({"tokenizer.ggml.model": "none"}, "model.gguf") is None
    tokenizer = from_gguf(gguf_metadata())
    assert tokenizer.encode("the").tolist() == [257]
    assert tokenizer.eos == {EOS, EOT}
    assert from_gguf({**gguf_metadata(), "tokenizer.ggml.add_bos_token": True}).encode("the").tolist() == [BOS, 257]
    assert from_gguf(pieces_metadata()).encode("a").tolist() == [1, 6]


@pytest.mark.parametrize("architecture", ["bitnet-b1.58", "bitnet-25"])
def test_a_bitnet_file_that_names_no_pre_tokenizer_has_that_of_llama_3(architecture: str) -> None:
    metadata = gguf_metadata()
    del metadata["tokenizer.ggml.pre"]
    metadata["general.architecture"] = architecture
    tokenizer = from_gguf(metadata)
    assert tokenizer.to_gguf()["tokenizer.ggml.pre"] == "llama-bpe"
    assert tokenizer.encode("the")[0] == BOS
    metadata["general.architecture"] = "llama"
    assert from_gguf(metadata).to_gguf()["tokenizer.ggml.pre"] == "default"


def test_the_pre_tokenizers_split_digits_as_their_names_say() -> None:
    # Digits are merged in threes and whole runs, if the pre-tokenizer leaves them together.
    metadata = gguf_metadata()
    metadata["tokenizer.ggml.tokens"] = [*BYTE_CHARACTERS, "11", "111", "1111"]
    metadata["tokenizer.ggml.merges"] = ["1 1", "11 11", "11 1"]
    metadata["tokenizer.ggml.token_type"] = np.ones(259, np.int32)
    metadata["tokenizer.ggml.scores"] = np.zeros(259, np.float32)
    del metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
    widths = {"llama-bpe": 3, "falcon3": 3, "gpt-2": 4, "qwen2": 1, "olmo": 4, "smollm": 1, "falcon": 3, "falcon_e": 1}
    for name, width in {**widths, "default": 3}.items():
        metadata["tokenizer.ggml.pre"] = name
        tokenizer = from_gguf(metadata)
        parts = [len(tokenizer.token_bytes(token)) for token in tokenizer.encode("1111")]
        assert parts == ([1] * 4 if width == 1 else [3, 1] if width == 3 else [4])


def test_a_name_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(UnsupportedError, match=r"model\.gguf: no pre-tokenizer 'tekken'; there are .*llama-bpe"):
        from_gguf({**gguf_metadata(), "tokenizer.ggml.pre": "tekken"})
    with pytest.raises(UnsupportedError, match=r"no tokenizer model 't5'; there are gpt2, llama"):
        from_gguf({"tokenizer.ggml.model": "t5"})


def changed(path: str, value: Any) -> dict[str, Any]:
    """The small tokenizer.json with the value at a path, of keys and indices, replaced."""
    whole = tokenizer_json()
    *inner, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = whole
    for part in inner:
        at = at[part]
    at[last] = value
    return whole


def vocab(**changes: Any) -> dict[str, Any]:
    return {**tokenizer_json()["model"]["vocab"], **changes}


def pattern(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
WRONG_JSON: list[tuple[str, Any, str]] = [
    ("model.merges", ["t h", "q zz"], "merges[1]"),
    ("model.merges", ["t h e"], "merges[0]"),
    ("model.merges", [[1, 2]], "merges[0]"),
    ("model.merges", "t h", "merges"),
    ("model.vocab", vocab(th=257), "token 'the'"),
    ("model.vocab", vocab(th=2**31), "token 'th'"),
    ("model.vocab", vocab(th=-1), "token 'th'"),
    ("model.vocab", vocab(th=1.5), "token 'th'"),
    ("model.vocab", vocab(th=True), "token 'th'"),
    ("model.vocab", vocab(more=300), "token 'more'"),
    ("model.vocab", {}, "token '<|begin_of_text|>'"),
    ("model.vocab", [], "vocab"),
    ("model.vocab", {**{f"t{i}": i for i in range(2**20)}, "x": 2**20}, "vocabulary"),
    ("model.vocab", vocab(**{"": 256, "th": 261}), "token 256"),
    ("model.vocab", vocab(**{"\ud800": 261}), "token 261"),
    ("model.dropout", 0.5, "model.dropout"),
    ("model.unk_token", "nothing", "model.unk_token"),
    ("model.ignore_merges", "yes", "ignore_merges"),
    ("model", None, "model"),
    ("added_tokens.0.id", 2**31, "token '<|begin_of_text|>'"),
    ("added_tokens.0.id", 259, "added_tokens[1].id"),
    ("added_tokens.0.id", -1, "added_tokens[0].id"),
    ("added_tokens.0.id", 65, "token '<|begin_of_text|>'"),
    ("added_tokens.0.content", "", "added_tokens[0].content"),
    ("added_tokens.0.content", TOKENS[EOS], "added_tokens[1].content"),
    ("added_tokens.0.special", 1, "special"),
    ("added_tokens", {}, "added_tokens"),
    ("pre_tokenizer", pattern("(a+)+$"), "pre_tokenizer.pattern"),
    ("pre_tokenizer", pattern("(?<=a*)b"), "pre_tokenizer.pattern"),
    ("pre_tokenizer", pattern("a" * 2**20), "pre_tokenizer.pattern"),
    ("pre_tokenizer", {"type": "Split", "pattern": {"String": ""}}, "pre_tokenizer.pattern"),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BYTE_LEVEL, pattern("x")]}, "pre_tokenizer[1].pattern"),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [None]}, "pre_tokenizer[0]"),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": 1}, "pre_tokenizer.pretokenizers"),
    ("pre_tokenizer", {"type": "FixedLength", "length": 1}, "pre_tokenizer.type"),
    ("pre_tokenizer", {"type": []}, "pre_tokenizer.type"),
    ("pre_tokenizer", [], "pre_tokenizer"),
    ("pre_tokenizer.use_regex", 1, "pre_tokenizer.use_regex"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "normalizer.type"),
    ("normalizer", {"type": "Prepend", "prepend": "a" * 100}, "normalizer.prepend"),
    ("normalizer", {"type": "Sequence", "normalizers": [DOUBLE] * 5}, "normalizer"),
    ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 65}, "normalizer"),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 5}, "pre_tokenizer"),
    ("post_processor", {"type": "RobertaProcessing"}, "post_processor"),
    ("post_processor.single.0.SpecialToken.id", "nothing", "post_processor.single"),
    ("post_processor", 3, "post_processor"),
]


@pytest.mark.parametrize(("path", "value", "entry"), WRONG_JSON)
def test_a_wrong_tokenizer_json_is_one_line_that_names_the_entry(
    tmp_path: Path, path: str, value: Any, entry: str
) -> None:
    with pytest.raises(FormatError) as caught:
        load(tmp_path, changed(path, value))
    message = str(caught.value)
    assert f"tokenizer.json: {entry}: expected " in message.replace("\\'", "'")
    assert "\n" not in message
    assert len(message) <= 500


def test_a_tokenizer_of_another_kind_is_not_supported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="only BPE tokenizers are read, got 'Unigram'"):
        load(tmp_path, changed("model.type", "Unigram"))


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'{"model": NaN}',
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
    ],
)
def test_json_that_is_none_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    save(tmp_path, "merges.txt", b"")
    if name == "tokenizer_config.json":
        save(tmp_path, "tokenizer.json", tokenizer_json())
    path = save(tmp_path, name, data)
    with pytest.raises(FormatError) as caught:
        Tokenizer.from_folder(tmp_path)
    assert caught.value.file == str(path)


def test_a_file_over_its_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(FormatError, match="at most 67108864 bytes"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize(
    ("name", "value", "entry"),
    [
        ("tokenizer_config.json", {"bos_token": "nothing"}, "bos_token"),
        ("tokenizer_config.json", {"eos_token": 3}, "eos_token"),
        ("tokenizer_config.json", {"add_bos_token": "yes"}, "add_bos_token"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, None),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder"),
        ("special_tokens_map.json", {"additional_special_tokens": "x"}, "additional_special_tokens"),
        ("config.json", {"eos_token_id": "2"}, "eos_token_id"),
        ("config.json", {"eos_token_id": 999}, "eos 999"),
        ("generation_config.json", {"eos_token_id": [True]}, "eos_token_id"),
    ],
)
def test_a_wrong_config_is_refused_by_its_entry(tmp_path: Path, name: str, value: Any, entry: str | None) -> None:
    save(tmp_path, "tokenizer.json", tokenizer_json())
    save(tmp_path, name, value)
    if entry is None:  # an empty list says nothing
        Tokenizer.from_folder(tmp_path)
        return
    with pytest.raises(FormatError, match=entry):
        Tokenizer.from_folder(tmp_path)


def test_merges_that_are_no_text_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "vocab.json", vocab())
    save(tmp_path, "merges.txt", b"t h\n\xff \xfe\n")
    with pytest.raises(FormatError, match=r"merges\.txt: text: expected UTF-8"):
        Tokenizer.from_folder(tmp_path)


def test_an_added_token_that_leaves_a_gap_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "tokenizer.model", model_file())
    save(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": {"9": {"content": "<pad>"}}})
    with pytest.raises(FormatError, match=r"added_tokens_decoder\.9: expected id 7, without a gap"):
        Tokenizer.from_folder(tmp_path)


KEY = "tokenizer.ggml."
WRONG_GGUF: list[tuple[str, Any, str]] = [
    ("tokens", None, "tokens"),
    ("tokens", [], "vocabulary"),
    ("tokens", "abc", "tokens"),
    ("tokens", [*TOKENS[:-1], 3], "tokens[260]"),
    ("tokens", [*TOKENS[:-1], "the"], "token 260"),
    ("tokens", [*TOKENS[:-1], ""], "token 260"),
    ("scores", np.zeros(3, np.float32), "scores"),
    ("scores", np.zeros(len(TOKENS), np.uint8), "scores"),
    ("token_type", np.zeros(3, np.int32), "token_type"),
    ("token_type", np.zeros(len(TOKENS), np.float32), "token_type"),
    ("token_type", ["a"] * len(TOKENS), "token_type"),
    ("merges", None, "merges"),
    ("merges", ["th"], "merges[0]"),
    ("merges", ["t h", "q zz"], "merges[1]"),
    ("merges", [1], "merges[0]"),
    ("bos_token_id", len(TOKENS), "bos_token_id"),
    ("bos_token_id", -1, "bos_token_id"),
    ("bos_token_id", True, "bos_token_id"),
    ("eos_token_id", "2", "eos_token_id"),
    ("add_bos_token", 1, "add_bos_token"),
    ("pre", 3, "pre"),
]


@pytest.mark.parametrize(("key", "value", "entry"), WRONG_GGUF)
def test_wrong_gguf_metadata_is_one_line_that_names_the_key(key: str, value: Any, entry: str) -> None:
    with pytest.raises(FormatError) as caught:
        from_gguf({**gguf_metadata(), KEY + key: value})
    assert str(caught.value).startswith("model.gguf: ")
    assert entry in caught.value.field


@pytest.mark.parametrize(
    ("key", "value", "entry"),
    [
        ("scores", None, "scores"),
        ("token_type", None, "token_type"),
        ("scores", np.full(7, np.nan, np.float32), "scores"),
        ("token_type", np.array([2, 3, 3, 9, 1, 1, 1], np.int32), "type of token 3"),
        ("tokens", ["<unk>", "<s>", "</s>", "<0xZZ>", "▁", "a", "▁a"], "token 3"),
        ("tokens", ["<unk>", "<s>", "</s>", "<0x-1>", "▁", "a", "▁a"], "token 3"),
        ("tokens", ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "<0x0G>"], "token 6"),
    ],
)
def test_wrong_pieces_in_gguf_metadata_are_refused(key: str, value: Any, entry: str) -> None:
    with pytest.raises(FormatError) as caught:
        from_gguf({**pieces_metadata(), KEY + key: value})
    assert entry in caught.value.field


def test_sentencepiece_models_of_other_kinds_are_not_supported(tmp_path: Path) -> None:
    for kind in (1, 3, 4, 9):
        with pytest.raises(UnsupportedError, match="only BPE models"):
            load(tmp_path, model_file(kind=kind), "tokenizer.model")
    with pytest.raises(UnsupportedError, match="in front"):
        load(tmp_path, model_file(suffix=1), "tokenizer.model")
    with pytest.raises(UnsupportedError, match="identity"):
        load(tmp_path, model_file() + field(3, field(2, b"charsmap")), "tokenizer.model")


def test_every_truncation_of_a_sentencepiece_model_is_refused_or_whole(tmp_path: Path) -> None:
    data = model_file()
    refused = 0
    for end in range(len(data)):
        try:
            vocabulary = sentencepiece.parse(data[:end], "tokenizer.model")
        except BitNetError:
            refused += 1
        else:
            assert list(vocabulary.tokens) == pieces_metadata()["tokenizer.ggml.tokens"]
    assert refused > len(data) * 0.8


def test_a_protobuf_that_lies_about_its_sizes_is_refused() -> None:
    for data in (
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a" + b"\xff" * 20,
        b"\x0a\x05abc",
        b"\x0b",
        b"\x0a\x80",
        b"\x08\x01",
    ):
        with pytest.raises(FormatError, match="protobuf"):
            sentencepiece.parse(data, "tokenizer.model")
    with pytest.raises(FormatError, match="token 0: expected UTF-8"):
        sentencepiece.parse(field(1, field(1, b"\xff")), "tokenizer.model")


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=200, deadline=None)
def test_no_bytes_in_a_sentencepiece_model_raise_another_error(noise: bytes, at: int) -> None:
    data = model_file()
    for changed_data in (b"\x0a" + noise, data[:at] + noise + data[at + len(noise) :]):
        try:
            vocabulary = sentencepiece.parse(changed_data, "tokenizer.model")
            Tokenizer(vocabulary).encode("a b")
        except BitNetError:
            continue


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a value, but for the entries of the vocabulary."""
    if path[-1:] == ("vocab",) or not isinstance(value, dict | list):
        return [path]
    keys = value if isinstance(value, dict) else range(len(value))
    return [path, *(place for key in keys for place in places(value[key], (*path, key)))]


PLACES = [place for place in places(tokenizer_json()) if place]


@given(st.sampled_from(PLACES), JSON)
@settings(max_examples=200, deadline=None)
def test_no_value_anywhere_in_a_tokenizer_json_raises_another_error(place: tuple[Any, ...], value: Any) -> None:
    whole = copy.deepcopy(tokenizer_json())
    at: Any = whole
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(BitNetError):
        load(Path(folder), whole).encode("the a")


@pytest.mark.parametrize("name", list(pipelines.NAMED))
def test_the_named_steps_pass_their_own_check(name: str) -> None:
    normalizer, pre_tokenizer = pipelines.NAMED[name]
    assert pipelines.check_normalizer(normalizer, "x") == normalizer
    assert pipelines.check_pre_tokenizer(pre_tokenizer, "x") == pre_tokenizer


PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen3": {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                pattern(
                    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
                    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
                ),
                {**BYTE_LEVEL, "use_regex": False},
            ],
        },
        "post_processor": {**BYTE_LEVEL, "use_regex": False},
    },
    "Gemma 3": {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": {"type": "Sequence", "decoders": []},
    },
    "GPT-NeoX": {"normalizer": {"type": "NFC"}, "pre_tokenizer": BYTE_LEVEL},
    "Llama 2": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": []},
    },
    "Llama 2, later": {
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        "decoder": {"type": "Sequence", "decoders": []},
    },
    "Falcon": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Punctuation", "behavior": "Contiguous"},
                BYTE_LEVEL,
                {"type": "Digits", "individual_digits": True},
                pattern("[0-9][0-9][0-9]"),
            ],
        },
    },
}


@pytest.mark.parametrize("family", list(PUBLISHED))
def test_the_steps_of_the_ternary_families_are_run_as_the_library_runs_them(tmp_path: Path, family: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    whole = {**tokenizer_json(), **PUBLISHED[family]}
    whole["model"]["merges"] = [["t", "h"], ["th", "e"]]  # the library does not take both forms in one file
    if "decoder" in PUBLISHED[family]:
        pieces = ["<unk>", "▁", "t", "h", "e", "th", "the", *(f"<0x{byte:02X}>" for byte in range(256))]
        whole["model"] |= {"vocab": {piece: id_ for id_, piece in enumerate(pieces)}, "byte_fallback": True}
        whole["model"] |= {"unk_token": "<unk>", "fuse_unk": True}
        whole["added_tokens"] = []
        whole["post_processor"] = None
    ours = load(tmp_path, whole)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("the 1234th  them's\n\n", " é e\u0301!!", "", "the.the,the$the", "a\u00a0 b"):
        assert ours.encode(text, bos=False).tolist() == theirs.encode(text, add_special_tokens=False).ids

"""Tokenizers: the same ids as the makers' own programs give, text that comes back, and linear time."""

from __future__ import annotations

import gzip
import random
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core.errors import FormatError
from bitnet_core.tokenizer import TextStream, Tokenizer
from bitnet_core.vocabularies import BYTE_CHARACTERS, Added, Spaces, Vocabulary, pipelines

SPECIALS = ("<|begin_of_text|>", "<|eot_id|>", "hello", "\u0394")  # the last is one character
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def byte_tokenizer(pre: str = "llama-bpe", **changes: Any) -> Tokenizer:
    """Every byte, "th", "the" and " the", and special tokens of several looks."""
    tokens = (*BYTE_CHARACTERS, "th", "the", "Ġthe", "Ġt", *SPECIALS)
    first = tokens.index(SPECIALS[0], 256)
    normalizer, pre_tokenizer = pipelines.NAMED[pre]
    values: dict[str, Any] = {
        "file": "bytes",
        "tokens": tokens,
        "merges": [("t", "h"), ("th", "e"), ("Ġ", "t"), ("Ġ", "the")],
        "alphabet": "bytes",
        "added": dict.fromkeys(range(first, first + 4), Added(special=True)),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "bos": first,
        "eos": frozenset({first + 1}),
        "prefix": (first,),
    }
    return Tokenizer(Vocabulary(**values | changes))


def piece_tokenizer(**changes: Any) -> Tokenizer:
    """Bytes, a few letters and their merges, as a SentencePiece model has them."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    values: dict[str, Any] = {
        "file": "pieces",
        "tokens": ["<unk>", "<s>", "</s>", *bytes_, "▁", "a", "b", "ab", "▁a", "▁ab"],
        "merges": [("a", "b"), ("▁", "a"), ("▁", "ab"), ("▁a", "b")],
        "alphabet": "pieces",
        "added": dict.fromkeys(range(3), Added(special=True)),
        "spaces": Spaces(),
        "byte_fallback": True,
        "fuse_unk": True,
        "unk": 0,
        "bos": 1,
        "eos": frozenset({2}),
        "prefix": (1,),
    }
    return Tokenizer(Vocabulary(**values | changes))


BYTES = byte_tokenizer()
PIECES = piece_tokenizer()
COLLAPSING = piece_tokenizer(spaces=Spaces(collapse=True))


def random_texts(count: int, seed: int) -> Iterator[str]:
    """Strings of many kinds: Latin, what tokenizers treat apart, all of Unicode, and marks that combine."""
    source = random.Random(seed)
    kinds: tuple[Callable[[], str], ...] = (
        lambda: chr(source.randrange(0x250)),
        lambda: source.choice(" \t\n\r'a1sZ中.,\u00a0\u3000é!<|"),
        lambda: chr(source.choice((source.randrange(0x20, 0xD800), source.randrange(0xE000, 0x110000)))),
        lambda: source.choice("▁ aebt\u0301th"),
    )
    for _ in range(count):
        pick = source.choice(kinds)
        yield "".join(pick() for _ in range(source.randrange(1, 60)))


def declarations(data: Path, count: int, seed: int) -> list[str]:
    """The Universal Declaration of Human Rights, the first 2,000 characters in some of its 388 languages."""
    with zipfile.ZipFile(data / "text" / "udhr2.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
        chosen = random.Random(seed).sample(names, count)
        return [archive.read(name).decode()[:2000] for name in chosen]


@pytest.fixture(scope="module")
def llama3(data: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_folder(data / "tokenizers" / "llama3")
    assert tokenizer is not None
    return tokenizer


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_byte_level_text_comes_back_as_it_was(text: str) -> None:
    ids = BYTES.encode(text)
    assert BYTES.decode(ids) == text
    assert "".join(BYTES.stream(ids.tolist())) == text


@given(TEXTS.map(lambda text: text.replace("▁", "")))
@settings(max_examples=100, deadline=None)
def test_text_in_pieces_comes_back_as_it_was(text: str) -> None:
    assert PIECES.decode(PIECES.encode(text)) == text


@given(st.lists(st.integers(0, 263), max_size=40), st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_stream_gives_what_decoding_at_once_gives(ids: list[int], special: bool, continues: bool) -> None:
    for tokenizer in (BYTES, PIECES, COLLAPSING):
        streamed = "".join(tokenizer.stream(ids, special=special, continues=continues))
        assert streamed == tokenizer.decode(ids, special=special, continues=continues)


def test_a_stream_holds_back_a_character_that_is_not_whole() -> None:
    stream = TextStream(BYTES)
    ids = [BYTES.vocabulary.ids[BYTE_CHARACTERS[byte]] for byte in "é".encode()]
    assert stream.feed(ids[0]) == ""
    assert stream.feed(ids[1]) == "é"
    assert stream.feed(ids[0]) == ""
    assert stream.finish() == "\ufffd"


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    def ids(data: bytes) -> list[int]:
        return [BYTES.vocabulary.ids[BYTE_CHARACTERS[byte]] for byte in data]

    assert BYTES.decode(ids(b"a\xff\xe4\xb8b\xc3")) == "a\ufffd\ufffdb\ufffd"


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES])
def test_special_tokens_in_a_text_stay_text(tokenizer: Tokenizer) -> None:
    for token, id_ in tokenizer.special_tokens.items():
        for text in (token, f" {token} ", token[:3] + token + token[3:], token * 2):
            ids = tokenizer.encode(text, bos=False).tolist()
            assert not set(ids) & set(tokenizer.special_tokens.values())
            assert tokenizer.decode(ids) == text
            assert tokenizer.encode_batch([text], bos=False)[0].tolist() == ids
        assert tokenizer.encode(f"a{token}", bos=False, special=True)[-1] == id_


def test_a_special_token_lies_in_one_trusted_piece_or_stays_text() -> None:
    eot = BYTES.special_tokens["<|eot_id|>"]
    ids = BYTES.encode_pieces(
        [("<|eot_id|>", True), ("<|eot_id|>", False), ("<|eot", True), ("_id|>", True)], bos=False
    )
    assert ids.tolist().count(eot) == 1
    assert (
        BYTES.encode_pieces([("t", True), ("he", False)], bos=False).tolist() == BYTES.encode("the", bos=False).tolist()
    )


def test_one_bos_stands_in_front_as_the_files_or_the_caller_say() -> None:
    bos = BYTES.bos
    assert BYTES.encode("a").tolist() == [bos, *BYTES.encode("a", bos=False)]
    assert BYTES.encode("<|begin_of_text|>a", special=True).tolist() == BYTES.encode("a").tolist()
    silent = byte_tokenizer(prefix=())
    assert silent.encode("a").tolist() == BYTES.encode("a", bos=False).tolist()
    assert silent.encode("a", bos=True, eos=True).tolist() == [bos, *silent.encode("a"), min(BYTES.eos)]
    with pytest.raises(FormatError, match="BOS"):
        byte_tokenizer(prefix=(), bos=None).encode("a", bos=True)


def test_what_the_files_put_behind_a_text_is_put_there() -> None:
    tokenizer = byte_tokenizer(suffix=(261,))
    assert tokenizer.encode("a")[-1] == 261
    assert 261 not in tokenizer.encode("a", eos=False)


def test_tokens_have_bytes_texts_and_ids() -> None:
    assert BYTES.token_bytes(BYTES.token_id("Ġthe") or 0) == b" the"
    assert BYTES.token_id("no such token") is None
    assert BYTES.vocabulary_bytes()[BYTES.special_tokens["<|eot_id|>"]] == b"<|eot_id|>"
    assert PIECES.token_bytes(3 + 10) == b"\n"
    assert PIECES.token_bytes(PIECES.token_id("▁ab") or 0) == b" ab"
    assert len(BYTES.vocabulary_bytes()) == BYTES.vocab_size == 264


@pytest.mark.parametrize("tokens", [[-1], [264], [2**40], [1.5], [[1]], ["a"], np.array([0.5])])
def test_an_id_that_is_none_is_refused(tokens: Any) -> None:
    with pytest.raises(FormatError, match="bytes: token"):
        BYTES.decode(tokens)
    if isinstance(tokens, list) and isinstance(tokens[0], int):
        with pytest.raises(FormatError, match=r"an id of 0\.\.263"):
            BYTES.token_bytes(tokens[0])


def test_a_lone_surrogate_is_refused_by_its_place_and_nul_is_text() -> None:
    for special in (False, True):
        with pytest.raises(FormatError, match=r"character 2: expected Unicode, got the lone surrogate U\+D800"):
            BYTES.encode("ab\ud800", special=special)
    assert BYTES.decode(BYTES.encode("\0a\0")) == "\0a\0"


def test_the_tokens_go_on_with_a_text_that_continues() -> None:
    ids = PIECES.encode("ab ab", bos=False)
    assert PIECES.decode(ids) == "ab ab"
    assert PIECES.decode(ids, continues=True) == " ab ab"
    assert PIECES.decode([1, *ids], special=True) == "<s> ab ab"


def test_a_user_defined_piece_is_found_before_the_rest_is_merged() -> None:
    tokens = [*PIECES.vocabulary.tokens, "b▁a"]
    added = {**PIECES.vocabulary.added, len(tokens) - 1: Added(special=False)}
    tokenizer = piece_tokenizer(tokens=tokens, added=added)
    ids = tokenizer.encode("ab ab", bos=False)
    assert [tokens[id_] for id_ in ids] == ["▁a", "b▁a", "b"]
    assert tokenizer.decode(ids) == "ab ab"


@pytest.mark.parametrize("name", list(pipelines.NAMED))
def test_a_tokenizer_survives_gguf_and_a_folder(name: str, tmp_path: Path) -> None:
    original = byte_tokenizer(name, suffix=(261,))
    back = Tokenizer.from_gguf(original.to_gguf(), "back.gguf")
    original.save(tmp_path)
    saved = Tokenizer.from_folder(tmp_path)
    assert back is not None
    assert saved is not None
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("the 1234 then  them's\n\n x", "", " é!! 中 $a+b", "\u0344", *random_texts(50, 5)):
        ids = original.encode(text).tolist()
        assert saved.encode(text).tolist() == ids
        assert back.encode(text).tolist() == ids
        assert theirs.encode(text).ids == original.encode(text, special=True).tolist()
    for other in (back, saved):
        assert (other.bos, other.eos, other.special_tokens) == (original.bos, original.eos, original.special_tokens)


@pytest.mark.parametrize("spaces", [Spaces(), Spaces(prefix=False), Spaces(collapse=True)])
def test_a_tokenizer_of_pieces_survives_gguf_and_a_folder(spaces: Spaces, tmp_path: Path) -> None:
    original = piece_tokenizer(spaces=spaces)
    back = Tokenizer.from_gguf(original.to_gguf(), "back.gguf")
    original.save(tmp_path)
    saved = Tokenizer.from_folder(tmp_path)
    assert back is not None
    assert saved is not None
    assert back.vocabulary.spaces == saved.vocabulary.spaces == spaces
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("ab  abab ", "", " a\n b", "中 é", "aaab"):
        ids = original.encode(text).tolist()
        assert saved.encode(text).tolist() == back.encode(text).tolist() == theirs.encode(text).ids == ids
        assert theirs.decode(ids) == original.decode(ids)


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe"])
def test_the_ids_are_those_of_llama_cpp(name: str, data: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("bitnet_core.formats.gguf")
    path = data / "gguf" / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        path = tmp_path / path.name
        path.write_bytes(gzip.decompress((data / "gguf" / f"{path.name}.gz").read_bytes()))
    with gguf.File(path) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata, path)
    assert tokenizer is not None
    texts = (data / "gguf" / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    answers = (data / "gguf" / f"ggml-vocab-{name}.gguf.out").read_text(encoding="utf-8").split("\n")
    pairs = list(zip(texts, answers, strict=False))
    assert len(pairs) >= 46
    for text, answer in pairs:
        assert tokenizer.encode(text, bos=False).tolist() == [int(token) for token in answer.split()]


def test_llama_3_from_json_and_tiktoken_gives_the_ids_of_the_library(llama3: Tokenizer, data: Path) -> None:
    folder = data / "tokenizers" / "llama3"
    tiktoken = Tokenizer.from_file(folder / "tokenizer.model")
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tiktoken.vocabulary.merges == llama3.vocabulary.merges
    assert tiktoken.special_tokens == llama3.special_tokens
    assert tiktoken.eos == llama3.eos == {128001, 128009}
    for text in (*declarations(data, 12, 1), *random_texts(500, 2)):
        ids = llama3.encode(text, bos=False).tolist()
        assert ids == tiktoken.encode(text, bos=False).tolist()
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert llama3.decode(ids) == text


@pytest.mark.parametrize("model", ["tokenizers/llama2/tokenizer.model", "models/stories260K/tok512.model"])
def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(model: str, data: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(data / model))
    ours = Tokenizer.from_file(data / model)
    back = Tokenizer.from_gguf(ours.to_gguf(), "back.gguf")
    assert back is not None
    assert (ours.bos, set(ours.eos), ours.pad) == (theirs.bos_id(), {theirs.eos_id()}, None)
    runs = (symbol * count for symbol in " a▁-=.0" for count in range(1, 70))
    for text in (*declarations(data, 12, 3), *random_texts(500, 4), *runs):
        ids = theirs.encode(text)
        assert ours.encode(text, bos=False).tolist() == ids
        assert back.encode(text, bos=False).tolist() == ids
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids) == "".join(ours.stream(ids))


def test_gpt_2_from_its_pair_of_files_gives_the_ids_of_its_gguf_file(data: Path) -> None:
    ours = Tokenizer.from_folder(data / "tokenizers" / "gpt2")
    gguf = pytest.importorskip("bitnet_core.formats.gguf")
    path = data / "gguf" / "ggml-vocab-gpt-2.gguf"
    with gguf.File(path) as file:
        theirs = Tokenizer.from_gguf(file.metadata, path)
    assert ours is not None
    assert theirs is not None
    assert ours.eos == {50256}
    for text in (*declarations(data, 8, 6), *random_texts(300, 7)):
        assert ours.encode(text).tolist() == theirs.encode(text).tolist()


def test_the_small_trained_model_reads_its_own_tokenizer(data: Path) -> None:
    folder = data / "models" / "bitllama2c-1M-hf"
    ours = Tokenizer.from_folder(folder)
    assert ours is not None
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = (data / "text" / "tinystories_valid_head.txt").read_text(encoding="utf-8")[:20_000]
    assert ours.encode(text).tolist() == theirs.encode(text).ids
    assert ours.eos == {1, 2}


@pytest.mark.parametrize("symbol", ["a", " ", "\n", "!", "7", "中", "😀", "\u0301", "\0", "▁", "<|eot_id|>"])
@pytest.mark.parametrize("tokenizer", [BYTES, PIECES])
def test_the_time_grows_with_a_run_and_not_with_its_square(tokenizer: Tokenizer, symbol: str) -> None:
    short, long = (processor_time(tokenizer, (symbol * count)[:count]) for count in (20_000, 80_000))
    # Four times the text: quadratic work would take sixteen times as long.
    assert long < 10 * short + 0.05


def processor_time(tokenizer: Tokenizer, text: str) -> float:
    def once() -> float:
        start = time.process_time()
        tokenizer.encode(text, special=True)
        return time.process_time() - start

    return min(once() for _ in range(3))


def test_a_million_characters_take_a_moment(data: Path) -> None:
    tokenizer = Tokenizer.from_file(data / "tokenizers" / "llama2" / "tokenizer.model")
    for symbol in ("a", "中"):
        assert processor_time(tokenizer, symbol * 1_000_000) < 5

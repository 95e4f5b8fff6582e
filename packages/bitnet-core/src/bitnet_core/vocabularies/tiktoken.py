"""The tiktoken file: a line a token, its bytes in base64 and its rank; what Llama 3 calls tokenizer.model."""

from __future__ import annotations

import base64
import binascii

from ..errors import FormatError, UnsupportedError, printable
from . import Added, Vocabulary, byte_level, check_count, merges_of, pipelines

_LLAMA3_TOKENS = 128_000
_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{index}|>" for index in range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",
)
_LLAMA3_SPECIAL = (*_NAMED, *(f"<|reserved_special_token_{index}|>" for index in range(5, 251)))


def looks_like(data: bytes) -> bool:
    """Whether a tokenizer.model is of this kind: its first line is base64 and a number."""
    head = data[:200].partition(b"\n")[0].split(b" ")
    return len(head) == 2 and head[1].strip().isdigit() and head[0].rstrip(b"=").replace(b"+", b"").isalnum()


def parse(data: bytes, file: str) -> Vocabulary:
    """The vocabulary in a tiktoken file; its special tokens are not in it, and follow Llama 3's layout."""
    tokens = _tokens(data, file)
    if len(tokens) != _LLAMA3_TOKENS:
        raise UnsupportedError(
            f"{printable(file)}: only Llama 3's tiktoken file, of {_LLAMA3_TOKENS} tokens, says which special tokens "
            f"follow, this one has {len(tokens)}; use the model's tokenizer.json"
        )
    ids = {token: rank for rank, token in enumerate(tokens)}
    specials = range(len(tokens), len(tokens) + len(_LLAMA3_SPECIAL))
    normalizer, pre_tokenizer = pipelines.NAMED["llama-bpe"]
    return Vocabulary(
        file=file,
        tokens=(*tokens, *_LLAMA3_SPECIAL),
        merges=merges_of(tokens, ids),
        alphabet="bytes",
        added=dict.fromkeys(specials, Added(special=True)),
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        ignore_merges=True,
        bos=specials[0],
        eos=frozenset({specials[1], specials[9]}),
        prefix=(specials[0],),
    )


def _tokens(data: bytes, file: str) -> list[str]:
    """The tokens by rank; ranks are given one after another."""
    lines = data.removesuffix(b"\n").split(b"\n")
    check_count(len(lines), file)
    tokens = []
    for rank, line in enumerate(lines):
        text, _, number = line.removesuffix(b"\r").partition(b" ")
        if number != b"%d" % rank:
            raise FormatError(file, f"line {rank + 1}", f"a token in base64 and its rank {rank}", repr(line[:60]))
        try:
            tokens.append(byte_level(base64.b64decode(text, validate=True)))
        except binascii.Error as error:
            raise FormatError(file, f"line {rank + 1}", "a token in base64", repr(text[:60])) from error
    return tokens

"""config.json and its like: one meaning, or one line that says why not."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core.errors import BitNetError, FormatError, UnsupportedError
from bitnet_core.formats.huggingface.config import parse_config, spec_from_config
from bitnet_core.formats.strictjson import parse_json, read_json

PLAIN = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def spec(**changes: Any) -> Any:
    value = {key: item for key, item in (PLAIN | changes).items() if item is not ...}
    return spec_from_config(parse_config(value, "config.json"), "config.json", inputs="int8")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "JSON: expected value, got the end of the file"),
        (b"{", "JSON: expected property name"),
        (b"nul", "JSON: expected value, got nul"),
        (b'{"a": 1} x', "extra data"),
        (b'{"a": 1, "a": 2}', "key 'a': expected to stand once, got two values of it"),
        (b"NaN", "number: expected a finite number, got NaN"),
        (b"[-Infinity]", "number: expected a finite number, got -Infinity"),
        (b"1e999", "number: expected a finite number, got 1e999"),
        (b"1" * 5000, "number: expected an integer of at most 4300 digits"),
        ("{}".encode("utf-16"), "text: expected UTF-8, got byte 0xff (byte 0)"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"[" * 100_000, "JSON: expected at most 64 levels, got deeper nesting"),
        (b'"' + rb"\"" * 500_000, "JSON:"),
        (b'["' + rb"\"" * 500_000 + b"{" * 100, "JSON:"),
    ],
)
def test_text_that_is_not_one_plain_value(data: bytes, words: str) -> None:
    started = time.perf_counter()
    with pytest.raises(FormatError) as caught:
        parse_json(data, "x.json")
    assert words in str(caught.value)
    assert time.perf_counter() - started < 1


def test_brackets_inside_strings_do_not_nest() -> None:
    assert parse_json(b'{"a": "' + b"[{" * 500 + b'"}', "x.json") == {"a": "[{" * 500}


def test_a_key_may_stand_twice_where_both_values_say_the_same() -> None:
    text = b'{"q": {"method": "bitnet", "skip": null}, "x": 1, "q": {"method": "bitnet"}}'
    assert parse_json(text, "x.json", same_duplicates=True)["q"] == {"method": "bitnet"}
    with pytest.raises(FormatError, match="key 'q': expected to stand once"):
        parse_json(text, "x.json")
    with pytest.raises(FormatError, match="key 'q': expected to stand once"):
        parse_json(text.replace(b'"bitnet"}}', b'"gptq"}}'), "x.json", same_duplicates=True)


def test_files_beyond_the_limit_are_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, 1 << 40)  # a hole: no machine could hold it
    with pytest.raises(FormatError, match="expected at most 100 bytes, got 1099511627776 bytes"):
        read_json(path, limit=100)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "pipe"):
        with pytest.raises(FormatError, match="expected a regular file"):
            read_json(path, limit=100)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": ...}, "hidden_size: expected a value, got none"),
        ({"hidden_size": "2560"}, "hidden_size: expected int, got '2560'"),
        ({"hidden_size": 2560.5}, "hidden_size: expected int, got 2560.5"),
        ({"hidden_size": -1}, "hidden_size: expected int >= 1, got -1"),
        ({"hidden_size": 0}, "hidden_size: expected int >= 1, got 0"),
        ({"hidden_size": 2**40}, "hidden_size: expected int <= 16777216, got 1099511627776"),
        ({"hidden_size": True}, "hidden_size: expected int, got True"),
        ({"hidden_size": 66}, "hidden_size: expected an even multiple of num_attention_heads = 4, got 66"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of num_attention_heads = 4, got 3"),
        ({"num_key_value_heads": 8}, "num_key_value_heads: expected a divisor of num_attention_heads = 4, got 8"),
        ({"num_hidden_layers": 2**31}, "num_hidden_layers: expected int <= 4096"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected int >= 1, got 0"),
        ({"head_dim": 15}, "head_dim: expected an even number, got 15"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: expected float > 0.0, got 0"),
        ({"rope_theta": 0}, "rope_theta: expected float > 1.0, got 0"),
        ({"rope_theta": -1.5}, "rope_theta: expected float > 1.0, got -1.5"),
        ({"hidden_act": "swish2"}, "hidden_act: expected one of relu2, silu, gelu_pytorch_tanh, got swish2"),
        ({"architectures": ["a", 3]}, r"architectures[1]: expected str, got 3"),
        ({"rope_scaling": {"factor": "2"}}, "rope_scaling.factor: expected float | null, got '2'"),
        ({"rope_parameters": {"rope_theta": []}}, "rope_parameters.rope_theta: expected float | null, got []"),
        (
            {"quantization_config": {"quant_method": "bitnet", "linear_class": "x - at `$.y[9]`"}},
            "quantization_config.linear_class: expected one of bitlinear, autobitlinear, got 'x - at `",
        ),
        (
            {"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 1}},
            "rope_scaling.original_max_position_embeddings: expected int >= 2, got 1",
        ),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor: expected an even share of head_dim = 16, got 32"),
    ],
)
def test_fields_that_make_no_sense_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError) as caught:
        spec(**changes)
    assert str(caught.value).startswith(f"config.json: {words}")


@pytest.mark.parametrize("value", [[], "x", 3, None])
def test_a_config_that_is_no_object(value: Any) -> None:
    with pytest.raises(FormatError, match="JSON: expected an object"):
        parse_config(value, "config.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "model_type: 'gpt2' is not a family that is known; there are bitnet, llama"),
        ({"model_type": "x" * 10_000}, "is not a family that is known"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method: 'gptq' is not ternary"),
        ({"rope_scaling": {"type": "mrope", "factor": 2}}, "rope_type: 'mrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "factor: expected a number for rope_type 'linear'"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
            "expected low_freq_factor below high_freq_factor, got 4.0 and 4.0",
        ),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: 50.0 is not supported"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention: True is not supported"),
    ],
)
def test_what_this_version_cannot_run_is_said(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        spec(**changes)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_code_and_addresses_in_a_config_are_inert() -> None:
    hostile = {
        "auto_map": {"AutoModel": "evil--modeling.Evil"},
        "_attn_implementation_internal": "hub/evil",
        "_name_or_path": "https://example.invalid/x",
        "custom_pipelines": {"x": {"impl": "os.system"}},
    }
    assert spec(**hostile) == spec()


@given(
    st.dictionaries(
        st.sampled_from([*PLAIN, "head_dim", "rope_scaling", "rope_parameters", "layer_types", "quantization_config"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
            max_leaves=6,
        ),
    )
)
def test_nothing_but_our_errors_escapes(changes: dict[str, Any]) -> None:
    try:
        spec(**changes)
    except BitNetError as error:
        text = str(error)
        assert text.isprintable(), text  # the error is the subject here, and may not occur

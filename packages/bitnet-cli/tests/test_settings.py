"""Flags from the environment and from TOML, numbers as people write them, and which source wins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command import Bitnet

from bitnet_cli import amounts


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096", 4096), ("32k", 32768), ("32K", 32768), ("2GiB", 2 << 30), ("2G", 2 << 30), ("2GB", 2 * 10**9),
     ("1.5k", 1536), ("64kB", 64000), ("1_000", 1000), ("7 MiB", 7 << 20), ("1TiB", 1 << 40), ("512B", 512),
     ("0.1kB", 100)],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text: str, value: int) -> None:
    assert amounts.parse_size(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096", 4096), ("10k", 10_000), ("10K", 10_000), ("5M", 5_000_000), ("8Ki", 8192), ("8ki", 8192),
     ("1.5k", 1500), ("0.001M", 1000), ("2.3k", 2300), ("1_000", 1000), ("1Mi", 1 << 20)],
)  # fmt: skip
def test_thousands_of_tokens_are_thousands(text: str, value: int) -> None:
    assert amounts.parse_count(text) == value


@pytest.mark.parametrize(
    "text", ["", "k", "-1", "1e9", "1.0001k", "0x10", "1kk", "2^40", "١٢", "1" * 40, "NaN", "1 k i", "1i", "1ib"]
)
@pytest.mark.parametrize("parse", [amounts.parse_size, amounts.parse_count])
def test_what_is_no_number_is_refused(text: str, parse: Callable[[str], int]) -> None:
    with pytest.raises(ValueError, match="expected a"):
        parse(text)


@pytest.mark.parametrize("text", ["10kB", "10KiB", "512B", "1.0001k"])
def test_tokens_are_not_counted_in_bytes(text: str) -> None:
    with pytest.raises(ValueError, match="expected a"):
        amounts.parse_count(text)


def test_a_limit_of_tokens_is_what_was_written(bitnet: Bitnet, tmp_path: Path) -> None:
    made = bitnet("keys", "create", "Ann", "--tokens-per-minute", "10k", "--keys", tmp_path / "keys.sqlite", "--json")
    assert made.json["tokens_per_minute"] == 10_000


def test_spans_of_time_are_read() -> None:
    assert [amounts.parse_span(text) for text in ("90s", "15m", "12h", "30d", "2w")] == [
        90,
        900,
        43200,
        2592000,
        1209600,
    ]


def test_sizes_are_written_as_people_read_them() -> None:
    assert [amounts.size(n) for n in (0, 1023, 1024, 5 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 GiB",
    ]
    assert amounts.size(None) == "unknown"
    assert [amounts.amount(n) for n in (7, 9_999, 12_345, 5_250_000, 2_412_820_480)] == [
        "7", "9,999", "12.35 k", "5.25 M", "2.41 B"]  # fmt: skip


def test_times_are_written_as_people_read_them() -> None:
    seconds = (0.0004, 0.0312, 1.834, 42.0, 61, 250, 3599.9, 5400, 100_000, 200_000)
    assert [amounts.duration(n) for n in seconds] == [
        "0.4 ms", "31 ms", "1.83 s", "42.0 s", "1 min 1 s", "4 min 10 s", "60 min", "1 h 30 min", "27 h 47 min",
        "2 d 8 h"]  # fmt: skip


def test_every_flag_has_a_variable(bitnet: Bitnet, stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_TOKENIZE_COUNT", "true")
    assert bitnet("tokenize", stories, "Once upon a time").out == "5\n"
    monkeypatch.setenv("BITNET_TOKENIZE_COUNT", "perhaps")
    said = bitnet("tokenize", stories, "x")
    assert said.code == 2
    assert "BITNET_TOKENIZE_COUNT" in said.err
    monkeypatch.delenv("BITNET_TOKENIZE_COUNT")
    monkeypatch.setenv("BITNET_FIT_CONTEXT", "2k")
    assert bitnet("fit", stories, "--json").code == 2
    monkeypatch.setenv("BITNET_BENCH_HISTORY_LIMIT", "0")
    assert bitnet("bench", "history").code == 2


def test_a_file_of_settings_is_found_or_named(bitnet: Bitnet, stories: Path, home: Path, tmp_path: Path) -> None:
    usual = home / "config" / "bitnet" / "config.toml"
    usual.parent.mkdir(parents=True)
    usual.write_text("[tokenize]\ncount = true\n[bench.history]\nlimit = 3\n")
    assert bitnet("tokenize", stories, "Once upon a time").out == "5\n"
    assert bitnet("bench", "history", "--json").json == []
    named = tmp_path / "mine.toml"
    named.write_text("[tokenize]\nids = true\n")
    assert len(bitnet("tokenize", stories, "Once upon a time", "--config", named).out.split()) == 5


def test_the_command_line_wins_over_variables_and_these_over_files(
    bitnet: Bitnet, stories: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = home / "config" / "bitnet" / "config.toml"
    usual.parent.mkdir(parents=True)
    usual.write_text("[fit]\ncontext = 64\nthreads = 1\n")

    def context(*flags: str) -> int:
        found: int = bitnet("fit", stories, "--json", *flags).json["forecast"]["need"]["context"]
        return found

    assert context() == 64
    monkeypatch.setenv("BITNET_FIT_CONTEXT", "128")
    assert context() == 128
    assert context("--context", "256") == 256


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tokenise]\ncount = true\n", "did you mean [tokenize]?"),
        ("[tokenize]\ncuont = true\n", "count"),
        ("[tokenize]\ncount = true\ncount = true\n", "line 3"),
        ("[tokenize\n", "line 1"),
        ("count = true\n", "count"),
        ("tokenize = 3\n", "expected a table [tokenize]"),
        ('[tokenize]\ncount = "soon"\n', "count"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(
    text: str, said: str, bitnet: Bitnet, stories: Path, tmp_path: Path
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    found = bitnet("tokenize", stories, "x", "--config", path)
    assert found.code == 2
    assert "settings.toml" in found.err
    assert said in found.err


def test_debugging_shows_where_a_failure_comes_from(bitnet: Bitnet) -> None:
    said = bitnet("inspect", "no-such-file", "--debug")
    assert said.code == 2
    assert "Traceback" in said.err
    assert said.err.splitlines()[-1].startswith("bitnet: error: ")


def test_help_and_version_succeed(bitnet: Bitnet) -> None:
    assert "bitnet COMMAND" in bitnet("--help", online=True).out
    assert bitnet("--version", online=True).out == "0.1.0\n"
    assert "bitnet COMMAND" in bitnet(online=True).out
    assert "--unused-for" in bitnet("rm", "--help", online=True).out
    assert "machine" in bitnet("bench", online=True).out

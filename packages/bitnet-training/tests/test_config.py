"""Settings: what is wrong is said with its line, and the nearest right word."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core import FormatError
from bitnet_training import config, options
from bitnet_training.config import Config, DataConfig, ModelConfig

GOOD = """
method = "pretrain"
seed = 3

[optimizer]
learning_rate = 1e-3
weight_decay = 0

[data]
train = ["a.txt", "b.jsonl"]
batch = 8
rows = 4
"""


def parsed(text: str, *changes: str) -> Config:
    return options.parse(Config, text, "run.toml", changes)


def test_a_config_is_read_and_the_rest_are_defaults():
    found = parsed(GOOD)
    assert (found.seed, found.data.train, found.optimizer.weight_decay) == (3, ("a.txt", "b.jsonl"), 0.0)
    assert found.model == ModelConfig()


def test_what_is_written_is_read_back():
    found = parsed(GOOD)
    assert parsed(options.toml(found)) == found
    assert parsed(config.template()) == Config()


def test_a_change_is_the_later_word_and_needs_no_quotes():
    found = parsed(GOOD, "optimizer.learning_rate=0.5", "out=somewhere", "model.ternary=false", 'data.train=["c.txt"]')
    assert (found.optimizer.learning_rate, found.out, found.model.ternary) == (0.5, "somewhere", False)
    assert found.data.train == ("c.txt",)


def test_one_teacher_needs_no_list_and_several_are_one():
    one = parsed('method = "distill"\n[teacher]\nbase = "a"')
    several = parsed('method = "distill"', 'teacher.base=["a", "b"]')
    assert (one.teacher.base, several.teacher.base) == (("a",), ("a", "b"))
    for none in ("[]", "['']", "['a', '']"):
        with pytest.raises(FormatError, match="method: expected a teacher's base to distill from"):
            parsed('method = "distill"', f"teacher.base={none}")


@pytest.mark.parametrize("change", ["optimizer", "=3", "a..b=1", "seed.x=1"])
def test_a_change_that_is_none_is_refused(change):
    with pytest.raises(ValueError, match=r"change|value"):
        parsed(GOOD, change)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[optimizer]\n\nlearning_rat = 1", "line 3, optimizer.learning_rat: .* did you mean 'learning_rate'"),
        ("[optimiser]\n", "line 1, optimiser: .* did you mean 'optimizer'"),
        ("zzz = 1", "line 1, zzz: .*keys are method, out"),
        ('[optimizer]\nlearning_rate = "1e-4"', 'line 2, .*: expected a number, got "1e-4"'),
        ("[optimizer]\nlearning_rate = -1", "line 2, .*: expected a number of 0 to 10, got -1"),
        ("[optimizer]\nlearning_rate = nan", "line 2, .*: expected a number of 0 to 10, got nan"),
        ("[optimizer]\nclip = inf", "line 2, .*: expected a number of at least 0, got inf"),
        ("[data]\nbatch = 0", "line 2, data.batch: expected a number of 1 to"),
        ("[data]\nbatch = 1.5", "line 2, data.batch: expected a whole number, got 1.5"),
        ("[data]\nbatch = true", "line 2, data.batch: expected a whole number, got true"),
        ("[data]\nbatch = 8\nrows = 3", "line 3, data.rows: expected a number that divides the batch of 8, got 3"),
        ("[data]\ntrain = [1]", "line 2, data.train: expected a string, got 1"),
        ("[data]\ntrain = 1", "line 2, data.train: expected a list, each a string, got 1"),
        ('[schedule]\nkind = "cosin"', "line 2, .* got \"cosin\"; did you mean 'cosine'"),
        ("[schedule]\nsteps = 0", "line 2, schedule.steps"),
        ("[model]\nheads = 3", "hidden_size: expected an even number"),
        ("[model]\nkv_heads = 3", "line 2, model.kv_heads: expected a number that divides"),
        ('method = "sft"', "line 1, method: expected pretrain or distill where there is no base"),
        ("model = 3", r"line 1, model: expected a table \[model\]"),
        ("seed = 1\nseed = 2", "Cannot overwrite a value"),
        ("\tseed = ", "TOML"),
        ("seed = 99999999999999999999", "line 1, seed"),
        ('export = ["paper"]', "line 1, export: expected some of packed, .*, not paper"),
        ("seed" * 10, "TOML"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text, said):
    with pytest.raises(FormatError, match=said) as caught:
        parsed(text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("run.toml: ")


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path):
    with pytest.raises(FormatError, match="no such file"):
        config.load(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_bytes(b"seed = 1 # \xff")
    with pytest.raises(FormatError, match="UTF-8"):
        config.load(tmp_path / "a.toml")


@given(st.text())
def test_any_string_survives_being_written(text):
    written = options.toml(Config(data=DataConfig(train=(text,)), out=text))
    found = options.parse(Config, written)
    assert (found.out, found.data.train) == (text, (text,))


@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["[data]", "batch = 1", "x = [", "{", "a.b = 1", "'"])).map("\n".join)
)
def test_no_text_brings_down_the_parser(text):
    try:
        parsed(text)
    except FormatError as error:
        assert "\n" not in str(error)  # noqa: PT017


HERE = Path(__file__).parents[1]
SHIPPED = [*(HERE / "configs").glob("*.toml"), *HERE.glob("../../models/*.toml")]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_configs_that_come_along_are_read(path):
    assert config.load(path).schedule.steps > 100


def test_differences_name_the_keys_and_both_values():
    one, other = parsed(GOOD), parsed(GOOD, "seed=4", "data.batch=16")
    assert options.differences(one, other) == [("seed", 3, 4), ("data.batch", 8, 16)]

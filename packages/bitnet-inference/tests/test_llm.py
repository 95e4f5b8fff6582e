"""The object that applications hold: text in, text out, on a real model."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from bitnet_core import load
from bitnet_core.chat import ChatTemplate
from bitnet_core.errors import FormatError, HubError, UnsupportedError
from bitnet_core.formats.huggingface import save_adapter
from bitnet_core.model import Adapter
from bitnet_core.testing import random_model, run, tiny_spec
from bitnet_inference import LLM, Reply, Sampling
from bitnet_inference.llm import BUILT_IN

ONCE = "Once upon a time"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(threads=1) as made:
        yield made


@dataclass
class Animal:
    name: str
    legs: int


class TestText:
    def test_a_reply_is_a_str_that_knows_how_it_came_about(self, llm: LLM) -> None:
        reply = llm.generate(ONCE, max_tokens=12, temperature=0)
        assert isinstance(reply, str)
        assert reply.startswith(",")
        assert reply.finish_reason == "length"
        assert reply.usage.prompt_tokens == len(llm.tokenizer.encode(ONCE))
        assert reply.usage.completion_tokens == len(reply.tokens) == 12
        assert reply.timings.first_token_s > 0
        assert reply.choices == (reply,)
        assert llm.tokenizer.decode(reply.tokens, continues=True) == reply

    def test_a_reply_survives_pickling(self, llm: LLM) -> None:
        reply = llm.generate(ONCE, max_tokens=3, logprobs=1)
        again = pickle.loads(pickle.dumps(reply))  # noqa: S301
        assert again == reply
        assert again.details == reply.details

    def test_pieces_together_are_the_reply(self, llm: LLM) -> None:
        writing = llm.write(ONCE, max_tokens=40, temperature=0)
        pieces = list(writing)
        assert len(pieces) > 20
        assert "".join(pieces) == "".join(writing) == writing.reply == llm.generate(ONCE, max_tokens=40, temperature=0)

    def test_characters_of_several_tokens_come_whole(self, llm: LLM) -> None:
        text = " a \U0001f468\u200d\U0001f469\u200d\U0001f467 \u6f22"
        wanted = llm.tokenizer.encode(text, bos=False).tolist()
        before = len(llm.tokenizer.encode(ONCE))

        def write_it(tokens: list[int], logits: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
            place = len(tokens) - before
            return np.where(np.arange(len(logits)) == [*wanted, min(llm.tokenizer.eos)][place], 0, -np.inf)

        assert llm.generate(ONCE, processors=[write_it]) == text
        assert len(wanted) > len(text)
        for most in range(1, len(wanted)):
            pieces = list(llm.write(ONCE, processors=[write_it], max_tokens=most))
            assert text.startswith("".join(pieces))
            assert llm.generate(ONCE, processors=[write_it], max_tokens=most) == "".join(pieces)

    def test_several_prompts_get_what_each_gets_alone(self, llm: LLM) -> None:
        prompts = [ONCE, "Lily saw", "The big dog"]
        together = llm.generate(prompts, max_tokens=10, temperature=0)
        assert together == [llm.generate(prompt, max_tokens=10, temperature=0) for prompt in prompts]

    def test_token_ids_are_a_prompt_too(self, llm: LLM) -> None:
        ids = llm.tokenizer.encode(ONCE)
        expected = llm.generate(ONCE, max_tokens=8, temperature=0)
        assert llm.generate(ids, max_tokens=8, temperature=0) == expected
        assert llm.generate(ids.tolist(), max_tokens=8, temperature=0) == expected

    def test_an_empty_prompt_is_a_text_from_its_beginning(self, llm: LLM) -> None:
        assert llm.generate("", max_tokens=4, temperature=0).usage.prompt_tokens == 1

    def test_asyncio_gives_the_same(self, llm: LLM) -> None:
        async def everything() -> tuple[Reply, Reply, str]:
            one, other = await asyncio.gather(
                llm.agenerate(ONCE, max_tokens=9, temperature=0), llm.achat(ONCE, max_tokens=9, temperature=0)
            )
            pieces = [piece async for piece in llm.stream(ONCE, max_tokens=9, temperature=0)]
            return one, other, "".join(pieces)

        expected = llm.generate(ONCE, max_tokens=9, temperature=0)
        assert asyncio.run(everything()) == (expected, expected, expected)

    def test_n_texts_are_choices_of_one_reply(self, llm: LLM) -> None:
        reply = llm.generate(ONCE, n=3, seed=5, temperature=1.0, max_tokens=12)
        assert len(reply.choices) == 3
        assert len(set(reply.choices)) > 1
        assert reply.usage.completion_tokens == 36
        assert reply.choices[0] is reply

    def test_the_same_seed_gives_the_same_text(self, llm: LLM) -> None:
        texts = {llm.generate(ONCE, seed=7, temperature=1.0, max_tokens=16) for _ in range(3)}
        assert len(texts) == 1
        assert llm.generate(ONCE, seed=8, temperature=1.0, max_tokens=16) not in texts

    def test_a_stop_string_ends_the_text_and_is_cut_off(self, llm: LLM) -> None:
        whole = llm.generate(ONCE, temperature=0, max_tokens=40)
        place = whole.index("girl") + 2
        stop = whole[place : place + 9]  # from the midst of one word into another
        reply = llm.generate(ONCE, temperature=0, max_tokens=40, stop=stop)
        assert reply == whole[:place]
        assert reply.finish_reason == "stop"
        assert "".join(llm.write(ONCE, temperature=0, max_tokens=40, stop=stop)) == reply
        kept = llm.generate(ONCE, temperature=0, max_tokens=40, stop=stop, include_stop=True)
        assert kept == whole[: place + 9]

    def test_the_token_that_ends_a_text_is_not_in_it(self, llm: LLM) -> None:
        comma = int(llm.tokenizer.encode("a,", bos=False)[-1])
        reply = llm.generate(ONCE, temperature=0, max_tokens=10, stop_tokens={comma})
        assert reply == ""
        assert reply.finish_reason == "stop"
        assert reply.tokens == (comma,)

    def test_a_stop_string_that_is_a_special_token_ends_the_text(self, llm: LLM) -> None:
        end = min(llm.tokenizer.eos)

        def only(tokens: list[int], logits: Any) -> Any:
            return np.where(np.arange(len(logits)) == end, np.float32(0), np.float32(-np.inf))

        [word] = [text for text, token in llm.tokenizer.special_tokens.items() if token == end]
        reply = llm.generate(ONCE, stop=word, ignore_eos=True, processors=(only,))
        assert reply == ""
        assert reply.finish_reason == "stop"

    def test_a_text_that_may_not_repeat_does_not(self, llm: LLM) -> None:
        free = llm.generate("Lily saw a big dog.", max_tokens=30, temperature=0)
        bound = llm.generate("Lily saw a big dog.", max_tokens=30, temperature=0, dry_multiplier=5.0)
        assert free.count("a long tail") > bound.count("a long tail")

    def test_logprobs_come_with_the_tokens_text(self, llm: LLM) -> None:
        reply = llm.generate(ONCE, temperature=0, max_tokens=5, logprobs=3, prompt_logprobs=1)
        assert "".join(one.text for one in reply.logprobs) == reply
        assert all(one.top[0].token == one.token and one.logprob <= 0 for one in reply.logprobs)
        assert len(reply.prompt_logprobs) == reply.usage.prompt_tokens - 1
        pieces = list(llm.write(ONCE, temperature=0, max_tokens=5, logprobs=0))
        assert [one for piece in pieces for one in piece.logprobs] == [replace(one, top=()) for one in reply.logprobs]

    def test_a_processor_changes_what_may_come(self, llm: LLM) -> None:
        word = int(llm.tokenizer.encode(" dog", bos=False)[0])

        def only(tokens: list[int], logits: Any) -> Any:
            return np.where(np.arange(len(logits)) == word, logits, -np.inf)

        assert llm.generate("a", max_tokens=3, processors=(only,)) == " dog dog dog"

    def test_what_a_processor_raises_reaches_the_caller(self, llm: LLM) -> None:
        def broken(tokens: list[int], logits: Any) -> Any:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            llm.generate(ONCE, processors=(broken,))
        assert llm.generate(ONCE, max_tokens=2)

    def test_closing_a_writing_ends_it(self, llm: LLM) -> None:
        with llm.write(ONCE, max_tokens=400, temperature=0, ignore_eos=True) as writing:
            next(iter(writing))
        assert writing.reply.finish_reason == "cancelled"
        assert len(writing.reply.tokens) < 400

    def test_a_deadline_ends_a_text(self, llm: LLM) -> None:
        reply = llm.generate(ONCE, deadline_s=0.0)
        assert reply.finish_reason == "deadline"

    def test_a_text_that_was_stopped_knows_what_by(self, llm: LLM) -> None:
        wanted: dict[str, Any] = {"temperature": 0, "max_tokens": 40}
        assert llm.generate(ONCE, **wanted, stop=["?", " was"]).stop == " was"
        assert llm.generate(ONCE, **wanted, stop=" was", include_stop=True).stop == " was"
        assert llm.generate(ONCE, **wanted).stop is None
        assert llm.generate(ONCE, temperature=0, max_tokens=1, stop=" was").stop is None
        name, token = next(iter(llm.tokenizer.special_tokens.items()))
        assert llm.generate(ONCE, stop=name, logit_bias={token: 100.0}, max_tokens=3).stop == name

    def test_who_is_told_of_what_happens_may_come_and_go(self, llm: LLM) -> None:
        first: list[Any] = []
        second: list[Any] = []
        leave = llm.observe(first.append)
        llm.generate(ONCE, max_tokens=2)
        also = llm.observe(second.append)
        llm.generate(ONCE, max_tokens=2)
        leave()
        llm.generate(ONCE, max_tokens=2)
        also()
        llm.generate(ONCE, max_tokens=2)
        ends = [[one.usage.completion_tokens for one in each if hasattr(one, "usage")] for each in (first, second)]
        assert ends == [[2, 2], [2, 2]]


class TestForms:
    def test_a_schema_binds_the_text_and_gives_a_value(self, llm: LLM) -> None:
        schema = {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["big", "small"]}},
            "required": ["ok", "size"],
            "additionalProperties": False,
        }
        reply = llm.generate("Answer:", form=schema, seed=1)
        assert set(reply.parsed) == {"ok", "size"}
        assert reply.finish_reason == "stop"

    def test_a_type_comes_back_as_that_type(self, llm: LLM) -> None:
        class Pet(msgspec.Struct):
            tame: bool
            kind: Literal["cat", "dog"]

        reply = llm.generate("Pet:", form=Pet, seed=3, max_tokens=200)
        assert isinstance(reply.parsed, Pet)

    def test_n_texts_of_a_form_each_have_their_value(self, llm: LLM) -> None:
        reply = llm.generate("Yes or no?", form=["yes", "no"], n=4, seed=1, temperature=2.0)
        assert all(choice in ("yes", "no") for choice in reply.choices)

    def test_a_regex_binds_the_text(self, llm: LLM) -> None:
        assert re.fullmatch("[0-9]{4}-[0-9]{2}", llm.generate("On", form=re.compile("[0-9]{4}-[0-9]{2}")))

    def test_a_text_that_was_cut_has_no_value(self, llm: LLM) -> None:
        reply = llm.generate("Answer:", form=Animal, max_tokens=2)
        assert reply.parsed is None
        assert reply.finish_reason == "length"

    def test_a_text_that_cannot_be_read_is_there_all_the_same(self, llm: LLM) -> None:
        reply = llm.generate("Answer:", form=Animal, stop='"', seed=1, n=2)
        for choice in reply.choices:
            assert choice.finish_reason == "stop"
            assert choice.startswith("{")
            with pytest.raises(FormatError, match="answer: JSON: expected text that fits its schema"):
                _ = choice.parsed
        with pytest.raises(FormatError):
            _ = pickle.loads(pickle.dumps(reply)).parsed  # noqa: S301

    def test_a_tool_must_be_called_where_the_caller_says_so(self) -> None:
        def weather(city: Literal["Rome", "Paris"]) -> str:
            """Tell the weather."""
            return f"sunny in {city}"

        model = load(BUILT_IN)
        template = ChatTemplate(
            "{% for m in messages %}{{ m.content }}{% endfor %}{% for t in tools %}{{ t }}{% endfor %}"
        )
        with LLM(replace(model, template=template), threads=1) as llm:
            reply = llm.chat("Hi", tools=[weather], tool_choice="required", max_tokens=300, seed=2)
            assert [call.name for call in reply.tool_calls] == ["weather"]
            assert reply.finish_reason == "tool_calls"
            with pytest.raises(ValueError, match="tool: expected one of weather"):
                llm.chat("Hi", tools=[weather], tool_choice="nothing")


class TestMeaning:
    def test_vectors_are_the_same_in_asyncio(self, llm: LLM) -> None:
        texts = ["a small dog", "rain"]

        async def together() -> list[Any]:
            return await asyncio.gather(llm.aembed(texts), llm.aembed(texts[0]))

        several, one = asyncio.run(together())
        assert several.shape == (2, llm.model.spec.hidden_size)
        np.testing.assert_allclose(several, llm.embed(texts), atol=1e-5)
        np.testing.assert_allclose(one, several[0], atol=1e-5)

    def test_a_vector_is_the_last_state_at_length_one(self, llm: LLM) -> None:
        texts = ["a dog", "the big cat sat", "x"]
        rows = llm.embed(texts)
        assert rows.shape == (3, llm.model.spec.hidden_size)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(llm.embed("a dog"), rows[0])
        assert llm.embed([]).shape == (0, llm.model.spec.hidden_size)

    def test_a_score_is_the_models_own_probability(self) -> None:
        model = random_model(tiny_spec())
        with LLM(model, backend="numpy") as llm:
            tokens = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)
            [score] = llm.score_tokens([(tokens, 3)])
            logits = run(llm.backend.load(model), tokens).astype(np.float64)
            table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            expected = [table[place - 1, tokens[place]] for place in range(3, 8)]
            np.testing.assert_allclose(score.logprobs, expected, atol=1e-5)
            assert score.tokens == (1, 5, 9, 2, 6)

    def test_the_probability_of_a_text_is_that_of_its_parts(self, llm: LLM) -> None:
        whole = llm.score(" there was a little girl", given=ONCE + ",")
        first = llm.score(" there was", given=ONCE + ",")
        rest = llm.score(" a little girl", given=ONCE + ", there was")
        assert whole.total == pytest.approx(first.total + rest.total, abs=1e-4)
        assert whole.greedy

    def test_surprise_does_not_depend_on_the_windows_much(self, llm: LLM) -> None:
        text = "Lily and Ben went to the park. They saw a big dog. " * 60
        near, far = llm.perplexity(text, stride=128), llm.perplexity(text, stride=511)
        assert near.tokens == far.tokens
        assert near.bytes == len(text)
        assert near.nats == pytest.approx(far.nats, rel=0.2)
        assert 0 < near.bits_per_byte < 2


class TestSessions:
    def test_a_session_goes_on_from_call_to_call(self, llm: LLM, tmp_path: Path) -> None:
        session = llm.session()
        first = llm.generate(ONCE, session=session, max_tokens=40, temperature=0, ignore_eos=True)
        branch = session.fork()
        second = llm.generate(" Then", session=session, max_tokens=10, temperature=0)
        assert second.usage.cached_tokens > 0
        session.save(tmp_path / "story")
        branch.save(tmp_path / "branch")
        again = llm.load_session(tmp_path / "branch")
        assert llm.generate(" Then", session=again, max_tokens=10, temperature=0) == second
        assert llm.tokenizer.decode(session.tokens).startswith(ONCE + first)

    def test_an_empty_prompt_goes_on_with_a_session(self, llm: LLM) -> None:
        session = llm.session()
        first = llm.generate(ONCE, session=session, max_tokens=4, temperature=0)
        second = llm.generate("", session=session, max_tokens=4, temperature=0)
        assert first + second == llm.generate(ONCE, max_tokens=8, temperature=0)


class TestAdapters:
    def test_an_adapter_is_used_by_its_name_while_it_is_loaded(self, tmp_path: Path) -> None:
        model = random_model(tiny_spec())
        random = np.random.default_rng(0)
        down, up = (random.standard_normal(shape, np.float32) for shape in ((4, 128), (128, 4)))
        save_adapter(Adapter("any", {"layers.0.attn.o": (down, up)}), tmp_path / "loud", model.spec)
        with LLM(model, threads=1) as llm:
            plain = llm.generate([1, 2, 3], max_tokens=8, temperature=0).tokens
            llm.load_adapter("loud", tmp_path / "loud")
            with pytest.raises(ValueError, match="'loud' is loaded already"):
                llm.load_adapter("loud", tmp_path / "loud")
            assert llm.adapters == ("loud",)
            both = [llm.write([1, 2, 3], max_tokens=8, temperature=0, adapter=name) for name in ("loud", None)]
            loud, again = [writing.reply.tokens for writing in both]
            assert again == plain
            assert loud != plain
            llm.unload_adapter("loud")
            with pytest.raises(ValueError, match="none is, got 'loud'"):
                llm.generate([1], adapter="loud")
            assert llm.generate([1, 2, 3], max_tokens=8, temperature=0).tokens == plain

    def test_an_adapter_that_is_not_loaded_is_named(self, llm: LLM) -> None:
        with pytest.raises(ValueError, match="adapter: expected one of those loaded, and none is, got 'pirate'"):
            llm.generate(ONCE, adapter="pirate")
        with pytest.raises(ValueError, match="pirate"):
            llm.unload_adapter("pirate")


class TestRefusals:
    @pytest.mark.parametrize(
        ("wishes", "message"),
        [
            ({"temperature": float("nan")}, "temperature: expected a number of 0..100"),
            ({"top_p": 2.0}, "top_p: expected"),
            ({"stop": ["x"] * 10_000}, "stop: expected at most 16 strings"),
            ({"logit_bias": {1 << 30: 1.0}}, "logit_bias: expected"),
            ({"n": 0}, "n: expected a whole number of 1..8"),
            ({"seed": 2**70}, "seed: expected"),
            ({"max_tokens": 0}, "max_tokens: expected"),
            ({"drafts": "maybe"}, "drafts: expected one of auto, on, off"),
            ({"deadline_s": -1.0}, "deadline_s: expected"),
            ({"form": {"type": "nothing"}}, "schema"),
            ({"form": "yaml"}, "form: expected"),
        ],
    )
    def test_a_wrong_wish_is_named_with_what_is_allowed(self, llm: LLM, wishes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            llm.generate(ONCE, **wishes)
        assert llm.generate(ONCE, max_tokens=1)

    def test_an_unknown_wish_is_answered_with_the_nearest(self, llm: LLM) -> None:
        with pytest.raises(TypeError, match="no option 'temprature'; did you mean 'temperature'"):
            llm.generate(ONCE, temprature=1.0)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="got both: sampling and top_k"):
            llm.generate(ONCE, sampling=Sampling(), top_k=3)

    def test_none_is_the_default_of_every_setting(self, llm: LLM) -> None:
        unsaid: dict[str, Any] = dict.fromkeys(Sampling.__slots__)
        assert llm.generate(ONCE, **unsaid | {"seed": 1, "max_tokens": 5}) == llm.generate(ONCE, seed=1, max_tokens=5)

    def test_what_other_libraries_call_a_setting_is_understood(self) -> None:
        with pytest.raises(TypeError, match="no option 'n_ctx' of LLM, or of the backend cpu; did you mean 'context'"):
            LLM(backend="cpu", n_ctx=2048)
        with pytest.raises(TypeError, match="no option 'threads' of LLM, or of the backend numpy"):
            LLM(backend="numpy", threads=2)

    @pytest.mark.parametrize("wish", ["adapter", "session"])
    def test_a_wish_of_another_type_is_refused_before_anything_runs(self, llm: LLM, wish: str) -> None:
        with pytest.raises(TypeError, match=f"{wish}: expected"):
            llm.generate(ONCE, **{wish: 5})

    def test_a_stride_of_nothing_is_refused(self, llm: LLM) -> None:
        with pytest.raises(ValueError, match=r"stride: expected 1\.\.511"):
            llm.perplexity("one two", stride=0)

    @pytest.mark.parametrize("prompt", [[-1], [10**6], np.zeros((2, 2), np.int32), np.array([0.5]), []])
    def test_ids_that_are_none_are_refused(self, llm: LLM, prompt: Any) -> None:
        with pytest.raises(ValueError, match="prompt: expected"):
            llm.generate(prompt)

    def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(self, llm: LLM) -> None:
        with pytest.raises(ValueError, match=r"prompt: expected 1\.\.511 tokens in a context of 512, got \d+"):
            llm.generate("word " * 1000)

    @pytest.mark.parametrize(
        ("wishes", "message"),
        [
            ({"messages": None}, "messages: expected a text, or a list of messages, got NoneType"),
            ({"messages": {"role": "user"}}, "messages: expected a text, or a list of messages, got dict"),
            ({"tools": 5}, "tools: expected a list of functions or descriptions, got int"),
            ({"tools": {"name": "now"}}, "tools: expected a list of functions or descriptions, got dict"),
            ({"tool_choice": "required"}, "got 'required' with 0 tools"),
            ({"tool_choice": {"type": "function"}}, "tool_choice: expected auto, none, or with tools"),
            ({"template": {"messages": []}}, "template: expected variables beside messages and tools, got messages"),
        ],
    )
    def test_a_wrong_conversation_is_refused(self, llm: LLM, wishes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            llm.chat(**{"messages": "Hello", **wishes})
        assert llm.chat("Hello", tools=None, max_tokens=1)

    def test_the_model_that_comes_along_has_a_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with LLM("stories", threads=1) as llm:
            assert llm.name == "stories"
        (tmp_path / "stories").mkdir()  # what lies here comes first
        with pytest.raises(FormatError, match=r"config\.json"):
            LLM("stories")

    def test_errors_call_a_model_by_its_name(self) -> None:
        with LLM(BUILT_IN, threads=1, name="tales") as llm:
            assert llm.name == "tales"
            with pytest.raises(UnsupportedError, match=r"^tales: the model has no chat template"):
                llm.chat("Hello", tools=[{"name": "now"}])

    def test_files_that_are_no_model_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").write_bytes(b"not a model at all, only text of some length")
        with pytest.raises(FormatError, match=r"model\.gguf"):
            LLM(tmp_path / "model.gguf")
        with pytest.raises((FormatError, HubError)):
            LLM(tmp_path / "nothing")

    def test_a_model_without_a_tokenizer_takes_ids_alone(self) -> None:
        with LLM(random_model(tiny_spec()), backend="numpy") as llm:
            reply = llm.generate([1, 2, 3], max_tokens=4, temperature=0)
            assert reply == ""
            assert len(reply.tokens) == 4
            for wrong in (lambda: llm.generate("text"), lambda: llm.generate([1], stop="x"), lambda: llm.embed("x")):
                with pytest.raises(UnsupportedError, match="tokenizer"):
                    wrong()

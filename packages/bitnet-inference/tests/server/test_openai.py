"""What the `openai` package gets from the server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from serving import Running

from bitnet_inference import LLM

QUESTION: Any = [{"role": "user", "content": "Once upon a time"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def strict(model: Any) -> None:
    """What came is what the package's types say, all the way down."""
    type(model).model_validate(model.model_dump(), strict=False)


def test_an_answer_is_what_the_model_says(client: openai.OpenAI, llm: LLM) -> None:
    reply = client.chat.completions.create(model="talker", messages=QUESTION, max_tokens=12, temperature=0)
    strict(reply)
    assert reply.choices[0].message.content == llm.chat("Once upon a time", max_tokens=12, temperature=0)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 12
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 12


def test_a_stream_has_the_same_text_and_ends_with_its_usage(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "talker", "messages": QUESTION, "max_tokens": 12, "seed": 5, "n": 2}
    whole = client.chat.completions.create(**wanted)
    texts, reasons, usage = ["", ""], {}, None
    for chunk in client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}):
        strict(chunk)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
        usage = chunk.usage or usage
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == {0: "length", 1: "length"}
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


def test_a_seed_makes_the_same_text_again(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "stories", "messages": QUESTION, "max_tokens": 12, "temperature": 1.5}
    texts = {client.chat.completions.create(**wanted, seed=7).choices[0].message.content for _ in range(3)}
    other = client.chat.completions.create(**wanted, seed=8).choices[0].message.content
    assert len(texts) == 1
    assert other not in texts


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="stories", messages=QUESTION, temperature=0, stop=[" was"])
    assert reply.choices[0].message.content == ", there"
    assert reply.choices[0].finish_reason == "stop"


def test_logprobs_are_those_of_the_tokens(client: openai.OpenAI, llm: LLM) -> None:
    wanted: Any = {"model": "talker", "messages": QUESTION, "max_tokens": 5, "temperature": 0, "logprobs": True}
    reply = client.chat.completions.create(**wanted, top_logprobs=3)
    strict(reply)
    told = reply.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    expected = llm.chat("Once upon a time", max_tokens=5, temperature=0, logprobs=3).logprobs
    assert [one.logprob for one in told.content] == pytest.approx([one.logprob for one in expected])
    assert all(len(one.top_logprobs) == 3 for one in told.content)
    assert "".join(one.token for one in told.content) == reply.choices[0].message.content
    streamed = [
        one
        for chunk in client.chat.completions.create(**wanted, top_logprobs=3, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content or []
    ]
    assert [one.token for one in streamed] == [one.token for one in told.content]


def test_json_of_a_schema_fits_it(client: openai.OpenAI) -> None:
    schema: Any = {
        "type": "object",
        "properties": {"animal": {"enum": ["cat", "dog"]}, "tame": {"type": "boolean"}},
        "required": ["animal", "tame"],
        "additionalProperties": False,
    }
    format_: Any = {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema, "strict": True}}
    for seed in range(5):
        reply = client.chat.completions.create(
            model="stories", messages=QUESTION, response_format=format_, seed=seed, temperature=2
        )
        value = json.loads(reply.choices[0].message.content or "")
        assert value["animal"] in ("cat", "dog")
        assert isinstance(value["tame"], bool)


def test_a_tool_that_must_be_called_is_called(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "talker", "messages": QUESTION, "tools": [WEATHER], "max_tokens": 200, "seed": 3}
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        reply = client.chat.completions.create(**wanted, tool_choice=choice)
        strict(reply)
        assert reply.choices[0].finish_reason == "tool_calls"
        assert reply.choices[0].message.content is None
        [call] = reply.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")


def test_a_streamed_call_is_no_content(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "talker", "messages": QUESTION, "tools": [WEATHER], "max_tokens": 200, "seed": 3}
    stream = client.chat.completions.create(**wanted, tool_choice="required", stream=True)
    content, calls, reason = "", [], None
    for chunk in stream:
        [choice] = chunk.choices
        content += choice.delta.content or ""
        calls += choice.delta.tool_calls or []
        reason = choice.finish_reason or reason
    assert content == ""
    assert reason == "tool_calls"
    [call] = calls
    assert call.function is not None
    assert json.loads(call.function.arguments or "")["city"] in ("Oslo", "Rome")


def test_an_answer_to_a_call_is_taken(client: openai.OpenAI) -> None:
    messages: Any = [
        *QUESTION,
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    reply = client.chat.completions.create(model="talker", messages=messages, tools=[WEATHER], max_tokens=4)
    assert reply.usage is not None
    assert reply.usage.completion_tokens <= 4


def test_a_completion_echoes_a_prompt_with_its_logprobs(client: openai.OpenAI, server: Running) -> None:
    with LLM(threads=1) as plain:
        tokens = plain.tokenizer.encode("Once upon a time").tolist()
        score = plain.score_tokens([(np.array(tokens, np.int32), 1)])[0]
    reply = client.completions.create(
        model="stories", prompt=tokens, max_tokens=1, echo=True, logprobs=1, temperature=0
    )
    told = reply.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert len(told.token_logprobs) == len(tokens) + 1
    assert told.token_logprobs[0] is None
    assert told.token_logprobs[1:-1] == pytest.approx(list(score.logprobs), abs=1e-5)
    assert reply.choices[0].text.startswith("Once upon a time")
    assert "".join((told.tokens or [])[1:]) == reply.choices[0].text  # what begins every text is not shown
    none = client.completions.create(model="stories", prompt=tokens, max_tokens=0, echo=True, logprobs=1)
    assert none.choices[0].text == "Once upon a time"
    assert none.usage is not None
    assert (none.usage.prompt_tokens, none.usage.completion_tokens) == (len(tokens), 0)
    assert none.choices[0].logprobs is not None
    assert none.choices[0].logprobs.token_logprobs == pytest.approx(told.token_logprobs[:-1])


def test_a_call_of_a_tool_described_as_libraries_do_comes_to_its_end(client: openai.OpenAI) -> None:
    kinds = {"kind": {"enum": ["cat", "dog"], "type": "string"}, "tame": {"type": "boolean"}}
    parameters = {"type": "object", "properties": kinds, "required": ["kind", "tame"], "title": "Animal"}
    reply = client.chat.completions.create(
        model="talker",
        messages=[{"role": "user", "content": "An animal"}],
        tools=[{"type": "function", "function": {"name": "animal", "parameters": parameters}}],
        tool_choice="required",
        max_tokens=60,
        temperature=0,
    )
    [call] = reply.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert set(json.loads(call.function.arguments)) == {"kind", "tame"}


def test_several_prompts_have_several_texts(client: openai.OpenAI) -> None:
    prompts = ["Once upon a time", "The little dog"]
    wanted: Any = {"model": "stories", "max_tokens": 6, "temperature": 0}
    alone = [client.completions.create(prompt=prompt, **wanted).choices[0].text for prompt in prompts]
    together = client.completions.create(prompt=prompts, n=2, **wanted)
    strict(together)
    assert [choice.text for choice in together.choices] == [alone[0], alone[0], alone[1], alone[1]]
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    texts = ["", ""]
    for chunk in client.completions.create(prompt=prompts, stream=True, **wanted):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == alone


def test_embeddings_are_those_of_the_model(client: openai.OpenAI, llm: LLM) -> None:
    texts = ["A cat sat.", "The dog ran."]
    reply = client.embeddings.create(model="talker", input=texts)  # asks for base64, and reads it back
    strict(reply)
    expected = llm.embed(texts)
    np.testing.assert_allclose([one.embedding for one in reply.data], expected, atol=1e-5)
    plain = client.embeddings.create(model="talker", input=texts[0], encoding_format="float", dimensions=16)
    assert len(plain.data[0].embedding) == 16
    assert np.linalg.norm(plain.data[0].embedding) == pytest.approx(1, abs=1e-5)


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["stories", "talker"]
    assert client.models.retrieve("talker").id == "talker"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    "name", ["unknown", "../../etc/passwd", "/etc/passwd", "http://x/y", "x" * 500, "stories:lora"]
)
def test_a_model_that_is_not_there_is_not_found(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=name, messages=QUESTION)
    assert caught.value.code == "model_not_found"


def test_errors_are_those_that_the_package_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="stories", messages=QUESTION, extra_body={"temprature": 1})
    assert caught.value.param == "temprature"
    assert "did you mean temperature?" in caught.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="stories", prompt="word " * 5000)
    assert long.value.code == "context_length_exceeded"


def test_a_lenient_request_is_told_what_was_ignored(server: Running) -> None:
    body = {"model": "stories", "prompt": "Hi", "max_tokens": 1, "colour": 1}
    body |= {"stream": True, "stream_options": {"speed": 2}}
    refused: httpx.Response = server.post("/v1/completions", body)
    assert refused.status_code == 400
    taken = server.post("/v1/completions", body, **{"X-Unknown-Fields": "ignore"})
    assert taken.status_code == 200
    assert taken.headers["X-Ignored-Fields"] == "colour, stream_options.speed"

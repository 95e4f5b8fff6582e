"""What the packages of OpenAI's other routes, of Anthropic and of Ollama get from the server."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import anthropic
import numpy as np
import ollama
import openai
import pytest
import websockets
from serving import Running, chat, running

from bitnet_inference import LLM

SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
SAID = "Once upon a time"


# Responses


def test_a_response_says_what_the_model_says_and_is_remembered(client: openai.OpenAI, llm: LLM) -> None:
    first = client.responses.create(model="talker", input=SAID, max_output_tokens=8, temperature=0)
    assert first.output_text == llm.chat(SAID, max_tokens=8, temperature=0)
    assert first.status == "incomplete"
    assert first.usage is not None
    assert first.usage.output_tokens == 8
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = client.responses.create(
        model="talker", input="And then?", previous_response_id=first.id, max_output_tokens=8, temperature=0
    )
    said = [
        {"role": "user", "content": SAID},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And then?"},
    ]
    assert second.output_text == llm.chat(said, max_tokens=8, temperature=0)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_a_streamed_response_is_the_same(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "talker", "input": SAID, "max_output_tokens": 8, "temperature": 0, "store": False}
    whole = client.responses.create(**wanted)
    with client.responses.stream(**wanted) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response() if "response.completed" in kinds else None
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    assert final is None
    texts = [
        event.delta for event in client.responses.create(**wanted, stream=True) if event.type.endswith("text.delta")
    ]
    assert "".join(texts) == whole.output_text


def test_a_response_calls_tools(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
    wanted: Any = {"model": "talker", "input": SAID, "tools": [tool], "tool_choice": "required"}
    [call] = client.responses.create(**wanted).output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")
    events = list(client.responses.create(**wanted, stream=True))
    assert events[-1].type == "response.completed"
    assert [event.type for event in events if "arguments" in event.type][-1] == "response.function_call_arguments.done"
    answered: Any = [
        {"role": "user", "content": SAID},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    again = client.responses.create(model="talker", input=answered, tools=[tool], max_output_tokens=4)
    assert again.usage is not None


def test_a_response_has_the_form_that_is_asked_for(client: openai.OpenAI) -> None:
    text: Any = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA}}
    reply = client.responses.create(model="talker", input=SAID, text=text)
    assert json.loads(reply.output_text)["city"] in ("Oslo", "Rome")


# Anthropic


def test_a_message_is_what_the_model_says(claude: anthropic.Anthropic, llm: LLM) -> None:
    reply = claude.messages.create(
        model="talker",
        max_tokens=8,
        messages=[{"role": "user", "content": SAID}],
        system="Be short.",
        extra_body={"temperature": 0},
    )
    said = [{"role": "system", "content": "Be short."}, {"role": "user", "content": SAID}]
    [block] = reply.content
    assert block.type == "text"
    assert block.text == llm.chat(said, max_tokens=8, temperature=0)
    assert reply.stop_reason == "max_tokens"
    assert reply.usage.output_tokens == 8
    counted = claude.messages.count_tokens(
        model="talker", messages=[{"role": "user", "content": SAID}], system="Be short."
    )
    assert counted.input_tokens == reply.usage.input_tokens + (reply.usage.cache_read_input_tokens or 0)


def test_a_message_stops_at_a_sequence_and_names_it(claude: anthropic.Anthropic) -> None:
    reply = claude.messages.create(
        model="stories",
        max_tokens=50,
        messages=[{"role": "user", "content": SAID}],
        stop_sequences=["?", " was"],
        extra_body={"temperature": 0},
    )
    assert reply.stop_reason == "stop_sequence"
    assert reply.stop_sequence == " was"


def test_a_streamed_message_is_the_same(claude: anthropic.Anthropic) -> None:
    wanted: Any = {"model": "talker", "max_tokens": 8, "extra_body": {"temperature": 0}}
    wanted["messages"] = [{"role": "user", "content": SAID}]
    whole = claude.messages.create(**wanted)
    with claude.messages.stream(**wanted) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text  # type: ignore[union-attr]
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 8


@pytest.mark.parametrize("streamed", [False, True])
def test_a_message_uses_tools(claude: anthropic.Anthropic, streamed: bool) -> None:
    wanted: Any = {
        "model": "talker",
        "max_tokens": 200,
        "messages": [{"role": "user", "content": SAID}],
        "tools": [{"name": "weather", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "weather"},
    }
    if streamed:
        with claude.messages.stream(**wanted) as stream:
            reply = stream.get_final_message()
    else:
        reply = claude.messages.create(**wanted)
    [use] = reply.content
    assert reply.stop_reason == "tool_use"
    assert use.type == "tool_use"
    assert use.input["city"] in ("Oslo", "Rome")  # type: ignore[index]
    wanted["tool_choice"] = {"type": "auto"}
    wanted["max_tokens"] = 4
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "rain"}]}
    wanted["messages"] += [
        {"role": "assistant", "content": [use.model_dump(exclude_none=True)]},
        {"role": "user", "content": [result]},
    ]
    assert claude.messages.create(**wanted).usage.output_tokens <= 4


def test_anthropics_errors_are_anthropics(claude: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": SAID}]
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(model="nobody", max_tokens=1, messages=messages)
    assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match="max_tokens: expected"):
        claude.messages.create(model="stories", max_tokens=0, messages=messages)


# Ollama


def test_ollamas_chat_is_what_the_model_says(llama: ollama.Client, llm: LLM) -> None:
    options = {"temperature": 0, "num_predict": 8}
    said = [{"role": "user", "content": SAID}]
    expected = llm.chat(SAID, max_tokens=8, temperature=0)
    whole = llama.chat(model="talker:latest", messages=said, options=options)
    assert whole.message.content == expected
    assert (whole.done_reason, whole.eval_count) == ("length", 8)
    parts = list(llama.chat(model="talker", messages=said, options=options, stream=True))
    assert "".join(part.message.content or "" for part in parts) == expected
    assert parts[-1].done


def test_ollamas_generate_and_embed(llama: ollama.Client, llm: LLM) -> None:
    options = {"temperature": 0, "num_predict": 8}
    reply = llama.generate(model="talker", prompt=SAID, raw=True, options=options)
    assert reply.response == llm.generate(SAID, max_tokens=8, temperature=0)
    texts = ["A cat sat.", "The dog ran."]
    np.testing.assert_allclose(llama.embed(model="talker", input=texts).embeddings, llm.embed(texts), atol=1e-5)
    formed = llama.chat(model="talker", messages=[{"role": "user", "content": SAID}], format=SCHEMA)
    assert json.loads(formed.message.content or "")["city"] in ("Oslo", "Rome")


def test_ollamas_models_are_listed(llama: ollama.Client) -> None:
    assert [model.model for model in llama.list().models] == ["stories", "talker"]
    assert {model.model for model in llama.ps().models} == {"stories", "talker"}
    shown = llama.show("talker")
    assert shown.capabilities == ["completion", "embedding", "tools"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["bitnet.context_length"] == 512
    with pytest.raises(ollama.ResponseError, match="there is no model"):
        llama.chat(model="nobody", messages=[{"role": "user", "content": "Hi"}])


def test_ollamas_options_that_change_nothing_are_named(server: Running) -> None:
    body = {"model": "stories", "prompt": "Hi", "stream": False, "options": {"num_ctx": 4096, "num_predict": 1}}
    reply = server.post("/api/generate", body)
    assert reply.headers["X-Ignored-Fields"] == "options.num_ctx"


# Files and batches


def _line(number: int, **body: Any) -> str:
    asked = {**chat(max_tokens=4, temperature=0), **body}
    return json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": asked})


def _ended(client: openai.OpenAI, id_: str) -> Any:
    for _ in range(300):
        batch = client.batches.retrieve(id_)
        if batch.status in ("completed", "failed", "cancelled"):
            return batch
        time.sleep(0.05)
    raise AssertionError(f"the batch is still {batch.status}")


def test_a_batch_answers_each_line(client: openai.OpenAI) -> None:
    lines = "\n".join([_line(1), _line(2, n=9), _line(3)]).encode()
    file = client.files.create(file=("in.jsonl", lines), purpose="batch")
    assert client.files.content(file.id).read() == lines
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    done = _ended(client, batch.id)
    assert done.status == "completed"
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (3, 2, 1)
    answers = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
    expected = client.chat.completions.create(**chat(max_tokens=4, temperature=0)).choices[0].message.content
    assert {one["custom_id"] for one in answers} == {"line-1", "line-3"}
    assert all(one["response"]["body"]["choices"][0]["message"]["content"] == expected for one in answers)
    [failure] = [json.loads(line) for line in client.files.content(done.error_file_id).text.splitlines()]
    assert failure["custom_id"] == "line-2"
    assert failure["response"]["body"]["error"]["param"] == "n"
    assert done.id in [one.id for one in client.batches.list()]
    assert client.files.delete(file.id).deleted


def test_a_batch_of_lines_that_are_none_fails(client: openai.OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", b'{"custom_id": 1}\nnothing\n'), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    done = _ended(client, batch.id)
    assert done.status == "failed"
    assert [one.line for one in done.errors.data] == [1, 2]


def test_a_batch_can_be_ended(client: openai.OpenAI) -> None:
    lines = "\n".join(_line(number, max_tokens=400, ignore_eos=True) for number in range(200)).encode()
    file = client.files.create(file=("in.jsonl", lines), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    for _ in range(200):
        if client.batches.retrieve(batch.id).status == "in_progress":
            break
        time.sleep(0.01)
    client.batches.cancel(batch.id)
    done = _ended(client, batch.id)
    assert done.status == "cancelled"
    assert done.request_counts.completed < 200


# Tokens, and the WebSocket


def test_texts_become_tokens_and_come_back(server: Running, llm: LLM) -> None:
    found = server.post("/tokenize", {"model": "talker", "prompt": SAID}).json()
    assert found["tokens"] == llm.tokenizer.encode(SAID).tolist()
    plain = server.post("/tokenize", {"content": SAID, "add_special": False}).json()["tokens"]
    assert server.post("/detokenize", {"tokens": plain}).json()["content"] == SAID
    messages = [{"role": "user", "content": SAID}]
    shown = server.post("/apply-template", {"model": "talker", "messages": messages}).json()
    assert shown["prompt"] == f"user: {SAID}\nassistant: "


def test_a_websocket_answers_in_pieces(server: Running) -> None:
    expected = server.post("/v1/chat/completions", chat(temperature=0)).json()["choices"][0]["message"]["content"]

    async def talk() -> tuple[str, Any, int]:
        async with websockets.connect(f"ws://{server.host}:{server.port}/v1/stream") as line:

            async def ask(**more: Any) -> tuple[str, Any, int]:
                await line.send(json.dumps(chat(**more)))
                text, error, count = "", None, 0
                while not (piece := json.loads(await line.recv())).get("done"):
                    error = piece.get("error", error)
                    for choice in piece.get("choices", ()):
                        text += choice["delta"].get("content") or ""
                        count += 1
                        if more.get("max_tokens") == 400 and count == 5:
                            await line.send('{"cancel": true}')
                return text, error, count

            text, _, _ = await ask(temperature=0)
            _, error, _ = await ask(n=0)
            _, _, count = await ask(max_tokens=400, ignore_eos=True)
            return text, error, count

    text, error, count = asyncio.run(talk())
    assert text == expected
    assert error["param"] == "n"
    assert count < 390


def test_clients_that_come_when_all_is_full_hear_it_and_are_served_on_the_same_connection_later() -> None:
    said: Any = [{"role": "user", "content": SAID}]
    with (
        LLM(threads=1) as llm,
        running({"stories": llm}) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as gpt,
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as claude,
        ollama.Client(host=server.url) as llama,
    ):
        asks: list[tuple[Any, Any]] = [
            (
                openai.InternalServerError,
                lambda: gpt.chat.completions.create(model="stories", messages=said, max_tokens=2),
            ),
            (
                anthropic.InternalServerError,
                lambda: claude.messages.create(model="stories", messages=said, max_tokens=2),
            ),
            (ollama.ResponseError, lambda: llama.chat(model="stories", messages=said, options={"num_predict": 2})),
        ]
        queue = llm.engine.queue
        for error, ask in [*asks, *asks]:
            llm.engine.queue = 0
            with pytest.raises(error, match="too many requests are waiting") as caught:
                ask()
            assert caught.value.status_code == 503
            llm.engine.queue = queue
            ask()

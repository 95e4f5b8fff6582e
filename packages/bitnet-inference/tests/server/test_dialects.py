"""The finer points of each protocol, as the clients of OpenAI, Anthropic and Ollama ask for them and read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import numpy as np
import ollama
import openai
import pytest
from serving import Running, chat, events, running

from bitnet_inference import LLM
from bitnet_inference.llm import BUILT_IN
from bitnet_inference.server import Models, make_app
from bitnet_inference.server.errors import Refusal
from bitnet_inference.server.gate import Anonymous
from bitnet_inference.server.works import Work

SAID = "Once upon a time"
QUESTION: Any = [{"role": "user", "content": SAID}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def function(name: str) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA}}


# What is asked


def test_an_unknown_field_that_is_null_says_nothing(server: Running) -> None:
    body = chat(max_tokens=1, audio=None, messages=[{"role": "user", "content": "Hi", "weight": None}] * 70)
    reply = server.post("/v1/chat/completions", body)
    assert reply.status_code == 200, reply.text
    assert "X-Ignored-Fields" not in reply.headers
    asked = {"model": "stories", "input": "a", "options": {"mirostat": None, "tfs_z": None}}
    assert server.post("/api/embed", asked).status_code == 200
    asked["options"] = {"mirostat": None, "colour": 1}
    assert "options.colour: this server knows no such field" in server.post("/api/embed", asked).text


def test_many_unknown_nulls_are_refused_soon(server: Running) -> None:
    reply = server.post("/v1/chat/completions", chat(**{f"x{number}": None for number in range(65)}))
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "unknown_parameter"


@pytest.mark.parametrize(
    ("path", "more", "expected"),
    [
        ("/v1/responses", {"input": "x", "background": True}, "background: expected false, got true"),
        (
            "/v1/responses",
            {"input": "x", "reasoning": {"effort": "low"}},
            "reasoning.effort: expected 'none', got 'low'",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type: expected 'text', got 'image_url'",
        ),
        (
            "/v1/chat/completions",
            {"messages": QUESTION, "response_format": {"type": "xml"}},
            "response_format.type: expected 'text' or 'json_object' or 'json_schema', got 'xml'",
        ),
        (
            "/v1/chat/completions",
            {"messages": QUESTION, "tool_choice": {"type": "custom"}},
            "tool_choice.type: expected 'function' or 'allowed_tools', got 'custom'",
        ),
        (
            "/v1/chat/completions",
            {"messages": QUESTION, "tool_choice": "any"},
            "tool_choice: expected 'auto' or 'none' or 'required', got 'any'",
        ),
        (
            "/v1/chat/completions",
            {"messages": QUESTION, "reasoning_effort": "high"},
            "reasoning_effort: expected 'none', got 'high'",
        ),
        (
            "/v1/chat/completions",
            {"messages": QUESTION, "service_tier": "flex"},
            "service_tier: expected 'auto' or 'default', got 'flex'",
        ),
        ("/v1/chat/completions", {"messages": QUESTION, "store": True}, "store: expected false, got true"),
        (
            "/v1/chat/completions",
            {"messages": QUESTION, "stream_options": {"include_usage": True}},
            "stream_options: expected stream to be true with it",
        ),
        (
            "/v1/chat/completions",
            {"messages": QUESTION, "max_tokens": 4, "max_completion_tokens": 5},
            "max_tokens: expected none with max_completion_tokens, got 4",
        ),
        (
            "/v1/messages",
            {"messages": QUESTION, "max_tokens": 1, "thinking": {"type": "enabled", "budget_tokens": 1024}},
            "thinking.type: expected 'disabled', got 'enabled'",
        ),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}], "max_tokens": 1},
            "messages[0].content[0].type: expected 'text' or 'tool_use' or 'tool_result', got 'image'",
        ),
        ("/api/generate", {"prompt": "x", "images": ["aGk="]}, "images: expected none (it is not supported), got 1"),
        ("/api/generate", {"prompt": "x", "context": [1, 2]}, "context: expected none (it is not supported), got 2"),
        ("/api/generate", {"prompt": "x", "think": True}, "think: expected false, got true"),
        ("/api/chat", {"messages": QUESTION, "options": {"mirostat": 2}}, "options.mirostat: expected 0, got 2"),
    ],
)
def test_a_refusal_says_what_was_expected(server: Running, path: str, more: dict[str, Any], expected: str) -> None:
    reply = server.post(path, {"model": "talker", **more})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error if isinstance(error, str) else error["message"]).startswith(expected)


def test_labels_and_parameters_that_nobody_reads_are_named(server: Running) -> None:
    reply = server.post("/v1/chat/completions?beta=true&limit=1", chat(user="u", safety_identifier="s"))
    assert reply.headers["X-Ignored-Fields"] == "user, safety_identifier, ?beta, ?limit"
    read = server.client.get("/v1/files?limit=1&order=asc&a%0d%0ab=1")
    assert read.headers["X-Ignored-Fields"].startswith("?order, ?a")
    body = {"model": "stories", "max_tokens": 1, "messages": QUESTION, "metadata": {"user_id": "u"}}
    reply = server.post("/v1/messages", body, **{"anthropic-beta": "x"})
    assert reply.headers["X-Ignored-Fields"] == "metadata, anthropic-beta"


@pytest.mark.parametrize(
    ("path", "more", "ignored"),
    [
        ("/v1/chat/completions", {"messages": QUESTION, "reasoning_effort": "high", "store": True}, None),
        ("/v1/responses", {"input": SAID, "reasoning": {"effort": "high", "summary": "auto"}}, "reasoning"),
        ("/v1/messages", {"messages": QUESTION, "thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking"),
        ("/api/generate", {"prompt": SAID, "think": "high"}, "think"),
    ],
)
def test_a_lenient_request_may_ask_for_thoughts(server: Running, path: str, more: Any, ignored: str | None) -> None:
    limit = {"/v1/responses": {"max_output_tokens": 1}, "/api/generate": {"options": {"num_predict": 1}}}
    body = {"model": "stories", **more, **limit.get(path, {"max_tokens": 1})}
    assert server.post(path, body).status_code == 400
    reply = server.post(path, body, **{"X-Unknown-Fields": "ignore"})
    assert reply.status_code == 200
    assert set(reply.headers["X-Ignored-Fields"].split(", ")) == set((ignored or "reasoning_effort, store").split(", "))


# OpenAI


def test_tools_that_are_allowed_are_called_and_no_others(client: openai.OpenAI) -> None:
    tools = [function("rain"), function("snow")]
    choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [function("snow")]}}
    del choice["allowed_tools"]["tools"][0]["function"]["parameters"]
    wanted: Any = {"model": "talker", "messages": QUESTION, "tools": tools}
    for seed in range(3):
        reply = client.chat.completions.create(**wanted, tool_choice=choice, seed=seed)
        [call] = reply.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "snow"
    choice["allowed_tools"]["tools"][0]["function"]["name"] = "hail"
    with pytest.raises(openai.BadRequestError, match="tool_choice: expected one of tools, rain, snow, got 'hail'"):
        client.chat.completions.create(**wanted, tool_choice=choice)


def test_a_response_has_the_tools_that_are_allowed(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "strict": True, **function(name)["function"]} for name in ("rain", "snow")]
    choice: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "rain"}]}
    reply = client.responses.create(model="talker", input=SAID, tools=tools, tool_choice=choice)
    assert [item.name for item in reply.output if item.type == "function_call"] == ["rain"]
    assert reply.tool_choice.type == "allowed_tools"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "format_",
    [
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_schema", "schema": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}},
    ],
)
def test_a_schema_is_read_in_each_place_where_clients_put_it(client: openai.OpenAI, format_: Any) -> None:
    reply = client.chat.completions.create(model="stories", messages=QUESTION, response_format=format_)
    assert json.loads(reply.choices[0].message.content or "")["city"] in ("Oslo", "Rome")


def test_a_schema_that_is_wrong_is_named_where_it_is(client: openai.OpenAI) -> None:
    bad: Any = {"type": "elephant"}
    for format_, name in (
        ({"type": "json_object", "schema": bad}, "response_format.schema"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": bad}}, "response_format.json_schema.schema"),
        ({"type": "json_schema"}, "response_format.json_schema"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="stories", messages=QUESTION, response_format=format_)  # type: ignore[arg-type]
        assert (caught.value.param or "").startswith(name)


def test_an_answer_tells_what_computed_it_and_its_metadata(client: openai.OpenAI) -> None:
    wanted: Any = {"model": "stories", "messages": QUESTION, "max_tokens": 1, "metadata": {"run": "7"}}
    reply = client.chat.completions.create(**wanted, service_tier="auto")
    assert (reply.system_fingerprint or "").startswith("bitnet-")
    assert reply.service_tier == "default"
    assert reply.metadata == {"run": "7"}
    chunks = list(client.chat.completions.create(**wanted, stream=True, n=2))
    assert {chunk.system_fingerprint for chunk in chunks} == {reply.system_fingerprint}
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}
    assert client.completions.create(model="stories", prompt=SAID).system_fingerprint == reply.system_fingerprint


def test_usage_comes_last_and_is_null_before(server: Running) -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    found = events(server.post("/v1/chat/completions", body).text)
    assert all(one["usage"] is None and one["choices"] for one in found[:-1])
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == 8
    assert not any("usage" in one for one in events(server.post("/v1/chat/completions", chat(stream=True)).text))


def test_bytes_of_tokens_make_the_text(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="stories", messages=QUESTION, max_tokens=8, logprobs=True)
    told = reply.choices[0].logprobs
    assert told is not None
    data = b"".join(bytes(one.bytes or ()) for one in told.content or ())
    assert data.decode().strip() == (reply.choices[0].message.content or "").strip()


@pytest.mark.parametrize("tools", [False, True])
def test_a_streamed_response_gathers_to_the_whole(client: openai.OpenAI, tools: bool) -> None:
    wanted: Any = {"model": "talker", "input": SAID, "temperature": 0, "text": {"format": {"type": "text"}}}
    if tools:
        wanted |= {"tools": [{"type": "function", "strict": True, **function("rain")["function"]}]}
        wanted |= {"tool_choice": {"type": "function", "name": "rain"}}
    else:
        wanted["text"] = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA}}
    wanted["include"] = ["message.output_text.logprobs"]
    with client.responses.stream(**wanted) as stream:
        found = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in found] == list(range(len(found)))
    kinds = list(dict.fromkeys(event.type for event in found))
    inner = (
        ["response.function_call_arguments.delta", "response.function_call_arguments.done"]
        if tools
        else [
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
        ]
    )
    expected = ["response.created", "response.in_progress", "response.output_item.added", *inner]
    assert kinds == [*expected, "response.output_item.done", "response.completed"]
    [item] = final.output
    if item.type == "function_call":
        assert json.loads(item.arguments)["city"] in ("Oslo", "Rome")
        return
    deltas = [event for event in found if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == final.output_text
    assert item.type == "message"
    told = item.content[0].logprobs  # type: ignore[union-attr]
    assert sum(len(event.logprobs) for event in deltas) == len(told or ())


def test_what_a_response_was_given_to_is_listed(client: openai.OpenAI) -> None:
    first = client.responses.create(model="talker", input=SAID, max_output_tokens=4)
    second = client.responses.create(
        model="talker", input="And then?", previous_response_id=first.id, max_output_tokens=4
    )
    found = list(client.responses.input_items.list(second.id, order="asc"))
    assert [item.content[0].text for item in found] == [SAID, first.output_text, "And then?"]  # type: ignore[union-attr]
    assert [item.role for item in found] == ["user", "assistant", "user"]  # type: ignore[union-attr]
    latest = client.responses.input_items.list(second.id, limit=1)
    assert [item.id for item in latest.data] == [found[2].id]
    assert [item.id for item in latest] == [item.id for item in reversed(found)]  # page after page
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list("resp_none")
    with pytest.raises(openai.BadRequestError, match="order: expected 'asc' or 'desc', got 'up'"):
        client.responses.input_items.list(second.id, order="up")  # type: ignore[arg-type]


# Anthropic


def test_models_are_listed_for_anthropics_clients(claude: anthropic.Anthropic) -> None:
    found = list(claude.models.list())
    assert [(model.type, model.id, model.display_name) for model in found] == [
        ("model", "stories", "stories"),
        ("model", "talker", "talker"),
    ]
    assert found[0].created_at.year > 2000
    assert claude.models.retrieve("talker").display_name == "talker"
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.models.retrieve("nobody")
    assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]


def test_models_come_page_by_page(claude: anthropic.Anthropic) -> None:
    first = claude.models.list(limit=1)
    assert [model.id for model in first.data] == ["stories"]
    assert first.has_more
    assert [model.id for model in first] == ["stories", "talker"]  # the client asks for the rest
    assert [model.id for model in claude.models.list(after_id="stories")] == ["talker"]
    before = claude.models.list(before_id="talker")
    assert [model.id for model in before.data] == ["stories"]
    assert not before.has_more
    assert claude.models.list(before_id="nobody").data == []
    with pytest.raises(anthropic.BadRequestError, match=r"limit: expected a whole number of 1\.\.10000, got '0'"):
        claude.models.list(limit=0)


def test_events_of_a_message_come_in_their_order(server: Running) -> None:
    body = {"model": "talker", "max_tokens": 4, "messages": QUESTION, "stream": True}
    reply = server.post("/v1/messages", body, **{"anthropic-version": "2023-06-01"})
    kinds = [one["type"] for one in events(reply.text)]
    assert list(dict.fromkeys(kinds)) == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    names = [line.removeprefix("event: ") for line in reply.text.splitlines() if line.startswith("event: ")]
    assert names == kinds


def test_a_message_and_its_errors_have_the_requests_name(claude: anthropic.Anthropic, server: Running) -> None:
    reply = claude.messages.create(model="stories", max_tokens=1, messages=QUESTION)
    assert (reply._request_id or "").startswith("req_")
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(model="nobody", max_tokens=1, messages=QUESTION)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["request_id"] == caught.value.request_id
    old = server.post("/v1/messages", {"model": "stories"}, **{"anthropic-version": "2023-01-01"})
    assert old.json()["error"]["message"] == "anthropic-version: expected 2023-06-01 or later, got '2023-01-01'"


def test_an_answer_that_is_begun_goes_on(claude: anthropic.Anthropic, llama: ollama.Client, llm: LLM) -> None:
    said: Any = [*QUESTION, {"role": "assistant", "content": "The dog"}]
    prompt = f"user: {SAID}\nassistant: "
    tokens = [*llm.tokenizer.encode(prompt), *llm.tokenizer.encode("The dog", bos=False)]
    expected = llm.generate(list(map(int, tokens)), max_tokens=6, temperature=0)
    reply = claude.messages.create(model="talker", max_tokens=6, messages=said, extra_body={"temperature": 0})
    assert reply.content[0].text == expected  # type: ignore[union-attr]
    assert claude.messages.count_tokens(model="talker", messages=said).input_tokens == len(tokens)
    whole = llama.chat(model="talker", messages=said, options={"temperature": 0, "num_predict": 6})
    assert whole.message.content == expected
    with pytest.raises(anthropic.BadRequestError, match="messages: expected the last one to be another's"):
        claude.messages.create(
            model="talker", max_tokens=6, messages=said, tools=[{"name": "rain", "input_schema": SCHEMA}]
        )


def test_a_tool_that_failed_is_said_to_have(claude: anthropic.Anthropic) -> None:
    def count(**more: Any) -> int:
        use = {"type": "tool_use", "id": "a", "name": "rain", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "a", "content": "none", **more}
        said: Any = [*QUESTION, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
        return claude.messages.count_tokens(model="talker", messages=said).input_tokens

    assert count(is_error=True) > count(is_error=False) == count()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"type": "tool", "name": "snow"}, "tool_choice.name: expected one of tools, rain, got 'snow'"),
        ({"type": "tool"}, "tool_choice.name: expected a name with type 'tool', got None"),
        ({"type": "any", "name": "rain"}, "tool_choice.name: expected none with type 'any', got 'rain'"),
    ],
)
def test_a_choice_of_no_tool_is_refused(claude: anthropic.Anthropic, choice: Any, message: str) -> None:
    tools: Any = [{"name": "rain", "input_schema": SCHEMA}]
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model="talker", max_tokens=1, messages=QUESTION, tools=tools, tool_choice=choice)
    assert caught.value.body["error"]["message"] == message  # type: ignore[index]


# Ollama


def test_ollamas_clients_read_what_is_not_there(llama: ollama.Client, server: Running) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        llama.pull("stories")
    assert caught.value.error == "there is nothing at this path"
    assert server.client.get("/api/chat").json() == {"error": "this path takes another method"}
    assert server.client.head("/").status_code in (200, 404)  # the page is an endpoint of `serve`


def test_ollamas_older_embeddings_are_the_same(llama: ollama.Client, llm: LLM) -> None:
    found = llama.embeddings(model="talker", prompt="A cat sat.", keep_alive="5m")
    np.testing.assert_allclose(found.embedding, llm.embed("A cat sat."), atol=1e-5)
    assert list(llama.embeddings(model="talker").embedding) == []


def test_ollamas_lists_tell_sizes_and_digests() -> None:
    with running({"tale": str(BUILT_IN)}) as server, ollama.Client(host=server.url) as client:
        [listed] = client.list().models
        size = (BUILT_IN / "model.safetensors").stat().st_size
        assert listed.size == size
        assert len(listed.digest or "") == 64
        assert client.ps().models == []
        client.generate(model="tale", keep_alive="10m")
        [known] = client.list().models
        assert known.digest == listed.digest
        assert known.details is not None
        assert known.details.parameter_size is not None
        assert known.details.parameter_size.endswith("M")
        [loaded] = client.ps().models
        assert (loaded.size, loaded.size_vram) == (size, 0)
        assert loaded.expires_at is not None
        assert known.modified_at is not None
        assert 0 < (loaded.expires_at - known.modified_at).total_seconds() < 1200
        client.generate(model="tale", keep_alive=-1)
        assert client.ps().models[0].expires_at.year == 9999  # type: ignore[union-attr]
        client.embed(model="tale", input="x", keep_alive=0)
        assert client.generate(model="tale", keep_alive=0).done_reason == "unload"
        assert client.ps().models == []


@pytest.mark.parametrize("limit", [-1, -2, 0])
def test_ollamas_answers_without_a_limit_end_with_the_context(llama: ollama.Client, limit: int) -> None:
    options = {"num_predict": limit, "temperature": 0, "stop": [" was"]}
    reply = llama.generate(model="stories", prompt=SAID, options=options)
    assert reply.done_reason == "stop"
    assert (reply.eval_count or 0) >= 1
    assert (reply.total_duration or 0) >= (reply.eval_duration or 0) > 0


def test_ollamas_logprobs_come_once(server: Running) -> None:
    body = {"model": "stories", "prompt": SAID, "logprobs": True, "options": {"num_predict": 5}}
    lines = [json.loads(line) for line in server.post("/api/generate", body).text.splitlines()]
    told = [one for line in lines for one in line.get("logprobs") or ()]
    assert len(told) == lines[-1]["eval_count"] == 5


# What clients are not told


@pytest.mark.parametrize("ready", [False, True])
def test_where_a_models_files_are_is_not_told(ready: bool, tmp_path: Path) -> None:
    folder = tmp_path / "hidden" / "tale"
    folder.mkdir(parents=True)
    for file in BUILT_IN.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    if not ready:
        with running([str(folder)]) as server:
            refused(server)
        return
    with LLM(folder, threads=1) as llm, running(llm) as server:
        refused(server)


def refused(server: Running) -> None:
    body = chat(model="tale", tools=[function("rain")])
    reply = server.post("/v1/chat/completions", body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith("tale: the model has no chat template")


# Browsers


def test_pages_of_named_origins_may_use_it_and_no_others(llm: LLM) -> None:
    page, other = "https://page.example:8443", "https://other.example"
    with running({"talker": llm}, origins=[page]) as server:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        first = server.client.options("/v1/chat/completions", headers={"Origin": page, **asked})
        assert first.status_code == 200
        assert first.headers["Access-Control-Allow-Origin"] == page
        assert "authorization" in first.headers["Access-Control-Allow-Headers"].lower()
        reply = server.post("/v1/chat/completions", chat(model="talker", stream=True), Origin=page)
        assert reply.status_code == 200
        assert reply.headers["Access-Control-Allow-Origin"] == page
        assert "X-Request-Id" in reply.headers["Access-Control-Expose-Headers"]
        assert server.client.options("/v1/chat/completions", headers={"Origin": other, **asked}).status_code == 400
        refused = server.post("/v1/chat/completions", chat(model="talker"), Origin=other)
        assert refused.status_code == 403
        assert "Access-Control-Allow-Origin" not in refused.headers


def test_no_page_may_use_it_where_none_is_named(server: Running) -> None:
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert server.client.options("/v1/chat/completions", headers=asked).status_code == 405


@pytest.mark.parametrize("origin", ["*", "page.example", "https://page.example/", "https://*.example"])
def test_an_origin_that_is_none_is_refused(llm: LLM, origin: str) -> None:
    with pytest.raises(ValueError, match="origins: expected addresses"):
        make_app(Models({"talker": llm}), origins=[origin])


# Probes


def test_probes_find_health_where_they_look(server: Running) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/version").json() == server.client.get("/api/version").json()


def test_an_adapter_that_has_gone_since_it_was_found_is_not_there(server: Running) -> None:
    models: Models = server.app.state.models

    async def ask() -> Refusal | None:
        held = await models.hold("talker")
        held.adapter = "gone"  # it was there when it was looked for
        work = Work(server.app.state.works, Anonymous(), held, None)
        try:
            assert work.adapter is None
        except Refusal as refusal:
            return refusal
        finally:
            held.release()
        return None

    refusal = server.call(ask())
    assert refusal is not None
    assert (refusal.status, refusal.code) == (404, "model_not_found")

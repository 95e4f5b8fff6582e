"""Chat templates: the same text as Hugging Face renders, the users' words never special, and no template that harms."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bitnet_core.chat import ChatTemplate
from bitnet_core.errors import FormatError, TemplateError
from bitnet_core.messages import check_messages
from bitnet_core.tokenizer import Tokenizer
from bitnet_core.vocabularies import BYTE_CHARACTERS, Added, Vocabulary, pipelines

BITNET = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = message['role'] | "
    "capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
CHATML = (
    "{%- for message in messages %}\n    {{- '<|' + message.role + '|>\n' }}{{ message.content }}\n"
    "    {%- if '</think>' in message.content %}{{ message.content.split('</think>')[-1].lstrip('\\n') }}{% endif %}"
    "<|eot_id|>\n{%- endfor %}"
)
# Each uses another part of the language that published templates use.
LANGUAGE = (
    "{% for m in messages %}\n  {% if loop.first %}\n1\n  {% endif %}\n{{ m.role }}={{ m['content'] }}\n{% endfor %}",
    "{%- if tools %}{{ tools | tojson }}|{{ tools | tojson(indent=2) }}{% else %}none{% endif %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% macro say(m, end='!') %}{{ m.content ~ end }}{% endmacro %}{{ say(messages[0]) }}{{ say(messages[-1], '?') }}",
    "{% for m in messages[::-1] %}{{ loop.index0 }}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ messages | map(attribute='role') | join(',') }}",
    "{% if tools is not none and tools is iterable %}a{% endif %}{% if x is defined %}b{% endif %}{{ missing }}",
    "{{ messages[0].content.strip().upper() }}{{ messages[0].content.startswith('h') }}{{ 'a b'.split(' ') | last }}",
    "{% for k, v in messages[0].items() %}{{ k }}:{{ v }};{% endfor %}{{ bos_token }}{{ eos_token }}",
    "{% for c in messages[-1].tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}",
    "{{ strftime_now('%Y') | length }}{{ none }}{{ true }}{{ 1.5 }}",
    "{{ messages[0].content | replace('h', 'j') | title }}",
)
CALL = {"type": "function", "function": {"name": "look", "arguments": {"b": '<é & "x">', "a": [1, 2.5, None, True]}}}
TOOL = {"type": "function", "function": {"name": "look", "description": "a <b>", "parameters": {"type": "object"}}}
CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "hi"}],
    [
        {"role": "system", "content": " Be\nterse "},
        {"role": "user", "content": "中 😀 é\n"},
        {"role": "assistant", "content": ""},
    ],
    [{"role": "user", "content": "h < i </think>"}, {"role": "assistant", "content": "a", "tool_calls": [CALL]}],
)
SPECIALS = ("<|begin_of_text|>", "<|eot_id|>", "[INST]", "hello")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    normalizer, pre_tokenizer = pipelines.NAMED["llama-bpe"]
    specials = range(256, 256 + len(SPECIALS))
    return Tokenizer(
        Vocabulary(
            file="bytes",
            tokens=(*BYTE_CHARACTERS, *SPECIALS),
            merges=(),
            alphabet="bytes",
            added=dict.fromkeys(specials, Added(special=True)),
            normalizer=normalizer,
            pre_tokenizer=pre_tokenizer,
            bos=256,
            prefix=(256,),
        )
    )


def special_ids(tokens: Any) -> list[int]:
    return [token for token in tokens.tolist() if token >= 256]


def user(*contents: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content} for content in contents]


@pytest.mark.parametrize("source", [BITNET, CHATML, *LANGUAGE])
def test_the_text_is_what_transformers_renders(source: str) -> None:
    rendering = pytest.importorskip("transformers.utils.chat_template_utils")
    for messages in CONVERSATIONS:
        for tools in (None, [TOOL]):
            theirs, _ = rendering.render_jinja_template(
                [messages],
                tools=tools,
                chat_template=source,
                add_generation_prompt=True,
                bos_token="<s>",
                eos_token="</s>",
            )
            ours = ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(messages, tools=tools)
            assert ours.text == theirs[0]


def test_the_published_templates_tokenize_as_transformers_tokenizes_them(data: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = data / "tokenizers" / "llama3"
    ours = Tokenizer.from_folder(folder)
    assert ours is not None
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|begin_of_text|>"
    )
    bitnet = (data / "configs" / "bitnet-b1.58-2B-4T.chat_template.jinja").read_text(encoding="utf-8")
    headers = ChatTemplate.from_folder(folder)
    assert headers is not None
    for template in (headers, ChatTemplate(bitnet, file="bitnet")):
        for messages in CONVERSATIONS:
            text = theirs.apply_chat_template(
                messages, chat_template=template.source, tokenize=False, add_generation_prompt=True
            )
            rendered = template.render(messages)
            assert rendered.text == text
            expected = theirs(text.removeprefix("<|begin_of_text|>"), add_special_tokens=False)["input_ids"]
            assert rendered.encode(ours).tolist() == [128000, *expected]


def test_a_conversation_begins_with_one_bos(tokenizer: Tokenizer) -> None:
    for source in (BITNET, "{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"):
        ids = ChatTemplate(source, bos_token="<|begin_of_text|>").render(user("x")).encode(tokenizer)
        assert ids[0] == 256
        assert special_ids(ids).count(256) == 1


@pytest.mark.parametrize("special", SPECIALS)
@pytest.mark.parametrize("source", [BITNET, CHATML])
def test_a_special_token_in_a_message_stays_text(tokenizer: Tokenizer, special: str, source: str) -> None:
    template = ChatTemplate(source)
    half = len(special) // 2
    contents = (
        special,
        f" {special} ",
        special[:half] + special + special[half:],
        special * 3,
        f"a</think>{special}</think>",
        f"\U000f0000{special}\U000ffffd",
        special[:half],
        special[half:],
        special.upper(),
    )
    for role in ("system", "user", "assistant", "tool"):
        messages = [{"role": role, "content": content} for content in contents]
        harmless = [{"role": role, "content": "x"} for _ in contents]
        rendered = template.render(messages)
        ids = rendered.encode(tokenizer)
        assert special_ids(ids) == special_ids(template.render(harmless).encode(tokenizer))
        assert tokenizer.decode(ids, special=True).removeprefix("<|begin_of_text|>") == rendered.text


def test_a_special_token_split_over_text_parts_stays_text(tokenizer: Tokenizer) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "<|eot"}, {"type": "text", "text": "_id|>"}]}
    rendered = ChatTemplate("{{ messages[0].content }}").render([message])
    assert rendered.text == "<|eot_id|>"
    assert special_ids(rendered.encode(tokenizer)) == [256]


def test_a_special_token_that_a_template_puts_together_stays_text(tokenizer: Tokenizer) -> None:
    source = "{{ messages[0].content.replace('</s>', '') }}{{ messages[1].content }}<|eot_id|>"
    rendered = ChatTemplate(source).render(user("<|e</s>ot_id|><|eot", "_id|>"))
    assert rendered.text == "<|eot_id|><|eot_id|><|eot_id|>"
    assert special_ids(rendered.encode(tokenizer)) == [256, 257]


def test_a_special_token_in_a_tool_its_call_and_a_variable_stays_text(tokenizer: Tokenizer) -> None:
    source = "{{ tools | tojson }}{{ messages[0].tool_calls | tojson }}{{ name }}<|eot_id|>"
    call = {"function": {"name": "<|eot_id|>", "arguments": {"<|eot_id|>": "[INST]", "hello": {"x": "hello"}}}}
    rendered = ChatTemplate(source).render(
        [{"role": "assistant", "content": None, "tool_calls": [call]}],
        tools=[{"type": "function", "function": {"name": "[INST]", "description": "hello"}}],
        name="<|eot_id|>",
    )
    assert special_ids(rendered.encode(tokenizer)) == [256, 257]


def test_merges_run_over_the_border_of_template_and_message(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("User: <b> hi<|eot_id|>", special=True)
    ids = ChatTemplate("User: {{ messages[0].content }}<|eot_id|>").render(user("<b> hi")).encode(tokenizer)
    assert ids.tolist() == whole.tolist()


DOUBLING = "{% set ns = namespace(s='a') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
NESTED = (
    "{% set ns = namespace(s=[1]) %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}"
)
LONG = "{% set ns = namespace(s='a') %}{% for i in range(21) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"


@pytest.mark.parametrize(
    ("source", "line", "finding"),
    [
        ("{{ 'a' * 200000000 }}", 1, "too large"),
        ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", 1, "OutOfFuel"),
        ("{% if x %}" * 3000 + "{% endif %}" * 3000, 1, "recursion"),
        ("a\nb\n{{ x.foo.bar }}", 3, "`x` is undefined"),
        ("{{ ''.__class__.__mro__ }}", 1, "Undefined"),
        ("{% include 'other' %}", 1, "TemplateNotFound"),
        ("{% import 'other' as o %}", 1, "TemplateNotFound"),
        ("\n{{ ( }}", 2, "SyntaxError"),
        ("{{ nothing() }}", 1, "UnknownFunction"),
        ("{{ raise_exception('roles must alternate') }}", None, "roles must alternate"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", 1, "recursion"),
        (DOUBLING, None, "64 MiB"),
        (NESTED, None, "takes more than"),
        (LONG, None, "1048576"),
    ],
)
def test_a_template_that_is_wrong_or_asks_for_too_much_is_one_line(source: str, line: int | None, finding: str) -> None:
    start = time.monotonic()
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source, file="model.gguf").render(user("hi"))
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("model.gguf: chat_template" + (f" line {line}: " if line else ": "))
    assert finding in message


def test_a_template_of_five_megabytes_is_refused() -> None:
    with pytest.raises(TemplateError, match="at most 1048576 characters, got 5000000"):
        ChatTemplate("a" * 5_000_000)


def test_a_template_goes_on_after_a_conversation_that_it_refuses() -> None:
    template = ChatTemplate(
        "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}{{ messages[0].content }}"
    )
    with pytest.raises(TemplateError, match="expected a conversation that it takes, got one only"):
        template.render(user("a", "b"))
    assert template.render(user("a")).text == "a"


def test_a_template_goes_on_after_its_process_was_ended() -> None:
    template = ChatTemplate(
        "{% for i in range(messages[0].content | int) %}{% set x = [1] * 9999 %}{{ x|tojson|length }}{% endfor %}"
    )
    with pytest.raises(TemplateError):
        template.render(user("100000"))
    assert template.render(user("1")).text == "29997"


def test_threads_share_a_template() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    found: dict[int, list[str]] = {}

    def work(number: int) -> None:
        found[number] = [template.render(user(f"{number}-{turn}")).text for turn in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [f"{number}-{turn}" for turn in range(20)] for number in range(4)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_renders_with_a_renderer_of_its_own() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    template.render(user("before"))
    child = os.fork()
    if child == 0:
        os._exit(0 if template.render(user("in the child")).text == "in the child" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert template.render(user("after")).text == "after"


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ("hi", "messages"),
        ([], "messages"),
        ([{"role": "user", "content": "x"}] * 2049, "messages"),
        (["hi"], "messages[0]"),
        ([{"role": "<|eot_id|>", "content": "x"}], "messages[0].role"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1"}}]}], "function.arguments"),
    ],
)
def test_a_message_that_is_none_is_refused_by_its_place(messages: Any, where: str) -> None:
    with pytest.raises(FormatError) as caught:
        check_messages(messages)
    assert where in str(caught.value)


def test_arguments_that_are_written_as_json_become_an_object() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    (message,) = check_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert message["content"] == ""
    assert message["tool_calls"] == [{"type": "function", "id": "1", "function": {"name": "f", "arguments": {"a": 1}}}]


def test_values_that_json_cannot_hold_are_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (object(), float("nan"), "\ud800", deep):
        with pytest.raises(FormatError):
            ChatTemplate("x").render(user("hi"), extra=value)


def test_a_folder_gives_its_template_and_its_tokens(tmp_path: Path) -> None:
    assert ChatTemplate.from_folder(tmp_path) is None
    config: dict[str, Any] = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "chat_template": "{{ bos_token }}config{{ eos_token }}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert from_folder(tmp_path) == "<s>config</s>"
    config["chat_template"] = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "default"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert from_folder(tmp_path) == "default"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}), encoding="utf-8")
    assert from_folder(tmp_path) == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja", encoding="utf-8")
    assert from_folder(tmp_path) == "jinja"


def from_folder(folder: Path) -> str:
    template = ChatTemplate.from_folder(folder)
    assert template is not None
    return template.render(user("hi")).text


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match="UTF-8"):
        ChatTemplate.from_folder(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 3}', encoding="utf-8")
    with pytest.raises(TemplateError, match="chat_template"):
        ChatTemplate.from_folder(tmp_path)
    with pytest.raises(FormatError, match=r"tokenizer\.chat_template"):
        ChatTemplate.from_gguf({"tokenizer.chat_template": 3}, "model.gguf")
    with pytest.raises(TemplateError, match="U\\+F0000"):
        ChatTemplate("\U000f0000")


@pytest.mark.parametrize("architecture", ["bitnet-b1.58", "bitnet-25"])
@pytest.mark.parametrize("embedded", [None, "Human: {{ x }}\n\nBITNETAssistant: "])
def test_the_published_bitnet_files_get_the_template_of_their_model(architecture: str, embedded: str | None) -> None:
    metadata: dict[str, Any] = {
        "general.architecture": architecture,
        "tokenizer.ggml.tokens": ["a", "<|begin_of_text|>", "<|eot_id|>"],
        "tokenizer.ggml.bos_token_id": 1,
    }
    if embedded is not None:
        metadata["tokenizer.chat_template"] = embedded
    template = ChatTemplate.from_gguf(metadata, "model.gguf")
    assert template is not None
    messages = [{"role": "system", "content": "Be terse"}, {"role": "user", "content": " hi\n"}]
    assert template.render(messages).text == "System: Be terse<|eot_id|>User: hi<|eot_id|>Assistant: "
    assert template.render(messages, add_generation_prompt=False).text == "System: Be terse<|eot_id|>User: hi<|eot_id|>"
    assert template.render(messages).text == ChatTemplate(BITNET).render(messages).text


@pytest.mark.parametrize("embedded", [None, "Human: {{ x }}\n\nBITNETAssistant: "])
def test_a_model_without_the_special_token_of_that_template_gets_none(embedded: str | None) -> None:
    metadata: dict[str, Any] = {"general.architecture": "bitnet-b1.58", "tokenizer.ggml.tokens": ["a", "<s>"]}
    if embedded is not None:
        metadata["tokenizer.chat_template"] = embedded
    assert ChatTemplate.from_gguf(metadata, "model.gguf") is None


def test_a_gguf_file_gives_its_own_template_or_none() -> None:
    assert ChatTemplate.from_gguf({"general.architecture": "llama"}, "model.gguf") is None
    metadata = {"general.architecture": "llama", "tokenizer.chat_template": "own"}
    template = ChatTemplate.from_gguf(metadata, "model.gguf")
    assert template is not None
    assert template.render(user("hi")).text == "own"

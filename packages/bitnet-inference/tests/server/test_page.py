"""The page in a real browser, with a real server and a real model behind it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromium import Browser, Page, chromium, find_chromium
from serving import Running, running, talker

from bitnet_core.formats import save_adapter
from bitnet_core.testing import random_adapter
from bitnet_inference import LLM
from bitnet_inference.server import Models, make_app, page
from bitnet_inference.server.errors import Refusal
from bitnet_inference.server.metrics import Metrics
from bitnet_inference.server.store import Store
from bitnet_inference.server.tenants import Tenants
from bitnet_inference.structured import Form

HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=2</script>'
WRITTEN = f"""## A plan

Some **bold**, *slanted* and `code`, then {HOSTILE}

- one
- two with [a link](https://example.org/a_b) and [a trap](javascript:window.hit=3)

```python
print("</code></pre><script>window.hit=4</script>")
```

![far](https://example.org/x.png)"""

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="NO BROWSER: install Chromium, as `chromium` on the path, to test the page"
)


class Writer(LLM):
    """A real model that can only write one text: whatever a model may ever write is written by one."""

    def stream(self, messages: Any, **wishes: Any) -> Any:
        return super().stream(messages, **{**wishes, "form": Form.choices([WRITTEN])})


class Endless(LLM):
    """A model that never comes to an end by itself."""

    def stream(self, messages: Any, **wishes: Any) -> Any:
        return super().stream(messages, **{**wishes, "ignore_eos": True, "max_tokens": 450})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = talker()
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(random_adapter(model.spec), folder, model.spec)
    with LLM(model, threads=1) as tales, Writer(model, threads=1) as writer, Endless(model, threads=1) as endless:
        tales.load_adapter("pirate", folder)
        models = {"tales": tales, "writer": writer, "endless": endless, HOSTILE: writer}
        with running(models, endpoints=page.ENDPOINTS) as found:
            yield found


Open = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser, server: Running) -> Iterator[Open]:
    """Opens the page; at the end nothing was complained of, and nothing was asked of anybody else."""
    pages: list[tuple[Page, str]] = []

    def opened(url: str = server.url, **settings: Any) -> Page:
        found = browser.open(f"{url}/", **settings)
        pages.append((found, url))
        return found

    yield opened
    for one, url in pages:
        complaints, asked = one.complaints(), one.asked()
        one.close()
        assert complaints == []
        assert [address for address in asked if not address.startswith((f"{url}/", f"blob:{url}/"))] == []


def ask(one: Page, text: str, model: str = "tales") -> None:
    one.until(f"[...document.querySelectorAll('#model option')].some((option) => option.value === {json.dumps(model)})")
    one.run(
        f"(() => {{ const model = document.querySelector('#model'); model.value = {json.dumps(model)};"
        "model.dispatchEvent(new Event('change')); document.querySelector('#input').focus(); })()"
    )
    one.write(text)
    one.press("Enter")


def finished(one: Page) -> str:
    """The last answer, when it is whole."""
    one.until("document.querySelector('#stop').hidden && document.querySelector('.message:last-child.assistant')")
    return str(one.run("document.querySelector('.message:last-child .text').innerText"))


def check(one: Page, width: int) -> None:
    """What is seen now is for everybody."""
    found = one.run((Path(__file__).parent / "accessible.js").read_text())
    assert found["wrong"] == []
    assert found["least"] >= 4.5
    assert one.run("document.documentElement.scrollWidth") <= width


def set_field(one: Page, selector: str, value: str) -> None:
    one.run(
        f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.value = {json.dumps(value)};"
        "field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change')); })()"
    )


def test_a_conversation_streams_and_is_kept(visit: Open) -> None:
    one = visit()
    ask(one, "Once upon a time", "endless")
    one.until(
        "!document.querySelector('#stop').hidden && document.querySelector('.assistant .text').innerText.length > 20"
    )
    before = one.run("document.querySelector('.assistant .text').innerText")
    text = finished(one)
    assert len(text) > len(before)
    assert text.startswith(before[:-1])
    assert re.search(
        r"450 tokens · [\d.,]+ tokens/s · first after [\d.]+ s · prompt \d+.* · ended at the limit",
        one.run("document.querySelector('.assistant .figures').innerText").replace("\u00a0", " "),
    )
    one.reload()
    one.until("document.querySelectorAll('.message').length === 2")
    assert finished(one) == text
    assert one.run("document.querySelector('#conversations .title').innerText") == "Once upon a time"


def test_the_model_reads_what_was_said_and_the_settings(visit: Open, server: Running) -> None:
    one = visit()
    one.click("#open-settings")
    set_field(one, "#system", "Speak like a bear.")
    set_field(one, "#sampling-temperature", "0")
    set_field(one, "#sampling-max_tokens", "12")
    ask(one, "Who are you?")
    first = finished(one)
    ask(one, "And I?")
    second = finished(one)
    messages = [
        {"role": "system", "content": "Speak like a bear."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And I?"},
    ]
    body = {"model": "tales", "messages": messages, "temperature": 0, "max_tokens": 12}
    assert (
        server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"].strip() == second.strip()
    )


def test_a_number_out_of_its_range_is_named_and_not_sent(visit: Open) -> None:
    one = visit()
    one.click("#open-settings")
    set_field(one, "#sampling-top_p", "7")
    assert "1" in one.run("document.querySelector('#sampling-top_p-error').innerText")
    set_field(one, "#sampling-max_tokens", "4")
    ask(one, "Hi")
    finished(one)
    assert one.run("document.querySelector('.assistant .error')") is None


def test_fields_of_sampling_show_what_the_model_takes_by_itself(visit: Open) -> None:
    one = visit()
    one.until("document.querySelector('#sampling-temperature').placeholder !== 'default'")
    shown = [
        one.run(f"document.querySelector('#sampling-{name}').placeholder") for name in ("temperature", "top_p", "seed")
    ]
    assert shown == ["0.8", "0.9", "default"]


def test_an_adapter_can_be_chosen(visit: Open) -> None:
    one = visit()
    ask(one, "Once", "tales:pirate")
    finished(one)
    assert one.run("document.querySelector('#model optgroup').label") == "tales"
    assert one.run("document.querySelector('.assistant').ariaLabel") == "tales:pirate"
    assert one.run("document.querySelector('.assistant .error')") is None


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop_ends_the_answer_here_and_at_the_server(visit: Open, server: Running, way: str) -> None:
    one = visit()
    ask(one, "Go on", "endless")
    one.until("document.querySelector('.assistant .text').innerText.length > 5")
    one.click("#stop") if way == "button" else one.press("Escape")
    text = finished(one)
    assert one.run("document.querySelector('.assistant .figures').innerText") == "stopped"
    assert text
    end = time.monotonic() + 20
    while len(server.app.state.works):
        assert time.monotonic() < end


def test_retry_answers_again_and_edit_asks_otherwise(visit: Open) -> None:
    one = visit()
    one.click("#open-settings")
    set_field(one, "#sampling-max_tokens", "6")
    set_field(one, "#sampling-temperature", "0")
    ask(one, "The dog")
    first = finished(one)
    one.click(".message:last-child [aria-label='Answer again']")
    assert finished(one) == first
    one.click(".user [aria-label='Edit this message']")
    assert one.run("document.querySelector('#input').value") == "The dog"
    one.press("Escape")
    assert one.run("document.querySelector('#input').value") == ""
    one.click(".user [aria-label='Edit this message']")
    one.write(" and a cat and a bird and a fish")
    one.press("Enter")
    finished(one)
    assert one.run("[...document.querySelectorAll('.user .text')].map((text) => text.innerText)") == [
        "The dog and a cat and a bird and a fish"
    ]
    assert one.run("document.querySelectorAll('.message').length") == 2


def test_what_a_model_writes_is_text(visit: Open) -> None:
    one = visit()
    ask(one, HOSTILE, "writer")
    finished(one)
    assert one.run("window.hit") is None
    assert one.run("document.querySelectorAll('#messages script, #messages img').length") == 0
    assert one.run("document.querySelector('.user .text').textContent") == HOSTILE
    assert HOSTILE in one.run("document.querySelector('.assistant .text').textContent")
    assert one.run("document.querySelector('.assistant pre').textContent") == WRITTEN.split("```")[1].removeprefix(
        "python\n"
    ).removesuffix("\n")
    assert one.run("[...document.querySelectorAll('.assistant a')].map((a) => [a.href, a.rel])") == [
        ["https://example.org/a_b", "noopener noreferrer nofollow"],
        ["https://example.org/x.png", "noopener noreferrer nofollow"],
    ]
    assert one.run("document.querySelector('.assistant h4').textContent") == "A plan"


def test_names_are_text(visit: Open) -> None:
    one = visit()
    ask(one, f"{HOSTILE} says", HOSTILE)
    finished(one)
    one.until("document.querySelector('#conversations .title')")
    assert one.run("document.querySelector('#conversations .title').textContent").startswith("<img src=x")
    assert one.run("document.querySelector('.name').textContent") == HOSTILE
    one.click("#open-admin")
    one.until("document.querySelectorAll('.card h4').length === 4")
    assert one.run("[...document.querySelectorAll('.card h4')].map((name) => name.textContent)")[3] == HOSTILE
    assert one.run("window.hit") is None


def test_code_and_messages_are_copied_as_they_were_written(visit: Open) -> None:
    one = visit()
    ask(one, "Write", "writer")
    finished(one)
    for selector, text in [
        (".assistant footer [aria-label='Copy this message']", WRITTEN),
        (".code button", 'print("</code></pre><script>window.hit=4</script>")'),
    ]:
        one.run("void (window.copied = [])")
        one.run("void (navigator.clipboard.writeText = async (text) => { window.copied.push(text); })")
        one.click(selector)
        one.until("window.copied.length")
        assert one.run("window.copied") == [text]
        one.run("void (navigator.clipboard.writeText = () => Promise.reject(new Error('no')))")
        one.run("void (document.execCommand = () => window.copied.push(document.activeElement.value))")
        one.click(selector)
        one.until("window.copied.length === 2")
        assert one.run("window.copied[1]") == text


@pytest.mark.parametrize("kind", ["markdown", "json"])
def test_a_conversation_is_exported(visit: Open, kind: str) -> None:
    one = visit()
    one.run("URL.createObjectURL = (blob) => { blob.text().then((text) => { window.exported = text; }); return '#'; }")
    ask(one, "A tale / of <two>", "writer")
    finished(one)
    one.click("#open-export")
    one.until("document.querySelector('#export').matches(':popover-open')")
    one.click(f"[data-export='{kind}']")
    one.until("window.exported")
    text = one.run("window.exported")
    if kind == "json":
        found = json.loads(text)
        assert [message["content"] for message in found["messages"]] == ["A tale / of <two>", WRITTEN]
        assert found["model"] == "writer"
    else:
        assert (
            text == f"# A tale / of <two>\n\nModel: writer\n\n## You\n\nA tale / of <two>\n\n## writer\n\n{WRITTEN}\n"
        )


def test_a_refusal_is_shown_as_it_is(visit: Open, server: Running) -> None:
    one = visit()
    one.click("#open-settings")
    set_field(one, "#sampling-max_tokens", "100000")
    ask(one, "Hi")
    finished(one)
    body = {"model": "tales", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100000}
    refused = server.post("/v1/chat/completions", body)
    assert refused.status_code == 400
    assert (
        one.run("document.querySelector('.assistant .error').innerText") == f"400: {refused.json()['error']['message']}"
    )
    # The browser itself says in its console that a request was refused.
    told = one.told("Log.entryAdded")
    assert [entry["entry"]["source"] for entry in told] == ["network"]
    one.forget("Log.entryAdded")


def test_an_answer_that_the_server_ends_says_why_and_keeps_its_text(visit: Open, server: Running) -> None:
    one = visit()
    ask(one, "Go on", "endless")
    one.until("document.querySelector('.assistant .text').innerText.length > 5")

    async def cut() -> int:
        return int(server.app.state.works.cut(Refusal(503, "the model is being unloaded")))

    assert server.call(cut()) == 1
    text = finished(one)
    assert len(text) > 5
    assert one.run("document.querySelector('.assistant .error').innerText") == "the model is being unloaded"


def test_the_keyboard_writes_sends_and_reaches_everything(visit: Open) -> None:
    one = visit()
    one.until("document.activeElement.id === 'input' && document.querySelector('#model').value")
    one.write("one")
    one.press("Enter", shift=True)
    one.write("two")
    assert one.run("document.querySelector('#input').value") == "one\ntwo"
    assert one.run("document.querySelectorAll('.message').length") == 0
    one.press("Enter")
    finished(one)
    reached = []
    for _ in range(40):
        one.press("Tab")
        if one.run("document.activeElement === document.body"):
            continue  # the browser's own parts come before the first of the page's
        told = one.run(
            "(() => { const one = document.activeElement; const style = getComputedStyle(one.closest('.field') ?? one);"
            "return [one.id || one.getAttribute('aria-label') || one.textContent,"
            "style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2]; })()"
        )
        assert told[1], f"{told[0]} shows no focus"
        reached.append(told[0])
    assert {"new", "model", "open-export", "theme", "open-settings", "scroll", "Answer again", "input"} <= set(reached)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_the_page_is_for_everybody(visit: Open, dark: bool, width: int) -> None:
    one = visit(width=width, height=740, dark=dark)
    ask(one, "Write " * 40, "writer")
    finished(one)
    views = ["document.querySelector('#open-settings').click()", "document.querySelector('#open-sidebar').click()"]
    views += ["document.querySelector('#open-admin').click()", "document.querySelector('#create-dialog').showModal()"]
    for view in ["0", *views]:
        one.run(f"void {view}")
        if "admin" in view:
            one.until("document.querySelector('.card')")
        check(one, width)
    tree = one.send("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "textbox", "combobox", "spinbutton", "slider", "link", "dialog", "option")
    nameless = [
        node
        for node in tree
        if not node.get("ignored") and node["role"]["value"] in roles and not node.get("name", {}).get("value")
    ]
    assert nameless == []


def test_a_narrow_page_opens_its_parts_one_at_a_time(visit: Open) -> None:
    one = visit(width=360, height=740)
    assert one.run("document.querySelector('#sidebar').hidden")
    one.click("#open-sidebar")
    one.run("document.querySelector('#open-settings').click()")
    assert one.run("[document.querySelector('#sidebar').hidden, document.querySelector('#settings').hidden]") == [
        True,
        False,
    ]
    one.press("Escape")
    assert one.run("[document.querySelector('#settings').hidden, document.activeElement.id]") == [True, "open-settings"]


def test_a_deleted_conversation_comes_back_when_it_is_undone(visit: Open) -> None:
    one = visit()
    ask(one, "Keep me", "writer")
    finished(one)
    one.run("document.querySelector('#conversations .delete').click()")
    assert one.run("Object.keys(localStorage).filter((name) => name.startsWith('bitnet.chat.')).length") == 0
    assert one.run("document.querySelectorAll('.message').length") == 0
    one.click("#toast button")
    one.click("#conversations .title")
    assert one.run("document.querySelectorAll('.message').length") == 2


def test_a_browser_without_room_says_so_and_goes_on(visit: Open) -> None:
    one = visit()
    one.run("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }")
    ask(one, "Hi", "writer")
    assert "A plan" in finished(one)
    assert "keeps no more" in one.run("document.querySelector('#toast').innerText")


def test_colours_are_chosen_and_kept(visit: Open) -> None:
    one = visit()
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = one.run(ground)
    one.click("#theme")
    assert one.run(ground) == light
    one.click("#theme")
    dark = one.run(ground)
    assert dark != light
    one.reload()
    assert one.run(ground) == dark


def test_events_are_read_however_they_are_cut(visit: Open) -> None:
    one = visit()
    text = ': hello\r\ndata: {"é":1}\r\n\r\ndata: a\ndata:b\n\nevent: x\ndata: [DONE]\n\ndata: never'
    for size in (1, 2, 3, 7, 1000):
        found = one.run(
            f"""import('/page/api.js').then(async ({{ events }}) => {{
              const bytes = new TextEncoder().encode({json.dumps(text)});
              const found = [];
              const body = new ReadableStream({{ start(to) {{
                for (let at = 0; at < bytes.length; at += {size}) to.enqueue(bytes.slice(at, at + {size}));
                to.close();
              }} }});
              for await (const data of events(body)) found.push(data);
              return found;
            }})"""
        )
        assert found == ['{"é":1}', "a\nb", "[DONE]"]


MARKDOWN = [
    ("plain <b>text</b> & more", "<p>plain &lt;b&gt;text&lt;/b&gt; &amp; more</p>"),
    ("a\nb", "<p>a<br>b</p>"),
    ("a **b** _c_ ~~d~~ `e*f*`", "<p>a <strong>b</strong> <em>c</em> <del>d</del> <code>e*f*</code></p>"),
    ("snake_case_name and 2 * 3 * 4", "<p>snake_case_name and 2 * 3 * 4</p>"),
    (r"\*not\* slanted", "<p>*not* slanted</p>"),
    ("**bold *both***", "<p><strong>bold <em>both</em></strong></p>"),
    ("- a\n- b\n  - c\n\n1. d", '<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol start="1"><li>d</li></ol>'),
    ("3. c\n4. d", '<ol start="3"><li>c</li><li>d</li></ol>'),
    ("> q\n> r\n\ns", "<blockquote><p>q<br>r</p></blockquote><p>s</p>"),
    ("---", "<hr>"),
    ("[x](data:text/html,1)", "<p>[x](data:text/html,1)</p>"),
    ("[x](JaVaScRiPt:alert`1`)", "<p>[x](JaVaScRiPt:alert`1`)</p>"),
]


def test_markdown_is_shown_as_what_it_means(visit: Open) -> None:
    one = visit()
    for text, expected in MARKDOWN:
        found = one.run(
            f"import('/page/markdown.js').then(({{ show }}) => {{ const place = document.createElement('div');"
            f"show(place, {json.dumps(text)}); return place.innerHTML; }})"
        )
        assert found == expected, text
    table = one.run(
        "import('/page/markdown.js').then(({ show }) => { const place = document.createElement('div');"
        "show(place, '| a | b |\\n|---|:-:|\\n| 1 | 2\\\\|3 |');"
        "return [...place.querySelectorAll('th, td')].map((cell) => cell.textContent); })"
    )
    assert table == ["a", "b", "1", "2|3"]


def test_markdown_that_grows_ends_as_if_it_had_come_at_once(visit: Open) -> None:
    one = visit()
    same = one.run(
        f"""import('/page/markdown.js').then(({{ show }}) => {{
          const text = {json.dumps(WRITTEN + chr(10) + chr(10).join(text for text, _ in MARKDOWN))};
          const [growing, whole] = [document.createElement('div'), document.createElement('div')];
          for (let end = 1; end <= text.length; end++) show(growing, text.slice(0, end));
          show(whole, text);
          return growing.innerHTML === whole.innerHTML;
        }})"""
    )
    assert same


UNITS = (
    "*",
    "**a",
    "`",
    "[",
    "[a](",
    "_a",
    "> ",
    "- ",
    "| a ",
    "~~",
    "http://a",
    "\\",
    "  ",
    "1. ",
    "```\n",
    "\n- a\n  ",
)


def test_no_text_takes_long_to_show(visit: Open) -> None:
    one = visit()
    for unit in UNITS:
        took = one.run(
            "import('/page/markdown.js').then(({ show }) => { const place = document.createElement('div');"
            f"const begun = performance.now(); show(place, {json.dumps(unit)}.repeat(20000));"
            "return performance.now() - begun; })"
        )
        assert took < 3000, unit


@dataclass(frozen=True)
class Locked:
    """A server with keys."""

    url: str
    admin: str
    user: str


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    metrics = Metrics()
    with (
        Store(tmp_path_factory.mktemp("keys") / "keys.db") as store,
        Tenants(store, charged=metrics.charged) as tenants,
        LLM(talker(), threads=1, observer=metrics.observer("tales")) as llm,
    ):
        assert tenants.keys is not None
        keys = tenants.keys
        admin, user = keys.create("Ada", role="admin")[1], keys.create(HOSTILE, tokens_per_minute=60000)[1]
        tenants.refresh()
        app = make_app(Models({"tales": llm}), tenants=tenants, metrics=metrics, endpoints=page.ENDPOINTS)
        server = Running(app)
        yield Locked(server.url, admin, user)
        server.stop()


def sign_in(one: Page, key: str) -> None:
    one.until("document.querySelector('#key-dialog').open")
    one.run("document.querySelector('#key').focus()")
    one.write(key)
    one.press("Enter")


def test_a_key_is_asked_for_and_kept_by_the_tab_alone(visit: Open, locked: Locked) -> None:
    one = visit(locked.url)
    sign_in(one, "bn_wrong")
    one.until("document.querySelector('#key-error').innerText.includes('opens nothing')")
    one.run("document.querySelector('#key').select()")
    one.write(locked.user)
    one.press("Enter")
    one.until("!document.querySelector('#key-dialog').open")
    ask(one, "Once upon a time")
    assert finished(one)
    assert one.run("document.querySelector('#open-admin').hidden")
    assert locked.user not in one.run("JSON.stringify(localStorage)")
    assert one.run("Object.values(sessionStorage)") == [locked.user]
    assert locked.user not in one.run("document.documentElement.outerHTML")


def test_a_key_is_made_shown_once_and_revoked(visit: Open, locked: Locked) -> None:
    one = visit(locked.url)
    sign_in(one, locked.admin)
    one.until("!document.querySelector('#open-admin').hidden")
    ask(one, "Once upon a time")
    finished(one)
    one.click("#open-admin")
    one.until("document.querySelector('#keys-table tbody tr')")
    assert one.run(
        f"[...document.querySelectorAll('#keys-table td')].some((cell) => cell.textContent === {json.dumps(HOSTILE)})"
    )
    one.until("document.querySelector('#usage-table').innerText.includes('Ada')")
    assert one.run("document.querySelector('.card h4').textContent") == "tales"
    one.click("#new-key")
    one.run("document.querySelector('#create-name').focus()")
    one.write("Bob's <b>laptop</b>")
    set_field(one, "#create-models", "tales, other")
    set_field(one, "#create-tokens", "5000")
    one.click("#create-form [type=submit]")
    one.until("!document.querySelector('#shown-key').hidden")
    text = one.run("document.querySelector('#key-text').textContent")
    answered = httpx.get(f"{locked.url}/v1/models", headers={"Authorization": f"Bearer {text}"}, trust_env=False)
    assert answered.status_code == 200
    one.until("document.querySelectorAll('#keys-table tbody tr').length === 3")
    row = one.run("[...document.querySelectorAll('#keys-table tbody tr')].at(-1).innerText")
    assert "Bob's <b>laptop</b>" in row
    assert "5,000 tokens/min" in row
    for width in (360, 1200):
        one.resize(width, 800)
        one.until(f"document.querySelector('#sidebar').hidden === {json.dumps(width == 360)}")
        check(one, width)
    one.click("#hide-key")
    assert text not in one.run("document.documentElement.outerHTML")
    one.click("#keys-table tbody tr:last-child button")
    one.until("document.querySelector('#revoke-dialog').open")
    one.click("#revoke-form [type=submit]")
    one.until("document.querySelector('#keys-table tbody tr:last-child').innerText.includes('revoked')")
    refused = httpx.get(f"{locked.url}/v1/models", headers={"Authorization": f"Bearer {text}"}, trust_env=False)
    assert refused.status_code == 401
    assert one.run("window.hit") is None


def test_the_page_and_its_files_are_sent_with_a_strict_policy(server: Running) -> None:
    folder = Path(page.__file__).parent / "page"
    paths = ["/", *(f"/page/{file.name}" for file in folder.iterdir())]
    for path in paths:
        found = server.client.get(path)
        assert found.status_code == 200
        policy = found.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        again = server.client.get(path, headers={"If-None-Match": found.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
    html = (folder / "index.html").read_text()
    assert not re.search(r"<style|<script(?! (?:type=\"module\" )?src=)|\bon\w+=|\bstyle=|https?://", html)
    sources = [file.read_text() for file in folder.glob("*.js")]
    assert not [
        name
        for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
        if any(name in source for source in sources)
    ]


@pytest.mark.parametrize("name", ["nothing.js", "__init__.py", "index.htm", "page.py"])
def test_nothing_else_is_sent(server: Running, name: str) -> None:
    assert server.client.get(f"/page/{name}").status_code == 404


def test_the_page_is_small() -> None:
    folder = Path(page.__file__).parent / "page"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 100_000

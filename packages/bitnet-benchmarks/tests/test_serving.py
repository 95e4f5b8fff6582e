"""Load on servers: our own, and ones that answer as they are told to; what is counted, and how failures are said."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from bitnet_benchmarks import compare, record, report, serving, suites
from bitnet_benchmarks.engines import client
from bitnet_benchmarks.engines.connection import Address
from bitnet_benchmarks.serving import Figure, Plan, Remote, ServerFailed, ServerRefused
from bitnet_benchmarks.workers import EngineFailed, Setting, Worker

STORIES = str(Path(__file__).parents[3] / "models" / "stories")
SHORT = Plan(clients=(2,), prompt=24, tokens=4, rounds=1, requests=6, timeout=30)
UNKNOWN = dict.fromkeys(("load_s", "peak_bytes", "bandwidth"))
Body = dict[str, Any]


class Scripted(ThreadingHTTPServer):
    """A server whose answers a function makes: a status and the lines of a body, of a request's number and fields."""

    daemon_threads = True

    def __init__(self, answer: Callable[[int, Body], tuple[int, Sequence[str]]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.asked: list[Body] = []
        self.connections = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """As clients are told it."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may leave."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_GET(self) -> None:
        self.reply(200, ['{"data": [{"id": "first"}, {"id": "second"}]}'])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
        self.reply(*self.server.answer(number, body))

    def reply(self, status: int, lines: Sequence[str]) -> None:
        self.send_response(status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            if line == "!":  # the connection breaks
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            data = line.encode() + b"\n\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


@contextmanager
def scripted(answer: Callable[[int, Body], tuple[int, Sequence[str]]]) -> Iterator[Scripted]:
    with Scripted(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def stream(body: Body, *, usage: bool = True, pieces: int | None = None, end: Sequence[str] = ("[DONE]",)) -> list[str]:
    """The events of an answer; a prompt has two tokens more than words."""
    count = body["max_tokens"] if pieces is None else pieces
    events: list[Any] = [{"choices": [{"text": "a", "finish_reason": None}]} for _ in range(count)]
    events.append({"choices": [{"text": "", "finish_reason": "length"}]})
    if usage:
        read = len(body["prompt"].split()) + 2
        events.append({"choices": [], "usage": {"completion_tokens": body["max_tokens"], "prompt_tokens": read}})
    return [": a comment", *(f"data: {json.dumps(event)}" for event in events), *(f"data: {word}" for word in end)]


def well(_: int, body: Body) -> tuple[int, Sequence[str]]:
    return 200, stream(body)


def load(server: Scripted, plan: Plan = SHORT, **changes: Any) -> Figure:
    (figure,) = serving.measure(Remote(url=server.url, model="m", **changes), plan)
    return figure


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    pytest.importorskip("uvicorn", reason='the extra "server" of bitnet-inference is not installed')
    plan = Plan(clients=(1, 3), rates=(40.0,), prompt=32, tokens=8, shared=16, requests=6, rounds=2, first_limit=60.0)
    return serving.measure(Setting("server", STORIES, 1), plan)


def test_our_own_server_answers_every_load(figures: list[Figure]) -> None:
    assert [(figure.clients, figure.rate) for figure in figures] == [(1, None), (3, None), (None, 40.0)]
    for figure in figures:
        assert (figure.requests, figure.failed, figure.failures) == (12, 0, {})
        assert (figure.output_tokens, figure.counted) == (12 * 8, "server")
        assert figure.prompt_tokens == pytest.approx(32, abs=1)
        assert 0 < figure.first_p50_s <= figure.first_p90_s <= figure.first_p99_s < figure.whole_p99_s
        assert figure.between_p50_s is not None
        assert figure.first_p50_s < figure.whole_p50_s
        assert len(figure.output_runs) == len(figure.first_runs) == len(figure.whole_runs) == 2
        assert figure.goodput_per_s == pytest.approx(figure.requests_per_s)
        assert figure.peak_bytes is not None
        assert figure.peak_bytes > 20 << 20
    assert figures[0].times_one_client == 1
    assert figures[1].times_one_client is not None
    assert figures[2].times_one_client is None


def test_its_records_are_kept_compared_and_shown(figures: list[Figure], tmp_path: Path) -> None:
    made = record.make("serve", figures, model=STORIES, plan=SHORT)
    history = record.History(tmp_path / "history.sqlite")
    history.add(made)
    kept = history.find("last")
    changes = compare.compare(kept, made).changes
    assert {change.figure for change in changes} >= {"output token", "first token", "between tokens", "whole answer"}
    assert {change.verdict for change in changes} == {"within noise"}
    assert any("clients 3" in change.where for change in changes)
    page = report.html([kept, made])
    assert page.count("<svg") >= 4
    assert "First token" in page
    assert "3 clients, tokens a second" in page
    assert "| clients |" in report.markdown([kept])
    assert "first_p99_s" in report.comma_separated([kept]).splitlines()[0]


def test_figures_are_what_they_say_they_are() -> None:
    answers = [
        {"due": 0.0, "end": 2.0, "status": "ok", "pieces": [0.5, 1.0, 1.9], "tokens": 4, "prompt_tokens": 10},
        {"due": 1.0, "end": 4.0, "status": "ok", "pieces": [3.0, 3.1], "tokens": 2, "prompt_tokens": 12},
        {"due": 1.0, "end": 5.0, "status": "429", "pieces": [], "tokens": None, "prompt_tokens": None},
    ]
    quick = [{"due": 0.0, "end": 1.0, "status": "ok", "pieces": [0.25, 0.5], "tokens": 2, "prompt_tokens": 10}]
    plan = replace(SHORT, rounds=2, first_limit=1.0, token_limit=0.5)
    rounds = [serving._Round(answers), serving._Round(quick)]
    found = serving._figure(serving._Load(clients=2), plan, rounds, None, UNKNOWN)
    assert (found.requests, found.failed, found.failures) == (4, 1, {"429": 1})
    assert found.output_tokens == 8
    assert found.output_runs == (5 / 6, 1 / 2)  # of the round until its last request had ended, which failed
    assert found.output_tokens_per_s == pytest.approx((6 / 5 + 2) / 2)
    assert found.requests_per_s == pytest.approx((2 / 5 + 1) / 2)
    assert found.goodput_per_s == pytest.approx((1 / 5 + 1) / 2)  # the second waited for its first token for too long
    assert found.first_p50_s == 0.5  # of 0.25, 0.5 and 2.0
    assert found.first_runs == (1.25, 0.25)
    assert found.between_p50_s == pytest.approx(0.375)  # of 0.1, 0.25, 0.5 and 0.9
    assert found.whole_p50_s == 2
    assert found.tokens_per_piece == 8 / 7
    assert found.prompt_tokens == 10
    strict = serving._figure(serving._Load(clients=2), replace(plan, token_limit=0.3), rounds, None, UNKNOWN)
    assert strict.goodput_per_s == pytest.approx(1 / 2)  # 1.4 s for three tokens behind the first is too much


def test_prompts_have_the_length_that_was_asked_for_and_are_never_the_same() -> None:
    with scripted(well) as server:
        load(server, replace(SHORT, shared=12))
    prompts = [body["prompt"] for body in server.asked]
    assert len(set(prompts)) == len(prompts)
    measured = [prompt.split() for prompt in prompts[-6:]]
    assert {len(words) + 2 for words in measured} == {24}
    assert len({tuple(words[:16]) for words in measured}) == 1  # 4 words of the run and 12 shared ones
    assert len({tuple(words[16:]) for words in measured}) == 6


def test_another_run_shares_nothing_with_one_before() -> None:
    with scripted(well) as server:
        load(server)
        first = {tuple(body["prompt"].split()[:4]) for body in server.asked}
        load(server)
        assert len({tuple(body["prompt"].split()[:4]) for body in server.asked}) == 2 * len(first) == 2


def test_arrivals_are_random_seeded_and_as_many_as_asked() -> None:
    job = {"seed": "1", "requests": 4000, "seconds": None}
    times = list(client.arrivals(50.0, job))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert times == list(client.arrivals(50.0, job))
    assert times != list(client.arrivals(50.0, job | {"seed": "2"}))
    assert sum(gaps) / len(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert sum(gap > 1 / 50 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.04)  # as e says
    assert max(client.arrivals(50.0, job | {"requests": None, "seconds": 2.0})) < 2
    assert list(islice(client.arrivals(50.0, job | {"requests": None, "seconds": 2.0}), 5)) == times[:5]


def test_requests_say_what_was_asked_and_show_the_key() -> None:
    with scripted(well) as server:
        load(server, key="secret")
    for body in server.asked:
        assert body["path"] == "/v1/completions"
        assert body["key"] == "Bearer secret"
        assert (body["model"], body["temperature"], body["stream"], body["ignore_eos"]) == ("m", 0, True, True)
    assert server.asked[-1]["max_tokens"] == 4
    assert "secret" not in repr(Remote(url=server.url, model="m", key="secret"))


def test_connections_are_used_again() -> None:
    with scripted(well) as server:
        load(server)
    assert len(server.asked) > 8
    assert server.connections == 2  # one for each client


def test_a_connection_that_was_closed_in_the_meantime_is_no_failure() -> None:
    def closing(number: int, body: Body) -> tuple[int, Sequence[str]]:
        return 200, [*stream(body), "!"] if number % 2 else stream(body)

    class Hasty(Handler):
        def reply(self, status: int, lines: Sequence[str]) -> None:
            super().reply(status, [line for line in lines if line != "!"])
            self.close_connection = "!" in lines  # without having said so

    with scripted(closing) as server:
        server.RequestHandlerClass = Hasty
        found = load(server)
    assert found.failed == 0
    assert server.connections > 2


def test_conversations_are_asked_where_they_are_wanted() -> None:
    def chat(_: int, body: Body) -> tuple[int, Sequence[str]]:
        deltas = [{"role": "assistant", "content": ""}, *({"content": "a"} for _ in range(body["max_tokens"]))]
        events = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
        return 200, [*(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]

    with scripted(chat) as server:
        found = load(server, replace(SHORT, chat=True))
    assert server.asked[0]["path"] == "/v1/chat/completions"
    assert server.asked[0]["messages"][0]["role"] == "user"
    assert found.output_tokens == 6 * 4  # the first event, which has no text, is no token
    assert found.counted == "pieces"


def test_pieces_are_counted_where_the_server_does_not_count() -> None:
    with scripted(lambda _, body: (200, stream(body, usage=False, pieces=3))) as server:
        found = load(server)
    assert (found.counted, found.output_tokens, found.prompt_tokens) == ("pieces", 18, None)
    with scripted(lambda _, body: (200, stream(body, pieces=2))) as server:
        found = load(server)
    assert (found.counted, found.output_tokens, found.tokens_per_piece) == ("server", 24, 2)


@pytest.mark.parametrize("known", [("stream_options",), ()])
def test_fields_that_a_server_does_not_know_are_left_out(known: tuple[str, ...]) -> None:
    def strict(_: int, body: Body) -> tuple[int, Sequence[str]]:
        wrong = [name for name in ("ignore_eos", "stream_options") if name in body and name not in known]
        return (400, ['{"error": {"message": "unknown field"}}']) if wrong else (200, stream(body))

    with scripted(strict) as server:
        assert load(server).failed == 0


def test_failures_are_counted_by_what_they_were() -> None:
    def odd(number: int, body: Body) -> tuple[int, Sequence[str]]:
        place = number - 5  # behind what is not counted
        if place < 0 or place == 5:
            return 200, stream(body)
        cut = [line for line in stream(body, end=()) if "length" not in line]
        return (
            (429, ['{"error": {"message": "slow down"}}']),
            (503, ["no room"]),
            (200, [*cut, "!"]),
            (200, cut),
            (200, [*cut, 'data: {"error": {"message": "out of memory"}}', "data: [DONE]"]),
        )[place]

    with scripted(odd) as server:
        found = load(server)
    assert found.failures == {"429": 1, "503": 1, "connection": 1, "cut": 1, "stream": 1}
    assert (found.requests, found.failed, found.output_tokens) == (6, 5, 4)
    made = record.make("serve", [found], model={"name": "m", "url": server.url})
    assert "failed 429" in report.markdown([made])
    assert any("requests failed" in note for note in compare.compare(made, made).notes)


def test_a_request_that_takes_too_long_is_given_up() -> None:
    given_up = threading.Event()

    def stalled(number: int, body: Body) -> tuple[int, Sequence[str]]:
        if number == 8:
            given_up.wait(60)
        return well(number, body)

    with scripted(stalled) as server:
        found = load(server, replace(SHORT, timeout=1))
        given_up.set()
    assert found.failures == {"timeout": 1}


@pytest.mark.parametrize(
    ("status", "body", "said", "kind"),
    [
        (401, '{"error": {"message": "no such key"}}', "401: no such key; is the key right", ServerRefused),
        (404, '{"error": "no model m"}', "404: no model m; is the model called so", ServerRefused),
        (400, '{"error": {"message": "expected 9\\ntokens"}}', "400: expected 9 tokens$", ServerRefused),
        (500, "<html>oh</html>", "500: <html>oh</html>$", ServerFailed),
        (503, "", "503: without a word", ServerFailed),
    ],
)
def test_a_server_that_refuses_at_once_is_quoted(status: int, body: str, said: str, kind: type[Exception]) -> None:
    with scripted(lambda *_: (status, [body])) as server, pytest.raises(ServerFailed, match=said) as caught:
        load(server)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as probe:  # bound, and nobody listens
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
        with pytest.raises(ServerFailed, match="cannot be reached: connection refused"):
            serving.measure(Remote(url=url, model="m"), SHORT)
        with pytest.raises(ServerFailed, match="cannot be reached"):
            serving.first_model(url)


def test_a_server_that_goes_away_ends_the_run() -> None:
    with scripted(well) as server:

        def leaving(number: int, body: Body) -> tuple[int, Sequence[str]]:
            if number < 8:
                return well(number, body)
            if number == 8:
                server.shutdown()
                server.socket.close()
            return 200, [*stream(body)[:2], "!"]

        server.answer = leaving
        with pytest.raises(ServerFailed, match=r"[1-4] of [3-6] requests were answered before it went away$"):
            load(server)


def test_the_first_model_is_found_where_none_is_named() -> None:
    with scripted(well) as server:
        assert serving.first_model(server.url) == "first"


def test_our_own_server_says_why_it_cannot_start(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason='the extra "server" of bitnet-inference is not installed')
    with pytest.raises(EngineFailed, match="nothing"):
        serving.measure(Setting("server", str(tmp_path / "nothing"), 1), SHORT)
    with pytest.raises(ServerRefused, match="context of"):
        serving.measure(Setting("server", STORIES, 1), replace(SHORT, prompt=600))


@pytest.mark.parametrize(
    "changes",
    [
        {"clients": ()},
        {"clients": (0,)},
        {"clients": (1, 5000)},
        {"rates": (0.0,)},
        {"rates": (float("nan"),)},
        {"prompt": 0},
        {"tokens": 0},
        {"rounds": 0},
        {"shared": 24},
        {"shared": -1},
        {"requests": 0},
        {"seconds": float("inf")},
        {"first_limit": 0.0},
        {"token_limit": float("nan")},
        {"timeout": 0},
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(SHORT, **changes)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "ftp://host/v1",
        "http://",
        "http://host:99999/",
        "http://host/a b",
        "http://u:p@host/",
        "http://host/v1\r\nX: y",
        "http://host/?q",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected one such as http"):
        serving.measure(Remote(url=url, model="m"), SHORT)


def test_addresses_are_read() -> None:
    assert Address.parse("https://[::1]/v1/", "k") == Address(True, "::1", 443, "/v1", "k")
    assert ("Host", "[::1]") in Address.parse("https://[::1]/v1/").headers(None)
    assert Address.parse("http://host:81").headers(2)[0] == ("Host", "host:81")
    with pytest.raises(ValueError, match="key"):
        Address.parse("http://host", "a\r\nb")


def test_a_suite_may_ask_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(serving.KEY, "of the environment")
    with scripted(well) as server:
        (tmp_path / "suite.toml").write_text(
            f'[[serve]]\nurl = "{server.url}"\nmodel = "m"\nrates = [500, 250.5]\nprompt = 16\ntokens = 2\n'
            "requests = 2\nrounds = 1\n"
        )
        (made,) = suites.run(suites.load(tmp_path / "suite.toml"))
    assert made.kind == "serve"
    assert made.model == {"name": "m", "url": server.url}
    assert [figure["rate"] for figure in made.figures] == [500, 250.5]
    assert server.asked[0]["key"] == "Bearer of the environment"
    assert "of the environment" not in made.json()


def test_servers_that_differ_are_said_to() -> None:
    with scripted(well) as one, scripted(well) as other:
        records = [
            record.make("serve", load(server), model={"name": "m", "url": server.url}) for server in (one, other)
        ]
    assert any("the servers differ" in note for note in compare.compare(*records).notes)


def test_our_own_server_that_dies_before_it_is_measured_says_how() -> None:
    pytest.importorskip("uvicorn", reason='the extra "server" of bitnet-inference is not installed')
    with Worker(Setting("server", STORIES, 1)) as own:
        own.start()
        where = own.ask("where")
        server = Remote(url=where["url"], model=where["model"])
        own._process.kill()
        with (
            serving._client(server) as asking,
            pytest.raises(EngineFailed, match="server: its process ended: status -9"),
        ):
            serving._Bench(asking, own, server, SHORT).prepare()

"""Load on a server: how much it answers to several clients at once, and how long each of them waits.

The client is a process of its own. With `clients`, each sends its next request when its last one is answered (a
closed loop); with `rates`, requests come at random times, whether those before are answered or not (an open loop).
Prompts differ from each other and from those of earlier runs, so that a server remembers none but their shared part;
sampling is greedy, and answers have `tokens` tokens wherever the server can be asked to ignore the model's own end.

What is counted: only answers that came to their end count in any speed or time; the others are counted by what ended
them. A time begins when the request is sent, or with a rate when it should have been, and has the making of a
connection in it where one must be made. Percentiles are of all answers of all rounds together, never means of means.
"""

from __future__ import annotations

import secrets
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from bitnet_core import BitNetError, device

from .engines.connection import Address
from .workers import Setting, Worker

KEY = "BITNET_BENCH_SERVE_API_KEY"  # the variable that the key of a server is in
_PATIENCE_S = 30.0  # for a list of models
_FEW, _MANY = 8, 72  # words of two prompts that tell how many tokens a word has
_FIELDS: tuple[Mapping[str, Any], ...] = (  # the first that the server takes
    {"ignore_eos": True, "stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True}},
    {},
)
Told = Callable[[int, int, str], None]


class ServerFailed(BitNetError):
    """A server is not there, went away, or answered nothing."""


class ServerRefused(ServerFailed, ValueError):
    """A server does not take what it is asked: another model, key or length would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked of a server."""

    clients: tuple[int, ...] = (1, 4, 16)
    rates: tuple[float, ...] = ()  # requests a second
    prompt: int = 128
    tokens: int = 64
    shared: int = 0  # tokens of the prompt that are the same in all
    requests: int | None = None  # of a round; by default 4 for each client, and 32 with a rate
    seconds: float | None = None  # of a round, after which no request is sent any more
    rounds: int = 5
    seed: int = 0
    first_limit: float | None = None  # seconds to the first token that an answer within limits may take
    token_limit: float | None = None  # seconds for each token behind it
    timeout: float = 300.0  # seconds after which a request is given up
    chat: bool = False  # conversations instead of texts to continue

    def __post_init__(self) -> None:
        least = {"prompt": self.prompt, "tokens": self.tokens, "rounds": self.rounds, "timeout": self.timeout}
        for name, value in least.items():
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        if not (self.clients or self.rates) or any(not 1 <= count <= 4096 for count in self.clients):
            raise ValueError(f"clients: expected numbers within 1..4096, got {self.clients or 'none'}")
        if any(not 0 < rate <= 10_000 for rate in self.rates):
            raise ValueError(f"rates: expected numbers above 0 and up to 10000, got {self.rates}")
        if not 0 <= self.shared < self.prompt:
            raise ValueError(f"shared: expected fewer tokens than the prompt's {self.prompt}, got {self.shared}")
        for name, limit in (("requests", self.requests), ("seconds", self.seconds)):
            if limit is not None and not 0 < limit <= 10_000_000:
                raise ValueError(f"{name}: expected more than 0, got {limit}")
        for name, limit in (("first_limit", self.first_limit), ("token_limit", self.token_limit)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}: expected seconds above 0, got {limit}")

    def loads(self) -> list[_Load]:
        """Every load, in the order of its figures."""
        every = [*(_Load(clients=count) for count in self.clients), *(_Load(rate=rate) for rate in self.rates)]
        return list(dict.fromkeys(every))


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A server that is there, and speaks as OpenAI's does."""

    url: str  # with the /v1 at its end
    model: str
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What was measured under one load; the runs are of rounds, all else as it says."""

    engine: str
    clients: int | None  # at once; None with a rate
    rate: float | None  # requests a second that were sent
    output_tokens_per_s: (
        float  # median of rounds: tokens of the answers over the seconds until the last request had ended
    )
    times_one_client: float | None  # median of rounds: the same in units of that of one client in that round
    requests_per_s: float  # median of rounds: answers over the same seconds
    goodput_per_s: float | None  # the same for answers within the limits
    first_p50_s: float  # to the first piece
    first_p90_s: float
    first_p99_s: float
    between_p50_s: float | None  # from a piece to the next of its answer; each gap counts alike
    between_p99_s: float | None
    whole_p50_s: float  # to the end of the stream
    whole_p99_s: float
    prompt: int
    tokens: int
    shared: int
    requests: int  # that were sent, in all rounds
    failed: int
    failures: Mapping[str, int]  # how many by HTTP status, or connection, timeout, stream (an error in it), cut
    prompt_tokens: float | None  # median of what the server counted; None where it does not
    output_tokens: int  # of all answers
    counted: str  # by whom: "server", "pieces" where the server does not tell, or "both"
    tokens_per_piece: float  # of the stream; between pieces is between tokens where it is 1
    output_runs: tuple[float, ...]  # seconds of a round for each token of its answers
    first_runs: tuple[float, ...]  # medians of each round
    between_runs: tuple[float, ...]
    whole_runs: tuple[float, ...]
    load_s: float | None  # of our own server: to load the model, its peak, and the bandwidth between the rounds
    peak_bytes: int | None
    bandwidth: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    clients: int = 0
    rate: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.rate:g} requests/s" if self.rate else f"{self.clients} client{'s' if self.clients > 1 else ''}"

    def requests(self, plan: Plan) -> int | None:
        """Of a round; None where only the time limits them."""
        if plan.requests is not None or plan.seconds is not None:
            return plan.requests
        return 32 if self.rate else 4 * self.clients


@dataclass(slots=True)
class _Round:
    """The answers of one round, as the client tells of them."""

    every: list[dict[str, Any]]

    @property
    def good(self) -> list[dict[str, Any]]:
        return [answer for answer in self.every if answer["status"] == "ok"]

    @property
    def seconds(self) -> float:
        return max(float(answer["end"]) for answer in self.every)

    @property
    def tokens(self) -> int:
        return sum(_tokens(answer) for answer in self.good)


def measure(server: Setting | Remote, plan: Plan, *, progress: Told | None = None) -> list[Figure]:
    """Every load of the plan on a server, ours (a Setting of kind "server") or one that is there, in turns."""
    with ExitStack() as stack:
        own = None
        if isinstance(server, Setting):
            own = stack.enter_context(Worker(server))
            own.start()
            where = own.ask("where")
            server = Remote(url=where["url"], model=where["model"])
        client = stack.enter_context(_client(server))
        bench = _Bench(client, own, server, plan)
        bench.prepare()
        loads = plan.loads()
        rounds: dict[_Load, list[_Round]] = {load: [] for load in loads}
        bandwidth = []
        for number in range(plan.rounds):
            for load in loads:
                rounds[load].append(bench.run(load, f"{plan.seed} {number} {load.name}", load.requests(plan)))
                if progress:
                    progress(sum(map(len, rounds.values())), len(loads) * plan.rounds, load.name)
            if own is not None:
                bandwidth.append(device.bandwidth(256 << 20, own.setting.threads, 2).highest)
        about: dict[str, Any] = {"load_s": None, "peak_bytes": None, "bandwidth": None}
        if own is not None:
            about = {"load_s": own.load["load_s"], "bandwidth": statistics.median(bandwidth), **own.ask("peak")}
        one = rounds.get(_Load(clients=1))
        return [_figure(load, plan, found, one, about) for load, found in rounds.items()]


def first_model(url: str, key: str | None = None) -> str:
    """The first model that a server lists."""
    server = Remote(url=url, model="", key=key)
    with _client(server) as client:
        found = client.ask("models", url=url, key=key, chat=False, fields={}, timeout=_PATIENCE_S)
    if "failed" in found:
        _check(url, {"status": found["status"], "message": found["failed"]})
    if not found["models"]:
        raise ServerRefused(f"{url}: lists no model; name one")
    return str(found["models"][0])


def _client(server: Remote) -> Worker:
    Address.parse(server.url, server.key)  # what is wrong is said before anything is started
    return Worker(Setting("client", server.url, 1, label="client"))


class _Bench:
    """A client, and what it has found out about the server."""

    def __init__(self, client: Worker, own: Worker | None, server: Remote, plan: Plan) -> None:
        self._client, self._own, self._server, self._plan = client, own, server, plan
        self._fields: dict[str, Any] = {}
        self._words = self._shared = 0
        self._salt = secrets.token_hex(4)  # a server may remember the prompts of an earlier run

    def prepare(self) -> None:
        """Find out the fields that the server takes and the length of words; warm up, which is not counted."""
        for more in _FIELDS:
            self._fields = {"model": self._server.model, "temperature": 0, **more}
            few = self._once(_FEW, 2)
            if few["status"] not in ("400", "422"):
                break
        _check(self._server.url, few)
        many = self._once(_MANY, 2) if self._plan.prompt > _FEW else few
        each = 1.0
        if few["prompt_tokens"] and many["prompt_tokens"] and many is not few:
            each = max(0.25, (many["prompt_tokens"] - few["prompt_tokens"]) / (_MANY - _FEW))
        self._words = max(1, _FEW + round((self._plan.prompt - (few["prompt_tokens"] or _FEW)) / each))
        self._shared = min(self._words - 1, round(self._plan.shared / each))
        _check(self._server.url, self._once(self._words, self._plan.tokens))
        for load in self._plan.loads():
            self.run(load, f"warm {load.name}", min(load.requests(self._plan) or 4, load.clients or 4))

    def run(self, load: _Load, seed: str, requests: int | None) -> _Round:
        """A round of a load."""
        plan = self._plan
        job = {"requests": requests, "seconds": plan.seconds, "rate": load.rate, "clients": load.clients, "seed": seed}
        found = self._ask("load", words=self._words, shared=self._shared, tokens=plan.tokens, **job)
        made = _Round(found["answers"])
        lost = [answer for answer in made.every if answer["status"] == "connection"]
        if found["gone"] or (lost and self._ask("models").get("status") == "connection"):
            self._look_at_own()
            said = f"{len(made.good)} of {len(made.every)} requests were answered before it went away"
            raise ServerFailed(f"{self._server.url}: {lost[-1]['message'] if lost else 'gone'}; {said}")
        return made

    def _once(self, words: int, tokens: int) -> dict[str, Any]:
        job = {"requests": 1, "seconds": None, "rate": 0.0, "clients": 1, "seed": f"once {words}", "shared": 0}
        answer: dict[str, Any] = self._ask("load", words=words, tokens=tokens, **job)["answers"][0]
        if answer["status"] == "connection":
            self._look_at_own()
        return answer

    def _look_at_own(self) -> None:
        """Raise where our own server's process has ended, which says more than a connection that broke."""
        if self._own is not None:
            self._own.ask("peak")

    def _ask(self, what: str, **job: Any) -> dict[str, Any]:
        told = {"chat": self._plan.chat, "fields": self._fields, "timeout": self._plan.timeout, "salt": self._salt}
        return self._client.ask(what, url=self._server.url, key=self._server.key, **told, **job)


def _check(url: str, answer: Mapping[str, Any]) -> None:
    """Raise if a request failed, which is said in one line."""
    status = answer["status"]
    if status == "ok":
        return
    if not status.isdecimal():
        raise ServerFailed(f"{url}: {answer['message']}")
    said = f"{url}: the server answers {status}: {answer['message'] or 'without a word'}"
    if status == "404":
        said += "; is the model called so, and does the address end in /v1?"
    if status in ("401", "403"):
        said += "; is the key right?"
    raise (ServerRefused if status.startswith("4") and status not in ("408", "429") else ServerFailed)(said)


def _figure(
    load: _Load, plan: Plan, rounds: Sequence[_Round], one: Sequence[_Round] | None, about: Mapping[str, Any]
) -> Figure:
    every, good = [a for r in rounds for a in r.every], [a for r in rounds for a in r.good]
    failures = Counter(answer["status"] for answer in every if answer["status"] != "ok")
    if not any(answer["pieces"] for answer in good):
        said = ", ".join(f"{status} {count} times" for status, count in failures.items()) or "answers without a text"
        raise ServerFailed(f"{load.name}: all of {len(every)} requests failed: {said}")
    speeds = [found.tokens / found.seconds for found in rounds]
    firsts, wholes = list(_firsts(good)), list(_wholes(good))
    gaps = list(_gaps(good))
    pieces = sum(len(answer["pieces"]) for answer in good)
    told = {answer["tokens"] is not None for answer in good}
    read = [answer["prompt_tokens"] for answer in good if answer["prompt_tokens"] is not None]
    limits = plan.first_limit is not None or plan.token_limit is not None
    ratios = [speed / (base.tokens / base.seconds) for speed, base in zip(speeds, one or (), strict=False) if base.good]
    return Figure(
        engine="server",
        clients=load.clients or None,
        rate=load.rate or None,
        prompt=plan.prompt,
        tokens=plan.tokens,
        shared=plan.shared,
        requests=len(every),
        failed=failures.total(),
        failures=dict(failures),
        prompt_tokens=statistics.median(read) if read else None,
        output_tokens=sum(found.tokens for found in rounds),
        counted="both" if len(told) == 2 else "server" if told == {True} else "pieces",
        tokens_per_piece=sum(found.tokens for found in rounds) / pieces,
        output_tokens_per_s=statistics.median(speeds),
        times_one_client=statistics.median(ratios) if ratios and load.clients else None,
        requests_per_s=statistics.median(len(found.good) / found.seconds for found in rounds),
        goodput_per_s=_goodput(plan, rounds) if limits else None,
        first_p50_s=_percentile(firsts, 50),
        first_p90_s=_percentile(firsts, 90),
        first_p99_s=_percentile(firsts, 99),
        between_p50_s=_percentile(gaps, 50) if gaps else None,
        between_p99_s=_percentile(gaps, 99) if gaps else None,
        whole_p50_s=_percentile(wholes, 50),
        whole_p99_s=_percentile(wholes, 99),
        output_runs=tuple(found.seconds / found.tokens for found in rounds if found.tokens),
        first_runs=_medians(rounds, _firsts),
        between_runs=_medians(rounds, _gaps),
        whole_runs=_medians(rounds, _wholes),
        **about,
    )


def _tokens(answer: Mapping[str, Any]) -> int:
    """What the server counted; each piece as one where it does not tell."""
    return len(answer["pieces"]) if answer["tokens"] is None else int(answer["tokens"])


def _firsts(answers: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    return (answer["pieces"][0] - answer["due"] for answer in answers if answer["pieces"])


def _wholes(answers: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    return (answer["end"] - answer["due"] for answer in answers)


def _gaps(answers: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    return (later - earlier for answer in answers for earlier, later in pairwise(answer["pieces"]))


def _goodput(plan: Plan, rounds: Sequence[_Round]) -> float:
    return statistics.median(sum(_within(plan, answer) for answer in found.good) / found.seconds for found in rounds)


def _within(plan: Plan, answer: Mapping[str, Any]) -> bool:
    """Whether an answer keeps to the limits; the second is held to the mean of its own tokens behind the first."""
    pieces = answer["pieces"]
    if not pieces:
        return False
    each = (pieces[-1] - pieces[0]) / max(1, _tokens(answer) - 1)
    return (plan.first_limit is None or pieces[0] - answer["due"] <= plan.first_limit) and (
        plan.token_limit is None or each <= plan.token_limit
    )


def _medians(
    rounds: Sequence[_Round], times: Callable[[Sequence[Mapping[str, Any]]], Iterator[float]]
) -> tuple[float, ...]:
    found = [list(times(one.good)) for one in rounds]
    return tuple(statistics.median(values) for values in found if values)


def _percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share))

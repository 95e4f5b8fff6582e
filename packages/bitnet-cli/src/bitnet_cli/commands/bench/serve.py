"""`bitnet bench serve`: load on a server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter, Token, validators

from ... import models
from ...amounts import Count, Counts, Threads
from ...console import FLAGS, Flags, table
from ...failures import Refused
from .kept import KEEPING, Keeping

if TYPE_CHECKING:
    from bitnet_benchmarks.serving import Figure, Plan
    from bitnet_benchmarks.workers import Setting


def _convert_rates(_: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    found = tuple(float(part) for token in tokens for part in token.value.split(",") if part)
    if not found or not all(0 < rate <= 10_000 for rate in found):
        raise ValueError(f"expected numbers above 0 and up to 10000, got '{tokens[0].value}'")
    return found


def _convert_numbers(_: Any, tokens: Sequence[Token]) -> float:
    found = float(tokens[0].value)
    if not (math.isfinite(found) and 0 < found <= 1e6):
        raise ValueError(f"expected seconds above 0 and up to 1000000, got '{tokens[0].value}'")
    return found


_LOAD, _OWN = Group("What is asked", sort_key=30), Group("Our own server", sort_key=40)
Rates = Annotated[tuple[float, ...], Parameter(converter=_convert_rates, metavar="N,N...", n_tokens=1)]
Seconds = Annotated[float, Parameter(converter=_convert_numbers, metavar="SECONDS")]
Shared = Annotated[int, Parameter(validator=validators.Number(gte=0, lte=1 << 24), metavar="N")]


@Parameter(name="*", group=_LOAD)
@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of the server."""

    clients: Annotated[Counts | None, Parameter(name=["--clients", "-c"])] = None
    """How many ask at once, each again when it is answered; 1,4,16 by default."""
    rate: Rates = ()
    """Requests a second instead, as 2,5, at random times, whether those before are answered or not."""
    prompt: Annotated[Count, Parameter(name=["--prompt", "-p"])] = 128
    """Tokens of each prompt."""
    tokens: Annotated[Count, Parameter(name=["--tokens", "-n"])] = 64
    """Tokens of each answer, where the server can ignore the model's own end."""
    shared: Shared = 0
    """Tokens of the prompt that are the same in all."""
    requests: Count | None = None
    """How many a round has; 4 for each client by default, and 32 with --rate."""
    seconds: Seconds | None = None
    """How long a round sends requests."""
    rounds: Annotated[Count, Parameter(name=["--rounds", "-r"])] = 5
    """How often everything is repeated, in turns; 5 and more can be compared."""
    seed: Annotated[int, Parameter(validator=validators.Number(gte=0), metavar="N")] = 0
    """Of the words, and of the times with --rate."""
    ttft_limit: Seconds | None = None
    """Time to the first token within which an answer is good; the goodput counts good ones."""
    token_limit: Seconds | None = None
    """Time for each token behind the first within which an answer is good."""
    timeout: Seconds = 300.0
    """Time after which a request is given up."""
    chat: bool = False
    """Send conversations instead of texts to continue."""

    def plan(self) -> Plan:
        """As the library takes it."""
        if self.clients is not None and self.rate:
            raise Refused("--clients and --rate: expected one of them, got both")
        clients = () if self.rate else (1, 4, 16) if self.clients is None else self.clients
        if max(clients, default=1) > 4096 or self.rounds > 1000:
            raise Refused("expected at most 4096 clients and 1000 rounds")
        if self.shared >= self.prompt:
            raise Refused(f"--shared: expected fewer tokens than the prompt's {self.prompt}, got {self.shared}")
        from bitnet_benchmarks.serving import Plan  # noqa: PLC0415

        return Plan(
            clients=clients,
            rates=self.rate,
            prompt=self.prompt,
            tokens=self.tokens,
            shared=self.shared,
            requests=self.requests,
            seconds=self.seconds,
            rounds=self.rounds,
            seed=self.seed,
            first_limit=self.ttft_limit,
            token_limit=self.token_limit,
            timeout=self.timeout,
            chat=self.chat,
        )


@Parameter(name="*", group=_OWN)
@dataclass(frozen=True, kw_only=True)
class Own:
    """How our own server runs the model."""

    threads: Annotated[Threads | None, Parameter(name=["--threads", "-t"])] = None
    """How many threads; all that may be used by default."""
    backend: str = "auto"
    """What runs the model."""
    sequences: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=4096))] = 32
    """How many requests run at once; more wait."""

    def setting(self, model: str | None, flags: Flags) -> Setting:
        """The server of a model, of the built-in one where there is none."""
        models.backend(self.backend)
        from bitnet_benchmarks.workers import Setting  # noqa: PLC0415
        from bitnet_core import device  # noqa: PLC0415
        from bitnet_inference.llm import BUILT_IN  # noqa: PLC0415

        path: Path = BUILT_IN if model is None else models.find(model, flags)
        options = (("backend", self.backend), ("max_sequences", self.sequences))
        return Setting("server", str(path), self.threads or device.cpu().usable_cores, options)


_MODEL = (
    "A folder, a GGUF file or a name on the hub, by default the built-in model; with --url, what that server calls it."
)


def serve(
    model: Annotated[str | None, Parameter(help=_MODEL)] = None,
    *,
    url: str | None = None,
    api_key: Annotated[str | None, Parameter(show_default=False)] = None,
    load: Load = Load(),
    own: Own = Own(),
    keeping: Keeping = KEEPING,
    flags: Flags = FLAGS,
) -> None:
    """Load on a server: tokens a second, and how long clients wait for the first, the next and the last of them.

    Without --url it starts our own server with the model, and stops it in the end. Only answers that came to their end
    count in speeds and times; those that failed are counted by what ended them.

    Parameters
    ----------
    url
        A server that is there and speaks as OpenAI's does, as http://127.0.0.1:8000/v1: vLLM, llama-server, Ollama.
    api_key
        The key to show it; better said by BITNET_BENCH_SERVE_API_KEY.
    """
    keeping.check()
    plan = load.plan()
    if url is not None and own != Own():
        raise Refused("--threads, --backend and --sequences are of our own server, and --url names another")
    from bitnet_benchmarks import record, serving  # noqa: PLC0415

    about: dict[str, Any]
    if url is not None:
        if flags.offline and not _is_here(url):
            raise Refused(f"--url: {url} is on another machine, and the network is off")
        name = model or serving.first_model(url, api_key)
        server: Any = serving.Remote(url=url, model=name, key=api_key)
        about = {"model": {"name": name, "url": url}}
    else:
        server = own.setting(model, flags)
        about = {"model": server.path, "backend": own.backend, "threads": server.threads, "sequences": own.sequences}
    with flags.progress("serving") as tell:
        figures = serving.measure(server, plan, progress=tell)
    made = record.make("serve", figures, **about, plan=plan)
    keeping.keep(made, flags)
    _remark(figures, flags)
    flags.answer(made.figures, _table(figures))


def _is_here(url: str) -> bool:
    from urllib.parse import urlsplit  # noqa: PLC0415

    return urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")


def _remark(figures: Sequence[Figure], flags: Flags) -> None:
    """What a reader would not expect of the figures."""
    first = figures[0]
    if first.counted != "server":
        flags.remark("the server does not count tokens: each piece of a stream counts as one, each word of a prompt")
    elif first.prompt_tokens is not None and abs(first.prompt_tokens - first.prompt) > first.prompt / 50:
        flags.remark(f"prompts have {first.prompt_tokens:g} tokens: words make no nearer number")
    made = sum(one.output_tokens for one in figures) / max(1, sum(one.requests - one.failed for one in figures))
    if made < first.tokens * 0.98:
        flags.remark(f"answers have {made:.1f} tokens: the server heeds the model's own end")


def _table(figures: Sequence[Figure]) -> Any:
    from bitnet_benchmarks.panels import label  # noqa: PLC0415

    extra = ["good/s"] if figures[0].goodput_per_s is not None else []
    names = ["load", "tokens/s", "spread", "times one", "answers/s", *extra]
    names += ["first ms", "p90", "p99", "next ms", "p99", "whole ms", "p99", "failed"]
    shown = table(*names, numbers=tuple(range(1, len(names) - 1)))
    for one in figures:
        rates = [1 / seconds for seconds in one.output_runs]
        times = (one.first_p50_s, one.first_p90_s, one.first_p99_s, one.between_p50_s, one.between_p99_s)
        shown.add_row(
            label({"clients": one.clients, "rate": one.rate}),
            _short(one.output_tokens_per_s),
            _dim(f"{_short(min(rates))}-{_short(max(rates))}"),
            "" if one.times_one_client is None else f"{one.times_one_client:.2f}",
            _short(one.requests_per_s),
            *(_short(one.goodput_per_s or 0.0) for _ in extra),
            *(_milliseconds(seconds) for seconds in (*times, one.whole_p50_s, one.whole_p99_s)),
            _failed(one),
        )
    shown.caption = (
        "rates: medians of the rounds; times: median, 90th and 99th percentile of all answers, from the request to the "
        "first piece, from piece to piece, and to the end"
    )
    shown.caption_justify = "left"
    return shown


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:,.0f}" if seconds >= 0.0995 else f"{seconds * 1e3:.1f}"


def _dim(text: str) -> Any:
    from rich.text import Text  # noqa: PLC0415

    return Text(text, style="dim")


def _failed(one: Figure) -> Any:
    """How many of how many, and of what."""
    from rich.text import Text  # noqa: PLC0415

    said = ", ".join(f"{status} {count}" for status, count in one.failures.items())
    return Text(f"{one.failed} of {one.requests}: {said}", style="red") if one.failed else Text("0", style="dim")

"""What an operator may do about what a server's log shows, each with the figure it stands on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .amounts import duration
from .failures import shown
from .traffic import Tally, Traffic

_FEW = 5  # what happens more seldom is no pattern


@dataclass(frozen=True, slots=True)
class Advice:
    """What was seen, in figures, and what helps."""

    about: str
    seen: str
    advice: str


def advise(traffic: Traffic) -> list[Advice]:
    """All that is worth doing, the most pressing first."""
    return [one for rule in _RULES for one in rule(traffic)]


def _crashes(traffic: Traffic) -> Iterator[Advice]:
    if traffic.crashes:
        seen = f"{traffic.crashes} of {traffic.starts} starts came after an end without a word"
        yield Advice(
            "crashes", seen, "look whether the system killed it for its memory; --memory bounds what models take"
        )


def _errors(traffic: Traffic) -> Iterator[Advice]:
    worst = [fault for fault in traffic.faults if fault.level != "warning"]
    if worst:
        one, count = worst[0], sum(fault.count for fault in worst)
        place = f" at {shown(one.at, 80)}" if one.at else ""
        seen = f"{_times(count, 'error')}; most often {shown(one.error or one.message, 80)}{place}"
        yield Advice("errors", seen, f"{one.line} is the first; a fault of the server itself is worth a report")


def _queue(traffic: Traffic) -> Iterator[Advice]:
    turned = traffic.all.codes["overloaded"] + traffic.turned_away["requests"]
    asked = traffic.all.requests + traffic.turned_away["requests"]
    waited = traffic.all.queue_s.at(0.95)
    if turned >= _FEW and turned >= 0.01 * asked:
        seen = f"{turned:,} of {asked:,} requests ({turned / asked:.1%}) were refused because the queue was full"
        yield Advice("queue", seen, "add a replica; --queue lets more wait where bursts are short")
    elif waited is not None and traffic.all.queue_s.count >= 20 and waited >= 0.5:
        seen = f"one request in twenty waited {duration(waited)} and more for a place"
        yield Advice("queue", seen, "raise --sequences while memory lasts, or add a replica")


def _first_token(traffic: Traffic) -> Iterator[Advice]:
    times = traffic.all.first_token_s
    usual, late = times.at(0.5), times.at(0.99)
    if usual is None or late is None or times.count < 20 or late < 1 or late < 5 * usual:
        return
    waited, cached = traffic.all.queue_s.at(0.99) or 0.0, _share(traffic.all.cached_tokens, traffic.all.prompt_tokens)
    middle, longest = traffic.all.prompts.at(0.5) or 0.0, traffic.all.prompts.at(0.99) or 0.0
    seen = f"the first token takes {duration(usual)} at p50 and {duration(late)} at p99"
    if waited > late / 2:
        yield Advice(
            "first token", f"{seen}, {duration(waited)} of it in the queue", "add a replica, or raise --sequences"
        )
    elif longest >= 3 * max(middle, 1):
        seen += (
            f"; prompts have {middle:,.0f} tokens at p50 and {longest:,.0f} at p99, {cached:.0%} came from the cache"
        )
        help_ = "shorten what is sent, and begin prompts with what they share: the prefix cache then has it"
        yield Advice("first token", seen, help_)
    else:
        yield Advice(
            "first token", seen, "prompts are of one length: look at what else the machine did (bitnet doctor)"
        )


def _wrong_keys(traffic: Traffic) -> Iterator[Advice]:
    refused = {name: tally.codes["invalid_api_key"] for name, tally in traffic.by["address"].items()}
    unnamed, named = traffic.turned_away["wrong keys"], sum(refused.values())
    if named + unnamed < 20:
        return
    seen = f"{_times(named + unnamed, 'request')} showed a wrong key"
    name, count = max(refused.items(), key=lambda item: item[1], default=("", 0))
    if count >= named / 2 and count:
        seen += f", {count:,} of those written down from {shown(name, 60)}"
    advice = "if that is a client of yours, its key is mistyped, revoked or expired (bitnet keys list); else block it"
    yield Advice("wrong keys", seen, advice)


def _limits(traffic: Traffic) -> Iterator[Advice]:
    for name, tally in traffic.by["key"].items():
        slowed, spent = tally.codes["rate_limit_exceeded"], tally.codes["insufficient_quota"]
        if slowed >= _FEW and slowed >= 0.05 * tally.requests:
            seen = f"{slowed:,} of {tally.requests:,} requests of the key {shown(name, 60)} came too fast"
            yield Advice(
                "limits", seen, "its limit is too low, or it should wait as Retry-After says (bitnet keys list)"
            )
        if spent >= _FEW:
            seen = f"{spent:,} of {tally.requests:,} requests of the key {shown(name, 60)} came with its budget spent"
            yield Advice("limits", seen, "a larger budget, or a client that stops asking (bitnet keys usage)")


def _clients_that_leave(traffic: Traffic) -> Iterator[Advice]:
    left = dict(traffic.by["status"].items()).get("499", Tally())
    if left.requests >= _FEW and left.requests >= 0.02 * traffic.all.requests:
        after = left.seconds.at(0.5) or 0.0
        seen = f"{left.requests:,} clients left before an answer began, half of them within {duration(after)}"
        yield Advice(
            "clients that leave", seen, "their time limit is shorter than the wait: raise it, or have them stream"
        )


def _refusals(traffic: Traffic) -> Iterator[Advice]:
    advice = {
        "context_length_exceeded": "prompts are longer than the context: raise --context, or cut them before",
        "model_not_found": "clients ask for a name that is not served: NAME=MODEL serves a model by any name",
        "request_too_large": "bodies are larger than the server takes: send less at once",
    }
    for code, said in advice.items():
        count = traffic.all.codes[code]
        if count >= _FEW and count >= 0.01 * traffic.all.requests:
            yield Advice("refusals", f"{count:,} of {traffic.all.requests:,} requests ended as {code}", said)


def _finishes(traffic: Traffic) -> Iterator[Advice]:
    texts = sum(traffic.finishes.values())
    cut, late = traffic.finishes["length"], traffic.finishes["deadline"]
    if texts >= 20 and cut >= 0.5 * texts:
        seen = f"{cut:,} of {texts:,} texts ({cut / texts:.0%}) ended at their limit of tokens"
        yield Advice("cut texts", seen, "clients may want a larger max_tokens, or a model that knows when to stop")
    if late >= _FEW and late >= 0.01 * texts:
        seen = f"{late:,} of {texts:,} texts ended at their deadline"
        yield Advice("deadlines", seen, "add a replica, or ask for fewer tokens")


def _unloads(traffic: Traffic) -> Iterator[Advice]:
    for name, count in traffic.unloads.most_common(3):
        an_hour = count / max(1.0, traffic.span / 3600)
        if count >= _FEW and an_hour >= 4:
            seen = f"the model {shown(name, 60)} was unloaded {count} times, {an_hour:.0f} times an hour"
            yield Advice("models", seen, "each time it is read again: raise --memory or --idle, or serve fewer models")


def _cache(traffic: Traffic) -> Iterator[Advice]:
    tally, share = traffic.all, _share(traffic.all.cached_tokens, traffic.all.prompt_tokens)
    asked, middle = tally.prompts.count, tally.prompts.at(0.5) or 0.0
    if asked >= 50 and middle >= 256 and share < 0.05:
        seen = f"{share:.1%} of {tally.prompt_tokens:,} prompt tokens came from the cache, at {middle:,.0f} a prompt"
        yield Advice("cache", seen, "begin prompts with what they share, and put what differs (dates, ids) last")


def _lost(traffic: Traffic) -> Iterator[Advice]:
    if traffic.lost:
        yield Advice(
            "log",
            f"{_times(traffic.lost, 'line')} of the log were lost",
            "let --log FILE write it: stderr was read too slowly",
        )
    if traffic.turned_away["connections"]:
        seen = f"{_times(traffic.turned_away['connections'], 'connection')} were refused"
        yield Advice("connections", seen, "a proxy in front that keeps connections, or a replica")


_RULES: tuple[Callable[[Traffic], Iterator[Advice]], ...] = (
    _crashes, _errors, _queue, _first_token, _wrong_keys, _limits, _clients_that_leave, _refusals, _finishes, _unloads,
    _cache, _lost,
)  # fmt: skip


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _times(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"

"""Many clients of one server on this machine: how long a token takes from the runner to them, and what is left behind.

    python benchmarks/streams.py --clients 1000              # a runner that only keeps time: what the server costs
    python benchmarks/streams.py --shape 2b4t --tokenizer DIR  # 16 clients beside one, on a model of that shape

The server is a process of its own. Of the 1,000 clients a tenth leaves in the middle, and a tenth reads 1 KB a second.
A relay is measured from the moment that the runner gave the step's logits, sampling for all of its clients included, to
the moment that a client has read the token. The clients share `--batches` engines whose steps are out of phase: with
one, all of them are sent something at the same moment, and the last of them waits for all others.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil

from bitnet_core import backends
from bitnet_core.formats import load
from bitnet_core.model import Backend, CacheStats
from bitnet_core.testing import SHAPES, random_model
from bitnet_core.tokenizer import Tokenizer
from bitnet_inference import LLM
from bitnet_inference.llm import BUILT_IN
from bitnet_inference.server import Models, make_app, make_server

PATH = "/v1/completions"


class NoCache:
    """A cache that only counts."""

    def __init__(self, length: int = 0) -> None:
        self.length = length

    def fork(self, length: int | None = None) -> NoCache:
        return NoCache(self.length if length is None else length)

    def truncate(self, length: int) -> None:
        self.length = length

    def content(self) -> np.ndarray:
        return np.empty(0, np.uint8)

    def close(self) -> None:
        pass


class Metronome:
    """A runner that gives every sequence the same next token, so many times a second."""

    def __init__(self, model: Any, rate: float) -> None:
        self.spec = model.spec
        self.layout = "none"
        self.words = words(model.tokenizer)
        self.times: list[float] = []  # of each step, when its logits were there
        self._rate = rate
        self._next = time.monotonic()

    def new_cache(self) -> NoCache:
        return NoCache()

    restore = None

    def cache_stats(self) -> CacheStats:
        return CacheStats(used=0, free=0, positions=256, page_bytes=64, slab=1)

    def trim(self) -> None:
        pass

    def close(self) -> None:
        pass

    def forward(self, steps: list[Any]) -> list[np.ndarray]:
        for step in steps:
            step.cache.length += len(step.tokens)
        logits = np.zeros(self.spec.vocab_size, np.float32)
        logits[self.words[len(self.times) % len(self.words)][0]] = 50.0
        self._next = max(self._next + 1 / self._rate, time.monotonic())
        time.sleep(max(0.0, self._next - time.monotonic()))
        self.times.append(time.monotonic())
        return [logits.copy() for _ in steps]


def words(tokenizer: Tokenizer) -> list[tuple[int, str]]:
    """Tokens that are words of plain letters, each of which says which step it came from."""
    found = [(token, tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)]
    return [(token, data.decode()) for token, data in found if data[:1] == b" " and data[1:].isalpha()][:1000]


def serve(options: argparse.Namespace) -> None:
    """The other process: a server until its input ends, and then what it saw."""
    llms, runners = {}, []
    if options.shape:
        model = replace(random_model(SHAPES[options.shape]), tokenizer=Tokenizer.from_folder(options.tokenizer))
        llms["model-0"] = LLM(model, context=1024, max_sequences=16)
    for number in range(0 if options.shape else options.batches):

        def place(model: Any, **_: Any) -> Any:
            runners.append(Metronome(model, options.rate))
            return runners[-1]

        stub = Backend("metronome", place, lambda: None, 0)
        with patch.object(backends, "get", lambda _, stub=stub: stub):
            count = -(-options.clients // options.batches)
            llms[f"model-{number}"] = LLM(load(BUILT_IN), prefix_cache=False, max_sequences=count)
        time.sleep(1 / options.rate / options.batches)
    app = make_app(Models(llms))
    server = make_server(app, port=options.port, log_level="warning")
    stop_at_end(server)
    server.run()
    stats = [llm.engine.stats() for llm in llms.values()]
    left = {"works": len(app.state.works), "running": sum(one.running + one.waiting for one in stats)}
    print(json.dumps({"left": left, "times": [runner.times for runner in runners]}))
    sys.stdout.flush()
    os._exit(0)  # nobody reads the rest


def stop_at_end(server: Any) -> None:
    """Stop the server when the input ends."""

    def wait() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=wait, daemon=True).start()


async def client(
    options: argparse.Namespace, number: int, kind: str, found: list[tuple[int, str, float]], firsts: list[float]
) -> int:
    """One client: reads its stream, and notes each word with the time."""
    batch = number % options.batches
    body = {"model": f"model-{batch}", "prompt": "Once upon a time", "max_tokens": options.tokens, "ignore_eos": True}
    data = json.dumps({**body, "stream": True, "temperature": 0}).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    )
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", options.port, limit=1 << 12 if kind == "slow" else 1 << 16
    )
    began = time.monotonic()
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + data)
    count, leave = 0, 1 + number % (options.tokens - 1) if kind == "leaving" else None
    while line := await reader.readline():
        if b'"text":"' in line and b'"text":""' not in line:
            count += 1
            firsts += [time.monotonic() - began] if count == 1 else []
            if kind == "reading":
                found.append((batch, line.partition(b'"text":"')[2].partition(b'"')[0].decode(), time.monotonic()))
            if count == leave:
                break
            if kind == "slow":
                await asyncio.sleep(len(line) / 1000)
    writer.close()
    return count


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All clients, at a fixed rate of arrival."""
    found: list[tuple[int, str, float]] = []
    firsts: list[float] = []
    tasks = []
    began = time.monotonic()
    for number in range(options.clients):
        kind = {0: "leaving", 1: "slow"}.get(number % 10, "reading") if options.clients >= 100 else "reading"
        tasks.append(asyncio.create_task(client(options, number, kind, found, firsts)))
        await asyncio.sleep(options.arrival / options.clients)
    counts = await asyncio.gather(*tasks)
    return {"found": found, "firsts": firsts, "tokens": sum(counts), "seconds": time.monotonic() - began}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """A server, its clients, and what both saw."""
    names = ("clients", "rate", "port", "shape", "tokenizer", "batches")
    arguments = [f"--{name}={value}" for name in names if (value := getattr(options, name)) is not None]
    command = [sys.executable, __file__, "--serve", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        _wait(options.port)
        seen = psutil.Process(process.pid)
        before, cpu = seen.memory_info().rss, sum(seen.cpu_times()[:2])
        result = asyncio.run(measure(options))
        seen = psutil.Process(process.pid)
        result["rss"], result["cpu"] = seen.memory_info().rss - before, sum(seen.cpu_times()[:2]) - cpu
        output, _ = process.communicate(b"")
    return {**result, **json.loads(output)}


def _wait(port: int) -> None:
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/readyz")
            connection.getresponse().read()
        except OSError:
            time.sleep(0.1)
        else:
            return


def relays(result: dict[str, Any]) -> np.ndarray:
    """Milliseconds from a step to each reader of its word."""
    names = [word for _, word in words(load(BUILT_IN).tokenizer)]
    places = {name: place for place, name in enumerate(names)}
    each = [np.array(times) for times in result["times"]]
    found = []
    for batch, word, at in result["found"]:
        steps = each[batch]
        last = int(np.searchsorted(steps, at)) - 1  # the newest step that this word can be of
        place = places.get(word)
        if place is not None and last >= 0:
            step = last - (last - place) % len(names)
            found.append(1e3 * (at - steps[step]))
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=5.0, help="tokens a second for each client, of the stub")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--arrival", type=float, default=5.0, help="seconds in which the clients come")
    parser.add_argument("--batches", type=int, default=16, help="engines that the clients are spread over")
    parser.add_argument("--shape", choices=sorted(SHAPES))
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer of as many tokens as the shape has")
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
    elif options.shape:
        speeds = {}
        for count in (1, 16):
            options.clients, options.arrival, options.batches = count, 0.0, 1
            result = run(options)
            speeds[count] = result["tokens"] / result["seconds"]
            print(f"{count:5} clients: {speeds[count]:8.2f} tokens/s")
        print(
            json.dumps(
                {"shape": options.shape, "one": speeds[1], "sixteen": speeds[16], "times": speeds[16] / speeds[1]}
            )
        )
    else:
        result = run(options)
        relay, firsts = relays(result), np.array(result["firsts"]) * 1e3
        figures = {
            "clients": options.clients,
            "batches": options.batches,
            "tokens": result["tokens"],
            "relay_ms": {f"p{p}": round(float(np.percentile(relay, p)), 2) for p in (50, 99, 100)},
            "first_byte_ms": {f"p{p}": round(float(np.percentile(firsts, p)), 1) for p in (50, 99)},
            "cpu_us_per_token": round(1e6 * result["cpu"] / result["tokens"], 1),  # of the server, sampling included
            "rss_kb_per_client": round(result["rss"] / 1024 / options.clients, 1),
            "left": result["left"],
        }
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

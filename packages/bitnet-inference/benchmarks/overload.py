"""Ten times more requests than a server can answer: how many are answered well, and what refusing the others takes.

    python benchmarks/overload.py --seconds 10 --times 10
    python benchmarks/overload.py --keys 1000          # wrong keys, so many a second

The server is a process of its own with the built-in model; the clients are this process. They come at a rate of their
own, whether or not others were answered, each on a new connection or, with --keep, on one that stays open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import psutil

KEY = "correct horse battery staple"
SERVER = """
import sys
from bitnet_inference import LLM
from bitnet_inference.server import Models, serve
with LLM(threads=1) as llm:
    llm.engine.queue = 64
    serve(Models({"stories": llm}), port=int(sys.argv[1]), api_key=sys.argv[2], log_level="critical")
"""


def request(path: str, body: dict[str, Any], key: str, *, keep: bool) -> bytes:
    """A request as bytes."""
    data = json.dumps(body).encode()
    end = "" if keep else "Connection: close\r\n"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"{end}Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class Line(asyncio.Protocol):
    """A connection, for one request after another."""

    def __init__(self) -> None:
        self.open = True
        self._transport: Any = None
        self._answered: asyncio.Future[int] | None = None
        self._read = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, data: bytes) -> asyncio.Future[int]:
        self._answered = asyncio.get_running_loop().create_future()
        self._read = b""
        if self.open:
            self._transport.write(data)
        else:
            self._answered.set_result(0)
        return self._answered

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if end and length and len(body) >= int(length[1]):
            self.open = b"connection: close" not in head.lower()
            self._answer(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # as asyncio calls it
        self.open = False
        self._answer(0)

    def _answer(self, status: int) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(status)

    def close(self) -> None:
        self._transport.close()


class Clients:
    """Those who ask."""

    def __init__(self, port: int, data: bytes, *, keep: bool) -> None:
        self._port = port
        self._data = data
        self._keep = keep
        self._idle: list[Line] = []

    async def ask(self) -> int:
        """The status of one request; 0 where the connection ended before."""
        try:
            line = self._idle.pop() if self._idle else await self._connect()
        except OSError:
            return 0
        status = await line.ask(self._data)
        if self._keep and line.open:
            self._idle.append(line)
        else:
            line.close()
        return status

    async def _connect(self) -> Line:
        _, line = await asyncio.get_running_loop().create_connection(Line, "127.0.0.1", self._port)
        return line


async def closed(clients: Clients, count: int, seconds: float) -> float:
    """Requests a second of so many clients that ask again when they were answered."""
    end, done = time.perf_counter() + seconds, 0

    async def one() -> None:
        nonlocal done
        while time.perf_counter() < end:
            status = await clients.ask()
            done += status == 200

    await asyncio.gather(*(one() for _ in range(count)))
    return done / seconds


async def opened(clients: Clients, rate: float, seconds: float) -> tuple[dict[int, float], float]:
    """Answers a second by status, of clients that come at a rate; and the rate that was reached."""
    tasks, began = [], time.perf_counter()
    while (now := time.perf_counter() - began) < seconds:
        while len(tasks) < rate * now:
            tasks.append(asyncio.create_task(clients.ask()))
        await asyncio.sleep(0.002)
    came = len(tasks) / (time.perf_counter() - began)
    statuses = Counter(await asyncio.gather(*tasks))
    lasted = time.perf_counter() - began
    return {status: round(count / lasted, 1) for status, count in sorted(statuses.items())}, came


def taken(*processes: psutil.Process) -> list[float]:
    """Seconds of processors that they have taken, by themselves."""
    return [sum(process.cpu_times()[:2]) for process in processes]


async def overload(port: int, options: argparse.Namespace, server: psutil.Process) -> dict[str, Any]:
    """What is done of what can be done."""
    body = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 32, "ignore_eos": True}
    clients = Clients(port, request("/v1/completions", body, KEY, keep=options.keep), keep=options.keep)
    await closed(clients, 32, 1.0)
    [quiet] = taken(server)
    capacity = await closed(clients, 32, options.seconds / 2)
    before, started = taken(server, psutil.Process()), time.perf_counter()
    each = (before[0] - quiet) / (capacity * options.seconds / 2)
    answers, came = await opened(clients, options.times * capacity, options.seconds)
    lasted = time.perf_counter() - started
    cores = [(now - then) / lasted for now, then in zip(taken(server, psutil.Process()), before, strict=True)]
    began = time.perf_counter()
    status = await clients.ask()
    again = round(time.perf_counter() - began, 3)
    goodput = answers.get(200, 0.0)
    return {
        "capacity_per_s": round(capacity, 1),
        "came_per_s": round(came, 1),
        "goodput_per_s": goodput,
        "share": round(goodput / capacity, 2),
        "answers_per_s": answers,
        "lasted_s": round(lasted, 1),
        "cores": {"server": round(cores[0], 2), "clients": round(cores[1], 2)},
        "server_ms_per_good": {"alone": round(1e3 * each, 2), "overloaded": round(1e3 * cores[0] / goodput, 2)},
        "after": {"status": status, "seconds": again},
    }


async def keys(port: int, options: argparse.Namespace, server: psutil.Process) -> dict[str, Any]:
    """What wrong keys take of a core."""
    body = {"model": "stories", "prompt": "Once upon a time"}
    wrong = request("/v1/completions", body, "bn_" + "a" * 76, keep=options.keep)
    clients = Clients(port, wrong, keep=options.keep)
    await opened(clients, options.keys, 1.0)  # the first of them are looked at
    [before] = taken(server)
    answers, came = await opened(clients, options.keys, options.seconds)
    core = (taken(server)[0] - before) / options.seconds
    return {"came_per_s": round(came, 1), "answers_per_s": answers, "of_a_core": round(core, 3)}


async def measure(port: int, options: argparse.Namespace, server: psutil.Process) -> dict[str, Any]:
    """Wait for the server, and ask."""
    health = Clients(port, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", keep=False)
    while await health.ask() != 200:
        await asyncio.sleep(0.1)
    return await (keys(port, options, server) if options.keys else overload(port, options, server))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--times", type=float, default=10.0, help="how many times what it can do comes")
    parser.add_argument("--keys", type=float, default=0.0, help="wrong keys a second, in place of requests")
    parser.add_argument("--keep", action="store_true", help="clients keep their connections")
    parser.add_argument("--port", type=int, default=18081)
    options = parser.parse_args()
    with subprocess.Popen([sys.executable, "-c", SERVER, str(options.port), KEY]) as process:
        with suppress(KeyboardInterrupt):
            print(json.dumps(asyncio.run(measure(options.port, options, psutil.Process(process.pid)))))
        process.terminate()


if __name__ == "__main__":
    main()

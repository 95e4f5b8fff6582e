"""Clients that leave at any moment, and clients that are too many: how soon places are free, and what still gets done.

    python benchmarks/churn.py --leaving 2000 --seconds 10

The server has the built-in model, and is a thread of this process: what the clients take, it lacks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections import Counter
from typing import Any

import numpy as np

from bitnet_inference import LLM
from bitnet_inference.server import Models, make_app, make_server
from bitnet_inference.server.serve import addresses

PATH = "/v1/completions"


def request(tokens: int, *, stream: bool = False) -> bytes:
    """A request as bytes."""
    body = {
        "model": "stories",
        "prompt": "Once upon a time",
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
    }
    data = json.dumps(body).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    )
    return head.encode() + b"Connection: close\r\n\r\n" + data


async def ask(port: int, data: bytes) -> int:
    """The status of one request, when its answer has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    return int(answer[9:12] or 0)


async def leave(port: int, number: int, app: Any, freed: list[float]) -> None:
    """One client that leaves: while it sends, waits, or reads; and how long its place is taken then."""
    data = request(300, stream=number % 2 == 0)
    before = len(app.state.works)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data[: len(data) * (number % 7 + 1) // 7] if number % 3 == 0 else data)
    await asyncio.sleep((number * 7919 % 100) / 1000)
    if number % 4 == 0 and number % 2 == 0 and number % 3:
        await reader.read(200)
    writer.transport.abort()
    began = time.perf_counter()
    while len(app.state.works) > before and time.perf_counter() - began < 10:
        await asyncio.sleep(0.001)
    freed.append(time.perf_counter() - began)


async def leaving(port: int, app: Any, count: int) -> dict[str, Any]:
    """Clients that leave, four at a time."""
    freed: list[float] = []

    async def some(first: int) -> None:
        for number in range(first, count, 4):
            await leave(port, number, app, freed)

    await asyncio.gather(*(some(first) for first in range(4)))
    return {
        "clients": count,
        "free_ms": {f"p{p}": round(float(np.percentile(freed, p)) * 1e3, 1) for p in (50, 99, 100)},
    }


async def closed(port: int, clients: int, seconds: float) -> float:
    """Requests a second of clients that ask again when they were answered."""
    end, done = time.perf_counter() + seconds, 0

    async def one() -> None:
        nonlocal done
        while time.perf_counter() < end:
            status = await ask(port, request(32))
            done += status == 200

    await asyncio.gather(*(one() for _ in range(clients)))
    return done / seconds


async def opened(port: int, rate: float, seconds: float) -> tuple[float, Counter[int]]:
    """The same of clients that come at a rate, whether or not others were answered."""
    tasks, began = [], time.perf_counter()
    while (now := time.perf_counter() - began) < seconds:
        while len(tasks) < rate * now:
            tasks.append(asyncio.create_task(ask(port, request(32))))
        await asyncio.sleep(0.005)
    statuses = Counter(await asyncio.gather(*tasks))
    return statuses[200] / (time.perf_counter() - began), statuses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaving", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--times", type=float, default=10.0, help="how many times what it can do comes")
    options = parser.parse_args()
    with LLM() as llm:
        llm.engine.queue = 64
        app = make_app(Models({"stories": llm}))
        server = make_server(app, port=0, log_level="error")
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = addresses(server)[0][1]
        left = asyncio.run(leaving(port, app, options.leaving))
        capacity = asyncio.run(closed(port, 32, options.seconds / 2))
        goodput, statuses = asyncio.run(opened(port, options.times * capacity, options.seconds))
        began = time.perf_counter()
        asyncio.run(ask(port, request(8)))
        figures = {
            "leaving": left,
            "capacity_per_s": round(capacity, 1),
            "goodput_per_s": round(goodput, 1),
            "statuses": dict(statuses),
            "recovery_s": round(time.perf_counter() - began, 3),
            "left": {"works": len(app.state.works), "running": llm.engine.stats().running},
        }
        server.should_exit = True
        thread.join()
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

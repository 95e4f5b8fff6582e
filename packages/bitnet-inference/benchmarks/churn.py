"""Clients that leave at any moment: how soon their places are free.

    python benchmarks/churn.py --leaving 2000

The server has the built-in model, and is a thread of this process, which looks at it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaving", type=int, default=2000)
    options = parser.parse_args()
    with LLM() as llm:
        app = make_app(Models({"stories": llm}))
        server = make_server(app, port=0, log_level="error")
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = addresses(server)[0][1]
        left = asyncio.run(leaving(port, app, options.leaving))
        figures = {
            "leaving": left,
            "left": {"works": len(app.state.works), "running": llm.engine.stats().running},
        }
        server.should_exit = True
        thread.join()
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

"""What a server answers to requests that are too much, and how much memory they take.

    python benchmarks/abuse.py --idle 10000

A server without a model, in a process of its own; a line for each attack: how it was answered, and the growth of the
server's resident memory at its highest. Linux only.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

SERVER = """
import resource
from bitnet_inference.server import Models, serve
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
serve(Models({}), port=PORT, api_key="correct horse battery", log_level="critical")
"""
MIB = 1 << 20
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, default=10_000)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER.replace("PORT", str(port))])
    try:
        wait(port)
        victim = Victim(port, process.pid)
        found = {name: victim.suffer(name, attack) for name, attack in attacks(options.idle).items()}
        print(json.dumps(found))
    finally:
        process.terminate()
        process.wait()


def wait(port: int) -> None:
    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)


class Victim:
    """The server, as seen from outside."""

    def __init__(self, port: int, pid: int) -> None:
        self.address = ("127.0.0.1", port)
        self._status = Path(f"/proc/{pid}/status")
        self._clear = Path(f"/proc/{pid}/clear_refs")
        self.send([HEAD + b"\r\n"])

    def memory(self, field: str) -> float:
        match = re.search(rf"{field}:\s+(\d+) kB", self._status.read_text())
        assert match is not None
        return int(match[1]) / 1024

    def suffer(self, name: str, attack: Callable[[Victim], str]) -> dict[str, object]:
        self._clear.write_text("5")  # the highest mark begins anew
        before, begun = self.memory("VmRSS"), time.monotonic()
        answer = attack(self)
        grown, seconds = self.memory("VmHWM") - before, time.monotonic() - begun
        print(f"{name:32} {answer:40} {grown:6.1f} MiB {seconds:6.1f} s")
        return {"answer": answer, "mib": round(grown, 1), "seconds": round(seconds, 1)}

    def send(self, pieces: list[bytes] | Iterator[bytes]) -> str:
        """Send all that it takes, and read the status."""
        with socket.create_connection(self.address, 60) as connection:
            with suppress(OSError):
                for piece in pieces:
                    connection.sendall(piece)
            return status(connection)


def status(connection: socket.socket) -> str:
    try:
        data = connection.recv(100)
    except ConnectionResetError:
        return "reset"
    return data.split()[1].decode() if data.startswith(b"HTTP") else "closed"


def attacks(idle: int) -> dict[str, Callable[[Victim], str]]:
    megabyte = b"x" * MIB
    return {
        "60,000 headers": lambda v: v.send([HEAD, b"X: y\r\n" * 60_000, b"\r\n"]),
        "a header of 60 MB": lambda v: v.send([HEAD + b"X: ", *[megabyte] * 60, b"\r\n\r\n"]),
        "a path of 20 MB": lambda v: v.send([b"GET /", *[megabyte] * 20, b" HTTP/1.1\r\nHost: x\r\n\r\n"]),
        "a path of 10 KB": lambda v: v.send([b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"]),
        "a body of 100 MB, announced": lambda v: v.send(
            [HEAD + b"Content-Length: 104857600\r\n\r\n", *[megabyte] * 100]
        ),
        "a body of 100 MB, in chunks": lambda v: v.send(
            [HEAD + b"Authorization: Bearer correct horse battery\r\nTransfer-Encoding: chunked\r\n\r\n"]
            + [b"100000\r\n" + megabyte + b"\r\n"] * 100
        ),
        "10,000 requests in one go": pipelined,
        "a head at 1 byte a second": lambda v: v.send(slowly(HEAD)),
        f"{idle} connections that say nothing": lambda v: still(v, idle),
    }


def slowly(data: bytes) -> Iterator[bytes]:
    for place in range(len(data)):
        time.sleep(1)
        yield data[place : place + 1]


def pipelined(victim: Victim) -> str:
    with socket.create_connection(victim.address, 60) as connection:
        asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000
        sender = threading.Thread(target=connection.sendall, args=(asked,))
        sender.start()
        found = 0
        tail = b""
        while found < 10_000 and (data := connection.recv(MIB)):
            found += (tail + data).count(b"HTTP/1.1 200")
            tail = data[-11:]
        sender.join()
        return f"{found} answers"


def still(victim: Victim, count: int) -> str:
    connections = [socket.create_connection(victim.address, 60) for _ in range(count)]
    answers = collections.Counter(status(connection) for connection in connections)
    for connection in connections:
        connection.close()
    return ", ".join(f"{number} x {answer}" for answer, number in answers.items())


if __name__ == "__main__":
    main()

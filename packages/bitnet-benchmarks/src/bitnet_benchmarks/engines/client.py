"""A client of an OpenAI-compatible server: many requests at once, each timed as its pieces come.

All times of an answer are seconds from the begin of its round.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from itertools import count
from time import perf_counter
from typing import Any

from .connection import Address, Connection, Lost

_SHOWN = 2000  # bytes of a refusal that are kept
# Short and frequent: a token each for most tokenizers.
_WORDS = (  # noqa: SIM905  # a list would have a line for each
    "the and was she her they with his that said you had for but not all out very day one big girl little mom play "
    "there happy dog were have saw time like when him friend from home what then see some named ball cat tree house "
    "good fun could who new made water bird red"
).split()


@dataclass(slots=True)
class Answer:
    """How one request went; of one that failed only `due`, `end`, `status` and `message` are told."""

    due: float  # when it was sent, or with a rate when it should have been
    end: float = 0.0  # when its stream had ended
    status: str = ""  # "ok"; else the HTTP status, or connection, timeout, stream, cut
    message: str = ""
    pieces: list[float] = field(default_factory=list)  # when each piece of the text came
    tokens: int | None = None  # as the server counts them, where it tells
    prompt_tokens: int | None = None


class Failed(Exception):
    """A request was refused or broke off."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Connections to one server, and what is asked of it."""

    def __init__(self, job: dict[str, Any], idle: list[Connection]) -> None:
        self._address = Address.parse(job["url"], job["key"])
        self._chat: bool = job["chat"]
        self._fields: dict[str, Any] = job["fields"]  # of every request's body
        self._timeout: float = job["timeout"]
        self._idle = idle  # connections that are left of earlier rounds, and will be for later ones
        self.gone = False  # nobody listens there any more

    async def ask(self, text: str, tokens: int, due: float, begun: float) -> Answer:
        """Send a request, and read its stream to the end."""
        found = Answer(due=due)
        said = {"messages": [{"role": "user", "content": text}]} if self._chat else {"prompt": text}
        body = json.dumps({**self._fields, **said, "max_tokens": tokens, "stream": True}).encode()
        path = "/chat/completions" if self._chat else "/completions"
        try:
            async with asyncio.timeout(self._timeout), aclosing(self._stream(path, body)) as events:
                await _read(events, found, begun)
            found.status = "ok"
        except Failed as failure:
            found.status, found.message = failure.status, str(failure)
        except Lost as lost:
            found.status, found.message = "connection", str(lost)
        except TimeoutError:
            found.status, found.message = "timeout", f"no end within {self._timeout:g} s"
        found.end = perf_counter() - begun
        return found

    async def models(self) -> list[str]:
        """The names that the server lists."""
        async with asyncio.timeout(self._timeout):
            connection, status = await self._asked("GET", "/models", None)
            data = b"".join([piece async for piece in connection.read()])
        connection.close()
        if status != 200:
            raise Failed(str(status), _message(data))
        try:
            return [str(one["id"]) for one in json.loads(data)["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise Failed("stream", "expected a list of models, got something else") from error

    async def _stream(self, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """The events of an answer; the connection is kept where it can be."""
        connection, status = await self._asked("POST", path, body)
        try:
            if status != 200:
                data = b"".join([piece async for piece in connection.read()])
                raise Failed(str(status), _message(data[:_SHOWN]))
            rest = b""
            async for piece in connection.read():
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        yield line[5:].strip()
        finally:
            if connection.again():
                self._idle.append(connection)
            else:
                connection.close()

    async def _asked(self, method: str, path: str, body: bytes | None) -> tuple[Connection, int]:
        """Ask on a connection that is left, or on a new one; a server may have closed the former in the meantime."""
        while True:
            kept = bool(self._idle)
            connection = self._idle.pop() if kept else await self._opened()
            try:
                return connection, await connection.ask(method, path, body)
            except BaseException as error:
                connection.close()
                if not (kept and isinstance(error, Lost)):
                    raise

    async def _opened(self) -> Connection:
        try:
            return await Connection.open(self._address)
        except Lost:
            self.gone = True
            raise

    async def closed(self, clients: int, job: dict[str, Any]) -> list[Answer]:
        """So many clients, each of which sends its next request when the last is answered."""
        begun, answers, texts = perf_counter(), list[Answer](), prompts(job)
        left = count() if job["requests"] is None else range(job["requests"])
        turns = iter(left)
        until = job["seconds"] or float("inf")

        async def run() -> None:
            for _ in turns:
                text, due = next(texts), perf_counter() - begun
                if due >= until or self.gone:
                    return
                answers.append(await self.ask(text, job["tokens"], due, begun))

        await asyncio.gather(*(run() for _ in range(clients)))
        return answers

    async def open(self, rate: float, job: dict[str, Any]) -> list[Answer]:
        """Requests at random times (a Poisson process), whether those before are answered or not."""
        plan = list(zip(arrivals(rate, job), prompts(job), strict=False))
        begun = perf_counter()

        async def run(due: float, text: str) -> Answer | None:
            await asyncio.sleep(due - (perf_counter() - begun))
            return None if self.gone else await self.ask(text, job["tokens"], due, begun)

        found = await asyncio.gather(*(run(due, text) for due, text in plan))
        return [answer for answer in found if answer is not None]


async def _read(events: AsyncIterator[bytes], found: Answer, begun: float) -> None:
    """Note when each piece came, and what the server counted."""
    ended = False
    async for data in events:
        now = perf_counter() - begun
        if data == b"[DONE]":
            ended = True  # the end of the body is still to be read, for the connection to be used again
            continue
        try:
            event = json.loads(data)
            if event.get("error"):
                raise Failed("stream", _message(data[:_SHOWN]))
            if usage := event.get("usage"):
                found.tokens, found.prompt_tokens = usage.get("completion_tokens"), usage.get("prompt_tokens")
            for choice in event.get("choices", ()):
                ended = ended or bool(choice.get("finish_reason"))
                if _has_text(choice):
                    found.pieces.append(now)
        except (ValueError, AttributeError) as error:
            raise Failed("stream", f"expected an event as JSON, got {data[:80]!r}") from error
    if not ended:
        raise Failed("cut", "the stream ended before the answer did")


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    if delta is None:
        return bool(choice.get("text")) or not choice.get("finish_reason")
    return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning"))


def _message(data: bytes) -> str:
    """What a server says of an error."""
    try:
        error = json.loads(data)
        error = error.get("error", error)
        said = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        said = data.decode("utf-8", "replace")
    return " ".join(str(said).split())[:300]


def prompts(job: dict[str, Any]) -> Iterator[str]:
    """Texts of so many words, never the same twice: `salt` begins all of a run, then come the shared ones."""
    shared = random.Random("shared").choices(_WORDS, k=job["shared"])  # noqa: S311  # nothing is secret
    for place in count():
        own = random.Random(f"{job['seed']} {place}").choices(_WORDS, k=max(1, job["words"] - len(shared)))  # noqa: S311
        yield " ".join([*random.Random(job["salt"]).choices(_WORDS, k=4), *shared, *own])  # noqa: S311


def arrivals(rate: float, job: dict[str, Any]) -> Iterator[float]:
    """When requests come: gaps are exponential, and the same for the same seed."""
    chance, now = random.Random(f"arrivals {job['seed']}"), 0.0  # noqa: S311
    for place in count():
        if (job["requests"] is not None and place >= job["requests"]) or now >= (job["seconds"] or float("inf")):
            return
        yield now
        now += chance.expovariate(rate)


async def _do(job: dict[str, Any], idle: list[Connection]) -> dict[str, Any]:
    client = Client(job, idle)
    try:
        if job["do"] == "models":
            return {"models": await client.models()}
        load = client.open(job["rate"], job) if job.get("rate") else client.closed(job["clients"], job)
        return {"answers": [asdict(answer) for answer in await load], "gone": client.gone}
    except Failed as failure:
        return {"failed": str(failure), "status": failure.status}
    except Lost as lost:
        return {"failed": str(lost), "status": "connection"}
    except TimeoutError:
        return {"failed": f"no list of models within {job['timeout']:g} s", "status": "timeout"}


def main() -> None:
    """The process: a question a line, answered in turn, until whoever asks has gone."""
    asyncio.run(_answer())


async def _answer() -> None:
    idle: list[Connection] = []
    questions: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def listen() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(questions.put_nowait, line)
        os._exit(0)  # in the middle of a round, too: nobody waits for the answer

    threading.Thread(target=listen, daemon=True).start()
    while True:
        answer = await _do(json.loads(await questions.get()), idle)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

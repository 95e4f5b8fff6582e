"""Where connections come in: until a client has said what it wants, it is a socket and a line in a list, and no more.

A connection that says nothing takes a kilobyte, and one that is turned away no parser and no task. There is a limit to
how many are let in; beyond it only questions for the server's health are, and who said nothing longest makes room.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress

from . import connection
from .connection import LATE
from .turnstile import CROWDED, HEAD_LIMIT, LATER, Turnstile

log = logging.getLogger("bitnet_inference.server")

SPARE = 64  # connections beyond the limit, for questions for the server's health
_OWN = 192  # files that the server itself may have open
_MOST = 16_384  # connections, however many files may be open
_AT_ONCE = 256  # connections that are taken in before others have their turn
_PACE_S = 0.01  # between two looks at the door while nobody is let in: waking for each would cost those who were
_READ = 64 << 10  # bytes
_HELD = 16 << 20  # bytes of heads that have not come to their end, of all connections together
_SWEEP_S = 0.25
_AGAIN_S = 0.1  # until connections are taken again where files have run out
_END = re.compile(rb"\n\r?\n")
_HEALTH = re.compile(rb"GET /(?:healthz|readyz|metrics)[ ?]")

Enter = Callable[[bytes], asyncio.Protocol]  # what a connection becomes, given what it has said


class _Guest:
    """A connection that has not asked for anything yet."""

    __slots__ = ("address", "came", "data", "line")

    def __init__(self, line: socket.socket, address: str, came: float) -> None:
        self.line = line
        self.address = address
        self.came = came
        self.data = b""


def most_connections() -> int:
    """How many connections may be open, by the files that may be."""
    if sys.platform == "win32":
        return _MOST
    import resource  # noqa: PLC0415  # not on every system

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(16, min(_MOST, soft - SPARE - _OWN))


def raise_files() -> None:
    """Let this process have as many files open as connections would want, if the system lets it."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  # not on every system

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST + SPARE + _OWN
    if soft != resource.RLIM_INFINITY and soft < wanted:
        new = wanted if hard == resource.RLIM_INFINITY else max(soft, min(hard, wanted))
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (new, hard))


class Door:
    """Takes connections in; `busy` says how many have been let through."""

    def __init__(self, turnstile: Turnstile, enter: Enter, busy: Callable[[], int], *, limit: int) -> None:
        self.limit = limit
        self._turnstile = turnstile
        self._enter = enter
        self._busy = busy
        self._loop = asyncio.get_running_loop()
        self._guests: OrderedDict[_Guest, None] = OrderedDict()  # who came first stands first
        self._held = 0  # bytes that they have said
        self._entering: set[asyncio.Task[object]] = set()
        self._listening: list[socket.socket] = []
        self._hears = self._hear  # one object for all
        self._sweeper: asyncio.TimerHandle | None = None

    def open(self, sockets: Iterable[socket.socket]) -> None:
        """Take connections from sockets that listen."""
        for listening in sockets:
            self._listening.append(listening)
            self._loop.add_reader(listening, self._accept, listening)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def close(self) -> None:
        """No more come in, and who has asked for nothing leaves."""
        for listening in self._listening:
            self._loop.remove_reader(listening)
            listening.close()
        for guest in list(self._guests):
            self._drop(guest)
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _accept(self, listening: socket.socket) -> None:
        full = self._turnstile.full
        if full:
            self._loop.remove_reader(listening)
            self._loop.call_later(_PACE_S, self._again, listening)
        for _ in range(_AT_ONCE):
            try:
                line, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._make_room(listening, error)
                return
            line.setblocking(False)
            if len(self._guests) + self._busy() >= self.limit + SPARE and not self._evict():
                self._send(line, CROWDED)
                line.close()
                continue
            guest = _Guest(line, address[0] if isinstance(address, tuple) else "", self._loop.time())
            self._guests[guest] = None
            if full:
                self._hear(guest)
            if guest in self._guests:
                self._loop.add_reader(line, self._hears, guest)

    def _make_room(self, listening: socket.socket, error: OSError) -> None:
        """There are no files left: who said nothing longest goes; if there is nobody, others have to end."""
        if self._evict():
            return
        log.error("no connection can be taken: %s", error.strerror)
        self._loop.remove_reader(listening)
        self._loop.call_later(_AGAIN_S, self._again, listening)

    def _again(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            self._loop.add_reader(listening, self._accept, listening)

    def _evict(self) -> bool:
        if not self._guests:
            return False
        self._turnstile.count("connections")
        self._drop(next(iter(self._guests)), CROWDED)
        return True

    def _hear(self, guest: _Guest) -> None:
        try:
            data = guest.line.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._drop(guest)
            return
        self._held += len(data)
        guest.data += data
        if _END.search(guest.data) or len(guest.data) > HEAD_LIMIT or guest.data[0] <= 0x20 or self._held > _HELD:
            self._look(guest)

    def _look(self, guest: _Guest) -> None:
        answer = self._turnstile.refusal(guest.data, guest.address)
        if answer is None and self._busy() >= self.limit and not _HEALTH.match(guest.data):
            self._turnstile.count("connections")
            self._drop(guest, CROWDED)
        elif answer is None:
            data, line = guest.data, guest.line
            self._forget(guest)
            self._let_in(line, data)
        elif answer is not LATER and (not self._send(guest.line, answer.data) or not answer.keep):
            self._drop(guest)
        elif answer is not LATER:
            self._held -= len(guest.data)
            guest.data, guest.came = b"", self._loop.time()
            self._guests.move_to_end(guest)

    def _let_in(self, line: socket.socket, data: bytes) -> None:
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: self._enter(data), line))
        self._entering.add(task)
        task.add_done_callback(self._entered)

    def _entered(self, task: asyncio.Task[object]) -> None:
        self._entering.discard(task)
        if not task.cancelled():
            task.exception()  # who left on the doorstep left

    def _send(self, line: socket.socket, data: bytes) -> bool:
        """Whether it was taken; who reads nothing is not waited for."""
        try:
            return line.send(data) == len(data)
        except OSError:
            return False

    def _forget(self, guest: _Guest) -> None:
        self._loop.remove_reader(guest.line)
        del self._guests[guest]
        self._held -= len(guest.data)

    def _drop(self, guest: _Guest, words: bytes = b"") -> None:
        self._forget(guest)
        if words:
            self._send(guest.line, words)
        with suppress(OSError):
            guest.line.close()

    def _sweep(self) -> None:
        """Who has taken too long to ask leaves."""
        late = self._loop.time() - connection.HEADER_S
        while self._guests and (guest := next(iter(self._guests))).came <= late:
            self._drop(guest, LATE)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

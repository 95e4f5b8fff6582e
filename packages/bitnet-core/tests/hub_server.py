"""A small hub on loopback for tests: real HTTP, threads, and faults that a test scripts.

It speaks what a client of the Hugging Face Hub needs: `/api/models`, `/api/models/{repo}/revision/{revision}`,
`/api/models/{repo}/tree/{commit}` in pages, and HEAD and GET of `/{repo}/resolve/{revision}/{file}`. Large files are
redirected to a second server, the content network, which is another host to the client.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^/]+)")
PIECE = 16 << 10


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def etag_of(content: bytes) -> str:
    """What the content network calls a content: not the digest that the hub lists."""
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


@dataclass(frozen=True)
class Request:
    """One request as the server saw it, for assertions."""

    server: str  # "hub" or "cdn"
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `match`, the next `times` times (None: always)."""

    act: Callable[[Handler, bytes], bool]  # whether the request is answered with it
    match: str
    server: str
    times: int | None
    skip: int = 0
    hits: int = 0


@dataclass
class Repo:
    """A model: its files at each commit, and what its branches and tags mean."""

    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    lies: dict[str, dict[str, Any]] = field(default_factory=dict)  # listed instead of the truth, by file


class Handler(BaseHTTPRequestHandler):
    """Answers for the hub or for the content network, by the server it belongs to."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer in two writes waits for a delayed acknowledgement
    server: _Server

    def do_GET(self) -> None:
        self.hub.log(self)
        content = self._content()
        if self.hub.faulty(self, content or b""):
            return
        if self.server.role == "cdn":
            self.send_content(content)
        else:
            self._answer(content)

    do_HEAD = do_GET  # noqa: N815 - http.server looks for this name

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def send(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, *, length: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body) if length is None else length), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.put(body)

    def put(self, body: bytes) -> None:
        for start in range(0, len(body), PIECE):
            piece = body[start : start + PIECE]
            self.wfile.write(piece)
            self.hub.count(len(piece))

    def drop(self) -> None:
        """Ends the connection in an orderly way, whatever was promised."""
        self.wfile.flush()
        self.close_connection = True

    def reset(self) -> None:
        """Ends the connection with a TCP reset."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def offset(self) -> int:
        """Where the wanted range begins."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(match[1]) if match else 0

    def send_content(self, content: bytes | None, *, etag: str | None = None, commit: str = "") -> None:
        """A file, or its range, as an honest server sends it."""
        if content is None:
            self.send(404)
        else:
            self.begin(content, content[self.offset() :], etag=etag, commit=commit)

    def begin(self, content: bytes, body: bytes, *, etag: str | None = None, commit: str = "") -> None:
        """The honest head of an answer with `content`, or its range, and `body`."""
        start, headers = self.offset(), {"ETag": etag or etag_of(content)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if commit:
            headers["X-Repo-Commit"] = commit
        self.send(206 if start else 200, body, headers, length=len(content) - start)

    def _content(self) -> bytes | None:
        path = urlsplit(self.path).path
        if self.server.role == "cdn":
            return self.hub.contents.get(path.rpartition("/")[2])
        match = RESOLVE.fullmatch(unquote(path))
        found = self.hub.find(match["repo"], unquote(match["revision"])) if match else None
        return found[1].get(match["file"]) if found and match else None

    def _answer(self, content: bytes | None) -> None:
        url = urlsplit(self.path)
        if url.path == "/api/models":
            self._json(self.hub.search(parse_qs(url.query)))
            return
        api, resolve = API.fullmatch(url.path), RESOLVE.fullmatch(unquote(url.path))
        match = api or resolve
        if match is None:
            self.send(404)
            return
        repo, revision = self.hub.repos.get(match["repo"]), unquote(match["revision"])
        if error := self._refused(repo):
            self.send(error[0], b"{}", {"X-Error-Code": error[1]} if error[1] else {})
            return
        found = self.hub.find(match["repo"], revision)
        if found is None or repo is None:
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif api and api["what"] == "revision":
            self._json({"id": repo.name, "sha": found[0], "gated": repo.gated and "auto", **repo.facts})
        elif api:
            self._tree(repo, found[0], found[1], parse_qs(url.query))
        elif content is None:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self._file(found[0], match["file"], content)

    def _refused(self, repo: Repo | None) -> tuple[int, str] | None:
        known = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repo is None or (repo.private and not known):
            return (404 if known else 401), "RepoNotFound"
        if self.headers.get("Authorization") and not known:
            return 401, ""
        if repo.gated and not known:
            return 401, "GatedRepo"
        return None

    def _json(self, body: object, headers: dict[str, str] | None = None) -> None:
        self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _tree(self, repo: Repo, commit: str, files: dict[str, bytes], query: dict[str, list[str]]) -> None:
        entries = [{**self.hub.listed(name, content), **repo.lies.get(name, {})} for name, content in files.items()]
        entries += [lie for name, lie in repo.lies.items() if name not in files]
        start, page = int(query.get("cursor", ["0"])[0]), self.hub.page
        following = f'<{self.hub.url}/api/models/{repo.name}/tree/{commit}?cursor={start + page}>; rel="next"'
        self._json(entries[start : start + page], {"Link": following} if start + page < len(entries) else {})

    def _file(self, commit: str, name: str, content: bytes) -> None:
        if not self.hub.is_large(name):
            self.send_content(content, etag=f'"{git_id(content)}"', commit=commit)
            return
        linked = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        self.send(
            302,
            b"",
            {
                "X-Repo-Commit": commit,
                **linked,
                "Location": f"{self.hub.cdn}/{quote(name)}/{sha256(content)}?signature=secret",
            },
        )


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that go away are the point of many tests


class _Server(_Quiet):
    def __init__(self, hub: HubServer, role: str) -> None:
        self.hub, self.role = hub, role
        super().__init__(("127.0.0.1", 0), Handler)


class HubServer:
    """The hub and its content network; use it in a `with`."""

    def __init__(self) -> None:
        self.token = "hf_canary0123456789"
        self.page = 1000
        self.repos: dict[str, Repo] = {}
        self.contents: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.sent = 0  # bytes of bodies
        self.closing = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._servers = [_Server(self, "hub"), _Server(self, "cdn")]
        self.url = f"http://127.0.0.1:{self._servers[0].server_port}"
        self.cdn = f"http://localhost:{self._servers[1].server_port}"

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=s.serve_forever, args=(0.004,), daemon=True) for s in self._servers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    def add(self, name: str, files: dict[str, bytes], *, revision: str = "main", **facts: Any) -> str:
        """Commits `files` to a model and points `revision` at them; returns the commit."""
        repo = self.repos.setdefault(name, Repo(name))
        commit = git_id(repr((name, sorted(files.items()))).encode())
        repo.commits[commit] = files
        repo.refs[revision] = commit
        repo.facts.update(facts)
        self.contents |= {sha256(content): content for content in files.values()}
        return commit

    def fault(
        self,
        act: Callable[[Handler, bytes], bool],
        match: str = "",
        *,
        server: str = "cdn",
        times: int | None = 1,
        skip: int = 0,
    ) -> Fault:
        """Scripts a fault; the first that matches a request decides."""
        fault = Fault(act, match, server, times, skip)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Forgets all faults."""
        with self._lock:
            self._faults.clear()

    def faulty(self, handler: Handler, content: bytes) -> bool:
        with self._lock:
            matching = (f for f in self._faults if f.server == handler.server.role and f.match in handler.path)
            fault = next((f for f in matching if f.times is None or f.hits < f.times + f.skip), None)
            if fault is None:
                return False
            fault.hits += 1
            if fault.hits <= fault.skip:
                return False
        return fault.act(handler, content)

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self.repos.get(name)
        commit = repo.refs.get(revision, revision) if repo else revision
        return (commit, repo.commits[commit]) if repo and commit in repo.commits else None

    def is_large(self, name: str) -> bool:
        return name.endswith((".safetensors", ".gguf", ".bin"))

    def listed(self, name: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
        if self.is_large(name):
            entry["oid"] = git_id(b"pointer to " + sha256(content).encode())
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
        return entry

    def search(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        wanted = query.get("search", [""])[0].casefold()
        found = [{"id": repo.name, "gated": repo.gated, **repo.facts} for repo in self.repos.values()]
        found = [model for model in found if wanted in model["id"].casefold()]
        return sorted(found, key=lambda m: -m.get("downloads", 0))[: int(query.get("limit", ["20"])[0])]

    def log(self, handler: Handler) -> None:
        with self._lock:
            headers = {key.lower(): value for key, value in handler.headers.items()}
            self.requests.append(Request(handler.server.role, handler.command, handler.path, headers))

    def count(self, number: int) -> None:
        with self._lock:
            self.sent += number

    def asked(self, part: str, server: str | None = None) -> list[Request]:
        """The requests so far whose path contains `part`."""
        with self._lock:
            return [r for r in self.requests if part in r.path and server in {None, r.server}]


def run_python(code: str, *arguments: str, **environment: str) -> str:
    """What a new Python prints that runs `code` with `hub` and `errors` imported and no proxies but the given."""
    command = [sys.executable, "-c", f"import sys\nfrom bitnet_core import errors, hub\n{code}", *arguments]
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server with one kind of answer; gives its port."""
    server = _Quiet(("127.0.0.1", 0), handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.004,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Refusing(BaseHTTPRequestHandler):
    """A proxy that wants a password."""

    def do_CONNECT(self) -> None:
        self.send_error(407)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


# Faults. Each takes what it needs and gives what `HubServer.fault` takes.

Act = Callable[[Handler, bytes], bool]


def wrong_bytes(at: int = 100) -> Act:
    def act(handler: Handler, content: bytes) -> bool:
        handler.send_content(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        return True

    return act


def cut(after: int, *, reset: bool = False) -> Act:
    """Promises all that is wanted, sends `after` bytes of it and ends the connection."""

    def act(handler: Handler, content: bytes) -> bool:
        handler.begin(content, content[handler.offset() :][:after])
        (handler.reset if reset else handler.drop)()
        return True

    return act


def shorter(by: int) -> Act:
    def act(handler: Handler, content: bytes) -> bool:
        handler.send(200, content[:-by])
        return True

    return act


def longer(by: int, *, chunked: bool = False) -> Act:
    def act(handler: Handler, content: bytes) -> bool:
        if not chunked:
            handler.send(200, content + b"x" * by)
            return True
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in (content, b"x" * by):
            handler.put(b"%x\r\n" % len(piece) + piece + b"\r\n")
        handler.put(b"0\r\n\r\n")
        return True

    return act


def whole(handler: Handler, content: bytes) -> bool:
    """Answers a request for a range with 200 and everything."""
    handler.send(200, content)
    return True


def wrong_range(shift: int) -> Act:
    """Honest but for where it begins, which it says."""

    def act(handler: Handler, content: bytes) -> bool:
        start = handler.offset() + shift
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}", "ETag": etag_of(content)}
        handler.send(206, content[start:], headers)
        return True

    return act


def changed_etag(handler: Handler, content: bytes) -> bool:
    handler.send_content(bytes(byte ^ 1 for byte in content), etag='"another"')
    return True


def gzipped(handler: Handler, content: bytes) -> bool:
    handler.send(200, gzip.compress(content), {"Content-Encoding": "gzip"})
    return True


def mislabelled(handler: Handler, content: bytes) -> bool:
    handler.send(200, content, {"Content-Encoding": "gzip"})
    return True


def page(handler: Handler, content: bytes) -> bool:
    """What a network that wants a login first answers to everything."""
    handler.send(200, b"<!doctype html><title>Log in</title>", {"Content-Type": "text/html"})
    return True


def redirect(to: str, *, keep_path: bool = False) -> Act:
    def act(handler: Handler, content: bytes) -> bool:
        handler.send(302, b"", {"Location": to + handler.path * keep_path})
        return True

    return act


def status(code: int, **headers: str) -> Act:
    def act(handler: Handler, content: bytes) -> bool:
        handler.send(code, b"no", {key.replace("_", "-"): value for key, value in headers.items()})
        return True

    return act


def stall(after: int) -> Act:
    """Sends `after` bytes and then nothing, with the connection open."""

    def act(handler: Handler, content: bytes) -> bool:
        handler.begin(content, content[handler.offset() :][:after])
        handler.wfile.flush()
        handler.hub.closing.wait(20)
        handler.drop()
        return True

    return act


def drip(every_s: float) -> Act:
    """Sends a byte at a time."""

    def act(handler: Handler, content: bytes) -> bool:
        handler.begin(content, b"")
        for byte in drops(content[handler.offset() :]):
            handler.put(byte)
            if handler.hub.closing.wait(every_s):
                break
        handler.drop()
        return True

    return act


def drops(content: bytes) -> Iterator[bytes]:
    for k in range(len(content)):
        yield content[k : k + 1]

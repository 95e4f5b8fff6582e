"""A real server on a real socket of this machine, for tests."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx

from bitnet_core.chat import ChatTemplate
from bitnet_core.formats import load
from bitnet_core.model import Model
from bitnet_inference.llm import BUILT_IN
from bitnet_inference.server import Models, make_app, make_server
from bitnet_inference.server.serve import Server, addresses

# A template in the manner of Hermes: the built-in model has none, and tools need one.
TEMPLATE = (
    "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def talker() -> Model:
    """The built-in model with a chat template."""
    return replace(load(BUILT_IN), template=ChatTemplate(TEMPLATE))


class Running:
    """A server at work, and a client of it."""

    def __init__(self, app: Any, **settings: Any) -> None:
        self.app = app
        self.server: Server = make_server(app, "127.0.0.1", 0, log_level="critical", lifespan="on", **settings)
        self._started = threading.Event()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="test-server", daemon=True)
        self._thread.start()
        self._started.wait()
        self.host, self.port = addresses(self.server)[0]
        self.url = f"http://{self.host}:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        original = self.server.startup

        async def startup(sockets: list[socket.socket] | None = None) -> None:
            await original(sockets)
            self._started.set()

        self.server.startup = startup  # type: ignore[method-assign]
        try:
            self.loop.run_until_complete(self.server.serve())
        finally:
            self._started.set()
            self.loop.close()

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, content=content, headers={"Content-Type": "application/json", **headers})

    def call(self, coroutine: Any) -> Any:
        """Run something in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()


@contextmanager
def running(models: Any, **settings: Any) -> Iterator[Running]:
    """A server with these models, until the end of the block."""
    found = models if isinstance(models, Models) else Models(models)
    server = Running(make_app(found, **settings))
    try:
        yield server
    finally:
        server.stop()


def events(text: str) -> list[Any]:
    """The data of server-sent events."""
    return [
        json.loads(line.removeprefix("data: "))
        for line in text.splitlines()
        if line.startswith("data: ") and line != "data: [DONE]"
    ]


def chat(text: str = "Once upon a time", **more: Any) -> Mapping[str, Any]:
    """A request."""
    return {"model": "stories", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}

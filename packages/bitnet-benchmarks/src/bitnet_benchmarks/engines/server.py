"""Our own server with one model, on a free port of this machine alone."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from bitnet_inference.llm import LLM
from bitnet_inference.server import Models, make_app, make_server
from bitnet_inference.server.serve import addresses

from .loop import answer, peak

NAME = "model"  # what its requests call the model
_START_S = 60.0


class _Served:
    def __init__(self, llm: LLM) -> None:
        self.vocab = llm.model.spec.vocab_size
        self.context = llm.engine.context
        self._server = make_server(make_app(Models({NAME: llm}), drain_s=0.0), port=0, log_level="error")
        threading.Thread(target=self._server.run, daemon=True).start()
        deadline = time.monotonic() + _START_S
        while not self._server.started:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start within {_START_S:g} s")
            time.sleep(0.005)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = addresses(self._server)[0]
        return f"http://{host}:{port}/v1"


def load(path: str, *, backend: str = "auto", threads: int | None = None, **options: Any) -> _Served:
    """A server of a model; other options are those of `LLM`."""
    return _Served(LLM(path, backend=backend, threads=None if backend == "numpy" else threads, **options))


def _where(served: _Served, _: dict[str, Any]) -> dict[str, Any]:
    return {"url": served.url, "model": NAME, "context": served.context}


def main() -> None:
    """The process; the server ends with it, whatever it is doing."""
    logging.disable()  # nobody reads stderr while it runs, and a pipe that is full would stop it
    answer(load, {"where": _where, "peak": peak})
    os._exit(0)

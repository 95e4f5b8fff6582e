"""Sessions: texts that requests continue, and that survive on disk."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from bitnet_core.errors import FormatError
from bitnet_core.formats import safetensors
from bitnet_core.model import Adapter, Tokens

if TYPE_CHECKING:
    from .engine import Engine

_FORMAT = "bitnet-session 1"
_HEADER = 4096  # bytes; a file has two arrays


class Session:
    """A text that goes on from request to request: its tokens, and, as long as memory allows, what they computed to.

    The tokens are the truth. Keys and values lie in the engine's prefixes, shared with whoever begins alike; where
    they had to go, the next request computes them again. One request at a time continues a session.
    """

    def __init__(
        self, engine: Engine, tokens: Tokens | None = None, *, tenant: bytes = b"", adapter: Adapter | None = None
    ) -> None:
        self.engine = engine
        self.tenant = tenant
        self.adapter = adapter
        # Without shared prefixes, the session and its forks still have their own.
        self.key = tenant if engine.prefix_cache else os.urandom(16)
        self._tokens = np.empty(0, np.int32) if tokens is None else engine.check_tokens("tokens", tokens)
        self._lock = threading.Lock()
        self._busy = False

    @property
    def tokens(self) -> Tokens:
        """All its tokens: prompts, and what followed them."""
        return self._tokens.copy()

    def __len__(self) -> int:
        return len(self._tokens)

    def fork(self) -> Session:
        """A second session with the same text, that goes its own way."""
        other = Session(self.engine, tenant=self.tenant, adapter=self.adapter)
        other.key, other._tokens = self.key, self._tokens
        return other

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        if not 0 <= length <= len(self._tokens):
            raise ValueError(f"length: expected 0..{len(self._tokens)}, which the session has, got {length}")
        with self._claimed():
            self._tokens = self._tokens[:length]

    def begin(self, prompt: Tokens) -> Tokens:
        """A request starts: the tokens that it continues. It must be told when that ends."""
        self._claim()
        return np.concatenate([self._tokens, prompt]).astype(np.int32)

    def end(self, tokens: Tokens | None) -> None:
        """The request has ended: what the text has become, or None where it stays as it was."""
        if tokens is not None:
            self._tokens = tokens.copy()
        self._busy = False

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to a file, with the pages that are still there; the file is whole or not there."""
        with self._claimed():
            content = self.engine.content(self.key, self.adapter, self._tokens)
            arrays: list[tuple[str, npt.NDArray[Any]]] = [("tokens", self._tokens)]
            if len(content):
                arrays.append(("pages", content))
            safetensors.write(path, arrays, header_room=_HEADER, metadata=self._metadata(self._tokens, content))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        engine: Engine,
        *,
        tenant: bytes = b"",
        adapter: Adapter | None = None,
    ) -> Self:
        """A session from a file that the same model wrote, on the same kind of backend; FormatError otherwise."""
        session = cls(engine, tenant=tenant, adapter=adapter)
        file = safetensors.SafetensorsFile(path)
        try:
            tokens, content = _read(file, engine)
        finally:
            file.close()
        for name, expected in session._metadata(tokens, content).items():
            if (got := file.metadata.get(name)) != expected:
                raise FormatError(path, name, expected, "nothing" if got is None else got, hint=_HINTS.get(name))
        session._tokens = tokens
        try:
            engine.restore(session.key, adapter, tokens, content)
        except ValueError as error:
            raise FormatError(path, "pages", "pages of this engine's runner", error) from error
        return session

    def _metadata(self, tokens: Tokens, content: npt.NDArray[Any]) -> dict[str, str]:
        """What must be the same for a file to be used."""
        return {
            "format": _FORMAT,
            "model": self.engine.fingerprint(),
            "adapter": _adapter_hash(self.adapter),
            "layout": self.engine.layout,
            "sha256": _content_hash(tokens, content),
        }

    def _claim(self) -> None:
        with self._lock:
            if self._busy:
                raise ValueError("the session is in use: one request at a time continues it; fork it for a second")
            self._busy = True

    def _claimed(self) -> _Claim:
        return _Claim(self)


class _Claim:
    """A session that nobody else uses meanwhile."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        self._session._claim()

    def __exit__(self, *_: object) -> None:
        self._session.end(None)


_HINTS = {
    "format": "this is not a session, or one of another version",
    "model": "it was saved with another model",
    "adapter": "it was saved with another adapter, or with none",
    "layout": "it was saved by another backend, or with other options",
    "sha256": "the file is damaged",
}


def _read(file: safetensors.SafetensorsFile, engine: Engine) -> tuple[Tokens, npt.NDArray[Any]]:
    """Tokens and pages, as far as the file alone can be wrong about them."""
    path, entries = file.file.path, file.entries
    if not {"tokens"} <= entries.keys() <= {"tokens", "pages"}:
        raise FormatError(path, "tensors", "tokens, and perhaps pages", ", ".join(sorted(entries)) or "none")
    tokens = file.array("tokens")
    if tokens.dtype != np.int32 or tokens.ndim != 1 or len(tokens) > engine.context:
        expected = f"at most {engine.context} int32"
        raise FormatError(path, "tensor 'tokens'", expected, f"{tokens.dtype} of shape {tokens.shape}")
    try:
        engine.check_tokens("tokens", tokens)
    except ValueError as error:
        raise FormatError(path, "tensor 'tokens'", "token ids of this model", error) from error
    if "pages" not in entries:
        return tokens, np.empty(0, np.uint8)
    content = file.array("pages")
    most = len(tokens) // engine.positions
    if not content.ndim or not 1 <= len(content) <= most:
        raise FormatError(path, "tensor 'pages'", f"1..{most} of them for {len(tokens)} tokens", content.shape)
    return tokens, content


def _content_hash(tokens: Tokens, content: npt.NDArray[Any]) -> str:
    found = hashlib.sha256(np.ascontiguousarray(tokens).data)
    found.update(np.ascontiguousarray(content).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _adapter_hash(adapter: Adapter | None) -> str:
    if adapter is None:
        return "none"
    found = hashlib.sha256()
    for name, arrays in sorted(adapter.weights.items()):
        found.update(name.encode())
        for array in arrays:
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()

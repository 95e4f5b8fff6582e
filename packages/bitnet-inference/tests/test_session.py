"""Sessions go on where they were, in memory and from disk, and only with the model that made them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_core import reference
from bitnet_core.decoder import generate
from bitnet_core.errors import FormatError
from bitnet_core.memory import Pressure
from bitnet_core.model import Adapter, Runner
from bitnet_core.testing import random_model, some_tokens, tiny_spec
from bitnet_inference.engine import Engine
from bitnet_inference.request import Request
from bitnet_inference.session import Session
from bitnet_inference.settings import Sampling

SPEC = tiny_spec(hidden_size=64, ffn_size=64, head_size=16, context=256)
MODEL = random_model(SPEC)
TEXT = some_tokens(SPEC, 50)


def opened(model: Any = MODEL, runner: Runner | None = None, **options: Any) -> Engine:
    calm = Pressure(100, 0, 100, 0, "none")
    return Engine(runner or reference.load(model), model=model, pressure=lambda: calm, **options)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with opened() as engine:
        yield engine


def go_on(session: Session, prompt: np.ndarray, count: int = 8, **options: Any) -> Any:
    sampling = Sampling(temperature=0.0, max_tokens=count)
    return session.engine.submit(Request(prompt=prompt, sampling=sampling, session=session, **options)).result(60)


def alone(text: np.ndarray, count: int = 8) -> list[int]:
    return list(generate(reference.load(MODEL), text, count=count))


@pytest.mark.parametrize("sharing", [True, False])
def test_a_session_goes_on_from_request_to_request(sharing: bool) -> None:
    with opened(prefix_cache=sharing) as engine:
        session, text = Session(engine), np.empty(0, np.int32)
        for turn in range(3):
            more = some_tokens(SPEC, 20, seed=turn)
            result = go_on(session, more)
            text = np.concatenate([text, more])
            expected = alone(text)
            assert list(result.outputs[0].tokens) == expected
            assert result.usage.cached_tokens == (len(text) - 21 if turn else 0)
            text = np.concatenate([text, expected]).astype(np.int32)
            assert session.tokens.tolist() == text.tolist()
            assert len(session) == len(text)


def test_forks_go_their_own_ways(engine: Engine) -> None:
    session = Session(engine)
    go_on(session, TEXT)
    fork = session.fork()
    before = session.tokens
    result = go_on(fork, TEXT[:3])
    assert result.usage.cached_tokens == 57
    assert list(result.outputs[0].tokens) == alone(np.concatenate([before, TEXT[:3]]))
    assert session.tokens.tolist() == before.tolist()


def test_a_session_can_go_back(engine: Engine) -> None:
    session = Session(engine)
    go_on(session, TEXT)
    session.truncate(30)
    result = go_on(session, TEXT[:5])
    assert result.usage.cached_tokens == 30
    assert list(result.outputs[0].tokens) == alone(np.concatenate([TEXT[:30], TEXT[:5]]))
    for length in (-1, 44):
        with pytest.raises(ValueError, match=r"length: expected 0\.\.43"):
            session.truncate(length)


def test_one_request_at_a_time_continues_a_session(engine: Engine) -> None:
    session = Session(engine)
    session.begin(TEXT)
    with pytest.raises(ValueError, match="the session is in use"):
        go_on(session, TEXT)
    with pytest.raises(ValueError, match="the session is in use"):
        session.truncate(0)
    session.end(None)
    go_on(session, TEXT)


def test_a_refused_request_leaves_the_session_as_it_was(engine: Engine) -> None:
    session = Session(engine)
    go_on(session, TEXT)
    before = session.tokens.tolist()
    with pytest.raises(ValueError, match=r"prompt: expected 1\.\.255 tokens"):
        go_on(session, some_tokens(SPEC, 250))
    with pytest.raises(ValueError, match="session: expected one of this engine"):
        engine.submit(Request(prompt=TEXT, session=session, sampling=Sampling(n=2)))
    assert session.tokens.tolist() == before
    go_on(session, TEXT[:3])


def test_a_saved_session_goes_on_elsewhere(engine: Engine, tmp_path: Path) -> None:
    session = Session(engine)
    go_on(session, TEXT)
    session.save(tmp_path / "chat")
    with opened() as other:
        loaded = Session.load(tmp_path / "chat", other)
        assert loaded.tokens.tolist() == session.tokens.tolist()
        result = go_on(loaded, TEXT[:4])
        # Full pages of sixteen come back; the rest of the 57 that were run is run again.
        assert result.usage.cached_tokens == 48
        assert list(result.outputs[0].tokens) == alone(np.concatenate([session.tokens, TEXT[:4]]))
    assert [path.name for path in tmp_path.iterdir()] == ["chat"]


def test_a_session_without_pages_is_saved_as_its_tokens(engine: Engine, tmp_path: Path) -> None:
    session = Session(engine, TEXT)
    session.save(tmp_path / "tokens")
    loaded = Session.load(tmp_path / "tokens", engine)
    assert loaded.tokens.tolist() == TEXT.tolist()
    Session(engine).save(tmp_path / "empty")
    assert len(Session.load(tmp_path / "empty", engine)) == 0


def test_pages_that_do_not_fit_are_computed_again(engine: Engine, tmp_path: Path) -> None:
    session = Session(engine)
    go_on(session, TEXT)
    session.save(tmp_path / "chat")
    runner = reference.load(MODEL)
    page = runner.cache_stats().page_bytes
    with opened(runner=runner, cache_bytes=5 * page) as small:
        holder = Session(small)
        go_on(holder, some_tokens(SPEC, 40, seed=5))
        loaded = Session.load(tmp_path / "chat", small)
        result = go_on(loaded, TEXT[:4])
        assert list(result.outputs[0].tokens) == alone(np.concatenate([session.tokens, TEXT[:4]]))


def test_a_session_of_another_model_backend_or_adapter_is_refused(engine: Engine, tmp_path: Path) -> None:
    session = Session(engine)
    go_on(session, TEXT)
    session.save(tmp_path / "chat")
    with (
        opened(random_model(SPEC, seed=3)) as other,
        pytest.raises(FormatError, match=r"model: expected .* it was saved with another model"),
    ):
        Session.load(tmp_path / "chat", other)
    low = {"layers.0.attn.q": (np.ones((1, 64), np.float32), np.ones((64, 1), np.float32))}
    with pytest.raises(FormatError, match=r"adapter: expected .* it was saved with another adapter"):
        Session.load(tmp_path / "chat", engine, adapter=Adapter("low", low))

    class Wide:
        layout = "wide"

        def __init__(self) -> None:
            self._runner = reference.load(MODEL)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._runner, name)

    with (
        opened(runner=Wide()) as other,  # type: ignore[arg-type]
        pytest.raises(FormatError, match=r"layout: expected wide.* it was saved by another backend"),
    ):
        Session.load(tmp_path / "chat", other)


def test_a_session_goes_on_with_its_adapter(engine: Engine, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    low = {"layers.0.attn.q": tuple(random.normal(0, 1, shape).astype(np.float32) for shape in ((2, 64), (64, 2)))}
    adapter, twin = Adapter("low", low), Adapter("low", dict(low))  # type: ignore[arg-type]
    session = Session(engine, adapter=adapter)
    go_on(session, TEXT, adapter=adapter)
    session.save(tmp_path / "chat")
    loaded = Session.load(tmp_path / "chat", engine, adapter=twin)
    assert go_on(loaded, TEXT[:4], adapter=twin).usage.cached_tokens == 48
    with pytest.raises(ValueError, match="session: its tenant and its adapter must be those of the request"):
        go_on(session, TEXT[:4])


def test_every_damaged_byte_is_noticed(engine: Engine, tmp_path: Path) -> None:
    session = Session(engine)
    go_on(session, TEXT[:18], 3)
    path = tmp_path / "chat"
    session.save(path)
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    random = np.random.default_rng(0)
    text_end = whole[8:end].rstrip().__len__() + 8
    places = [*range(text_end), *random.integers(end, len(whole), 100).tolist()]
    for place in places[:: 1 + len(places) // 300]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 7]) + whole[place + 1 :])
        with pytest.raises(FormatError):
            Session.load(path, engine)
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError):
            Session.load(path, engine)


def rewritten(whole: bytes, change: dict[str, Any], data: bytes) -> bytes:
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    header.update(change)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("change", "size", "message"),
    [
        ({"tokens": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}}, 16, "tensor 'tokens': expected at most"),
        ({"tokens": {"dtype": "I32", "shape": [2, 2], "data_offsets": [0, 16]}}, 16, "tensor 'tokens': expected at"),
        ({"tokens": {"dtype": "I32", "shape": [300], "data_offsets": [0, 1200]}}, 1200, "at most 256 int32"),
        ({"more": {"dtype": "I32", "shape": [0], "data_offsets": [200, 200]}}, 200, "tensors: expected tokens"),
        ({"pages": {"dtype": "F32", "shape": [9, 1], "data_offsets": [200, 236]}}, 236, "tensor 'pages': expected 1"),
        ({"pages": {"dtype": "F32", "shape": [], "data_offsets": [200, 204]}}, 204, "tensor 'pages': expected 1"),
    ],
)
def test_a_file_that_is_no_session_is_refused(
    engine: Engine, tmp_path: Path, change: dict[str, Any], size: int, message: str
) -> None:
    path = tmp_path / "chat"
    Session(engine, TEXT).save(path)
    path.write_bytes(rewritten(path.read_bytes(), change, bytes(size)))
    with pytest.raises(FormatError, match=message):
        Session.load(path, engine)


def test_tokens_of_no_vocabulary_are_refused(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "chat"
    Session(engine, TEXT).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + np.array([96], np.int32).tobytes())
    with pytest.raises(FormatError, match=r"tensor 'tokens': expected token ids of this model, got .*0\.\.95, got 96"):
        Session.load(path, engine)


def test_a_session_on_disk_needs_a_model_to_be_checked_against(tmp_path: Path) -> None:
    with Engine(reference.load(MODEL)) as engine, pytest.raises(ValueError, match="model: the engine was made without"):
        Session(engine, TEXT).save(tmp_path / "chat")
    assert list(tmp_path.iterdir()) == []

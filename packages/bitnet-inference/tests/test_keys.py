"""A key is shown once, known by its digest alone, and opens nothing from the moment that it is revoked."""

from __future__ import annotations

import errno
import re
import resource
import sqlite3
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core.errors import FormatError, NotFound, UnsupportedError
from bitnet_inference.server.keys import NOBODY, Keys, digest_of, hidden, id_of
from bitnet_inference.server.store import Store

NOW = 1_800_000_000.0


class Clock:
    """A wall clock that a test sets."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(tmp_path: Path, clock: Clock) -> Iterator[Keys]:
    with Store(tmp_path / "keys.sqlite") as store:
        yield Keys(store, clock=clock)


def test_a_key_has_256_random_bits_a_name_in_front_and_a_checksum_behind(keys: Keys) -> None:
    key, text = keys.create("laptop")
    assert re.fullmatch(r"bn_[a-z2-7]{16}_[a-z2-7]{59}", text)
    assert id_of(text) == key.id
    assert len({keys.create("laptop")[1] for _ in range(10)}) == 10


@given(st.integers(0, 78), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_a_mistyped_key_is_no_key(place: int, letter: str) -> None:
    text = "bn_" + "a" * 16 + "_" + "b" * 52 + "3cwgrzq"
    assert id_of(text) == "a" * 16
    wrong = text[:place] + letter + text[place + 1 :]
    assert (id_of(wrong) is None) == (wrong != text)


def test_only_the_digest_is_on_the_disk(keys: Keys, tmp_path: Path) -> None:
    key, text = keys.create("laptop")
    _, later = keys.rotate(key.id, grace_s=60)
    for file in tmp_path.iterdir():
        found = file.read_bytes()
        assert text.encode() not in found
        assert later.encode() not in found
        assert text[20:].encode() not in found
    assert any(digest_of(text).encode() in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="rights are of POSIX")
def test_the_files_are_for_their_owner_alone(keys: Keys, tmp_path: Path) -> None:
    keys.create("laptop")
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    file = tmp_path / "keys.sqlite"
    file.chmod(0o644)
    Store(file).close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_neither_text_nor_secret_nor_digest_is_in_what_a_key_prints(keys: Keys) -> None:
    key, text = keys.create("laptop")
    key = keys.get(key.id)
    assert text not in repr(key)
    assert digest_of(text) not in repr(key)
    assert key.secret.hex() not in repr(key)
    assert repr(key.secret) not in repr(key)
    assert hidden(f"a key {text}!") == f"a key bn_{key.id}_***!"


def test_a_key_opens_until_it_is_revoked(keys: Keys, clock: Clock) -> None:
    key, text = keys.create("laptop")
    assert key.opens(text, clock())
    assert keys.get(key.id).opens(text, clock())
    assert not key.opens(keys.create("other")[1], clock())
    revoked = keys.revoke(key.id)
    assert revoked.revoked == NOW
    assert not keys.get(key.id).opens(text, clock())
    clock.now += 5
    assert keys.revoke(key.id).revoked == NOW  # the first time counts


def test_a_key_opens_until_it_expires(keys: Keys) -> None:
    key, text = keys.create("laptop", expires=NOW + 10)
    assert key.opens(text, NOW + 9.9)
    assert not key.opens(text, NOW + 10)


def test_a_rotated_key_keeps_its_settings_and_its_old_text_for_a_while(keys: Keys, clock: Clock) -> None:
    key, old = keys.create("laptop", budget=7)
    rotated, new = keys.rotate(key.id, grace_s=60)
    assert (rotated.id, rotated.budget, rotated.secret) == (key.id, 7, key.secret)
    assert rotated.opens(new, NOW)
    assert rotated.opens(old, NOW + 59)
    assert not rotated.opens(old, NOW + 60)
    again, newest = keys.rotate(key.id)
    assert again.opens(newest, NOW)
    assert not again.opens(new, NOW)
    assert not again.opens(old, NOW)
    keys.revoke(key.id)
    with pytest.raises(ValueError, match="not been revoked"):
        keys.rotate(key.id)


def test_nobody_is_opened_by_nothing() -> None:
    for text in ("", "x", "bn_", "\0", "\U0001f511"):
        assert not NOBODY.opens(text, NOW)
        assert id_of(text) is None


def test_settings_are_kept_and_changed(keys: Keys) -> None:
    settings: dict[str, Any] = {
        "role": "admin",
        "models": {"a", "b:c"},
        "tokens_per_minute": 10,
        "requests_per_minute": 1,
        "budget": 0,
        "period": "day",
        "customer": "cus_1",
        "expires": NOW + 1,
    }
    key, _ = keys.create("laptop", **settings)
    assert keys.get(key.id) == key
    assert {name: getattr(key, name) for name in settings} == settings
    keys.update(key.id, models=None, budget=None, name="desktop")
    changed = keys.get(key.id)
    assert (changed.models, changed.budget, changed.name) == (None, None, "desktop")
    assert (changed.role, changed.created, changed.secret) == ("admin", NOW, key.secret)
    assert keys.list() == [changed]


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": "root"},
        {"role": ["admin"]},
        {"period": "week"},
        {"models": "all"},
        {"models": 5},
        {"models": [""]},
        {"models": ["a\nb"]},
        {"models": ["a"] * 1001},
        {"tokens_per_minute": 0},
        {"tokens_per_minute": 1.5},
        {"requests_per_minute": True},
        {"requests_per_minute": 2**63},
        {"budget": -1},
        {"budget": "5"},
        {"expires": -1},
        {"expires": float("nan")},
        {"expires": "tomorrow"},
        {"customer": ""},
        {"customer": "x" * 201},
        {"secret": b"x"},
        {"revoked": None},
    ],
)
def test_a_setting_out_of_its_range_is_named(keys: Keys, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: expected"):
        keys.create("laptop", **wrong)
    assert keys.list() == []


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "\x1b[31m", None, 5])
def test_a_name_is_short_and_can_be_printed(keys: Keys, name: Any) -> None:
    with pytest.raises(ValueError, match=r"^name: expected 1 to 200 printable characters"):
        keys.create(name)


def test_an_unknown_id_is_not_found(keys: Keys) -> None:
    for call in (keys.get, keys.revoke, keys.rotate, keys.update):
        with pytest.raises(NotFound, match="no key has the id 'nobody'"):
            call("nobody")


def test_the_version_grows_with_each_change(keys: Keys) -> None:
    seen = [keys.version()]
    key, _ = keys.create("laptop")
    seen.append(keys.version())
    keys.update(key.id, budget=1)
    seen.append(keys.version())
    keys.rotate(key.id)
    seen.append(keys.version())
    keys.revoke(key.id)
    seen.append(keys.version())
    assert seen == sorted(set(seen))


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys.sqlite"
    file.write_bytes(b"not a database at all, but long enough to be one" * 100)
    with pytest.raises(FormatError, match=r"keys\.sqlite: database: expected"):
        Store(file)
    assert file.read_bytes().startswith(b"not a database")


def test_a_database_of_a_later_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.sqlite"
    with Store(file) as store, store.write() as run:
        run("UPDATE facts SET value = 99 WHERE name = 'version'")
    with pytest.raises(UnsupportedError, match="version 99"):
        Store(file)


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with Store(tmp_path / "keys.sqlite") as store:
        with pytest.raises(sqlite3.OperationalError), store.write() as run:
            run("INSERT INTO facts VALUES ('x', 1)") or run("SELECT * FROM nothing")
        with store.read() as run:
            assert run("SELECT * FROM facts WHERE name = 'x'") == []


@pytest.mark.parametrize("pages", [1, 2])
def test_a_full_disk_is_called_so_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    connect = sqlite3.connect

    def connect_to_small_disk(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_to_small_disk)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/keys\.sqlite'"):
        Store(tmp_path / "keys.sqlite")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def _failing_disk() -> Iterator[None]:
    """No file may grow beyond 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_failing_disk")
def test_a_disk_that_fails_is_called_so_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"keys\.sqlite") as caught:
        Store(tmp_path / "keys.sqlite")
    assert caught.value.errno == errno.EIO
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("keys", "_failing_disk")  # in this order
def test_a_disk_that_fails_later_is_called_so_too(keys: Keys) -> None:
    with pytest.raises(OSError, match=r"keys\.sqlite") as caught:
        keys.create("laptop")
    assert caught.value.errno == errno.EIO
    assert keys.list() == []

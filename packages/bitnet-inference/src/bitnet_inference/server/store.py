"""Where keys, balances and usage are kept: a SQLite file, or any database that SQLAlchemy reaches.

All SQL of the server is in a subset that SQLite and PostgreSQL read alike, with parameters as `:name`.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self

from bitnet_core.errors import FormatError, UnsupportedError

Row = tuple[Any, ...]

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS keys (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, previous TEXT, previous_until DOUBLE PRECISION,
  secret TEXT NOT NULL, role TEXT NOT NULL, models TEXT, tokens_per_minute BIGINT, requests_per_minute BIGINT,
  budget BIGINT, period TEXT NOT NULL, customer TEXT, created DOUBLE PRECISION NOT NULL, expires DOUBLE PRECISION,
  revoked DOUBLE PRECISION);
CREATE TABLE IF NOT EXISTS balances (
  tenant TEXT NOT NULL, period TEXT NOT NULL, spent BIGINT NOT NULL, reserved BIGINT NOT NULL,
  PRIMARY KEY (tenant, period));
CREATE TABLE IF NOT EXISTS reservations (
  id TEXT PRIMARY KEY, tenant TEXT NOT NULL, period TEXT NOT NULL, tokens BIGINT NOT NULL, worker TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS workers (id TEXT PRIMARY KEY, beat BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS usage (
  id TEXT PRIMARY KEY, at DOUBLE PRECISION NOT NULL, hour BIGINT NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL,
  prompt BIGINT NOT NULL, cached BIGINT NOT NULL, completion BIGINT NOT NULL, tokens BIGINT NOT NULL,
  seconds DOUBLE PRECISION NOT NULL, joules DOUBLE PRECISION, customer TEXT, bill TEXT);
CREATE TABLE IF NOT EXISTS bills (
  id TEXT PRIMARY KEY, run TEXT NOT NULL, customer TEXT NOT NULL, meter TEXT NOT NULL, tokens BIGINT NOT NULL,
  at DOUBLE PRECISION NOT NULL, sent DOUBLE PRECISION);
CREATE INDEX IF NOT EXISTS usage_by_tenant ON usage (tenant, at);
CREATE INDEX IF NOT EXISTS usage_by_time ON usage (at);
CREATE INDEX IF NOT EXISTS usage_to_bill ON usage (bill, customer);
CREATE INDEX IF NOT EXISTS reservations_by_worker ON reservations (worker);
"""


class Run(Protocol):
    """Runs one statement, and gives the rows that it returns."""

    def __call__(self, sql: str, /, **values: Any) -> list[Row]: ...


class _Database(Protocol):
    def write(self) -> AbstractContextManager[Run]: ...
    def read(self) -> AbstractContextManager[Run]: ...
    def close(self) -> None: ...


class Store:
    """A database with our tables; any number of threads and processes may use it at once.

    `place`: a path, made with rights for its owner alone, or a URL such as `postgresql+psycopg://host/name` (extra
    `postgres`).
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        text = os.fspath(place)
        if "://" in text and not text.startswith("sqlite:///"):
            self._database: _Database = _Remote(text)
        else:
            self._database = _File(Path(text.removeprefix("sqlite:///")))
        # A password in a URL is nobody's to see.
        self.name = re.sub(r"//[^/@]*@", "//", text)
        try:
            self._prepare()
        except BaseException:
            self.close()
            if isinstance(self._database, _File):
                self._database.take_away()
            raise

    def write(self) -> AbstractContextManager[Run]:
        """A transaction: all of it is on the disk when the block ends well, and none of it otherwise."""
        return self._database.write()

    def read(self) -> AbstractContextManager[Run]:
        """Only looks, and keeps no writer waiting."""
        return self._database.read()

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        for last in (False, True):
            try:
                with self.write() as run:
                    for statement in filter(None, map(str.strip, _SCHEMA.split(";"))):
                        run(statement)
                    run("INSERT INTO facts VALUES ('version', :v) ON CONFLICT DO NOTHING", v=_VERSION)
                    run("INSERT INTO facts VALUES ('changes', 0) ON CONFLICT DO NOTHING")
                    [(found,)] = run("SELECT value FROM facts WHERE name = 'version'")
                break
            except sqlite3.DatabaseError as error:
                raise _named(self.name, error, "a database of this server") from error
            except Exception:
                if last:  # two servers that make the same tables at once disturb each other one time
                    raise
        if found != _VERSION:
            raise UnsupportedError(f"{self.name}: the database is of version {found}, this server's is {_VERSION}")


class _File:
    """SQLite with a write-ahead log: one writer at a time, and readers that do not wait for it."""

    def __init__(self, path: Path) -> None:
        if sqlite3.sqlite_version_info < (3, 35):
            raise UnsupportedError(f"SQLite is {sqlite3.sqlite_version}; expected 3.35 or newer")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._is_new = path, not path.exists()
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)  # SQLite gives the files beside it the same rights
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        try:
            self._writer = self._connect()
        except BaseException:
            self.take_away()
            raise

    def take_away(self) -> None:
        """Delete what we have made, if nobody has put a table into it."""
        with suppress(sqlite3.Error):
            if self._is_new and _is_empty(self._path):
                self._path.unlink()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            _as_log(connection)
            connection.execute("PRAGMA synchronous = FULL")  # what was answered stands after a power cut, too
            connection.execute("PRAGMA trusted_schema = OFF")
        except sqlite3.DatabaseError as error:
            connection.close()
            raise _named(self._path, error, "a SQLite file") from error
        return connection

    @contextmanager
    def write(self) -> Iterator[Run]:
        with self._lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield _runs(self._writer)
                self._writer.execute("COMMIT")
            except BaseException as error:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                if isinstance(error, sqlite3.DatabaseError) and (failure := _of_disk(self._path, error)):
                    raise failure from error
                raise

    @contextmanager
    def read(self) -> Iterator[Run]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            connection.execute("BEGIN")  # all statements of the block see the same moment
            yield _runs(connection)
        finally:
            connection.execute("ROLLBACK")
            self._idle.append(connection)
            if self._closed:
                self.close()

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        with self._lock:
            self._writer.close()


def _named(name: str | os.PathLike[str], error: sqlite3.DatabaseError, expected: str) -> Exception:
    """What is wrong with a database: its disk, or what it is."""
    return _of_disk(name, error) or FormatError(name, "database", expected, error)


def _of_disk(name: str | os.PathLike[str], error: sqlite3.DatabaseError) -> OSError | None:
    # The first byte of a code is its kind; an error of Python's own module has none.
    kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
    number = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO}.get(kind)
    return OSError(number, os.strerror(number), os.fspath(name)) if number else None


def _is_empty(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,))


def _as_log(connection: sqlite3.Connection) -> None:
    """Set the mode, which needs the file for itself for a moment, and does not wait for it on its own."""
    for _ in range(200):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            time.sleep(0.05)
        else:
            return
    raise sqlite3.OperationalError("the database is locked by another process")


def _runs(connection: sqlite3.Connection) -> Run:
    def run(sql: str, /, **values: Any) -> list[Row]:
        with closing(connection.execute(sql, values)) as cursor:
            return cursor.fetchall()

    return run


class _Remote:
    """Whatever SQLAlchemy reaches and understands the SQL; PostgreSQL is what is tested."""

    def __init__(self, url: str) -> None:
        try:
            import sqlalchemy  # noqa: PLC0415  # an extra
        except ImportError:
            raise UnsupportedError(
                "a database by URL needs SQLAlchemy; install it with: pip install 'bitnet-inference[postgres]'"
            ) from None
        self._text = sqlalchemy.text
        self._engine = sqlalchemy.create_engine(url, pool_pre_ping=True)

    @contextmanager
    def write(self) -> Iterator[Run]:
        with self._engine.begin() as connection:
            yield self._runs(connection)

    @contextmanager
    def read(self) -> Iterator[Run]:
        with self._engine.connect() as connection:
            yield self._runs(connection)

    def close(self) -> None:
        self._engine.dispose()

    def _runs(self, connection: Any) -> Run:
        def run(sql: str, /, **values: Any) -> list[Row]:
            result = connection.execute(self._text(sql), values)
            return [tuple(row) for row in result.fetchall()] if result.returns_rows else []

        return run

"""What was computed once and may be used again: prefixes found by their content, the least recently used out first."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import NamedTuple

import numpy as np

from bitnet_core.model import Adapter, Cache, Tokens

_BLOCK = 16  # tokens that are found together; a shorter prefix is not worth a fork
_LOOKS = 8  # entries that agree on all whole blocks, of which the best is taken
_ENTRIES = 1024  # that nobody uses


class Scope(NamedTuple):
    """Who may share: texts of one tenant, run with one adapter."""

    tenant: bytes
    adapter: Adapter | None


class Entry:
    """Tokens that a cache holds, or, while its sequence runs, will hold."""

    __slots__ = ("cache", "keys", "live", "scope", "tokens")

    def __init__(self, scope: Scope, tokens: Tokens, cache: Cache, *, live: bool) -> None:
        self.scope = scope
        self.tokens = tokens
        self.cache = cache
        self.live = live  # its sequence owns the cache
        self.keys = _keys(scope, tokens)

    @property
    def ready(self) -> int:
        """Tokens that can be forked now."""
        return min(self.cache.length, len(self.tokens))


class Match(NamedTuple):
    """What shares the most with a text: an entry that is ready to fork, and one that is on its way."""

    entry: Entry | None = None
    ready: int = 0
    ahead: Entry | None = None
    coming: int = 0


class Prefixes:
    """Entries by the blocks of tokens that they begin with. The engine's thread alone uses it."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[Entry, None]] = {}  # by the key of all blocks up to it
        self._ends: dict[int, dict[Entry, None]] = {}  # idle ones, by their last key
        self._idle: OrderedDict[Entry, None] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._idle)

    def find(self, scope: Scope, tokens: Tokens) -> Match:
        """The best there is for these tokens; keys only point the way, the tokens themselves are compared."""
        blocks = None
        for key in _keys(scope, tokens):
            if (deeper := self._blocks.get(key)) is None:
                break
            blocks = deeper
        best = Match()
        for entry in islice(reversed(blocks or {}), _LOOKS):
            if entry.scope == scope and (common := _common(entry.tokens, tokens)) >= _BLOCK:
                if common > best.coming:
                    best = best._replace(ahead=entry, coming=common)
                if min(common, entry.ready) > best.ready:
                    best = best._replace(entry=entry, ready=min(common, entry.ready))
        if best.entry is not None and best.entry in self._idle:
            self._idle.move_to_end(best.entry)
        return best

    def begin(self, scope: Scope, tokens: Tokens, cache: Cache) -> Entry:
        """A sequence runs: others find what it has computed so far. The cache stays its own."""
        entry = Entry(scope, tokens, cache, live=True)
        self._point(entry)
        return entry

    def keep(self, scope: Scope, tokens: Tokens, cache: Cache) -> None:
        """Take over a cache whose sequence has ended, with what it holds."""
        tokens = tokens[: cache.length].copy()
        entry = Entry(scope, tokens, cache, live=False)
        if not entry.keys or self._covered(entry):
            cache.close()
            return
        for key in entry.keys:
            for shorter in list(self._ends.get(key, ())):
                if shorter.scope == scope and _common(shorter.tokens, tokens) == len(shorter.tokens):
                    self.drop(shorter)
        self._point(entry)
        self._ends.setdefault(entry.keys[-1], {})[entry] = None
        self._idle[entry] = None
        if len(self._idle) > _ENTRIES:
            self.evict()

    def drop(self, entry: Entry) -> None:
        """Forget an entry; the cache of an idle one is closed."""
        for key in entry.keys:
            _unlink(self._blocks, key, entry)
        if not entry.live:
            _unlink(self._ends, entry.keys[-1], entry)
            del self._idle[entry]
            entry.cache.close()
        entry.live = False

    def evict(self) -> bool:
        """Drop the least recently used; False if there is none."""
        if not self._idle:
            return False
        self.drop(next(iter(self._idle)))
        return True

    def forget(self, adapter: Adapter) -> None:
        """Drop all that was computed with an adapter."""
        for entry in [entry for entry in self._idle if entry.scope.adapter is adapter]:
            self.drop(entry)

    def clear(self) -> None:
        """Drop all that is idle."""
        while self.evict():
            pass

    def _covered(self, entry: Entry) -> bool:
        for other in self._blocks.get(entry.keys[-1], ()):
            alike = not other.live and other.scope == entry.scope
            if alike and _common(other.tokens, entry.tokens) == len(entry.tokens):
                self._idle.move_to_end(other)
                return True
        return False

    def _point(self, entry: Entry) -> None:
        for key in entry.keys:
            self._blocks.setdefault(key, {})[entry] = None


def _unlink(table: dict[int, dict[Entry, None]], key: int, entry: Entry) -> None:
    entries = table[key]
    del entries[entry]
    if not entries:
        del table[key]


def _keys(scope: Scope, tokens: Tokens) -> list[int]:
    """A key for each whole block, of all tokens up to its end."""
    data = tokens[: len(tokens) // _BLOCK * _BLOCK].tobytes()
    key = hash((scope.tenant, id(scope.adapter)))
    keys = []
    for first in range(0, len(data), 4 * _BLOCK):
        # The hash of bytes is keyed anew in every process: nobody can make texts whose keys fall together.
        key = hash((key, data[first : first + 4 * _BLOCK]))
        keys.append(key)
    return keys


def _common(one: Tokens, other: Tokens) -> int:
    """How many tokens two texts begin with alike."""
    size = min(len(one), len(other))
    differ = one[:size] != other[:size]
    first = int(np.argmax(differ)) if size else 0
    return first if size and differ[first] else size

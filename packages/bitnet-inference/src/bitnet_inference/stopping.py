"""Where a text ends: stop strings, found across the borders of tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from bitnet_core.tokenizer import TextStream, Tokenizer


class TextStops:
    """Text from tokens as they come, up to the first stop string; what may be the beginning of one is held back.

    The first is the one that is complete first; of those that end at one place, the longest.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        include: bool = False,
        continues: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._stream = TextStream(tokenizer, continues=continues)
        self._strings = _Strings(stops) if stops else None
        self._include = include
        self._early = min_tokens  # tokens in which no stop string is looked for
        self._place = 0  # in the strings: the longest beginning of one that the text ends with
        self._held = ""  # that beginning
        self.stopped = False
        self.found: str | None = None  # the string that has ended it

    def feed(self, token: int) -> tuple[str, bool]:
        """The text that is safe to show now, and whether a stop string has ended it."""
        if self.stopped:
            return "", True
        text = self._stream.feed(token)
        if self._early:
            self._early -= 1
            return text, False
        return self._pass(text), self.stopped

    def finish(self, *, cut: bool = False) -> str:
        """The rest of the text: no more tokens come. Of a character that was `cut` in the midst, nothing is shown."""
        if self.stopped:
            return ""
        text = "" if cut else self._stream.finish()
        rest = self._pass(text) if text else ""
        held, self._held = self._held, ""
        return rest + held

    def _pass(self, text: str) -> str:
        """What can be shown of the text that was held and this."""
        if self._strings is None or not text:
            return text
        place, strings = self._place, self._strings
        for index, character in enumerate(text):
            place = strings.follow(place, character)
            if length := strings.lengths[place]:
                return self._cut(self._held + text[: index + 1], length)
        self._place = place
        whole = self._held + text
        shown = len(whole) - strings.depths[place]
        self._held = whole[shown:]
        return whole[:shown]

    def _cut(self, text: str, length: int) -> str:
        self.stopped, self.found, self._held = True, text[-length:], ""
        return text if self._include else text[:-length]


class _Strings:
    """Strings as one tree of their beginnings, each with the longest other one that it ends with (Aho-Corasick).

    A place in it is a beginning: 0 is the empty one. Going through a text takes time in proportion to its length.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self.depths = [0]  # characters of each beginning
        self.lengths = [0]  # of the longest string that it ends with; 0: none
        for string in strings:
            self._add(string)
        self._shorter = [0] * len(self._next)
        self._link()

    def follow(self, place: int, character: str) -> int:
        """The longest beginning that a text ends with, which ended with `place` and goes on with the character."""
        while character not in self._next[place]:
            if not place:
                return 0
            place = self._shorter[place]
        return self._next[place][character]

    def _add(self, string: str) -> None:
        place = 0
        for character in string:
            if character not in self._next[place]:
                self._next[place][character] = len(self._next)
                self._next.append({})
                self.depths.append(self.depths[place] + 1)
                self.lengths.append(0)
            place = self._next[place][character]
        self.lengths[place] = len(string)

    def _link(self) -> None:
        """Shorter beginnings first: each link is found along the link of the one before it."""
        waiting = deque(self._next[0].values())
        while waiting:
            place = waiting.popleft()
            for character, longer in self._next[place].items():
                self._shorter[longer] = self.follow(self._shorter[place], character)
                self.lengths[longer] = self.lengths[longer] or self.lengths[self._shorter[longer]]
                waiting.append(longer)

"""Whether what a model learns holds what it is judged by: documents that share a paragraph are found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b

_SHORTEST = 50  # characters; shorter paragraphs ("The end.") are everybody's


class Paragraphs:
    """The paragraphs of the documents held out, as hashes."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._seen = {key for text in texts for key in _keys(text)}

    def __len__(self) -> int:
        return len(self._seen)

    def any_in(self, text: str) -> bool:
        """Whether a document shares a paragraph with those held out, but for case and spaces."""
        return any(key in self._seen for key in _keys(text))


def _keys(text: str) -> Iterator[bytes]:
    for line in text.splitlines():
        words = " ".join(line.casefold().split())
        if len(words) > _SHORTEST:
            yield blake2b(words.encode(errors="replace"), digest_size=12).digest()

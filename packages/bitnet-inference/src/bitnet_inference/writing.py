"""A text that is being written: the tokens of a request as pieces of text, and as replies at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Self

from bitnet_core.errors import FormatError
from bitnet_core.tokenizer import Tokenizer

from .reply import Details, Piece, Reply, TokenLogprob, prompt_logprobs_of, token_logprob
from .request import Emission, Output, Request, Result
from .settings import Sampling
from .stopping import TextStops
from .structured import Form
from .ticket import Ticket
from .tools import Call, Toolbox

# Of a text, and whether it came to its end: its value, and the tools that it calls.
Reader = Callable[[str, bool], tuple[Any, tuple[Call, ...]]]


def stopper(tokenizer: Tokenizer, sampling: Sampling, *, continues: bool) -> Callable[[int], str | None]:
    """What tells the engine of the token with which a stop string is complete."""
    stops = TextStops(
        tokenizer, sampling.stop, include=sampling.include_stop, continues=continues, min_tokens=sampling.min_tokens
    )
    return lambda token: "stop" if stops.feed(token)[1] else None


def read_answer(form: Form | None, toolbox: Toolbox | None, text: str, whole: bool) -> tuple[Any, tuple[Call, ...]]:
    """What an answer says: its value, if it was not cut, and the calls in it."""
    calls = tuple(toolbox.parse(text)) if toolbox else ()
    return (form.parse(text) if form and whole and not calls else None), calls


class _Text:
    """One of the texts of a request, token by token."""

    def __init__(self, tokenizer: Tokenizer | None, request: Request, continues: bool) -> None:
        sampling = request.sampling
        self._tokenizer = tokenizer
        self._ends = sampling.stop_tokens | request.eos if not sampling.include_stop else frozenset[int]()
        self._stop_tokens = sampling.stop_tokens
        self._wants = sampling.logprobs is not None
        self._cut = True  # more could have come
        self._shown = 0  # log-probabilities that went with a piece
        self.logprobs: list[TokenLogprob] = []
        self.pieces: list[Piece] = []
        self._stops = None
        if tokenizer is not None:
            self._stops = TextStops(
                tokenizer,
                sampling.stop,
                include=sampling.include_stop,
                continues=continues,
                min_tokens=sampling.min_tokens,
            )

    def feed(self, emission: Emission) -> Piece | None:
        """The text that this token completes, if it does."""
        self._cut = emission.finish_reason != "stop"
        if self._wants and emission.logprob is not None:
            self.logprobs.append(token_logprob(self._tokenizer, emission.token, emission.logprob, emission.top))
        if self._stops is None:
            return None
        if emission.finish_reason == "stop" and emission.token in self._ends:
            return None
        text, _ = self._stops.feed(emission.token)
        return self._piece(text, emission.index) if text else None

    def finish(self, index: int) -> Piece | None:
        """What was held back."""
        text = self._stops.finish(cut=self._cut) if self._stops is not None else ""
        return self._piece(text, index) if text or self._shown < len(self.logprobs) else None

    def stop(self, tokens: Sequence[int]) -> str | None:
        """What it was to stop at, and came to."""
        if self._stops is not None and self._stops.found is not None:
            return self._stops.found
        if self._tokenizer is None or not tokens or tokens[-1] not in self._stop_tokens:
            return None
        return next((text for text, token in self._tokenizer.special_tokens.items() if token == tokens[-1]), None)

    def _piece(self, text: str, index: int) -> Piece:
        piece = Piece(text, index, tuple(self.logprobs[self._shown :]))
        self._shown = len(self.logprobs)
        self.pieces.append(piece)
        return piece


class Writing:
    """The pieces of a text as the model writes them, in a thread or in asyncio; `reply` is the whole of it.

    Closing it, or letting go of it, ends the request.
    """

    def __init__(
        self,
        ticket: Ticket,
        request: Request,
        tokenizer: Tokenizer | None,
        *,
        continues: bool = False,
        read: Reader | None = None,
    ) -> None:
        self.ticket = ticket
        self._request = request
        self._tokenizer = tokenizer
        self._continues = continues
        self._read = read
        self._texts: list[_Text] | None = None  # when they are whole
        self._reply: Reply | None = None

    def __iter__(self) -> Iterator[Piece]:
        texts = self._begin()
        for emission in self.ticket:
            if (piece := texts[emission.index].feed(emission)) is not None:
                yield piece
        yield from self._end(texts)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        texts = self._begin()
        async for emission in self.ticket:
            if (piece := texts[emission.index].feed(emission)) is not None:
                yield piece
        for piece in self._end(texts):
            yield piece

    @property
    def reply(self) -> Reply:
        """The whole text, when it is finished; blocks until then."""
        return self._make(self.ticket.result()) if self._reply is None else self._reply

    async def areply(self) -> Reply:
        """The same in asyncio."""
        return self._make(await self.ticket.aresult()) if self._reply is None else self._reply

    def close(self) -> None:
        """End the request now; nothing happens if it has ended."""
        self.ticket.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> list[_Text]:
        count = self._request.sampling.n
        return [_Text(self._tokenizer, self._request, self._continues) for _ in range(count)]

    def _end(self, texts: list[_Text]) -> Iterator[Piece]:
        rest = [piece for index, text in enumerate(texts) if (piece := text.finish(index)) is not None]
        self._texts = texts
        yield from rest

    def _make(self, result: Result) -> Reply:
        """The reply of what has ended; what nobody read piece by piece to its end is read now."""
        if self._texts is None:
            for _ in self:
                pass
        texts = self._texts or []
        replies = [self._reply_of(text, output, result) for text, output in zip(texts, result.outputs, strict=True)]
        for reply in replies:
            reply.choices = tuple(replies)
        self._reply = replies[0]
        return self._reply

    def _reply_of(self, written: _Text, output: Output, result: Result) -> Reply:
        text = "".join(written.pieces)
        whole = output.finish_reason == "stop"
        parsed: Any = None
        calls: tuple[Call, ...] = ()
        unread: FormatError | None = None
        if self._read is not None:
            try:
                parsed, calls = self._read(text, whole)
            except FormatError as error:  # the text is there all the same
                unread = error.with_traceback(None)
                # A reply that is kept must not keep the frames that errors hold, and the model with them.
                unread.__cause__ = unread.__context__ = None
        details = Details(
            finish_reason="tool_calls" if calls and whole else output.finish_reason,
            tokens=output.tokens,
            usage=result.usage,
            timings=result.timings,
            logprobs=tuple(written.logprobs),
            prompt_logprobs=prompt_logprobs_of(self._tokenizer, result.prompt_logprobs),
            stop=written.stop(output.tokens) if whole else None,
            parsed=parsed,
            unread=unread,
            tool_calls=calls,
        )
        return Reply(text, details)

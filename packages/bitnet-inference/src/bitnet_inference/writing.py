"""A text that is being written: the tokens of a request as pieces of text, and as replies at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Self

from bitnet_core.tokenizer import Tokenizer

from .reply import Details, Piece, Reply, TokenLogprob, logprobs_of, prompt_logprobs_of, token_logprob
from .request import Emission, Output, Request, Result
from .stopping import TextStops
from .ticket import Ticket
from .tools import Call

# Of a text, and whether it came to its end: its value, and the tools that it calls.
Reader = Callable[[str, bool], tuple[Any, tuple[Call, ...]]]


class _Text:
    """One of the texts of a request, token by token."""

    def __init__(self, tokenizer: Tokenizer | None, request: Request, continues: bool) -> None:
        sampling = request.sampling
        self._tokenizer = tokenizer
        self._ends = sampling.stop_tokens | request.eos if not sampling.include_stop else frozenset[int]()
        self._stop_tokens = sampling.stop_tokens
        self._wants = sampling.logprobs is not None
        self._logprobs: list[TokenLogprob] = []
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
        if self._wants and emission.logprob is not None:
            self._logprobs.append(token_logprob(self._tokenizer, emission.token, emission.logprob, emission.top))
        if self._stops is None:
            return None
        if emission.finish_reason == "stop" and emission.token in self._ends:
            return None
        text, _ = self._stops.feed(emission.token)
        return self._piece(text, emission.index) if text else None

    def finish(self, index: int) -> Piece | None:
        """What was held back."""
        text = self._stops.finish() if self._stops is not None else ""
        return self._piece(text, index) if text or self._logprobs else None

    def stop(self, tokens: Sequence[int]) -> str | None:
        """What it was to stop at, and came to."""
        if self._stops is not None and self._stops.found is not None:
            return self._stops.found
        if self._tokenizer is None or not tokens or tokens[-1] not in self._stop_tokens:
            return None
        return next((text for text, token in self._tokenizer.special_tokens.items() if token == tokens[-1]), None)

    def _piece(self, text: str, index: int) -> Piece:
        logprobs, self._logprobs = tuple(self._logprobs), []
        return Piece(text, index, logprobs)


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
        self._reply: Reply | None = None

    def __iter__(self) -> Iterator[Piece]:
        texts = self._texts()
        for emission in self.ticket:
            if (piece := texts[emission.index].feed(emission)) is not None:
                yield piece
        yield from self._rest(texts)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        texts = self._texts()
        async for emission in self.ticket:
            if (piece := texts[emission.index].feed(emission)) is not None:
                yield piece
        for piece in self._rest(texts):
            yield piece

    @property
    def reply(self) -> Reply:
        """The whole text, when it is finished; blocks until then."""
        if self._reply is None:
            self._reply = self._make(self.ticket.result())
        return self._reply

    async def areply(self) -> Reply:
        """The same in asyncio."""
        if self._reply is None:
            self._reply = self._make(await self.ticket.aresult())
        return self._reply

    def close(self) -> None:
        """End the request now; nothing happens if it has ended."""
        self.ticket.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _texts(self) -> list[_Text]:
        count = self._request.sampling.n
        return [_Text(self._tokenizer, self._request, self._continues) for _ in range(count)]

    def _rest(self, texts: list[_Text]) -> Iterator[Piece]:
        for index, text in enumerate(texts):
            if (piece := text.finish(index)) is not None:
                yield piece

    def _make(self, result: Result) -> Reply:
        replies = [self._reply_of(index, output, result) for index, output in enumerate(result.outputs)]
        for reply in replies:
            reply.choices = tuple(replies)
        return replies[0]

    def _reply_of(self, index: int, output: Output, result: Result) -> Reply:
        text, stop = self._text_of(index, output)
        whole = output.finish_reason == "stop"
        parsed, calls = self._read(text, whole) if self._read else (None, ())
        details = Details(
            finish_reason="tool_calls" if calls and whole else output.finish_reason,
            tokens=output.tokens,
            usage=result.usage,
            timings=result.timings,
            logprobs=logprobs_of(self._tokenizer, output),
            prompt_logprobs=prompt_logprobs_of(self._tokenizer, result.prompt_logprobs),
            stop=stop if whole else None,
            parsed=parsed,
            tool_calls=calls,
        )
        return Reply(text, details)

    def _text_of(self, index: int, output: Output) -> tuple[str, str | None]:
        """The text, and the string that it was to stop at, if it came to one."""
        text = _Text(self._tokenizer, self._request, self._continues)
        last = len(output.tokens) - 1
        pieces = [
            text.feed(Emission(index, token, finish_reason=output.finish_reason if place == last else None))
            for place, token in enumerate(output.tokens)
        ]
        whole = "".join(piece for piece in (*pieces, text.finish(index)) if piece is not None)
        return whole, text.stop(output.tokens)

"""A model for EleutherAI's lm-eval: importing this registers it there as "bitnet".

import lm_eval
from bitnet_inference.harness import BitNetLM

lm_eval.simple_evaluate(model=BitNetLM(pretrained="org/model"), tasks=["arc_easy"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from bitnet_core.errors import UnsupportedError
from bitnet_core.model import Tokens

from .llm import LLM

_NEW_TOKENS = 256  # where a task does not say


class BitNetLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """An `LLM` as lm-eval sees a model; what it does not know of the arguments goes to `LLM`."""

    def __init__(self, pretrained: str | LLM | None = None, batch_size: Any = None, device: Any = None, **options: Any):
        super().__init__()
        del batch_size, device  # the engine makes its own batches, on the backend's device
        self.llm = pretrained if isinstance(pretrained, LLM) else LLM(pretrained, **options)
        tokenizer = self.llm.tokenizer
        end = min(tokenizer.eos, default=None)
        if end is None:
            raise UnsupportedError(f"{self.llm.name}: lm-eval needs a token that ends a text, and the model has none")
        self._end = end
        self._begin = end if tokenizer.bos is None else tokenizer.bos

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._end

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without a context is scored after."""
        return self._begin

    @property
    def max_length(self) -> int:
        """Tokens of the context."""
        return self.llm.engine.context

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache calls the tokenizer."""
        return self.llm.name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text; `add_special_tokens` says whether those that begin and end it are put around it."""
        bos = None if add_special_tokens is None else add_special_tokens
        ids: list[int] = self.llm.tokenizer.encode(
            string, bos=bos and self.llm.tokenizer.bos is not None, eos=False
        ).tolist()
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, for tasks that are asked with a chat template."""
        template = self.llm.model.template
        if template is None:
            raise UnsupportedError(f"{self.llm.name}: the model has no chat template; leave apply_chat_template out")
        return str(template.render(chat_history, add_generation_prompt=add_generation_prompt).text)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for lm-eval's records."""
        return self.llm.model.template.source if chat_template and self.llm.model.template else None

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, each token after as much as the context holds of what stands before."""
        del disable_tqdm
        texts = [request.args[0] for request in requests]
        return [score.total for score in self.llm.scores([("", text) for text in texts])]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to one of its stop strings; greedy, where a task does not ask for chance."""
        del disable_tqdm
        begun = [self.llm.write(self._cut(context, wishes), **_options(wishes)) for context, wishes in _args(requests)]
        return [str(writing.reply) for writing in begun]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        room = self.max_length
        pairs = [((context + rest)[-room:], min(len(rest), room - 1)) for _, context, rest in requests]
        begun = self.llm.score_tokens([(np.array(tokens, np.int32), len(tokens) - size) for tokens, size in pairs])
        return [(score.total, score.greedy) for score in begun]

    def _cut(self, context: str, wishes: dict[str, Any]) -> Tokens:
        """The end of a context that leaves room for the answer."""
        tokens = self.llm.tokenizer.encode(context)
        room = max(1, self.max_length - int(wishes.get("max_gen_toks", _NEW_TOKENS)))
        return tokens[-room:]


register_model("bitnet")(BitNetLM)


def _args(requests: Sequence[Instance]) -> list[tuple[str, dict[str, Any]]]:
    return [(request.args[0], dict(request.args[1])) for request in requests]


def _options(wishes: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's words for sampling as ours; what is no matter of sampling is left out."""
    until = wishes.get("until") or ()
    chance = bool(wishes.get("do_sample")) and float(wishes.get("temperature", 1.0)) > 0
    found: dict[str, Any] = {
        "stop": (until,) if isinstance(until, str) else tuple(text for text in until if text),
        "max_tokens": int(wishes.get("max_gen_toks", wishes.get("max_new_tokens", _NEW_TOKENS))),
        "temperature": float(wishes.get("temperature", 1.0)) if chance else 0.0,
        "top_p": 1.0,
        "top_k": 0,
    }
    if chance:
        found |= {name: wishes[name] for name in ("top_p", "top_k", "min_p") if name in wishes}
    return found

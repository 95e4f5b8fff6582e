"""Ternary language models as applications use them: text, chat, structured output, sessions, many requests at once."""

from .conversation import Conversation
from .engine import Engine, EngineStats
from .likelihood import Perplexity, Score
from .llm import LLM
from .reply import Piece, Reply, TokenLogprob
from .request import Emission, EngineClosed, Output, Overloaded, PromptLogprob, Request, Result, Timings, Usage
from .session import Session
from .settings import Sampling
from .structured import Form
from .ticket import Ticket
from .tools import Call, Toolbox
from .writing import Writing

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "Call",
    "Conversation",
    "Emission",
    "Engine",
    "EngineClosed",
    "EngineStats",
    "Form",
    "Output",
    "Overloaded",
    "Perplexity",
    "Piece",
    "PromptLogprob",
    "Reply",
    "Request",
    "Result",
    "Sampling",
    "Score",
    "Session",
    "Ticket",
    "Timings",
    "TokenLogprob",
    "Toolbox",
    "Usage",
    "Writing",
]

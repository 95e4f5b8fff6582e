"""`bitnet serve`: language models over HTTP, as clients of OpenAI, Anthropic and Ollama speak to them."""

from .app import make_app
from .errors import Refusal
from .models import Models, Source
from .serve import make_server, serve

__all__ = ["Models", "Refusal", "Source", "make_app", "make_server", "serve"]

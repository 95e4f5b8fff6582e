"""What the server answers to: every route, and who may use it."""

from __future__ import annotations

from . import (
    anthropic,
    batches,
    chat,
    completions,
    embeddings,
    files,
    health,
    items,
    ollama,
    ollama_requests,
    openapi,
    responses,
    text,
)
from .gate import Endpoint

_LINES = "application/x-ndjson"

ENDPOINTS = (
    Endpoint(path="/healthz", method="GET", handler=health.live, role="none", summary="Whether the process lives"),
    Endpoint(path="/health", method="GET", handler=health.live, role="none", summary="The same, where probes look"),
    Endpoint(path="/version", method="GET", handler=ollama.version, role="read", summary="The server's version"),
    Endpoint(path="/readyz", method="GET", handler=health.ready, role="none", summary="Whether requests are taken"),
    Endpoint(path="/openapi.json", method="GET", handler=openapi.show, role="read", summary="This document"),
    Endpoint(
        path="/v1/models",
        method="GET",
        handler=health.models,
        role="read",
        summary="The models there are",
        query=("limit", "after_id", "before_id"),
    ),
    Endpoint(path="/v1/models/{model:path}", method="GET", handler=health.model, role="read", summary="One model"),
    Endpoint(
        path="/v1/chat/completions",
        handler=chat.complete,
        role="user",
        summary="Answer a conversation",
        body=chat.Chat,
    ),
    Endpoint(
        path="/v1/completions",
        handler=completions.complete,
        role="user",
        summary="Continue a text",
        body=completions.Completion,
    ),
    Endpoint(
        path="/v1/responses",
        handler=responses.respond,
        role="user",
        summary="Answer, and remember the answer",
        body=items.Respond,
    ),
    Endpoint(
        path="/v1/responses/input_tokens",
        handler=responses.input_tokens,
        role="user",
        summary="How many tokens the model would read",
        body=items.Respond,
    ),
    Endpoint(path="/v1/responses/{id}", method="GET", handler=responses.get, role="user", summary="An answer"),
    Endpoint(
        path="/v1/responses/{id}/input_items",
        method="GET",
        handler=responses.input_items,
        role="user",
        summary="What an answer was given to",
        query=("limit", "order", "after"),
    ),
    Endpoint(
        path="/v1/responses/{id}", method="DELETE", handler=responses.delete, role="user", summary="Forget an answer"
    ),
    Endpoint(
        path="/v1/embeddings",
        handler=embeddings.embed,
        role="user",
        summary="Texts as vectors",
        body=embeddings.Embeddings,
    ),
    Endpoint(path="/tokenize", handler=text.tokenize, role="user", summary="A text as tokens", body=text.Tokenize),
    Endpoint(path="/detokenize", handler=text.detokenize, role="user", summary="Tokens as text", body=text.Detokenize),
    Endpoint(
        path="/apply-template",
        handler=text.apply_template,
        role="user",
        summary="A conversation as the model reads it",
        body=text.Template,
    ),
    Endpoint(
        path="/tokenizer_info",
        handler=text.tokenizer_info,
        method="GET",
        role="user",
        summary="What clients that count tokens ask of the tokenizer",
        query=("model",),
    ),
    Endpoint(
        path="/v1/files",
        handler=files.upload,
        role="user",
        summary="Keep a file",
        form=True,
    ),
    Endpoint(
        path="/v1/files",
        method="GET",
        handler=files.listing,
        role="user",
        summary="The files",
        query=("purpose", "limit", "after"),
    ),
    Endpoint(path="/v1/files/{id}", method="GET", handler=files.get, role="user", summary="What a file is"),
    Endpoint(path="/v1/files/{id}", method="DELETE", handler=files.delete, role="user", summary="Delete a file"),
    Endpoint(
        path="/v1/files/{id}/content",
        method="GET",
        handler=files.content,
        role="user",
        summary="A file",
        media="application/octet-stream",
    ),
    Endpoint(
        path="/v1/batches", handler=batches.create, role="user", summary="Work through a file", body=batches.Create
    ),
    Endpoint(
        path="/v1/batches",
        method="GET",
        handler=batches.listing,
        role="user",
        summary="The batches",
        query=("limit", "after"),
    ),
    Endpoint(path="/v1/batches/{id}", method="GET", handler=batches.get, role="user", summary="How far one is"),
    Endpoint(path="/v1/batches/{id}/cancel", handler=batches.cancel, role="user", summary="End one"),
    Endpoint(
        path="/v1/messages",
        handler=anthropic.create,
        role="user",
        style="anthropic",
        summary="Answer a conversation, as Anthropic has it",
        body=anthropic.Messages,
    ),
    Endpoint(
        path="/v1/messages/count_tokens",
        handler=anthropic.count,
        role="user",
        style="anthropic",
        summary="How many tokens the model would read",
        body=anthropic.CountTokens,
    ),
    *(
        Endpoint(path=path, handler=handler, role="user", style="ollama", summary=summary, body=body, media=_LINES)
        for path, handler, summary, body in (
            ("/api/chat", ollama.chat, "Answer a conversation, as Ollama has it", ollama_requests.Chat),
            ("/api/generate", ollama.generate, "Answer a text", ollama_requests.Generate),
            ("/api/embed", ollama.embed, "Texts as vectors", ollama_requests.Embed),
            ("/api/embeddings", ollama.embeddings, "A text as a vector, the older way", ollama_requests.Embedding),
            ("/api/show", ollama.show, "What a model is", ollama_requests.Show),
        )
    ),
    *(
        Endpoint(path=path, handler=handler, method="GET", role="read", style="ollama", summary=summary)
        for path, handler, summary in (
            ("/api/tags", ollama.tags, "The models there are"),
            ("/api/ps", ollama.running, "The models that are loaded"),
            ("/api/version", ollama.version, "The server's version"),
        )
    ),
)

"""Pages of other origins that may use the server from a browser: none, unless they are named."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

ANY = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@*]+")
_READ = ("X-Request-Id", "X-Ignored-Fields", "Retry-After", "request-id")  # headers of answers that pages may read


def layers(origins: Sequence[str], *, keyed: bool) -> list[Middleware]:
    """What answers browsers that ask whether a page may; `keyed`: whether the server asks for keys."""
    for origin in origins:
        if origin == ANY and not keyed:
            raise ValueError(f"origins: expected addresses, got {ANY!r}; without keys any page could use the server")
        if origin != ANY and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"origins: expected addresses as 'https://page.example:8443', got {origin!r}")
    if not origins:
        return []
    # Keys are shown in a header by the page itself: there are no cookies that a browser could add.
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_READ,
        )
    ]

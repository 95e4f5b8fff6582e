"""What `bitnet serve` is asked, in groups: who may use it, and what it lets happen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter, validators

from .amounts import Count, Size, Threads
from .failures import Refused

if TYPE_CHECKING:
    from starlette.middleware import Middleware

_RUNNING = Group("How models run", sort_key=30)
_ACCESS = Group("Who may use it", sort_key=40)
_CONDUCT = Group("How it behaves", sort_key=50)


@Parameter(name="*", group=_RUNNING)
@dataclass(frozen=True, kw_only=True)
class Loading:
    """How the models run."""

    backend: str = "auto"
    """What runs them; bitnet backends lists them."""
    threads: Annotated[Threads | None, Parameter(name=["--threads", "-t"])] = None
    """How many threads for each model."""
    context: Annotated[Count | None, Parameter(name=["--context", "-c"])] = None
    """Tokens of context, as 4096 or 8k (8,000)."""
    sequences: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=4096))] = 32
    """How many requests run at once; more wait."""
    queue: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=1 << 20))] = 1024
    """How many requests may run or wait; more are refused, to be sent again."""
    memory: Size | None = None
    """What all models may take together, as 4GiB."""
    idle: Annotated[float | None, Parameter(validator=validators.Number(gte=0))] = None
    """Seconds after which a model that nobody uses is unloaded."""

    def options(self) -> dict[str, Any]:
        """The keywords of the library."""
        return {
            "backend": self.backend,
            "threads": self.threads,
            "context": self.context,
            "max_sequences": self.sequences,
            "queue": self.queue,
        }


@Parameter(name="*", group=_ACCESS)
@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may use the server."""

    keys: str | None = None
    """The database of keys that clients must show, a file or a URL; bitnet keys makes them."""
    api_key: Annotated[str | None, Parameter(show_default=False)] = None
    """One key that may do everything; better said by BITNET_SERVE_API_KEY."""
    issuer: str | None = None
    """The issuer of bearer tokens that are let in, too (OpenID Connect)."""
    audience: str | None = None
    """Whom these tokens must be for."""
    jwks: str | None = None
    """A file or https address of the issuer's keys."""

    def verifier(self) -> Any:
        """What looks at bearer tokens; None where there is no issuer."""
        if self.issuer is None:
            if self.audience is not None or self.jwks is not None:
                raise Refused("--audience and --jwks are of an issuer; name it by --issuer")
            return None
        if self.audience is None or self.jwks is None:
            raise Refused("--issuer needs --audience, whom its tokens are for, and --jwks, the keys that sign them")
        from bitnet_inference.server.oidc import Issuer, Subjects  # noqa: PLC0415  # an extra

        return Subjects(Issuer(issuer=self.issuer, audience=self.audience, jwks=self.jwks))


@Parameter(name="*", group=_CONDUCT)
@dataclass(frozen=True, kw_only=True)
class Conduct:
    """How the server behaves."""

    audit: Path | None = None
    """The file of the audit log; bitnet keys audit looks it over."""
    log: Path | None = None
    """A file of the log, beside stderr; it is opened anew when it was moved, and on SIGHUP."""
    connections: Annotated[int | None, Parameter(validator=validators.Number(gte=1, lte=1_000_000))] = None
    """How many connections are let in at once; by default as the files that may be open allow."""
    drain: Annotated[float, Parameter(validator=validators.Number(gte=0, lte=3600))] = 30.0
    """Seconds that requests have to finish when the server is told to stop."""
    lenient: bool = False
    """Ignore fields that are not known, and say which in a header, instead of refusing them."""
    folder: Path | None = None
    """Where files of clients are kept; without it they go when the server stops."""
    origin: tuple[str, ...] = ()
    """Addresses of pages, as https://page.example, that may use the server from a browser."""
    traces: bool = False
    """Tell OpenTelemetry of each request."""

    def settings(self) -> dict[str, Any]:
        """The keywords of the application."""
        middleware: list[Middleware] = []
        if self.traces:
            from starlette.middleware import Middleware as Layer  # noqa: PLC0415

            from bitnet_inference.server.traces import Traces  # noqa: PLC0415  # an extra

            middleware.append(Layer(Traces))
        return {
            "lenient": self.lenient,
            "drain_s": self.drain,
            "folder": self.folder,
            "origins": self.origin,
            "middleware": middleware,
        }

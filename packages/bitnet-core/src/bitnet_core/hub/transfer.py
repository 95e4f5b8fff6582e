"""The conversation with a hub: requests, redirects, retries, and bytes into a part.

The HTTP client is the one that huggingface_hub keeps, with the user's proxies and certificates. Its downloader and
its Xet client are not used: they check no sha256 that we could see, flush nothing to the disk and do not
notice a server that sends a byte a second.
"""

from __future__ import annotations

import importlib
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from .. import __version__
from ..errors import HubError, NotFound, Offline, printable
from .names import Name
from .part import Part
from .patience import Passing, Patience

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_HOPS = 8
_MOST_PAGES = 100
_JSON_BYTES = 64 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_TRUE = frozenset(["1", "on", "yes", "true"])
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Hub:
    """One hub, as one user sees it."""

    endpoint: str
    patience: Patience
    token: str | None = field(repr=False)

    @classmethod
    def connect(cls, endpoint: str | None, token: str | bool | None, patience: Patience) -> Hub:
        """The hub at `endpoint`; both default to what huggingface_hub is set to (HF_ENDPOINT, HF_TOKEN, login)."""
        from huggingface_hub import constants  # noqa: PLC0415 - 240 ms

        where = (endpoint or constants.ENDPOINT).rstrip("/")
        parts = urlsplit(where)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.query:
            raise HubError(f"hub: expected an address like https://huggingface.co, got '{_shown(where)}' (HF_ENDPOINT)")
        return cls(where, patience, _usable_token(token))

    def items(self, path: str, params: dict[str, Any], kind: type[T], subject: Name | str) -> Iterator[T]:
        """The items of a list that comes in pages."""
        url = self._url(path, params)
        for _ in range(_MOST_PAGES):
            page, following = self._read(url, list[kind], subject)  # type: ignore[valid-type]
            yield from page
            if following is None:
                return
            url = following
        raise HubError(f"{_host(url)}: the list for {subject} does not end after {_MOST_PAGES} pages")

    def item(self, path: str, params: dict[str, Any], kind: type[T], subject: Name | str) -> T:
        """One JSON answer, of the type `kind`."""
        return self._read(self._url(path, params), kind, subject)[0]

    def fetch(self, subject: Name, commit: str, part: Part, report: Callable[[int], None]) -> None:
        """Fills `part` with the file of `subject` at `commit`, and proves it."""
        url = f"{self.endpoint}/{subject.repo}/resolve/{commit}/{quote(subject.file or '')}"
        spoiled = False

        def attempt() -> None:
            nonlocal spoiled
            if part.size < part.expected:
                self._fill(url, part, subject, report)
            if part.is_proven():
                return
            wrong = HubError(
                f"{_host(url)}: {subject}: expected content with the digest {part.blob.name}, got another, twice; "
                "try again later, or report it to the owner of the model"
            )
            last, spoiled = spoiled, spoiled or not part.adopted
            part.restart()
            raise wrong if last else Passing(wrong)

        self.patience.persist(attempt, lambda: part.furthest)

    def _url(self, path: str, params: dict[str, Any]) -> str:
        return str(_http().URL(self.endpoint + path, params=params)) if params else self.endpoint + path

    def _read(self, url: str, kind: type[T], subject: Name | str) -> tuple[T, str | None]:
        def attempt() -> tuple[T, str | None]:
            with self._answer(url, {}, subject) as response:
                body = bytearray()
                for piece in self._pieces(response, url):
                    body += piece
                    if len(body) > _JSON_BYTES:
                        raise HubError(f"{_host(url)}: expected at most {_JSON_BYTES} bytes about {subject}, got more")
                following = response.links.get("next", {}).get("url")
                return msgspec.json.decode(body, type=kind), following and str(response.url.join(following))

        try:
            return self.patience.persist(attempt)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = printable(str(error), 120)
        raise HubError(
            f"{_host(url)}: expected a hub's JSON about {subject}, got something else ({reason}); check HF_ENDPOINT"
        )

    def _fill(self, url: str, part: Part, subject: Name, report: Callable[[int], None]) -> None:
        ranged = {"range": f"bytes={part.size}-"} if part.size else {}
        with self._answer(url, ranged, subject, part.blob.name) as response:
            self._begin(response, url, part, subject)
            for piece in self._pieces(response, url):
                if part.size + len(piece) > part.expected:
                    part.restart()
                    raise Passing(_wrong_size(url, subject, part, "more"))
                part.write(piece)
                report(part.size)
        if part.size < part.expected:
            raise Passing(_wrong_size(url, subject, part, f"{part.size}"))

    def _begin(self, response: httpx2.Response, url: str, part: Part, subject: Name) -> None:
        """Brings `part` to where the answer's body begins, or refuses the answer."""
        headers = response.headers
        plain = headers.get("content-encoding", "identity").lower() == "identity"
        if response.status_code in {206, 416}:
            found = _RANGE.fullmatch(headers.get("content-range", ""))
            expected = (part.size, part.expected - 1, part.expected)
            right = plain and part.size > 0 and found and tuple(map(int, found.groups())) == expected
            if not right or part.etag not in {None, headers.get("etag")}:
                part.restart()
                got = "another ETag" if right else printable(headers.get("content-range", "none"))
                raise Passing(HubError(f"{_host(url)}: {subject}: expected the range {expected}, got {got}"))
        else:
            length = headers.get("content-length", "")
            if plain and length.isdecimal() and int(length) != part.expected:
                raise Passing(_wrong_size(url, subject, part, length))
            part.restart()  # the whole file comes, whatever was asked for
        part.etag = headers.get("etag")

    def _pieces(self, response: httpx2.Response, url: str) -> Iterator[bytes]:
        """The body, decoded, as it comes; a body that only drips is a stall."""
        mark, received = time.monotonic(), 0
        for piece in response.iter_bytes():
            received += len(piece)
            passed = time.monotonic() - mark
            if passed >= self.patience.stall_s:
                if received < self.patience.least_rate * passed:
                    raise Passing(
                        Offline(
                            f"{_host(url)}: stalled: expected {self.patience.least_rate:.0f} bytes a second, got "
                            f"{received} in {passed:.1f} s; try again when the network is better"
                        )
                    )
                mark, received = time.monotonic(), 0
            yield piece

    @contextmanager
    def _answer(
        self, url: str, headers: dict[str, str], subject: Name | str, digest: str | None = None
    ) -> Iterator[httpx2.Response]:
        """The answer after all redirects, not read yet; every failure is a HubError, or a Passing one."""
        http, start = _http(), url
        try:
            for _ in range(_MOST_HOPS):
                response = self._send(url, headers)
                try:
                    linked = response.headers.get("x-linked-etag", "").strip('W/"')
                    if digest and len(linked) == len(digest) and linked != digest:
                        raise HubError(
                            f"{_host(url)}: {subject}: expected the digest {digest}, got {printable(linked)}; "
                            "the file has changed: try again"
                        )
                    if response.status_code not in _REDIRECTS:
                        self._check_status(response, url, subject)
                        yield response
                        return
                    url = _follow(response, url)
                finally:
                    response.close()
            raise HubError(
                f"{_host(start)}: {subject}: expected at most {_MOST_HOPS} redirects, got more; check HF_ENDPOINT"
            )
        except http.HTTPError as error:
            raise _explained(error, http, url) from None

    def _send(self, url: str, headers: dict[str, str]) -> httpx2.Response:
        from huggingface_hub import get_session  # noqa: PLC0415
        from huggingface_hub.errors import OfflineModeIsEnabled  # noqa: PLC0415

        patience = self.patience
        timeout = _http().Timeout(patience.stall_s, connect=patience.connect_s, pool=patience.connect_s)
        session = get_session()
        request = session.build_request("GET", url, headers=self._headers(url, headers), timeout=timeout)
        try:
            return session.send(request, stream=True, follow_redirects=False)
        except OfflineModeIsEnabled:
            raise Offline(f"{_host(url)}: not asked: huggingface_hub is set to be offline (HF_HUB_OFFLINE)") from None

    def _headers(self, url: str, headers: dict[str, str]) -> dict[str, str]:
        # A body in a coding of the transport's own would hide how far it has come.
        mine = {"user-agent": f"bitnet-core/{__version__}", "accept-encoding": "identity", **headers}
        if self.token and _origin(url) == _origin(self.endpoint):
            mine["authorization"] = f"Bearer {self.token}"
        return mine

    def _check_status(self, response: httpx2.Response, url: str, subject: Name | str) -> None:
        status = response.status_code
        if status in {200, 206, 416}:  # which of them is right depends on what was asked
            return
        host, reason = _host(url), response.headers.get("x-error-code", "")
        if status in _PASSING:
            wait = _wait_asked_for(response.headers)
            asks = f" and asks to wait {wait:.0f} s" if wait else ""
            raise Passing(Offline(f"{host}: {subject}: the server answers {status}{asks}; try again later"), wait)
        if status in {401, 403} and _origin(url) != _origin(self.endpoint):
            # A signed address that has expired: the next attempt is given a new one.
            raise Passing(HubError(f"{host}: {subject}: the content network refuses the address ({status}); try again"))
        raise self._refusal(status, reason, host, subject)

    def _refusal(self, status: int, reason: str, host: str, subject: Name | str) -> HubError:
        repo, revision, file = (
            (subject.repo, subject.revision, subject.file) if isinstance(subject, Name) else (subject, None, None)
        )
        if reason == "GatedRepo":
            return HubError(
                f"{host}: {repo} is gated; accept its licence at {self.endpoint}/{repo} and pass a token of that "
                "account (token= or HF_TOKEN)"
            )
        if reason == "RevisionNotFound":
            return NotFound(
                f"{host}: {repo} has no revision '{printable(revision or 'main')}'; see {self.endpoint}/{repo}"
            )
        if reason == "EntryNotFound" or (status == 404 and file and not reason):
            return NotFound(
                f"{host}: {repo} has no file '{printable(file or '')}'; see {self.endpoint}/{repo}/tree/main"
            )
        if reason == "RepoNotFound" or status == 404 or (status == 401 and not self.token):
            remedy = "check the token's rights" if self.token else "if it is private, pass a token (token= or HF_TOKEN)"
            return NotFound(f"{host}: no repository {repo}; check the name; {remedy}")
        if status in {401, 403}:
            return HubError(
                f"{host}: {repo}: the token is refused ({status}); it must be valid and may read this repository"
            )
        return HubError(f"{host}: {subject}: expected status 200, got {status}; check HF_ENDPOINT")


def _http() -> ModuleType:
    """The HTTP library of huggingface_hub's client: httpx2, or httpx with its versions 1."""
    from huggingface_hub import get_session  # noqa: PLC0415

    homes = [kind.__module__.partition(".")[0] for kind in type(get_session()).__mro__]
    return importlib.import_module(next(home for home in homes if home in {"httpx", "httpx2"}))


def is_offline() -> bool:
    """Whether the user has switched the network off, for us or for huggingface_hub."""
    from huggingface_hub import constants  # noqa: PLC0415

    return constants.HF_HUB_OFFLINE or os.environ.get("BITNET_OFFLINE", "").casefold() in _TRUE


def _usable_token(token: str | bool | None) -> str | None:
    from huggingface_hub import constants, get_token  # noqa: PLC0415

    if token is False or (token is None and constants.HF_HUB_DISABLE_IMPLICIT_TOKEN):
        return None
    try:
        found = token if isinstance(token, str) else get_token()
    except Exception as error:  # noqa: BLE001 - the ways to log in share no base, and their words may quote secrets
        raise HubError(f"token: huggingface_hub cannot give one ({type(error).__name__}); log in again") from None
    if found and not _TOKEN.fullmatch(found):
        # Checked here because the HTTP client would print the token when it refuses the header.
        raise HubError("token: expected printable ASCII characters without spaces, got others; copy the token again")
    return found or None


def _follow(response: httpx2.Response, url: str) -> str:
    target = response.url.join(response.headers.get("location", ""))
    downgraded = response.url.scheme == "https" and target.scheme != "https"
    if target.scheme not in {"http", "https"} or not target.host or downgraded:
        raise HubError(f"{_host(url)}: expected a redirect to https, got one to '{_shown(str(target))}'")
    return str(target)


def _explained(error: Exception, http: ModuleType, url: str) -> HubError | Passing:
    """What a failure of the HTTP library means; its own words are left out, as they may quote headers."""
    host, causes = _host(url), list(_causes(error))
    tls = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
    lookup = next((cause for cause in causes if isinstance(cause, socket.gaierror)), None)
    system = next((cause for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    if tls is not None and isinstance(error, http.ConnectError):
        return Offline(
            f"{host}: TLS failed ({printable(tls.reason or 'no reason given')}); check that the address should begin "
            "with https, the clock, and the certificates (SSL_CERT_FILE)"
        )
    if lookup is not None:
        unknown = Offline(f"{host}: the name cannot be looked up; check the network and HF_ENDPOINT, or work offline")
        return Passing(unknown) if lookup.errno == socket.EAI_AGAIN else unknown
    if isinstance(error, http.ProxyError):
        return Offline(f"{host}: the proxy refuses the connection; check HTTPS_PROXY and HTTP_PROXY")
    if isinstance(error, http.TimeoutException):
        return Passing(
            Offline(f"{host}: no answer in time ({type(error).__name__}); check the network, or work offline")
        )
    if isinstance(error, http.NetworkError | http.RemoteProtocolError):
        reason = system.strerror if system else "it broke off"
        return Passing(Offline(f"{host}: no lasting connection ({reason}); check the network, or work offline"))
    if isinstance(error, http.DecodingError):
        return Passing(
            HubError(f"{host}: expected a body as its Content-Encoding says, got one that cannot be decoded")
        )
    return HubError(f"{host}: the request cannot be made ({type(error).__name__}); check HF_ENDPOINT")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _wait_asked_for(headers: httpx2.Headers) -> float:
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _wrong_size(url: str, subject: Name, part: Part, got: str) -> HubError:
    return HubError(f"{_host(url)}: {subject}: expected {part.expected} bytes, got {got}; try again")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _host(url: str) -> str:
    return printable(urlsplit(url).netloc.rpartition("@")[2] or "hub", 100)


def _shown(url: str) -> str:
    parts = urlsplit(url)  # the query of a signed address is a secret too, and so is a password before the host
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}", 120)

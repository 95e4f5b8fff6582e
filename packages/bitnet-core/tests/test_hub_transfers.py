"""Whatever the network does, a final name is absent or exact, and the user reads one line.

BITNET_HUB_SEEDS sets how many contents and offsets every fault is tried with (2 by default).
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import socket
import ssl
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hub_server
import pytest
from hub_server import HubServer

from bitnet_core import errors, hub
from bitnet_core.hub import Patience, Progress
from bitnet_core.hub.patience import Passing

SEEDS = range(int(os.environ.get("BITNET_HUB_SEEDS", "2")))
SIZE = 300_000
RECV = 64 << 10  # what the HTTP client reads at once
Script = Callable[[HubServer], object]


class Pauses(list[float]):
    """Stands in for sleeping, and keeps how long each sleep would have been."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def patience(pauses: Pauses) -> Patience:
    return Patience(connect_s=5, stall_s=20, retries=5, pause=pauses)


def fetch(server: HubServer, cache: Path, patience: Patience, **options: Any) -> Path:
    options = {"name": "org/m", "endpoint": server.url, "token": False, **options}
    return hub.resolve(cache=cache, patience=patience, **options)


def check_cache(cache: Path) -> None:
    """Every blob is what its name says, and every name in a snapshot leads to one."""
    for blob in cache.glob("models--*/blobs/*"):
        if not blob.name.endswith((".incomplete", ".tmp")):
            content = blob.read_bytes()
            assert blob.name in {hub_server.sha256(content), hub_server.git_id(content)}
    for entry in cache.glob("models--*/snapshots/*/**/*"):
        assert entry.resolve(strict=True).name in {blob.name for blob in cache.glob("models--*/blobs/*")}


def check_line(error: BaseException) -> None:
    message = str(error)
    assert isinstance(error, errors.HubError)
    assert message.isprintable()
    assert 20 <= len(message) <= 500
    assert "Traceback" not in message


def body(act: hub_server.Act, **how: Any) -> Script:
    return lambda server: server.fault(act, **how)


def both(*scripts: Script) -> Script:
    return lambda server: [script(server) for script in scripts]


def after_cut(act: hub_server.Act, times: int | None = 1) -> Script:
    """The connection is cut after some bytes, and then the request for the rest meets `act`."""
    return both(body(hub_server.cut(100_000)), body(act, times=times))


def on_json(act: hub_server.Act) -> hub_server.Act:
    return lambda handler, _: act(handler, b"[" * 100)


EVER: dict[str, Any] = {"times": None}
HEALED: dict[str, Script] = {
    "nothing wrong": lambda server: server.heal(),
    "wrong bytes once": body(hub_server.wrong_bytes()),
    "cut once": body(hub_server.cut(100_000)),
    "cut at the very begin": body(hub_server.cut(0)),
    "cut one byte before the end": body(hub_server.cut(SIZE - 1)),
    "cut five times": body(hub_server.cut(50_000), times=5),
    "reset once": body(hub_server.cut(100_000, reset=True)),
    "shorter once": body(hub_server.shorter(10)),
    "longer once": body(hub_server.longer(10)),
    "longer and chunked once": body(hub_server.longer(10, chunked=True)),
    "200 to a range": after_cut(hub_server.whole),
    "a range that begins too late": after_cut(hub_server.wrong_range(10)),
    "a range that begins too early": after_cut(hub_server.wrong_range(-10)),
    "a changed etag": after_cut(hub_server.changed_etag),
    "wrong bytes in the rest": after_cut(hub_server.wrong_bytes(SIZE - 10)),
    "416 to a range": after_cut(hub_server.status(416)),
    "gzip": body(hub_server.gzipped, times=None),
    "gzip to a range": after_cut(hub_server.gzipped, times=None),
    "a body that is not gzip as it says, once": body(hub_server.mislabelled),
    "a page of a captive portal once": body(hub_server.page),
    "an expired address once": body(hub_server.status(403)),
    "429 once": body(hub_server.status(429, Retry_After="1")),
    "429 with a date": body(hub_server.status(429, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT")),
    "429 with nonsense": body(hub_server.status(429, Retry_After="soon")),
    "408, then 500, 502, 503 and 504": both(*(body(hub_server.status(code)) for code in (408, 500, 502, 503, 504))),
    "503 of the hub": body(hub_server.status(503), server="hub", match="tree"),
    "the hub cut once": body(on_json(hub_server.cut(10)), server="hub", match="revision"),
    "the hub stops after a piece of JSON": body(on_json(hub_server.cut(10)), server="hub", match="tree", times=5),
}
FATAL: dict[str, tuple[Script, str]] = {
    "wrong bytes": (body(hub_server.wrong_bytes(), **EVER), "digest .* got another"),
    "cut at the begin": (body(hub_server.cut(0), **EVER), "no lasting connection|bytes, got"),
    "reset at the begin": (body(hub_server.cut(0, reset=True), **EVER), "no lasting connection"),
    "shorter": (body(hub_server.shorter(10), **EVER), f"expected {SIZE} bytes, got {SIZE - 10}"),
    "longer": (body(hub_server.longer(10), **EVER), f"expected {SIZE} bytes, got {SIZE + 10}"),
    "longer and chunked": (body(hub_server.longer(10, chunked=True), **EVER), f"expected {SIZE} bytes, got more"),
    "a body that is not gzip as it says": (body(hub_server.mislabelled, **EVER), "cannot be decoded"),
    "a page of a captive portal": (body(hub_server.page, **EVER), "bytes, got 36"),
    "429": (body(hub_server.status(429, Retry_After="1"), **EVER), "answers 429 and asks to wait 1 s"),
    "503": (body(hub_server.status(503), **EVER), "answers 503"),
    "404": (body(hub_server.status(404), **EVER), "has no file 'model.gguf'"),
    "416 to every range": (
        both(body(hub_server.cut(100_000)), body(hub_server.status(416), **EVER)),
        "expected the range",
    ),
    "403 of the content network": (body(hub_server.status(403), **EVER), "refuses the address"),
    "418": (body(hub_server.status(418), **EVER), "expected status 200, got 418"),
    "a redirect to itself": (body(hub_server.redirect("", keep_path=True), **EVER), "redirects"),
    "a redirect to a file": (body(hub_server.redirect("file:///etc/passwd"), **EVER), "redirect to https"),
    "a redirect to ftp": (body(hub_server.redirect("ftp://localhost/x"), **EVER), "redirect to https"),
    "a redirect to nowhere": (body(hub_server.redirect(""), **EVER), "redirects"),
    "a redirect to a name that is none": (
        body(hub_server.redirect("http://no.invalid/x"), **EVER),
        "looked up",
    ),
    "a page instead of JSON": (body(hub_server.page, server="hub", **EVER), "expected a hub's JSON"),
    "500 of the hub": (body(hub_server.status(500), server="hub", **EVER), "answers 500"),
    "the hub resets": (body(on_json(hub_server.cut(10, reset=True)), server="hub", **EVER), "no lasting connection"),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("script", HEALED.values(), ids=HEALED)
def test_a_fault_that_passes_is_survived(
    script: Script, seed: int, server: HubServer, tmp_path: Path, patience: Patience
) -> None:
    content = random.Random(seed).randbytes(SIZE)
    server.add("org/m", {"model.gguf": content})
    script(server)
    assert fetch(server, tmp_path, patience).read_bytes() == content
    assert len(server.asked("", "cdn")) <= 6
    check_cache(tmp_path)
    assert list(tmp_path.glob("**/*.incomplete")) == []
    assert list(tmp_path.glob("**/*.tmp")) == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("script", "message"), FATAL.values(), ids=FATAL)
def test_a_fault_that_stays_is_one_line(
    script: Script, message: str, seed: int, server: HubServer, tmp_path: Path, patience: Patience, pauses: Pauses
) -> None:
    content = random.Random(seed).randbytes(SIZE)
    server.add("org/m", {"model.gguf": content})
    script(server)
    with pytest.raises(errors.HubError, match=message) as caught:
        fetch(server, tmp_path, patience)
    check_line(caught.value)
    assert len(pauses) <= 5
    assert [p for p in tmp_path.glob("**/snapshots/**/*") if p.is_file()] == []
    check_cache(tmp_path)
    # The next download, on a network that works, is not spoiled by what the failed one left.
    server.heal()
    assert fetch(server, tmp_path, patience).read_bytes() == content
    check_cache(tmp_path)


def test_the_content_of_the_hubs_own_small_files_is_proven_too(
    server: HubServer, tmp_path: Path, patience: Patience
) -> None:
    files = {"config.json": b'{"model_type": "bitnet"}', "model.safetensors": b"weights", "tokenizer.json": b"{}"}
    server.add("org/m", files)
    server.fault(hub_server.wrong_bytes(3), "config.json", server="hub", times=None)
    with pytest.raises(errors.HubError, match=r"config.json: expected content with the digest"):
        fetch(server, tmp_path, patience)
    assert server.asked("model.safetensors") == []


def test_a_digest_that_changes_between_the_list_and_the_file_is_noticed_before_the_bytes(
    server: HubServer, tmp_path: Path, patience: Patience
) -> None:
    server.add("org/m", {"model.gguf": b"a" * SIZE})
    lie = hub_server.sha256(b"b" * SIZE)
    server.repos["org/m"].lies["model.gguf"] = {"lfs": {"oid": lie, "size": SIZE, "pointerSize": 1}}
    with pytest.raises(errors.HubError, match=f"expected the digest {lie[:20]}"):
        fetch(server, tmp_path, patience)
    assert server.asked("", "cdn") == []


# Time


def test_a_stall_is_noticed_and_the_rest_is_fetched(server: HubServer, tmp_path: Path, patience: Patience) -> None:
    content = random.Random(1).randbytes(SIZE)
    server.add("org/m", {"model.gguf": content})
    server.fault(hub_server.stall(100_000))
    assert fetch(server, tmp_path, replace(patience, stall_s=0.5)).read_bytes() == content
    assert server.asked("", "cdn")[-1].headers["range"].startswith("bytes=")


def test_a_server_that_stays_silent_is_given_up(server: HubServer, tmp_path: Path, patience: Patience) -> None:
    server.add("org/m", {"model.gguf": b"a" * SIZE})
    server.fault(hub_server.stall(0), times=None)
    begin = time.monotonic()
    with pytest.raises(errors.Offline, match="no answer in time") as caught:
        fetch(server, tmp_path, replace(patience, stall_s=0.3, retries=2))
    assert time.monotonic() - begin < 10
    assert len(server.asked("", "cdn")) == 3
    check_line(caught.value)


def test_a_server_that_drips_is_given_up(server: HubServer, tmp_path: Path, patience: Patience) -> None:
    server.add("org/m", {"model.gguf": b"a" * SIZE})
    server.fault(hub_server.drip(0.02), times=None)
    begin = time.monotonic()
    with pytest.raises(errors.Offline, match="stalled: expected 1024 bytes a second") as caught:
        fetch(server, tmp_path, replace(patience, stall_s=0.4, retries=1))
    assert time.monotonic() - begin < 10
    check_line(caught.value)


def test_a_list_that_drips_is_given_up(server: HubServer, tmp_path: Path, patience: Patience) -> None:
    server.add("org/m", {"model.gguf": b"a" * SIZE})
    server.fault(on_json(hub_server.drip(0.02)), "tree", server="hub", times=None)
    with pytest.raises(errors.Offline, match="stalled"):
        fetch(server, tmp_path, replace(patience, stall_s=0.4, retries=0))


@pytest.mark.parametrize("wrong", [{"stall_s": 61}, {"stall_s": 0}, {"retries": 6}, {"retries": -1}])
def test_patience_has_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.60 and retries in 0\.\.5"):
        Patience(**wrong)


def test_retries_are_bounded_and_spread(server: HubServer, tmp_path: Path, patience: Patience, pauses: Pauses) -> None:
    server.add("org/m", {"model.gguf": b"a" * SIZE})
    server.fault(hub_server.status(500), times=None)
    with pytest.raises(errors.HubError, match="answers 500"):
        fetch(server, tmp_path, patience)
    assert len(server.asked("", "cdn")) == 6
    assert len(pauses) == 5
    for number, pause in enumerate(pauses):
        assert 0.25 * 2**number <= pause <= 0.5 * 2**number
    assert len({pause / 2**number for number, pause in enumerate(pauses)}) > 1


def test_a_wait_that_the_server_asks_for_is_kept(
    server: HubServer, tmp_path: Path, patience: Patience, pauses: Pauses
) -> None:
    server.add("org/m", {"model.gguf": b"a" * SIZE})
    server.fault(hub_server.status(429, Retry_After="42"))
    fetch(server, tmp_path, patience)
    assert pauses == [42]


def test_a_wait_that_is_too_long_is_told_at_once(
    server: HubServer, tmp_path: Path, patience: Patience, pauses: Pauses
) -> None:
    server.add("org/m", {"model.gguf": b"a" * SIZE})
    server.fault(hub_server.status(429, Retry_After="3600"), times=None)
    with pytest.raises(errors.HubError, match="asks to wait 3600 s"):
        fetch(server, tmp_path, patience)
    assert pauses == []
    assert len(server.asked("", "cdn")) == 1


def test_a_transfer_that_gets_on_earns_new_retries(pauses: Pauses) -> None:
    reached = 0

    def attempt() -> str:
        nonlocal reached
        reached += 17 << 20
        if reached >= 20 * (17 << 20):
            return "done"
        raise Passing(errors.HubError("cut"))

    assert Patience(pause=pauses).persist(attempt, lambda: reached) == "done"
    assert len(pauses) == 19


# Connections that never come about


def test_a_refused_connection_is_one_line(tmp_path: Path, patience: Patience, pauses: Pauses) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(errors.Offline, match="Connection refused") as caught:
            hub.resolve("org/m", cache=tmp_path, endpoint=endpoint, token=False, patience=patience)
    check_line(caught.value)
    assert len(pauses) == 5


def test_a_server_without_tls_is_one_line(
    server: HubServer, tmp_path: Path, patience: Patience, pauses: Pauses
) -> None:
    with pytest.raises(errors.Offline, match=r"TLS failed \(\w+\)") as caught:
        fetch(server, tmp_path, patience, endpoint=server.url.replace("http:", "https:"))
    check_line(caught.value)
    assert pauses == []


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for localhost that nobody signed, and what a server needs to show it."""
    if shutil.which("openssl") is None:
        pytest.skip("NO OPENSSL: the command makes the certificate of this test")
    key, path = tmp_path / "key", tmp_path / "certificate"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(path),
    ]
    subprocess.run(make, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, key)
    return path, context


def test_a_certificate_that_nobody_signed_is_one_line(
    certificate: tuple[Path, ssl.SSLContext], tmp_path: Path, patience: Patience, pauses: Pauses
) -> None:
    with (
        hub_server.listening(hub_server.Refusing, certificate[1]) as port,
        pytest.raises(errors.Offline, match="CERTIFICATE_VERIFY_FAILED") as caught,
    ):
        hub.resolve("org/m", cache=tmp_path / "c", endpoint=f"https://localhost:{port}", token=False, patience=patience)
    check_line(caught.value)
    assert pauses == []


def test_a_redirect_from_https_to_http_is_refused(
    certificate: tuple[Path, ssl.SSLContext], server: HubServer, tmp_path: Path
) -> None:
    class Downgrading(hub_server.Refusing):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"{server.url}{self.path}")
            self.end_headers()

    server.add("org/m", {"model.gguf": b"content"})
    with hub_server.listening(Downgrading, certificate[1]) as port:
        said = hub_server.run_python(
            "try: hub.resolve('org/m', cache=sys.argv[1], token=False, patience=hub.Patience(retries=0))\n"
            "except errors.HubError as error: print(error)\n",
            str(tmp_path / "c"),
            HF_ENDPOINT=f"https://localhost:{port}",
            SSL_CERT_FILE=str(certificate[0]),
        )
    assert "expected a redirect to https, got one to 'http://127.0.0.1" in said
    assert server.requests == []


def test_a_name_that_no_server_has_is_one_line(tmp_path: Path, patience: Patience) -> None:
    with pytest.raises(errors.Offline, match="cannot be looked up") as caught:
        hub.resolve("org/m", cache=tmp_path, endpoint="https://hub.invalid", token=False, patience=patience)
    check_line(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["huggingface.co", "ftp://localhost", "file:///etc", "https://me:secret@hub", "https://"]
)
def test_an_address_that_is_no_hub_is_one_line(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(errors.HubError, match="HF_ENDPOINT") as caught:
        hub.resolve("org/m", cache=tmp_path, endpoint=endpoint, token=False)
    check_line(caught.value)
    assert "secret" not in str(caught.value)


# Resuming


def test_a_download_goes_on_where_it_was_cut(server: HubServer, tmp_path: Path, patience: Patience) -> None:
    content = random.Random(5).randbytes(SIZE)
    server.add("org/m", {"model.gguf": content})
    offsets = [0, 1, SIZE - 1, SIZE, *range(RECV, SIZE, RECV)]
    offsets += random.Random(6).sample(range(SIZE), 200 if len(SEEDS) > 10 else 8)
    for offset in offsets:
        cache = tmp_path / str(offset)
        server.fault(hub_server.cut(offset))
        server.sent = 0
        try:
            fetch(server, cache, replace(patience, retries=0))
        except errors.HubError:
            check_cache(cache)
            server.requests.clear()
            assert fetch(server, cache, patience).read_bytes() == content
            assert server.asked("", "cdn")[0].headers.get("range") == (f"bytes={offset}-" if offset else None)
        check_cache(cache)
        assert list(cache.glob("**/*.incomplete")) == []
        # The JSON of four questions is counted too; of the model nothing was sent twice.
        assert server.sent <= SIZE + 4_000


@pytest.mark.parametrize(
    ("act", "ranges"),
    [
        (hub_server.whole, [None, "bytes=100000-"]),
        (hub_server.wrong_range(10), [None, "bytes=100000-", None]),
        (hub_server.wrong_range(-10), [None, "bytes=100000-", None]),
        (hub_server.changed_etag, [None, "bytes=100000-", None]),
        (hub_server.status(416), [None, "bytes=100000-", None]),
        (hub_server.gzipped, [None, "bytes=100000-"]),
    ],
    ids=["200", "a range too late", "a range too early", "another etag", "416", "gzip"],
)
def test_an_answer_that_does_not_go_on_is_noticed_by_its_head(
    act: hub_server.Act, ranges: list[str | None], server: HubServer, tmp_path: Path, patience: Patience
) -> None:
    content = random.Random(12).randbytes(SIZE)
    server.add("org/m", {"model.gguf": content})
    # The first answer has the ETag of all honest ones, and ends too early.
    server.fault(hub_server.cut(100_000))
    server.fault(act)
    assert fetch(server, tmp_path, patience).read_bytes() == content
    assert [request.headers.get("range") for request in server.asked("", "cdn")] == ranges
    assert {request.headers["accept-encoding"] for request in server.requests} == {"identity"}


@pytest.mark.parametrize(
    ("act", "got"),
    [
        (hub_server.wrong_range(10), f"bytes 100010-{SIZE - 1}/{SIZE}"),
        (hub_server.changed_etag, "another ETag"),
        (hub_server.status(416), "none"),
        (hub_server.status(416, Content_Range="bytes */7"), r"bytes \*/7"),
    ],
)
def test_a_wrong_range_is_told_before_its_bytes_are_taken(
    act: hub_server.Act, got: str, server: HubServer, tmp_path: Path, patience: Patience
) -> None:
    server.add("org/m", {"model.gguf": random.Random(13).randbytes(SIZE)})
    server.fault(hub_server.cut(100_000))
    server.fault(act)
    expected = rf"expected the range \(100000, {SIZE - 1}, {SIZE}\), got {got}"
    with pytest.raises(errors.HubError, match=expected):
        fetch(server, tmp_path, replace(patience, retries=1))


def test_a_part_that_is_damaged_on_the_disk_is_fetched_again(
    server: HubServer, tmp_path: Path, patience: Patience
) -> None:
    content = random.Random(7).randbytes(SIZE)
    server.add("org/m", {"model.gguf": content})
    server.fault(hub_server.cut(200_000))
    with pytest.raises(errors.HubError):
        fetch(server, tmp_path, replace(patience, retries=0))
    (part,) = tmp_path.glob("**/*.incomplete")
    with part.open("r+b") as file:
        file.seek(150_000)
        file.write(b"\0" * 4096)
    assert fetch(server, tmp_path, patience).read_bytes() == content
    check_cache(tmp_path)


@pytest.mark.parametrize("size", [SIZE, SIZE + 1, 10 * SIZE])
def test_a_part_that_is_complete_or_too_long_is_not_believed(
    size: int, server: HubServer, tmp_path: Path, patience: Patience
) -> None:
    content = random.Random(8).randbytes(SIZE)
    server.add("org/m", {"model.gguf": content})
    blobs = tmp_path / "models--org--m/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hub_server.sha256(content)}.{'0' * 16}.incomplete").write_bytes(b"x" * size)
    assert fetch(server, tmp_path, patience).read_bytes() == content
    check_cache(tmp_path)
    assert list(blobs.glob("*.incomplete")) == []


def test_a_part_that_is_whole_needs_no_request_for_the_file(
    server: HubServer, tmp_path: Path, patience: Patience
) -> None:
    content = random.Random(9).randbytes(SIZE)
    server.add("org/m", {"model.gguf": content})
    blobs = tmp_path / "models--org--m/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hub_server.sha256(content)}.{'0' * 16}.incomplete").write_bytes(content)
    assert fetch(server, tmp_path, patience).read_bytes() == content
    assert server.asked("", "cdn") == []


# Progress and cancelling


def test_progress_counts_every_byte_once(server: HubServer, tmp_path: Path, patience: Patience) -> None:
    files = {"config.json": b"{}", "model.safetensors": bytes(3 << 20), "tokenizer.json": b"{ }", "merges.txt": b""}
    server.add("org/m", files)
    events: list[Progress] = []
    fetch(server, tmp_path, patience, progress=events.append)
    total = sum(map(len, files.values()))
    assert {e.file for e in events} == set(files)
    assert {e.files_total for e in events} == {4}
    assert {e.all_total for e in events} == {total}
    assert [e.all_done for e in events] == sorted(e.all_done for e in events)
    assert events[-1] == Progress("model.safetensors", 3 << 20, 3 << 20, 4, 4, total, total)
    assert len([e for e in events if e.file == "model.safetensors"]) >= 4
    assert fetch(server, tmp_path, patience, progress=pytest.fail)


class Enough(Exception):
    pass


@pytest.mark.parametrize("kind", [Enough, KeyboardInterrupt, OSError, errors.HubError])
def test_a_callback_that_raises_ends_the_download_cleanly(
    kind: type[BaseException], server: HubServer, tmp_path: Path, patience: Patience
) -> None:
    content = random.Random(10).randbytes(4 << 20)
    server.add("org/m", {"model.gguf": content})

    def stop(event: Progress) -> None:
        if event.done > 1 << 20:
            raise kind("stop")

    with pytest.raises(kind, match=r"^stop$"):
        fetch(server, tmp_path, patience, progress=stop)
    check_cache(tmp_path)
    (part,) = tmp_path.glob("**/*.incomplete")
    come = part.stat().st_size
    assert come > 1 << 20
    server.requests.clear()
    assert fetch(server, tmp_path, patience).read_bytes() == content
    assert server.asked("", "cdn")[0].headers["range"] == f"bytes={come}-"


# Secrets


@pytest.mark.parametrize("script", [*HEALED.values(), *(script for script, _ in FATAL.values())], ids=[*HEALED, *FATAL])
def test_the_token_stays_between_the_user_and_the_hub(
    script: Script,
    server: HubServer,
    tmp_path: Path,
    patience: Patience,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    server.add("org/m", {"model.gguf": random.Random(11).randbytes(SIZE)})
    server.repos["org/m"].private = True
    script(server)
    said: list[object] = []
    try:
        fetch(server, tmp_path, patience, token=server.token, progress=said.append)
    except errors.HubError as error:
        said.extend(traceback.format_exception(error))
        while (cause := error.__cause__ or error.__context__) is not None:
            said.append(cause)
            error = cause  # type: ignore[assignment]
    assert all("authorization" in request.headers for request in server.requests if request.server == "hub")
    assert all("authorization" not in request.headers for request in server.requests if request.server == "cdn")
    written = "".join(capfd.readouterr()) + caplog.text + "".join(f"{thing} {thing!r}" for thing in said)
    assert server.token not in written
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size < SIZE]
    assert not any(server.token.encode() in content for content in kept)


def test_the_token_follows_no_redirect_of_a_question(server: HubServer, tmp_path: Path, patience: Patience) -> None:
    server.add("org/m", {"model.gguf": b"content"})
    server.fault(hub_server.redirect(server.cdn, keep_path=True), "/api/", server="hub", times=None)
    with pytest.raises(errors.HubError):
        fetch(server, tmp_path, patience, token=server.token)
    (stray,) = server.asked("/api/", "cdn")
    assert "authorization" not in stray.headers


def test_the_token_follows_no_page_of_a_list(server: HubServer, tmp_path: Path, patience: Patience) -> None:
    commit = server.add("org/m", {"model.gguf": b"content"})

    def elsewhere(handler: hub_server.Handler, content: bytes) -> bool:
        handler.send(200, b"[]", {"Link": f'<{server.cdn}/next>; rel="next"'})
        return True

    server.fault(elsewhere, f"tree/{commit}", server="hub")
    with pytest.raises(errors.HubError):
        fetch(server, tmp_path, patience, token=server.token)
    (stray,) = server.asked("/next", "cdn")
    assert "authorization" not in stray.headers


@pytest.mark.parametrize("token", ["hf_canary\n", "hf canary", "hf_canäry", "hf_canary\r\nX: y"])
def test_a_token_that_no_header_holds_is_refused_unseen(token: str, server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(errors.HubError, match="token: expected printable ASCII") as caught:
        fetch(server, tmp_path, Patience(), token=token)
    assert "can" not in "".join(traceback.format_exception(caught.value)).partition("token: expected")[2]
    assert server.requests == []


def test_a_signed_address_is_not_shown(server: HubServer, tmp_path: Path, patience: Patience) -> None:
    server.add("org/m", {"model.gguf": b"content"})
    server.fault(hub_server.redirect("ftp://user:secret@cdn/x?signature=secret"), times=None)
    with pytest.raises(errors.HubError, match="ftp://cdn/x") as caught:
        fetch(server, tmp_path, patience)
    assert "secret" not in str(caught.value)


# Refusals


@pytest.mark.parametrize("token", [None, "hf_another"])
def test_a_gated_model_says_where_its_licence_is(
    token: str | None, server: HubServer, tmp_path: Path, patience: Patience
) -> None:
    server.add("org/m", {"model.gguf": b"content"})
    server.repos["org/m"].gated = True
    with pytest.raises(errors.HubError) as caught:
        fetch(server, tmp_path, patience, token=token or False)
    check_line(caught.value)
    if token is None:
        assert f"accept its licence at {server.url}/org/m and pass a token" in str(caught.value)
    else:
        assert "the token is refused (401)" in str(caught.value)
    assert fetch(server, tmp_path, patience, token=server.token).read_bytes() == b"content"


def test_what_is_not_there_is_told_apart(server: HubServer, tmp_path: Path, patience: Patience) -> None:
    server.add("org/m", {"model-a.gguf": b"a", "model-b.gguf": b"b"})
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("org/none", {}, "no repository org/none; check the name; if it is private, pass a token"),
        ("org/none", {"token": server.token}, "no repository org/none; check the name; check the token's rights"),
        ("org/m@v9", {}, "org/m has no revision 'v9'"),
        ("org/m:model-c.gguf", {}, "org/m has no file 'model-c.gguf'; it has model-[ab].gguf, model-[ab].gguf"),
    ]
    for name, options, message in cases:
        with pytest.raises(errors.NotFound, match=message) as caught:
            fetch(server, tmp_path, patience, name=name, **options)
        check_line(caught.value)


def test_a_token_without_the_right_is_told(server: HubServer, tmp_path: Path, patience: Patience) -> None:
    server.add("org/m", {"model.gguf": b"content"})
    server.fault(hub_server.status(403), server="hub", times=None)
    with pytest.raises(errors.HubError, match=r"the token is refused \(403\)"):
        fetch(server, tmp_path, patience, token=server.token)


def test_a_proxy_that_refuses_is_one_line(tmp_path: Path) -> None:
    with hub_server.listening(hub_server.Refusing) as port:
        said = hub_server.run_python(
            "try: hub.resolve('org/m', cache=sys.argv[1], token=False, patience=hub.Patience(retries=0))\n"
            "except errors.Offline as error: print(error)\n",
            str(tmp_path),
            HTTPS_PROXY=f"http://me:secret@127.0.0.1:{port}",
            HF_ENDPOINT="https://hub.invalid",
        )
    assert "hub.invalid: the proxy refuses the connection; check HTTPS_PROXY" in said
    assert "secret" not in said
    assert said.count("\n") == 1

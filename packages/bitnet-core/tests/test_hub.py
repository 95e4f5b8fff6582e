"""A model by its name: from the hub once, from this machine ever after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
from hub_server import HubServer, run_python

from bitnet_core import errors, hub
from bitnet_core.hub import Patience

FOLDER = {
    "config.json": b'{"model_type": "bitnet"}',
    "generation_config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "tokenizer.json": b'{"model": {}}',
    "chat_template.jinja": b"{{ messages }}",
    "1_Pooling/config.json": b"{ }",
}
UNWANTED = {
    "README.md": b"read me",
    "pytorch_model.bin": b"pickle",
    "model.onnx": b"onnx",
    "modeling.py": b"import os",
    "consolidated.safetensors": b"the same again",
    "onnx/model.safetensors": b"elsewhere",
    "training_args.bin": b"pickle",
}
NOWHERE = "http://127.0.0.1:1"
Fetch = Callable[..., Path]


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def fetch(server: HubServer, tmp_path: Path) -> Fetch:
    def resolve(name: str, **options: Any) -> Path:
        given = {"cache": tmp_path / "cache", "endpoint": server.url, "token": False, **options}
        return hub.resolve(name, patience=Patience(connect_s=5, retries=1, pause=lambda _: None), **given)

    return resolve


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What a name means


def test_a_folder_or_a_file_that_exists_is_itself(fetch: Fetch, server: HubServer, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert fetch(str(tmp_path)) == tmp_path
    assert hub.resolve(file) == file
    assert server.requests == []


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.PKL", "model.npz", "model.ckpt"])
def test_a_pickle_that_exists_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(errors.UnsupportedError, match="pickle-based format not supported; convert to safetensors"):
        hub.resolve(tmp_path / name)


@pytest.mark.parametrize("name", ["", "missing", "./missing/model", "/no/such/model.gguf", "~nobody/x", "model.gguf"])
def test_a_path_that_does_not_exist_says_so(name: str, fetch: Fetch, server: HubServer) -> None:
    with pytest.raises(errors.HubError, match="no such file or folder is here"):
        fetch(name)
    assert server.requests == []


# Which files


def test_of_a_folder_of_safetensors_only_what_a_model_needs_is_fetched(fetch: Fetch, server: HubServer) -> None:
    server.add("org/m", FOLDER | UNWANTED)
    assert content(fetch("org/m")) == FOLDER
    assert len(server.asked("/resolve/")) == len(FOLDER)
    assert "model.safetensors" in server.asked("/resolve/")[-1].path


def test_a_split_model_comes_with_its_index(fetch: Fetch, server: HubServer) -> None:
    shards = {f"model-0000{k}-of-00002.safetensors": b"%d" % k for k in (1, 2)}
    index = {"model.safetensors.index.json": json.dumps({"weight_map": dict.fromkeys("ab", "x")}).encode()}
    server.add("org/m", {"config.json": b"{}", **shards, **index, **UNWANTED})
    assert content(fetch("org/m")) == {"config.json": b"{}", **shards, **index}


def test_safetensors_of_which_one_must_be_meant_are_listed(fetch: Fetch, server: HubServer) -> None:
    server.add("org/m", {"config.json": b"{}", "a.safetensors": b"a", "b.safetensors": b"bb"})
    with pytest.raises(errors.Ambiguous, match=r"append one of :a.safetensors \(1 bytes\), :b.safetensors \(2 bytes\)"):
        fetch("org/m")
    assert fetch("org/m:b.safetensors").read_bytes() == b"bb"


def test_the_one_gguf_file_is_the_model(fetch: Fetch, server: HubServer) -> None:
    server.add("org/m", {"README.md": b"", "m.gguf": b"GGUF", "mmproj-m.gguf": b"eyes"})
    path = fetch("org/m")
    assert (path.name, path.read_bytes()) == ("m.gguf", b"GGUF")
    assert content(path.parent) == {"m.gguf": b"GGUF"}


def test_several_gguf_files_are_listed_with_how_to_choose(fetch: Fetch, server: HubServer) -> None:
    files = {f"q/m-{k}.gguf": bytes(k) for k in range(10, 18)}
    server.add("org/m", files)
    with pytest.raises(errors.Ambiguous) as caught:
        fetch("org/m")
    assert "expected one file to choose, got 8; append one of :q/m-10.gguf (10 bytes), " in str(caught.value)
    assert "and 2 more" in str(caught.value)
    assert caught.value.choices == tuple(sorted(files))
    assert server.asked("/resolve/") == []
    assert fetch("org/m:q/m-12.gguf").read_bytes() == bytes(12)
    assert len(server.asked("/resolve/")) == 1


def test_a_split_gguf_model_is_one_model(fetch: Fetch, server: HubServer) -> None:
    shards = {f"m-0000{k}-of-00003.gguf": b"%d" % k for k in (3, 1, 2)}
    server.add("org/m", shards)
    path = fetch("org/m")
    assert path.name == "m-00001-of-00003.gguf"
    assert content(path.parent) == shards
    server.add("org/n", dict(list(shards.items())[:2]))
    with pytest.raises(errors.NotFound, match="expected 3 files of a split model"):
        fetch("org/n")


def test_a_split_that_claims_a_hundred_thousand_files_is_refused(fetch: Fetch, server: HubServer) -> None:
    server.add("org/m", {"m-00001-of-99999.gguf": b"1"})
    with pytest.raises(errors.NotFound, match="expected 99999 files of a split model, got fewer"):
        fetch("org/m")


def test_a_model_that_is_only_a_pickle_is_refused(fetch: Fetch, server: HubServer) -> None:
    server.add("org/m", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    for name in ("org/m", "org/m:pytorch_model.bin", "org/m:x.PT"):
        with pytest.raises(errors.UnsupportedError, match="pickle-based format not supported; convert to safetensors"):
            fetch(name)
    assert server.asked("/resolve/") == []


def test_a_repository_without_a_model_is_told(fetch: Fetch, server: HubServer) -> None:
    server.add("org/m", {"README.md": b"", "config.json": b"{}"})
    with pytest.raises(errors.NotFound, match=r"expected a \.gguf file, or config\.json and \.safetensors files"):
        fetch("org/m")


def test_a_list_in_pages_is_read_to_its_end(fetch: Fetch, server: HubServer) -> None:
    server.page = 2
    server.add("org/m", UNWANTED | FOLDER)
    assert content(fetch("org/m")) == FOLDER
    assert len(server.asked("/tree/")) == 7


def test_a_list_without_an_end_is_given_up(fetch: Fetch, server: HubServer) -> None:
    commit = server.add("org/m", FOLDER)
    following = {"Link": f'<{server.url}/api/models/org/m/tree/{commit}>; rel="next"'}

    def again(handler: hub_server.Handler, _: bytes) -> bool:
        handler.send(200, b"[]", following)
        return True

    server.fault(again, "tree", server="hub", times=None)
    with pytest.raises(errors.HubError, match="does not end after 100 pages"):
        fetch("org/m")


# Revisions


def test_a_branch_that_moves_is_followed_and_what_is_the_same_is_not_fetched_again(
    fetch: Fetch, server: HubServer
) -> None:
    first = server.add("org/m", FOLDER)
    old = fetch("org/m")
    second = server.add("org/m", FOLDER | {"tokenizer.json": b'{"new": 1}'})
    server.requests.clear()
    new = fetch("org/m")
    assert (old.name, new.name) == (first, second)
    assert [r.path.rpartition("/")[2] for r in server.asked("/resolve/")] == ["tokenizer.json"]
    assert content(old) == FOLDER
    assert fetch("org/m", offline=True) == new
    assert fetch("org/m", revision=first) == old


def test_branches_tags_and_pull_requests_are_revisions(fetch: Fetch, server: HubServer) -> None:
    for revision in ("main", "v1.0", "refs/pr/1"):
        server.add("org/m", {"m.gguf": revision.encode()}, revision=revision)
    for revision in ("v1.0", "refs/pr/1"):
        assert fetch(f"org/m@{revision}").read_bytes() == revision.encode()
        assert fetch("org/m", revision=revision, offline=True).read_bytes() == revision.encode()
    assert fetch("org/m").read_bytes() == b"main"


def test_a_full_commit_in_the_cache_needs_no_network(fetch: Fetch, server: HubServer) -> None:
    commit = server.add("org/m", FOLDER)
    path = fetch("org/m")
    server.requests.clear()
    assert fetch(f"org/m@{commit}", endpoint=NOWHERE) == path
    assert fetch("org/m", revision=commit, progress=pytest.fail) == path
    assert server.requests == []


def test_a_full_commit_of_which_a_part_is_missing_is_completed(fetch: Fetch, server: HubServer) -> None:
    commit = server.add("org/m", FOLDER)
    path = fetch("org/m")
    (path / "tokenizer.json").unlink()
    (path / "model.safetensors").resolve().unlink()
    assert content(fetch(f"org/m@{commit}")) == FOLDER


def test_a_blob_that_a_power_cut_left_short_is_fetched_again(fetch: Fetch, server: HubServer) -> None:
    server.add("org/m", FOLDER)
    blob = (fetch("org/m") / "model.safetensors").resolve()
    blob.write_bytes(b"")
    assert content(fetch("org/m")) == FOLDER


def test_two_files_with_one_content_are_fetched_once(fetch: Fetch, server: HubServer) -> None:
    server.add("org/m", {"config.json": b"{}", "generation_config.json": b"{}", "model.safetensors": b"w"})
    assert len(content(fetch("org/m"))) == 3
    assert len(server.asked("/resolve/")) == 2


# Without a network


@pytest.mark.parametrize("how", ["parameter", "environment"])
def test_offline_the_cache_is_all_there_is(
    how: str, fetch: Fetch, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/m", FOLDER)
    path = fetch("org/m")
    server.requests.clear()
    options = {"offline": True} if how == "parameter" else {}
    monkeypatch.setenv("BITNET_OFFLINE", "1" if how == "environment" else "0")
    assert fetch("org/m", **options) == path
    for name, missing in [
        ("org/other", "has not any file of it"),
        ("org/m@v2", "has not any file of it"),
    ]:
        with pytest.raises(errors.Offline, match=f"{missing}, and the network is off"):
            fetch(name, **options)
    with pytest.raises(errors.NotFound, match=r"has no file 'x\.gguf'"):
        fetch("org/m:x.gguf", **options)
    if how == "environment":
        for ask in (hub.search, hub.describe):
            with pytest.raises(errors.Offline, match="not asked, because the network is off"):
                ask("org/m", endpoint=server.url)
    (path / "model.safetensors").unlink()
    with pytest.raises(errors.Offline, match=r"has not model\.safetensors, and the network is off"):
        fetch("org/m", **options)
    assert server.requests == []


def test_offline_a_shard_that_the_index_names_is_missed_though_no_list_was_kept(
    fetch: Fetch, server: HubServer, cache: Path
) -> None:
    shards = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    index = json.dumps({"metadata": {}, "weight_map": {"a": shards[0], "b": shards[1]}}).encode()
    server.add("org/m", {"config.json": b"{}", "model.safetensors.index.json": index, **dict.fromkeys(shards, b"w")})
    path = fetch("org/m")
    shutil.rmtree(cache / "models--org--m/trees")
    assert fetch("org/m", offline=True) == path
    (path / shards[1]).unlink()
    with pytest.raises(errors.Offline, match=shards[1]):
        fetch("org/m", offline=True)


def test_a_network_that_is_down_is_asked_once_and_then_the_cache_is_used(
    fetch: Fetch, server: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    commit = server.add("org/m", FOLDER)
    path = fetch("org/m")
    assert fetch("org/m", endpoint=NOWHERE) == path
    assert f"using what the cache has: org/m@{commit}" in caplog.text
    server.fault(hub_server.status(503), server="hub", times=None)
    server.requests.clear()
    assert fetch("org/m") == path
    assert len(server.requests) == 1


def test_a_model_that_the_hub_no_longer_has_is_not_taken_from_the_cache(fetch: Fetch, server: HubServer) -> None:
    commit = server.add("org/m", FOLDER)
    fetch("org/m")
    del server.repos["org/m"]
    with pytest.raises(errors.NotFound):
        fetch("org/m")
    assert fetch(f"org/m@{commit}")


def test_the_environment_of_huggingface_hub_is_respected(server: HubServer, tmp_path: Path) -> None:
    server.add("org/m", {"m.gguf": b"content"})
    server.repos["org/m"].private = True
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.url, "HF_TOKEN": server.token}
    environment |= {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    said = run_python("print(hub.resolve('org/m'))", **environment)
    assert said.startswith(str(tmp_path / "hub" / "models--org--m"))
    assert server.asked("/resolve/")[0].headers["authorization"] == f"Bearer {server.token}"
    server.requests.clear()
    for name in ("org/m", "org/n"):
        code = f"try: print(hub.resolve({name!r}))\nexcept errors.Offline as error: print('offline:', error)"
        said = run_python(code, **environment | {"HF_HUB_OFFLINE": "1"})
        assert said.startswith("offline: org/n: the cache at" if name == "org/n" else str(tmp_path / "hub"))
    code = "try: hub.resolve('org/n', offline=False)\nexcept errors.Offline as error: print(error)"
    said = run_python(code, **environment | {"HF_HUB_OFFLINE": "1"})
    assert "huggingface_hub is set to be offline" in said
    assert server.requests == []


def test_importing_costs_no_huggingface_hub_and_asking_reaches_only_the_hub(server: HubServer, tmp_path: Path) -> None:
    server.add("org/m", FOLDER)
    watch = (
        "assert 'huggingface_hub' not in sys.modules\n"
        "reaching = {'socket.connect', 'socket.getaddrinfo'}\n"
        "sys.addaudithook(lambda event, args: event in reaching and print(event, args[:2]))\n"
        "hub.resolve('org/m'); hub.search('m'); hub.describe('org/m'); hub.cached(); hub.remove('org/m')\n"
    )
    said = run_python(watch, HF_HOME=str(tmp_path), HF_ENDPOINT=server.url, NO_PROXY="*")
    reached = [line for line in said.splitlines() if line]
    assert len(reached) >= 4
    for line in reached:
        assert "'127.0.0.1'" in line or "'localhost'" in line or "'::1'" in line, line


# One cache with huggingface_hub

HUGGINGFACE = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",
    "NO_PROXY": "*",
}


def test_what_huggingface_hub_has_fetched_is_not_fetched_again(fetch: Fetch, server: HubServer, cache: Path) -> None:
    server.add("org/m", FOLDER | {"README.md": b"read me"})
    code = (
        "import huggingface_hub; print(huggingface_hub.snapshot_download('org/m', cache_dir=sys.argv[1], token=False))"
    )
    theirs = Path(run_python(code, str(cache), HF_ENDPOINT=server.url, **HUGGINGFACE).strip())
    assert fetch("org/m", offline=True) == theirs
    server.requests.clear()
    assert fetch("org/m", progress=pytest.fail) == theirs
    assert server.asked("/resolve/") == []
    shutil.rmtree(cache / "models--org--m/trees", ignore_errors=True)  # their versions 1 keep no lists
    assert fetch("org/m", offline=True) == theirs


def test_what_is_fetched_here_serves_huggingface_hub(fetch: Fetch, server: HubServer, cache: Path) -> None:
    server.add("org/m", FOLDER)
    ours = fetch("org/m")
    code = (
        "import huggingface_hub as h, json\n"
        "print(h.hf_hub_download('org/m', 'model.safetensors', cache_dir=sys.argv[1], token=False))\n"
        "print(h.snapshot_download('org/m', cache_dir=sys.argv[1], local_files_only=True))\n"
        "info = h.scan_cache_dir(sys.argv[1])\n"
        "print([r.repo_id for r in info.repos], len(info.warnings))\n"
    )
    server.requests.clear()
    said = run_python(code, str(cache), HF_ENDPOINT=server.url, **HUGGINGFACE).splitlines()
    assert said == [str(ours / "model.safetensors"), str(ours), "['org/m'] 0"]
    assert server.asked("", "cdn") == []


# What a hub offers


def test_a_search_tells_what_one_wants_to_know(server: HubServer) -> None:
    server.add("microsoft/bitnet-b1.58-2B-4T", FOLDER, downloads=900, usedStorage=12345, tags=["license:mit"])
    server.add(
        "org/plain-bitter", FOLDER, downloads=2000, cardData={"license": "apache-2.0"}, config={"model_type": "llama"}
    )
    config = {"quantization_config": {"quant_method": "bitnet"}, "model_type": "llama"}
    server.add("org/bit", FOLDER, downloads=5, config=config, gated=True)
    server.add("org/other", FOLDER)
    found = hub.search("bit", endpoint=server.url, token=False)
    assert found == (
        hub.Found("org/plain-bitter", 2000, None, "apache-2.0", False, False),
        hub.Found("microsoft/bitnet-b1.58-2B-4T", 900, 12345, "mit", False, True),
        hub.Found("org/bit", 5, None, None, True, True),
    )
    assert hub.search("bit", limit=1, endpoint=server.url, token=False) == found[:1]
    assert "search=bit&limit=1&sort=downloads&expand=downloads" in server.requests[-1].path


@pytest.mark.parametrize("card", [[], "text", {"license": ["mit"]}, {"license": "evil\x1b[31m" * 50}])
def test_what_authors_wrote_is_shown_safely(card: object, server: HubServer) -> None:
    server.add("org/m", FOLDER, cardData=card, config=["odd"])
    (found,) = hub.search("m", endpoint=server.url, token=False)
    assert found.licence is None or (found.licence.isprintable() and len(found.licence) <= 80)


def test_a_description_says_what_it_takes_before_it_is_taken(server: HubServer) -> None:
    commit = server.add("org/m", FOLDER | UNWANTED, cardData={"license": "mit"}, tags=["ternary"])
    described = hub.describe("org/m", endpoint=server.url, token=False)
    assert (described.name, described.revision, described.licence) == ("org/m", commit, "mit")
    assert (described.gated, described.ternary, described.choices) == (False, True, ())
    assert {f.name for f in described.files} == set(FOLDER | UNWANTED)
    assert {f.name for f in described.needed} == set(FOLDER)
    assert described.size == sum(map(len, FOLDER.values()))
    server.add("org/g", {"a.gguf": b"1", "b.gguf": b"22"})
    described = hub.describe("org/g", endpoint=server.url, token=False)
    assert (described.needed, described.choices, described.size) == ((), ("a.gguf", "b.gguf"), 0)
    assert hub.describe("org/g:b.gguf", endpoint=server.url, token=False).size == 2


# What the cache holds


def test_the_cache_lists_its_models_last_used_first(fetch: Fetch, server: HubServer, cache: Path) -> None:
    assert hub.cached(cache=cache) == ()
    first = server.add("org/a", FOLDER)
    server.add("org/b", {"m.gguf": b"content"})
    fetch("org/a")
    fetch("org/b")
    for path in cache.glob("models--org--a/blobs/*"):
        os.utime(path, (1000, 1000))
    b, a = hub.cached(cache=cache)
    assert (b.name, b.files, b.size, b.refs) == ("org/b", ("m.gguf",), 7, ("main",))
    assert (a.name, a.revision, a.files) == ("org/a", first, tuple(sorted(FOLDER)))
    assert a.size == sum(map(len, FOLDER.values()))
    assert (a.last_used, a.pinned) == (1000, False)
    fetch("org/a", offline=True)
    assert abs(hub.cached(cache=cache)[0].last_used - time.time()) < 60
    assert hub.cached(cache=cache)[0].name == "org/a"


def test_removing_a_revision_frees_only_what_no_other_uses(fetch: Fetch, server: HubServer, cache: Path) -> None:
    first = server.add("org/m", FOLDER)
    fetch("org/m")
    server.add("org/m", FOLDER | {"tokenizer.json": b"new tokenizer"})
    new = fetch("org/m")
    assert hub.remove(f"org/m@{first}", cache=cache) == len(FOLDER["tokenizer.json"])
    assert content(new) == FOLDER | {"tokenizer.json": b"new tokenizer"}
    assert [m.revision for m in hub.cached(cache=cache)] == [new.name]
    assert hub.remove("org/m", cache=cache) == sum(map(len, (FOLDER | {"tokenizer.json": b"new tokenizer"}).values()))
    assert hub.cached(cache=cache) == ()
    assert not list(cache.glob("models--*"))
    for name in ("org/m", f"org/m@{first}", "org/none"):
        with pytest.raises(errors.NotFound, match="not in the cache"):
            hub.remove(name, cache=cache)


def test_a_model_with_the_same_commit_is_not_touched(fetch: Fetch, server: HubServer, cache: Path) -> None:
    commit = server.add("org/m", FOLDER)
    server.repos["org/copy"] = hub_server.Repo("org/copy", {commit: FOLDER}, {"main": commit})
    fetch("org/m")
    fetch("org/copy")
    hub.remove(f"org/copy@{commit}", cache=cache)
    assert [m.name for m in hub.cached(cache=cache)] == ["org/m"]
    assert content(fetch("org/m", offline=True)) == FOLDER


def test_a_pin_protects_and_names_what_it_protects(fetch: Fetch, server: HubServer, cache: Path) -> None:
    with pytest.raises(errors.NotFound, match="not in the cache"):
        hub.pin("org/m", cache=cache)
    commit = server.add("org/m", {"m.gguf": b"content"})
    path = fetch("org/m")
    assert hub.pin("org/m", cache=cache) == f"org/m@{commit}"
    assert hub.cached(cache=cache)[0].pinned
    server.requests.clear()
    assert fetch(hub.pin("org/m", cache=cache)) == path
    assert server.requests == []
    for name in ("org/m", f"org/m@{commit}"):
        with pytest.raises(errors.HubError, match=f"org/m@{commit} is pinned; unpin it first"):
            hub.remove(name, cache=cache)
    assert hub.clean_up(unused_s=0, idle_s=0, cache=cache) == 0
    assert path.read_bytes() == b"content"
    hub.unpin("org/m", cache=cache)
    hub.unpin(f"org/m@{commit}", cache=cache)
    assert not hub.cached(cache=cache)[0].pinned
    assert hub.clean_up(unused_s=0, cache=cache) == 7
    assert hub.cached(cache=cache) == ()


def test_a_pin_of_one_revision_leaves_the_others_free(fetch: Fetch, server: HubServer, cache: Path) -> None:
    first = server.add("org/m", {"m.gguf": b"old"})
    fetch("org/m")
    hub.pin("org/m", cache=cache)
    server.add("org/m", {"m.gguf": b"newer"})
    fetch("org/m")
    with pytest.raises(errors.HubError, match="pinned"):
        hub.remove("org/m", cache=cache)
    assert hub.remove("org/m@main", cache=cache) == 5
    assert fetch(f"org/m@{first}", offline=True).read_bytes() == b"old"


def test_what_dead_downloads_left_is_cleaned_up_and_living_ones_are_not(
    fetch: Fetch, server: HubServer, cache: Path
) -> None:
    server.add("org/m", {"m.gguf": b"content"})
    fetch("org/m")
    blobs = cache / "models--org--m/blobs"
    for name in (f"{'a' * 64}.{'0' * 16}.incomplete", f"{'0' * 16}.tmp"):
        (blobs / name).write_bytes(b"old")
        os.utime(blobs / name, (1000, 1000))
    (blobs / f"{'a' * 64}.{'1' * 16}.incomplete").write_bytes(b"fresh")
    assert hub.disk_usage(cache=cache).unfinished == 8
    assert hub.clean_up(cache=cache) == 6
    assert sorted(p.name for p in blobs.iterdir()) == [
        f"{'a' * 64}.{'1' * 16}.incomplete",
        hub_server.sha256(b"content"),
    ]
    assert hub.clean_up(idle_s=-1, cache=cache) == 5


def test_disk_usage_counts_content_once_and_unfinished_downloads(fetch: Fetch, server: HubServer, cache: Path) -> None:
    usage = hub.disk_usage(cache=cache)
    assert (usage.used, usage.unfinished) == (0, 0)
    assert usage.free > 0
    server.add("org/m", {"m.gguf": bytes(100_000)})
    fetch("org/m")
    server.add("org/m", {"m.gguf": bytes(100_000), "new.txt": b""})
    fetch("org/m")
    usage = hub.disk_usage(cache=cache)
    assert 100_000 < usage.used < 102_000
    assert usage.path == cache


def test_a_model_that_is_damaged_can_be_removed_as_a_whole(fetch: Fetch, server: HubServer, cache: Path) -> None:
    commit = server.add("org/m", FOLDER)
    path = fetch("org/m")
    (path / "config.json").resolve().unlink()  # huggingface_hub cannot read a model with a broken link
    assert hub.cached(cache=cache) == ()
    with pytest.raises(errors.HubError, match="damaged one; remove org/m as a whole"):
        hub.remove(f"org/m@{commit}", cache=cache)
    assert hub.remove("org/m", cache=cache) > 7000
    assert not list(cache.glob("models--*"))


def test_a_download_that_never_ended_can_be_removed(fetch: Fetch, server: HubServer, cache: Path) -> None:
    server.add("org/m", {"m.gguf": bytes(100_000)})
    server.fault(hub_server.cut(40_000), times=None)
    with pytest.raises(errors.HubError):
        fetch("org/m")
    assert hub.disk_usage(cache=cache).unfinished > 40_000
    assert hub.remove("org/m", cache=cache) > 40_000


def test_removal_does_not_follow_a_link_out_of_the_model(
    fetch: Fetch, server: HubServer, cache: Path, tmp_path: Path
) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_bytes(b"mine")
    first = server.add("org/m", {"m.gguf": b"old"})
    (fetch("org/m").parent / "extra").symlink_to(treasure)
    server.add("org/m", {"m.gguf": b"new"})
    fetch("org/m")
    with pytest.raises(errors.HubError, match="outside its folder"):
        hub.remove(f"org/m@{first}", cache=cache)
    assert treasure.read_bytes() == b"mine"


def test_content_that_huggingface_hub_shares_between_models_is_used_and_freed(
    fetch: Fetch, server: HubServer, cache: Path
) -> None:
    """Its versions 2 keep large files in one store for all models, with links to them where blobs were."""
    shared_blobs = pytest.importorskip("huggingface_hub.utils._shared_blobs")
    weights = b"weights" * 1000
    server.add("org/m", {"m.gguf": weights})
    path = fetch("org/m")
    blob, xet = cache / "models--org--m/blobs" / hub_server.sha256(weights), "ab" * 32
    assert shared_blobs.publish_blob_to_shared_store(
        blob_path=str(blob), xet_hash=xet, cache_dir=str(cache), expected_size=len(weights)
    )
    assert blob.is_symlink()
    server.requests.clear()
    assert fetch("org/m") == path
    assert server.asked("/resolve/") == []
    assert path.read_bytes() == weights
    assert hub.remove("org/m", cache=cache) == len(weights)
    assert not list(cache.glob(f"blobs/*/{xet}"))


def test_a_cache_that_is_read_only_serves_what_it_has(fetch: Fetch, server: HubServer, cache: Path) -> None:
    cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(cache)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("NO MOUNT: needs the right to mount a tmpfs")
    try:
        server.add("org/m", FOLDER)
        path = fetch("org/m")
        subprocess.run(["mount", "-o", "remount,ro", str(cache)], check=True)
        server.add("org/m", FOLDER, revision="v2")
        assert fetch("org/m@v2") == fetch("org/m") == path
        server.add("org/m", FOLDER | {"tokenizer.json": b"new"})
        with pytest.raises(errors.HubError, match=r"Read-only file system \(EROFS\); choose a folder"):
            fetch("org/m")
    finally:
        subprocess.run(["umount", str(cache)], check=True)


def test_a_system_without_links_gets_plain_files(
    fetch: Fetch, server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    server.add("org/m", FOLDER)
    path = fetch("org/m")
    assert content(path) == FOLDER
    assert not any(p.is_symlink() for p in path.rglob("*"))
    server.requests.clear()
    assert fetch("org/m") == path
    assert server.asked("/resolve/") == []
    assert hub.remove("org/m", cache=cache) > 7000


def test_every_public_name_is_listed() -> None:
    public = {name for name in vars(hub) if not name.startswith("_")}
    modules = {"catalogue", "inventory", "names", "part", "patience", "snapshot", "store", "transfer"}
    assert public - modules == set(hub.__all__)

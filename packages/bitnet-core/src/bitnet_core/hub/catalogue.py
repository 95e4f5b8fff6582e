"""What a hub offers: models by a query, the files of a model, and which of them it takes to run it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

import msgspec

from ..errors import Ambiguous, HubError, NotFound, Offline, UnsupportedError, printable
from . import names
from .names import Name
from .patience import PATIENCE, Patience
from .transfer import Hub, is_offline

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
# Everything beside the weights that a loader of ours may read: small files, fetched where they exist.
_COMPANIONS = frozenset(
    [
        _CONFIG,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "modules.json",  # with the next two: how an embedding model pools
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
    ]
)
_TEMPLATES = re.compile(r"(?:additional_chat_templates/)?[^/]+\.jinja|[^/]+\.tiktoken")
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<kind>\.safetensors|\.gguf)")
_TERNARY_NAME = re.compile(r"bitnet|ternary|1[._-]?58|\btrilm|bitcpm|falcon-?e\b|tq[12]_0|i2_s", re.IGNORECASE)
_TERNARY_TAGS = frozenset(["bitnet", "ternary", "1.58-bit", "1.58bit", "1-bit", "onebitllms"])


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a model as the hub lists it."""

    name: str
    size: int  # bytes
    git_id: str
    sha256: str | None  # known for large files

    @property
    def digest(self) -> str:
        """What proves the content."""
        return self.git_id if self.sha256 is None else self.sha256


@dataclass(frozen=True, slots=True)
class Description:
    """What a model consists of, before any of it is fetched."""

    name: str
    revision: str  # the commit
    licence: str | None
    gated: bool
    ternary: bool  # whether it looks like a ternary model
    files: tuple[RemoteFile, ...]  # all that the hub has
    needed: tuple[RemoteFile, ...]  # what `resolve` would fetch; empty when one of `choices` must be named
    choices: tuple[str, ...]  # the files of which one must be named, as `name:file`

    @property
    def size(self) -> int:
        """Bytes of the files that are needed."""
        return sum(file.size for file in self.needed)


@dataclass(frozen=True, slots=True)
class Found:
    """A model that a search found."""

    name: str
    downloads: int
    size: int | None  # bytes of the whole repository, where the hub says so
    licence: str | None
    gated: bool
    ternary: bool  # whether it looks like a ternary model


class _Large(msgspec.Struct):
    oid: str
    size: Annotated[int, msgspec.Meta(ge=0)]


class _Entry(msgspec.Struct):
    type: str
    path: str
    oid: str
    size: Annotated[int, msgspec.Meta(ge=0)] = 0
    lfs: _Large | None = None


class _Model(msgspec.Struct, rename="camel"):
    id: str
    sha: str | None = None
    downloads: int = 0
    gated: bool | str = False
    tags: list[str] = []
    used_storage: int | None = None
    # These two hold what the model's authors wrote: any shape at all.
    card_data: Any = None
    config: Any = None

    @property
    def licence(self) -> str | None:
        card = self.card_data if isinstance(self.card_data, dict) else {}
        tagged = (tag.removeprefix("license:") for tag in self.tags if tag.startswith("license:"))
        licence = card.get("license") or next(tagged, None)
        return printable(licence) if licence else None

    @property
    def is_ternary(self) -> bool:
        config = self.config if isinstance(self.config, dict) else {}
        quantization = config.get("quantization_config")
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        tagged = any(tag.casefold() in _TERNARY_TAGS for tag in self.tags)
        return (
            method == "bitnet" or config.get("model_type") == "bitnet" or tagged or bool(_TERNARY_NAME.search(self.id))
        )


def search(
    query: str,
    *,
    limit: int = 20,
    token: str | bool | None = None,
    endpoint: str | None = None,
    patience: Patience = PATIENCE,
) -> tuple[Found, ...]:
    """The models of the hub that match `query`, the most downloaded first."""
    expand = ["downloads", "gated", "tags", "cardData", "config", "usedStorage"]
    params = {"search": query, "limit": limit, "sort": "downloads", "expand": expand}
    hub = _ask(endpoint, token, patience)
    models = hub.item("/api/models", params, list[_Model], f"the search for '{printable(query)}'")
    return tuple(
        Found(printable(m.id, 200), m.downloads, m.used_storage, m.licence, bool(m.gated), m.is_ternary)
        for m in models[:limit]
    )


def describe(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    patience: Patience = PATIENCE,
) -> Description:
    """The files of a model of the hub, and which of them `resolve` would fetch."""
    wanted = names.parse(name, revision)
    hub = _ask(endpoint, token, patience)
    model = _model(hub, wanted)
    commit = _commit(hub, wanted, model)
    files = fetch_listing(hub, wanted, commit)
    needed, choices = (), ()  # type: tuple[RemoteFile, ...], tuple[str, ...]
    try:
        needed = choose(files, wanted)
    except Ambiguous as several:
        choices = several.choices
    return Description(wanted.repo, commit, model.licence, bool(model.gated), model.is_ternary, files, needed, choices)


def _ask(endpoint: str | None, token: str | bool | None, patience: Patience) -> Hub:
    if is_offline():
        raise Offline("hub: not asked, because the network is off (BITNET_OFFLINE or HF_HUB_OFFLINE)")
    return Hub.connect(endpoint, token, patience)


def fetch_commit(hub: Hub, wanted: Name) -> str:
    """The commit that the wanted revision means at the hub."""
    return _commit(hub, wanted, _model(hub, wanted))


def _commit(hub: Hub, wanted: Name, model: _Model) -> str:
    commit = names.check_commit(model.sha or "")
    if wanted.revision and names.is_commit(wanted.revision) and commit != wanted.revision:
        raise HubError(f"{hub.endpoint}: {wanted}: expected that commit, got {commit}; check HF_ENDPOINT")
    return commit


def fetch_listing(hub: Hub, wanted: Name, commit: str) -> tuple[RemoteFile, ...]:
    """All files of a revision."""
    path = f"/api/models/{wanted.repo}/tree/{commit}"
    entries = hub.items(path, {"recursive": "true", "expand": "false"}, _Entry, wanted)
    return tuple(
        RemoteFile(e.path, e.lfs.size if e.lfs else e.size, e.oid, e.lfs.oid if e.lfs else None)
        for e in entries
        if e.type == "file"
    )


def _model(hub: Hub, wanted: Name) -> _Model:
    revision = quote(wanted.revision or "main", safe="")
    return hub.item(f"/api/models/{wanted.repo}/revision/{revision}", {}, _Model, wanted)


def choose(files: Sequence[RemoteFile], wanted: Name) -> tuple[RemoteFile, ...]:
    """The files that a model needs, weights last; every name of them is safe, or this raises."""
    by_name = {file.name: file for file in files}
    weights = _named(by_name, wanted) if wanted.file else _weights(by_name, wanted)
    if wanted.file or weights[0].endswith(".gguf"):
        chosen = weights
    else:
        chosen = sorted(n for n in by_name if n in _COMPANIONS or _TEMPLATES.fullmatch(n)) + weights
    for name in chosen:
        names.check_path(name, "file")
    names.check_distinct(chosen)
    return tuple(by_name[name] for name in chosen)


def is_vital(file: RemoteFile) -> bool:
    """Whether a model cannot be read at all without this one of its files."""
    return file.name in {_CONFIG, _INDEX} or file.name.endswith((".safetensors", ".gguf"))


def _named(by_name: dict[str, RemoteFile], wanted: Name) -> list[str]:
    file = wanted.file or ""
    if file not in by_name:
        near = difflib.get_close_matches(file, by_name, n=3)
        offers = f"; it has {', '.join(map(printable, near))}" if near else ""
        raise NotFound(printable(f"{wanted.repo} has no file '{file}'{offers}", 500))
    return _shards(by_name, file) if file.endswith(".gguf") else [file]


def _weights(by_name: dict[str, RemoteFile], wanted: Name) -> list[str]:
    tensors = [n for n in by_name if n.endswith(".safetensors") and "/" not in n]
    if _CONFIG in by_name and tensors:
        return _safetensors(by_name, tensors, wanted)
    whole = [n for n in by_name if n.endswith(".gguf") and _is_first(n)]
    if len(whole) == 1:
        return _shards(by_name, whole[0])
    if whole:
        raise _ambiguous(by_name, whole, wanted)
    if pickles := sorted(filter(names.is_pickle, by_name)):
        raise UnsupportedError(
            f"{wanted}: {printable(pickles[0])}: pickle-based format not supported; convert to safetensors"
        )
    raise NotFound(f"{wanted}: expected a .gguf file, or config.json and .safetensors files, got neither")


def _safetensors(by_name: dict[str, RemoteFile], tensors: list[str], wanted: Name) -> list[str]:
    if _INDEX in by_name:
        shards = sorted(n for n in tensors if (m := _NUMBERED.fullmatch(n)) and m["stem"] == "model")
        return [_INDEX, *(shards or sorted(tensors))]
    if "model.safetensors" in tensors:
        return ["model.safetensors"]
    if len(tensors) > 1:
        raise _ambiguous(by_name, tensors, wanted)
    return tensors


def _ambiguous(by_name: dict[str, RemoteFile], candidates: Iterable[str], wanted: Name) -> Ambiguous:
    choices = tuple(sorted(candidates))
    shown = [f":{printable(n, 60)} ({sum(by_name[s].size for s in _shards(by_name, n))} bytes)" for n in choices[:6]]
    more = f" and {len(choices) - 6} more" if len(choices) > 6 else ""
    return Ambiguous(
        f"{wanted}: expected one file to choose, got {len(choices)}; append one of {', '.join(shown)}{more}", choices
    )


def _is_first(name: str) -> bool:
    match = _NUMBERED.fullmatch(name)
    # A vision projector is no model of its own.
    return (match is None or int(match["index"]) == 1) and not name.rpartition("/")[2].startswith("mmproj")


def _shards(by_name: dict[str, RemoteFile], name: str) -> list[str]:
    """All the files of a model that is split, the first first; of a whole one, itself."""
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return [name]
    count, stem, kind = match["count"], match["stem"], match["kind"]
    if not 1 <= int(count) <= len(by_name):
        raise NotFound(f"{printable(name)}: expected {int(count)} files of a split model, got fewer")
    shards = [f"{stem}-{k:05d}-of-{count}{kind}" for k in range(1, int(count) + 1)]
    if missing := [shard for shard in shards if shard not in by_name]:
        raise NotFound(
            f"{printable(name)}: expected {int(count)} files of a split model, got none named {printable(missing[0])}"
        )
    return shards

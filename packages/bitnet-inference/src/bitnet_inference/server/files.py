"""OpenAI's files: what batches read and write, each for the tenant whose it is."""

from __future__ import annotations

import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from bitnet_core.durable import replacing

from .errors import Refusal
from .gate import FILE_LIMIT, answer, page
from .works import works_of

FILES_LIMIT = 10_000  # of all tenants
BYTES_LIMIT = 1 << 30  # of one
_ID = re.compile(r"file-[0-9a-f]{32}")


class Kept(msgspec.Struct, frozen=True):
    """What is known of a file."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: int

    def told(self) -> dict[str, Any]:
        """What a client is told."""
        found = {name: value for name, value in msgspec.to_builtins(self).items() if name != "owner"}
        return {**found, "object": "file", "status": "processed", "expires_at": None}


class Files:
    """Files in a folder: each with what is known of it beside it."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._files: dict[str, Kept] = {}
        self._place = None if folder is None else Path(folder)
        if self._place is not None:
            self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = [msgspec.json.decode(path.read_bytes(), type=Kept) for path in self._place.glob("file-*.json")]
            self._files = {one.id: one for one in sorted(found, key=lambda one: one.created_at)}

    @property
    def _folder(self) -> Path:
        if self._place is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="bitnet-files-")
            self._place = Path(self._temporary.name)
        return self._place

    def add(self, owner: str, filename: str, purpose: str, parts: Iterable[bytes]) -> Kept:
        """Keep a file."""
        if len(self._files) >= FILES_LIMIT:
            raise Refusal(429, f"{FILES_LIMIT} files are kept; delete some first", code="too_many_files")
        if sum(kept.bytes for kept in self.of(owner)) >= BYTES_LIMIT:
            raise Refusal(429, f"your files take {BYTES_LIMIT} bytes; delete some first", code="too_many_files")
        id_, size = f"file-{uuid.uuid4().hex}", 0
        with replacing(self._folder / id_) as stream:
            for part in parts:
                size += len(part)
                stream.write(part)
        kept = Kept(id_, owner, filename[:256], purpose, size, int(time.time()))
        with replacing(self._folder / f"{id_}.json") as stream:
            stream.write(msgspec.json.encode(kept))
        self._files[id_] = kept
        return kept

    def find(self, id_: str, owner: str) -> Kept:
        """A file by its id; others' are not there."""
        kept = self._files.get(id_) if _ID.fullmatch(id_) else None
        if kept is None or kept.owner != owner:
            raise Refusal(404, "file: there is none of this id", param="file_id")
        return kept

    def path(self, kept: Kept) -> Path:
        """Where its bytes are."""
        return self._folder / kept.id

    def of(self, owner: str) -> list[Kept]:
        """A tenant's files, the newest first."""
        return [kept for kept in reversed(self._files.values()) if kept.owner == owner]

    def remove(self, kept: Kept) -> None:
        """Delete a file."""
        del self._files[kept.id]
        for path in (self.path(kept), self._folder / f"{kept.id}.json"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Files that were to last as long as the server are deleted."""
        if self._temporary is not None:
            self._temporary.cleanup()


async def upload(request: Request) -> Response:
    """Keep a file that a form brings."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "multipart/form-data":
        raise Refusal(415, f"Content-Type: expected multipart/form-data, got {given or 'none'}")
    try:
        async with request.form(max_files=1, max_fields=4, max_part_size=4096) as form:
            for name in form:
                if name not in ("file", "purpose"):
                    raise Refusal(400, f"{name}: this server knows no such field", param=name, code="unknown_parameter")
            file, purpose = form.get("file"), _purpose(form.get("purpose"))
            if not isinstance(file, UploadFile):
                raise Refusal(400, "file: expected a file, and there is none", param="file")
            data = await file.read()
    except MultiPartException as error:
        raise Refusal(400, f"body: expected a form: {error.message}") from error
    if len(data) > FILE_LIMIT:
        raise Refusal(413, f"file: expected at most {FILE_LIMIT} bytes, got {len(data)}", param="file")
    files, owner, name = files_of(request), request.state.tenant.id, file.filename or "file"
    kept = await works_of(request).run(lambda: files.add(owner, name, purpose, [data]))
    return answer(kept.told())


async def listing(request: Request) -> Response:
    """The tenant's files."""
    purpose = request.query_params.get("purpose")
    found = [kept.told() for kept in files_of(request).of(request.state.tenant.id) if purpose in (None, kept.purpose)]
    return answer(page(request, found))


async def get(request: Request) -> Response:
    """What a file is."""
    return answer(_wanted(request).told())


async def content(request: Request) -> Response:
    """A file's bytes."""
    return FileResponse(files_of(request).path(_wanted(request)), media_type="application/octet-stream")


async def delete(request: Request) -> Response:
    """Delete a file."""
    kept = _wanted(request)
    files_of(request).remove(kept)
    return answer({"id": kept.id, "object": "file", "deleted": True})


def files_of(request: Request) -> Files:
    """The files of a server."""
    found: Files = request.app.state.files
    return found


def _wanted(request: Request) -> Kept:
    return files_of(request).find(request.path_params["id"], request.state.tenant.id)


def _purpose(value: Any) -> Literal["batch", "user_data"]:
    if value == "batch":
        return "batch"
    if value == "user_data":
        return "user_data"
    raise Refusal(400, "purpose: expected batch or user_data", param="purpose")

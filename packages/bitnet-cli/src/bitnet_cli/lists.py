"""Many prompts in a file: read and checked as a whole, answered in any number of runs."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from . import models
from .failures import Refused

_LINE_LIMIT = 16 << 20
_BEGIN = b'{"id": "'  # of every line that is written
_ALLOWED = frozenset(
    ("max_tokens", "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
     "frequency_penalty", "seed", "stop", "min_tokens", "ignore_eos", "logprobs", "priority", "deadline_s")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """One line: a prompt, or the messages of a conversation, with what is said of this text alone."""

    id: str
    prompt: str | None
    messages: list[Any] | None
    options: Mapping[str, Any]


def read(source: str) -> list[Job]:
    """Every line of a JSONL file, or of stdin for "-"; the first that is wrong is named."""
    jobs: list[Job] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(models.read_text(source, "prompts").removeprefix("\ufeff").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        job = _job(line, number, where)
        if job.id in seen:
            raise Refused(f"{where}: id: expected one of its own, got '{job.id}' of line {seen[job.id]}")
        seen[job.id] = number
        jobs.append(job)
    if not jobs:
        raise Refused(f"{source}: expected a prompt a line as JSON, got none")
    return jobs


def _job(line: str, number: int, where: str) -> Job:
    if len(line) > _LINE_LIMIT:
        raise Refused(f"{where}: expected at most {_LINE_LIMIT} characters, got {len(line)}")
    value = models.read_object(line, where, "an object with prompt or messages")
    # OpenAI's files have the request in "body", and a name for each in "custom_id".
    body = value.get("body", value)
    if not isinstance(body, dict):
        raise Refused(f"{where}: body: expected an object, got {type(body).__name__}")
    name = value.get("custom_id", value.get("id", number))
    if isinstance(name, bool) or not isinstance(name, str | int) or len(str(name)) > 512:
        raise Refused(f"{where}: id: expected a text or a number, got {type(name).__name__}")
    prompt, messages = body.get("prompt"), body.get("messages")
    if isinstance(prompt, str) == isinstance(messages, list):
        raise Refused(f"{where}: expected a text 'prompt', or a list 'messages', got {', '.join(body) or 'nothing'}")
    known = {"id", "custom_id", "method", "url", "model", "prompt", "messages"}
    options = {key: item for key, item in body.items() if key not in known}
    if strange := sorted(set(options) - _ALLOWED):
        raise Refused(f"{where}: {strange[0]}: expected one of {', '.join(sorted(_ALLOWED))}")
    if isinstance(options.get("stop"), list):
        options["stop"] = tuple(options["stop"])
    _check_options(options, where)
    return Job(str(name), prompt if isinstance(prompt, str) else None, messages, options)


def _check_options(options: Mapping[str, Any], where: str) -> None:
    from bitnet_inference import Sampling  # noqa: PLC0415

    sampled = {field.name for field in fields(Sampling)}
    try:
        Sampling(**{key: item for key, item in options.items() if key in sampled})
    except (ValueError, TypeError) as error:
        raise Refused(f"{where}: {error}") from error


def answered(output: Path) -> set[str]:
    """The ids that an output has; a last line that a kill cut short is taken away."""
    if not output.exists():
        return set()
    if not output.is_file():
        raise Refused(f"{output}: expected a file, got something else")
    done: set[str] = set()
    good = 0
    with output.open("rb") as stream:
        for line in stream:
            try:
                value: Any = json.loads(line) if line.endswith(b"\n") else None
                done.add(value["id"])
            except (ValueError, TypeError, KeyError) as error:
                # A kill cuts a line of ours; a file of somebody else's stays as it is.
                if stream.read(1) or not line.startswith(_BEGIN[: len(line)]):
                    raise Refused(f"{output}: expected answers of bitnet batch, got something else") from error
                break
            good += len(line)
    if good < output.stat().st_size:
        with output.open("rb+") as stream:
            stream.truncate(good)
    return done


def append(output: Path, record: Mapping[str, Any]) -> None:
    """One more line, whole and on the disk before the next is begun."""
    from bitnet_benchmarks.record import as_plain  # noqa: PLC0415  # help is quicker without

    data = (json.dumps(as_plain(record), ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
    handle = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        begin = os.fstat(handle).st_size
        if os.write(handle, data) < len(data):  # a disk takes what it has room for
            os.ftruncate(handle, begin)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output))
        os.fsync(handle)
    finally:
        os.close(handle)

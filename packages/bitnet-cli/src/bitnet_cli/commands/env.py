"""`bitnet env`: versions, folders and variables."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

from .. import settings
from ..console import FLAGS, Flags, pairs

_OURS = ("core", "quant", "inference", "benchmarks", "cli", "training", "metal")
_OTHERS = ("numpy", "tokenizers", "huggingface_hub", "cyclopts", "rich", "llguidance", "torch", "llama-cpp-python")
_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "NO_COLOR")
_SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def env(*, flags: Flags = FLAGS) -> None:
    """Versions, folders and variables: what to send along with a question. Secrets are not shown."""
    record = found()
    shown = [pairs(values, title) for title, values in record.items() if values]
    flags.answer(record, *shown)


def found() -> dict[str, dict[str, Any]]:
    """All that is said of the environment."""
    from bitnet_core import hub  # noqa: PLC0415

    variables = {name: value for name, value in sorted(os.environ.items()) if _is_ours(name)}
    return {
        "system": {
            "platform": platform.platform(),
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "executable": sys.executable,
        },
        "packages": {
            name: version for name in (*(f"bitnet-{n}" for n in _OURS), *_OTHERS) if (version := version_of(name))
        },
        "folders": {"cache": str(hub.disk_usage().path), "settings": str(settings.default_file() or "none")},
        "variables": variables,
    }


def version_of(name: str) -> str | None:
    """The version of a package, or None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_ours(name: str) -> bool:
    secret = any(word in name.upper() for word in _SECRETS)
    return (name.startswith("BITNET_") or name in _VARIABLES) and not secret

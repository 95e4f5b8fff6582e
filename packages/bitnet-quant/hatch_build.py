"""The build hook: the compiled part where there is a compiler, and a pure wheel of the same version where not."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

from scikit_build_core.hatch import plugin  # its class by name would be a second hook in this file

_COMPILERS = ("c++", "g++", "clang++", "cl")


class BuildHook(plugin.ScikitBuildHook):  # type: ignore[misc]  # hatchling's own base is untyped
    """scikit-build-core's hook, where it can run."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return [] if _pure() else list(super().dependencies())

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "wheel" and (reason := _pure()):
            sys.stderr.write(f"bitnet-quant: a pure wheel, without the cpu backend: {reason}\n")
            return
        super().initialize(version, build_data)


def _pure() -> str | None:
    """Why nothing is to be compiled; None where it is."""
    if os.environ.get("BITNET_PURE") == "1":
        return "BITNET_PURE is 1"
    if os.environ.get("CXX") or any(shutil.which(name) for name in _COMPILERS):
        return None
    return f"no C++ compiler found ({', '.join(_COMPILERS)}); install one, or name it in CXX"

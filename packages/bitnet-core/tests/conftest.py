"""Where the golden vectors and the real data are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# The hub's tests share a server, which is a module beside them.
sys.path.append(str(Path(__file__).parent))

# How long one example takes says how busy the machine is.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module", autouse=True)
def _online() -> Iterator[None]:
    """The hub is where a test puts it, whatever they have switched off who run the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "BITNET_OFFLINE"):
            patch.delenv(name, raising=False)
        if constants := sys.modules.get("huggingface_hub.constants"):  # it has read its environment
            patch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden vectors."""
    return GOLDEN


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real models, tokenizers and texts, which the project does not ship."""
    for folder in (os.environ.get("BITNET_DATA"), Path(__file__).parents[4] / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("NO REAL DATA: set BITNET_DATA to the folder with models/, tokenizers/ and text/")

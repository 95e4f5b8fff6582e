"""Where the golden vectors and the real data are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis
import pytest

# The hub's tests share a server, which is a module beside them.
sys.path.append(str(Path(__file__).parent))

# How long one example takes says how busy the machine is.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

GOLDEN = Path(__file__).parent / "golden"


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

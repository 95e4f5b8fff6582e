"""Where the real data is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real models, tokenizers and texts, which the project does not ship."""
    for folder in (os.environ.get("BITNET_DATA"), Path(__file__).parents[4] / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("NO REAL DATA: set BITNET_DATA to the folder with models/, tokenizers/ and text/")

"""Where the real data is, and one thread for all: the tensors of tests are too small to share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# The task that tests of the loop share is a module beside them.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, and no waiting for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's compiler with nothing compiled; where the environment turns it off, it would let all through unseen."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real models, tokenizers and texts, which the project does not ship."""
    for folder in (os.environ.get("BITNET_DATA"), Path(__file__).parents[4] / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("NO REAL DATA: set BITNET_DATA to the folder with models/, tokenizers/ and text/")


@pytest.fixture(scope="session")
def stories() -> Path:
    """The folder of the small model of stories that the project has."""
    folder = Path(__file__).parents[2] / "bitnet-inference" / "src" / "bitnet_inference" / "stories"
    if not folder.is_dir():
        pytest.skip("the model of stories lies in another package of the repository, which is not here")
    return folder

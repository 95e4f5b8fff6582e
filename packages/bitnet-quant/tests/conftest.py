"""The instruction sets under test, and memory that ends where it must not be passed."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from bitnet_quant.cpu import isas, why_not


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", [] if why_not() else isas())


@pytest.fixture
def guarded() -> Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]:
    """Copies an array so that its last byte is the last before a page that must not be touched."""
    if sys.platform != "linux":
        pytest.skip("pages are protected by a call of Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def copy(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        size = -(-max(array.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        mapping = mmap.mmap(-1, size + mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        if libc.mprotect(address + size, mmap.PAGESIZE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
        placed = np.frombuffer(mapping, array.dtype, array.size, size - array.nbytes).reshape(array.shape)
        placed[...] = array
        return placed

    return copy

"""Runs that are killed end as if they had not been; fuzz/kills.py does it as often as it is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parents[1] / "fuzz" / "kills.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are copies of one process")
def test_runs_that_are_killed_end_as_those_that_are_not():
    command = [sys.executable, str(KILLS), "--kills", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills over" in done.stdout

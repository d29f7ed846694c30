"""The benchmark of annotations runs once on little, so that it cannot rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soma_annotations.py"


@pytest.mark.timeout(600)  # eight seconds of work, in five processes one after another
def test_three_hundred_somas_are_written_and_read_back():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--somas", "300"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["step", "nothing", "plan", "write", "publish", "set", "points", "ellipsoids"]

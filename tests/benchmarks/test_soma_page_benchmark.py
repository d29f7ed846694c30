"""The benchmark of the soma page runs once on little, so that it cannot rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soma_page.py"


@pytest.mark.slow
@pytest.mark.browser
def test_each_change_is_timed_to_the_frame_that_shows_it(tmp_path):
    picture = tmp_path / "page.png"
    arguments = ["--somas=500", "--rounds=2", f"--picture={picture}"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=175)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 2 + 6
    assert picture.stat().st_size > 10_000

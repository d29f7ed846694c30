"""The benchmark of catalogues runs once on little, so that it cannot rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soma_catalogue.py"


@pytest.mark.timeout(600)  # seven seconds of work, in six processes one after another
def test_two_hundred_somas_come_through_stitching_catalogue_and_report():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--somas", "200"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["step", "nothing", "stitch", "merge", "publish", "report"]
    assert "### 200 somas of " in done.stdout

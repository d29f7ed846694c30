"""The benchmark of training runs once on little, so that it cannot rot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"


def test_training_beside_bare_steps():
    env = {k: v for k, v in os.environ.items() if k != "CLOUDSEG_DATA"}
    given = ["--phantom", "--patch=16", "--widths", "4", "8", "--steps=2", "--rounds=1"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *given], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = [cell.strip() for cell in done.stdout.splitlines()[-1].strip("|").split("|")]
    assert all(float(cell) > 0 for cell in row)
    assert len(row) == 5

"""The benchmark of nuclei runs once on a phantom, so that it cannot rot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "nuclei.py"


def test_nuclei_beside_a_baseline(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "CLOUDSEG_DATA"}
    given = ["--edge=40", "--steps=2", f"--folder={tmp_path}"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *given], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [
        [c.strip() for c in line.strip("|").split("|")]
        for line in done.stdout.splitlines()
        if line.startswith(("| held", "| learned"))
    ]
    assert len(rows) == 4
    for row in rows:
        assert int(row[2]) > 1, "there are nuclei"
        assert all(0 <= float(cell) <= 1 for cell in row[4:])
    assert (tmp_path / "models" / "nuclei" / "model.json").is_file()

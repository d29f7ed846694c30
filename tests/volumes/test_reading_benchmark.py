from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reading.py"


@pytest.mark.faults
def test_the_benchmark_of_reading_runs_and_reads_what_was_stored():
    arguments = ["--edge=64", "--rounds=1", "--delay-ms", "0"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if "://" in line]
    assert len(rows) == 6
    assert all(float(row[-1]) > 0 for row in rows)

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "worker.py"


@pytest.mark.faults
def test_the_benchmark_of_the_worker_runs_and_finds_nothing_wrong():
    arguments = ["--trials=1", "--tasks=4", "--lease=1", "--queues=fq"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| fq")]
    failing, stopped, long = ([cell.strip() for cell in row] for row in rows)
    assert failing == ["fq://", "3", "1", "1", "1", "yes", ""]
    assert stopped[1] == "1"
    assert stopped[-3:] == ["1 of 1", "143", ""]
    assert long[-3:] == ["1", "1", ""]

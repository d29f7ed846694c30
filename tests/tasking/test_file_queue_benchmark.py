from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "file_queue.py"


def test_the_benchmark_of_the_file_queue_runs_and_its_queues_end_empty():
    arguments = ["--tasks=20", "--rounds=1", "--workers=2"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours = next(line for line in done.stdout.splitlines() if line.startswith("cloudseg"))
    name, *rates, left, never, twice = ours.split()
    assert name == "cloudseg"
    assert len(rates) == 2
    assert all(float(rate) > 0 for rate in rates)
    assert (left, never, twice) == ("0", "0", "0")

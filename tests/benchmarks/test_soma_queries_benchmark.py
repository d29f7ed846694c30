"""The benchmark of soma questions runs once on little, so that it cannot rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soma_queries.py"


@pytest.mark.slow
def test_every_table_is_printed_and_no_client_sees_an_error():
    arguments = ["--somas=500", "--large=2000", "--clients=3", "--seconds=1", "--rounds=2"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=175)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| 10 nearest |") == 3
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("| 3 |"))
    _, n_requests, n_errors, *_ = (cell.strip() for cell in row.strip("| ").split("|"))
    assert int(n_requests) > 0
    assert int(n_errors) == 0

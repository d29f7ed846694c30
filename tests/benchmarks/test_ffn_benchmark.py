"""The benchmark of flood filling runs on a phantom, so that it cannot rot; and the published object comes out of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ffn.py"


def run(*args: str, data: Path | None = None) -> str:
    env = {k: v for k, v in os.environ.items() if k != "CLOUDSEG_DATA"}
    given = [] if data is None else ["--data", str(data)]
    done = subprocess.run(
        [sys.executable, SCRIPT, *given, *args], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_modes_are_compared():
    printed = run("--edge", "32")
    (row,) = re.findall(r"^\| faithful \| (\d+) \| \1 \|.*\| 0\.000 \|$", printed, re.MULTILINE)
    assert int(row) > 0


def test_steps_are_timed():
    assert "| faithful | 6 |" in run("--edge", "32", "--steps", "3")


def test_blocks_are_compared():
    printed = run("--blocks", "--edge", "32", "--halo", "12", "--precision", "float32")
    assert "| blocks |" in printed
    assert "| x | y | z | axis | matched |" in printed


def test_a_cascade_is_compared():
    printed = run("--cascade", "--edge", "40", "--threshold", "0.3")
    rows = dict(re.findall(r"^\| (flood filling alone|cascade on [^|]*) \| (\d+) \|", printed, re.MULTILINE))
    assert int(rows["flood filling alone"]) > int(rows["cascade on affinities at 0.3"]) > 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_first_object_is_the_published_one(cloudseg_data):
    """1,884 steps of a fifth of a second: seven minutes of one quiet core."""
    printed = run("--first", data=cloudseg_data)
    assert printed.startswith("12464 seeds, ")
    assert "| (16, 18, 109) | 1884 | 1097342 | 1097342 | 0 |" in printed

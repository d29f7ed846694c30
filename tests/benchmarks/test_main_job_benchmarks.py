"""Each benchmark of the main job runs once on a small phantom, so that it cannot rot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *args: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "CLOUDSEG_DATA"}
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *args], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_segmentation_beside_waterz():
    assert "| ratio |" in run("segmentation.py", "--edge", "72", "--rounds", "1")


def test_accuracy_of_the_shipped_model():
    line = next(
        x for x in run("accuracy.py", "--edge", "96").splitlines() if x.startswith("| all | cloudseg |")
    )
    assert float(line.split("|")[3]) < 0.25


@pytest.mark.slow
def test_tilings_give_one_result():
    printed = run("tilings.py", "--edge", "72")
    digests = {
        line.split("|")[4] for line in printed.splitlines() if line.startswith(("| 64x", "| 128x", "| 256x"))
    }
    assert len(digests) == 1


@pytest.mark.faults
def test_killed_runs_end_with_the_same_bytes():
    printed = run("restart.py", "--edge", "80", "--kills", "2")
    assert int(printed.splitlines()[-2].split("|")[2]) == 0


@pytest.mark.slow
def test_memory_of_workers():
    assert "| highest |" in run("scaling.py", "--edge", "144")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_fleet_makes_the_bytes_of_one_machine():
    printed = run("fleet.py", "--edge", "80")
    fleets = [line.split("|") for line in printed.splitlines() if " + sqs, 3 workers |" in line]
    assert [int(row[6]) for row in fleets] == [0, 0]
    assert all(int(row[5]) > 100 for row in fleets)

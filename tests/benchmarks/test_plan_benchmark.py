"""The benchmark of plans runs once on little, so that it cannot rot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plan.py"


def run(*args: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "CLOUDSEG_DATA"}
    done = subprocess.run(
        [sys.executable, SCRIPT, *args], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(text: str, first: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()]
    return [row for row in rows if row[0].endswith(first)]


def test_huge_plans_and_the_books_of_a_large_step():
    text = run("--edge=0", "--teravoxels=0.01", "--tasks=500")
    assert "planning 0.01 teravoxels" in text
    assert [row[1] for row in cells(text, "compare all tasks with the receipts")] == ["512", "512"]
    assert [row[1] for row in cells(text, "find one")] == ["1"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_planned_memory_beside_measured():
    rows = cells(run("--edge=72", "--teravoxels=0", "--tasks=0"), "agglomerate.relabel")
    assert float(rows[0][3]) == pytest.approx(1, abs=0.5)

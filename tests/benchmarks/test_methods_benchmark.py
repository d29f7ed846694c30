"""The benchmarks of methods run once on something tiny, so that they cannot rot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloudseg.testing.tiny_model import tiny_package

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script, *args):
    env = {k: v for k, v in os.environ.items() if k != "CLOUDSEG_DATA"}
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *map(str, args)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows_of(printed):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if "|" in line]


def test_thresholds_of_blocks():
    rows = rows_of(run("threshold.py", "--edge", "64"))
    assert [row[1] for row in rows if row[0] in ("64x64x64", "16x16x16")] == ["0", "0"]


def test_cost_of_tracking_grows_with_the_logarithm(tmp_path):
    rows = rows_of(run("tracking_cost.py", "--edge", "64", "--plot", tmp_path / "cost.svg"))
    calls = {int(row[0]): int(row[1]) for row in rows if row[0].isdigit()}
    assert calls == {4: 3, 16: 4, 64: 5, 256: 6}
    assert (tmp_path / "cost.svg").read_text().startswith("<svg")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_table_of_methods():
    rows = {row[0]: row for row in rows_of(run("methods.py", "--edge", "64"))}
    scored = {name: float(row[1]) for name, row in rows.items() if row[1][:1] in "01"}
    assert len(scored) == 10
    assert scored["affinities + agglomeration"] < scored["threshold + components"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_slow_pass_after_a_fast_one(tmp_path):
    network = tiny_package(
        f"file://{tmp_path}/network",
        output="boundaries",
        offsets=(),
        arguments={"n_out": 1, "widths": (4, 6), "pools": ((2, 2, 2),)},
    )
    network = network.removeprefix("file://")
    rows = {row[0]: row for row in rows_of(run("multi_pass.py", "--edge", "64", "--network", network))}
    fast, some, whole = (
        rows[name] for name in ("fast", "fast, slow where in doubt", "fast, slow everywhere")
    )
    assert 0 <= float(some[-1].rstrip("%")) <= 100
    assert whole[-1] == "100.0%"
    assert int(fast[-2]) <= int(some[-2]) <= int(whole[-2])

"""The benchmark of somas runs on little, with a network of random weights, so that it cannot rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cloudseg.testing.tiny_model import tiny_package

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "somas.py"
MODEL = {
    "output": "heads",
    "heads": ("interior", "boundary", "distance"),
    "offsets": (),
    "arguments": {"n_out": 3, "widths": (4, 6), "pools": ((2, 2, 2),)},
    "voxel_size_nm": (128, 128, 80),
    "patch_shape": (48, 48, 32),
    "context": (4, 4, 4),
    "blend": (4, 4, 4),
}


def run(folder, *args: str) -> str:
    uri = tiny_package(str(folder / "model"), **MODEL)
    done = subprocess.run(
        [sys.executable, SCRIPT, "--model", uri, *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_dense_pass_is_judged_and_the_same_for_other_blocks(tmp_path):
    text = run(tmp_path, "--shape=80,72,70", "--part=0,0,0")
    assert "Dense pass over 80 x 72 x 70 voxels of 128 x 128 x 80 nm" in text
    assert "| equal |" in text


@pytest.mark.slow
def test_three_ways_with_one_network_are_compared(tmp_path):
    text = run(tmp_path, "--shape=0,0,0", "--part=64,64,40", "--interior=0.5")
    assert "heads with other blocks equal" in text
    rows = [[c.strip() for c in line.strip("| ").split("|")] for line in text.splitlines()]
    ways = {
        row[0]: float(row[2]) for row in rows if len(row) > 3 and row[0] in ("dense", "published patches")
    }
    assert ways["dense"] == 1.0
    assert ways["published patches"] > 3

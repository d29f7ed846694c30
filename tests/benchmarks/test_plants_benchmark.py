"""The benchmark of plants: what it says about labels that the image shows, and about labels that it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from cloudseg.testing.runs import store

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plants.py"


def cells(walls_until: int):
    """Cubes of 10 voxels, two to an axis; their walls are bright in the first sections only."""
    i = np.indices((20, 20, 20))
    labels = (1 + i[0] // 10 + 2 * (i[1] // 10) + 4 * (i[2] // 10)).astype(np.uint64)
    image = np.full(labels.shape, 60, np.uint8)
    image[9:11, :, :walls_until] = 120
    image[:, 9:11, :walls_until] = 120
    return image, labels


def test_labels_whose_walls_are_not_seen_are_told_from_the_others(tmp_path):
    image, labels = cells(walls_until=14)
    swapped = labels.copy()
    swapped[..., 14:] = labels[::-1, :, 14:]
    for name, data in {
        "root_image": image,
        "root_labels": swapped,
        "run/segmentation": labels,
        "run/supervoxels": labels,
    }.items():
        store(f"file://{tmp_path}/{name}", np.asfortranarray(data))
    done = subprocess.run(
        [sys.executable, SCRIPT, f"{tmp_path}/run", "--data", tmp_path, "--box", "0,0,0:20,20,20"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    every, seen = (line.split("|")[2:-1] for line in done.stdout.splitlines() if "/run |" in line)
    assert every[0].strip() == "all"
    assert seen[0].strip() == "14 seen"
    assert float(seen[1]) == 0 < float(every[1])
    assert float(every[4]) > 0

"""Measure how fast affinities become labels, and how well, beside waterz.

Both run in this process on one core, on the same uint8 affinities (waterz gets them as float32, as it wants), turn by
turn; each is scored at the best of its thresholds, ours otherwise with the options of examples/fib25.toml. waterz
0.10.1: mean affinity, exact queue.

Usage: python benchmarks/segmentation.py [--data $CLOUDSEG_DATA] [--edge 250] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import waterz

from cloudseg.ops.agglomerate import Rule
from cloudseg.ops.contingency import contingency
from cloudseg.ops.segment import segment
from cloudseg.testing.runs import VOXEL_NM, cloudseg, print_table, real_or_phantom, stage_options, store
from cloudseg.volumes import open_volume

OURS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
WATERZ = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # merged while 1 - mean affinity is below
EXAMPLE = stage_options(Path(__file__).parents[1] / "examples" / "fib25.toml")
MIN_SIZE_VX = round(EXAMPLE["agglomerate"]["min_size_um3"] / (VOXEL_NM[0] ** 3 * 1e-9))
T_HIGH, EMPHASIS = EXAMPLE["supervoxels"]["t_high"], EXAMPLE["agglomerate"].get("emphasis", 0)


def predicted(image: np.ndarray, folder: Path) -> np.ndarray:
    """Affinities of ``image`` by the shipped model, ``(3, x, y, z)`` uint8, each channel in Fortran order."""
    uri = store(f"file://{folder}/image", image)
    (folder / "pipeline.toml").write_text(
        f'image = "{uri}"\nroot = "file://{folder}/run"\n[[stage]]\nkind = "affinities"\n'
    )
    cloudseg("run", str(folder / "pipeline.toml"))
    volume = open_volume(f"file://{folder}/run/affinities")
    return volume.read(volume.info.bounds)


def ours(affinities: np.ndarray, threshold: float) -> np.ndarray:
    """Supervoxels, region graph, agglomeration, clean-up, relabelling."""
    rule = Rule(threshold * 255, min_size_vx=MIN_SIZE_VX)
    return segment(affinities, t_low=1, t_high=T_HIGH, rule=rule, emphasis=EMPHASIS).segments


def theirs(affinities_zyx: np.ndarray, threshold: float) -> np.ndarray:
    """Run waterz on ``(3, z, y, x)`` float32; returns ``(z, y, x)``."""
    with quiet():
        runs = waterz.agglomerate(
            affinities_zyx,
            [threshold],
            aff_threshold_low=0.0001,
            aff_threshold_high=0.9999,
            scoring_function="OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>",
            discretize_queue=0,
        )
        (labels,) = (run.copy() for run in runs)
    return labels


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what compiled code prints nowhere."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def timed(function: Callable[..., np.ndarray], *args: object) -> tuple[np.ndarray, float]:
    """Return the result and the CPU seconds of this process."""
    started = time.process_time()
    result = function(*args)
    return result, time.process_time() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--edge", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    image, truth = real_or_phantom(args.data and Path(args.data), args.edge)
    scored = (slice(None), slice(None), slice(120, 160) if args.edge >= 160 else slice(None))
    with tempfile.TemporaryDirectory() as folder:
        affinities = predicted(image, Path(folder))
    zyx = np.ascontiguousarray(affinities[::-1].transpose(0, 3, 2, 1), np.float32) / np.float32(255)
    small = affinities[:, :32, :32, :32]
    ours(np.stack([np.asfortranarray(c) for c in small]), 0.3)  # compile before the clock runs

    def error(labels: np.ndarray) -> float:
        return contingency(labels[scored].astype(np.uint64), truth[scored]).scores().adapted_rand_error

    best = min((error(ours(affinities, t)), t) for t in OURS)
    best_waterz = min((error(theirs(zyx, t).T), t) for t in WATERZ)
    seconds, seconds_waterz = [], []
    for _ in range(args.rounds):
        seconds.append(timed(ours, affinities, best[1])[1])
        seconds_waterz.append(timed(theirs, zyx, best_waterz[1])[1])
    n = image.size / 1e6
    a, b = statistics.median(seconds), statistics.median(seconds_waterz)
    print_table(
        f"affinities to labels, {args.edge}^3, one core, median of {args.rounds}",
        ("", "threshold", "CPU s", "Mvoxel/s", "adapted Rand error"),
        (
            ("cloudseg", best[1], f"{a:.2f}", f"{n / a:.1f}", f"{best[0]:.4f}"),
            (
                f"waterz {waterz.__version__}",
                best_waterz[1],
                f"{b:.2f}",
                f"{n / b:.1f}",
                f"{best_waterz[0]:.4f}",
            ),
            ("ratio", "", f"{b / a:.2f}", "", f"{best[0] - best_waterz[0]:+.4f}"),
        ),
    )


if __name__ == "__main__":
    main()

"""Measure what a second worker gains, and whether a worker's peak memory depends on the size of the volume.

The example pipeline runs on a cube with one one-thread worker and with two, and with one on a cube of half the edge,
always with the same blocks of 128^3 (FIB-25, continued by mirroring). Seconds of a stage are from its first task's
start to its last task's end; "whole command" also holds starting the processes. Peaks are the receipts' (resident
memory while a task ran).

Usage: python benchmarks/scaling.py [--data $CLOUDSEG_DATA] [--edge 500]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from cloudseg.tasking.receipts import Receipt, Receipts
from cloudseg.testing.runs import cloudseg, print_table, real_or_phantom, store
from cloudseg.volumes import open_objects

EXAMPLE = Path(__file__).parents[1] / "examples" / "fib25.toml"
WHOLE = "whole command"


def run(image_uri: str, root: Path, *, workers: int) -> tuple[dict[str, list[Receipt]], float]:
    """Run into ``root``; return the receipts by step, in the order of their start, and the wall seconds."""
    started = time.monotonic()
    cloudseg(
        "run", str(EXAMPLE), "--workers", str(workers), "--set", f"image={image_uri}",
        "--set", f"root=file://{root}", "--set", "affinities.block_shape=[128,128,128]",
    )  # fmt: skip
    wall_s = time.monotonic() - started
    objects = open_objects(f"file://{root}")
    steps = {key.split("/")[2] for key in objects.list("pipeline/receipts/")}
    receipts = {step: list(Receipts(objects, step).all()) for step in steps}
    return dict(sorted(receipts.items(), key=lambda item: min(r.started for r in item[1]))), wall_s


def span_s(receipts: list[Receipt]) -> float:
    """Return the seconds from the first start to the last end."""
    return (max(r.finished for r in receipts) - min(r.started for r in receipts)).total_seconds()


def peak_mb(receipts: list[Receipt]) -> float:
    """Return the highest peak."""
    return max(r.peak_memory_bytes for r in receipts) / 1e6


def by_stage(steps: dict[str, list[Receipt]]) -> dict[str, list[Receipt]]:
    """Return the receipts of each stage (steps are called ``stage.step``)."""
    stages: dict[str, list[Receipt]] = {}
    for step, receipts in steps.items():
        stages.setdefault(step.partition(".")[0], []).extend(receipts)
    return stages


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--edge", type=int, default=500)
    args = parser.parse_args()
    runs = {}
    for edge, workers in ((args.edge // 2, 1), (args.edge, 1), (args.edge, 2)):
        image, _ = real_or_phantom(args.data and Path(args.data), edge)
        with tempfile.TemporaryDirectory() as name:
            uri = store(f"file://{name}/image", image)
            del image
            runs[edge, workers] = run(uri, Path(name) / "run", workers=workers)
    small, _ = runs[args.edge // 2, 1]
    one, one_s = runs[args.edge, 1]
    two, two_s = runs[args.edge, 2]
    alone, shared = by_stage(one), by_stage(two)
    seconds = [(stage, span_s(alone[stage]), span_s(shared[stage])) for stage in alone]
    print_table(
        f"seconds with one-thread workers, {args.edge}^3",
        ("stage", "1 worker", "2 workers", "ratio"),
        [(name, f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}") for name, a, b in (*seconds, (WHOLE, one_s, two_s))],
    )
    peaks = [(step, peak_mb(small[step]), peak_mb(one[step])) for step in one if step in small]
    peaks.append(("highest", max(p for _, p, _ in peaks), max(map(peak_mb, one.values()))))
    only_large = [(step, "", f"{peak_mb(one[step]):.0f}", "") for step in one if step not in small]
    print_table(
        "peak worker memory, MB",
        ("step", f"{args.edge // 2}^3", f"{args.edge}^3", "ratio"),
        [*only_large, *((name, f"{a:.0f}", f"{b:.0f}", f"{b / a:.2f}") for name, a, b in peaks)],
    )


if __name__ == "__main__":
    main()

"""Measure whether a worker's peak memory depends on the size of the volume.

The example pipeline runs on a cube and on one of twice the edge (FIB-25, continued by mirroring), with the same
blocks and one-thread workers; peaks are the receipts' (resident memory while a task ran).

Usage: python benchmarks/memory.py [--data $CLOUDSEG_DATA] [--edge 250] [--until agglomerate]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from cloudseg.tasking.receipts import Receipts
from cloudseg.testing.runs import cloudseg, print_table, real_or_phantom, store
from cloudseg.volumes import open_objects

EXAMPLE = Path(__file__).parents[1] / "examples" / "fib25.toml"


def peaks_mb(image_uri: str, root: Path, block_z: int) -> dict[str, float]:
    """Run into ``root`` and return the highest peak of each step, in MB."""
    cloudseg(
        "run", str(EXAMPLE), "--set", f"image={image_uri}", "--set", f"root=file://{root}",
        "--set", f"affinities.block_shape=[256,256,{block_z}]",
    )  # fmt: skip
    objects = open_objects(f"file://{root}")
    steps = sorted({key.split("/")[2] for key in objects.list("pipeline/receipts/")})
    return {s: max(r.peak_memory_bytes for r in Receipts(objects, s).all()) / 1e6 for s in steps}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--edge", type=int, default=250)
    args = parser.parse_args()
    peaks = []
    for edge in (args.edge, 2 * args.edge):
        image, _ = real_or_phantom(args.data and Path(args.data), edge)
        with tempfile.TemporaryDirectory() as name:
            uri = store(f"file://{name}/image", image)
            del image
            peaks.append(peaks_mb(uri, Path(name) / "run", 128))
    rows = [(s, f"{a:.0f}", f"{peaks[1][s]:.0f}", f"{peaks[1][s] / a:.2f}") for s, a in peaks[0].items()]
    highest = [max(p.values()) for p in peaks]
    rows.append(("highest", *(f"{h:.0f}" for h in highest), f"{highest[1] / highest[0]:.2f}"))
    print_table("peak worker memory, MB", ("step", f"{args.edge}^3", f"{2 * args.edge}^3", "ratio"), rows)


if __name__ == "__main__":
    main()

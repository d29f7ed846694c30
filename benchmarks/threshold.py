"""How fast neighbourhood thresholding and components are on one core, and whether blocks show.

CPU seconds of one thread, kernels compiled before. The blocks of each tiling read their halo from the whole image.

Usage: python benchmarks/threshold.py [--edge 512]
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from cloudseg.geometry import Box, tile
from cloudseg.ops.components import label_components
from cloudseg.ops.threshold import NeighbourhoodRule, halo_of, neighbourhood_threshold
from cloudseg.testing.runs import print_table


def timed(rule: NeighbourhoodRule, image: np.ndarray) -> float:
    """Return CPU seconds of one call."""
    box = Box.of_shape(image.shape)
    started = time.process_time()
    neighbourhood_threshold(image, core=box, bounds=box, rule=rule)
    return time.process_time() - started


def main() -> None:
    """Print the tables; exit code 1 if a tiling differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edge", type=int, default=512)
    edge = parser.parse_args().edge
    image = np.asfortranarray(
        np.random.default_rng(0).integers(0, 256, (edge, edge, edge // 2)).astype(np.uint8)
    )
    rows, box, differ = [], Box.of_shape(image.shape), False
    radii = [(r, r, z) for r in (2, edge // 16, edge // 5) for z in (0, min(r, edge // 8))]
    for radius in radii:
        for polarity in ("dark", "bright"):
            rule = NeighbourhoodRule(radius, 500, polarity)
            timed(rule, np.asfortranarray(image[:, :, : 2 * radius[2] + 2]))
            seconds = min(timed(rule, image) for _ in range(3))
            rows.append(
                ("x".join(str(2 * r + 1) for r in radius), polarity, f"{image.size / seconds / 1e6:.0f}")
            )
    print_table(f"threshold, {'x'.join(map(str, image.shape))}, uint8", ("box", "polarity", "Mvoxel/s"), rows)
    rows = []
    for share, low in (("3 %", 247), ("50 %", 128)):
        mask = image >= low
        for connectivity in (6, 18, 26):
            label_components(
                mask[:8, :8, :8], core=Box.of_shape((8, 8, 8)), bounds=box, connectivity=connectivity
            )
            started = time.process_time()
            label_components(mask, core=box, bounds=box, connectivity=connectivity)
            rows.append((share, connectivity, f"{image.size / (time.process_time() - started) / 1e6:.0f}"))
    print_table("components of noise", ("foreground", "connectivity", "Mvoxel/s"), rows)
    rows = []
    rule = NeighbourhoodRule(radii[3], 500)
    whole = neighbourhood_threshold(image, core=box, bounds=box, rule=rule)
    for block in (
        (edge, edge, edge),
        (edge // 4,) * 3,
        (edge // 3, edge // 7 + 1, edge // 5),
        (edge, 7, edge),
    ):
        got = np.empty_like(whole)
        for core in tile(box, block):
            part = np.asfortranarray(image[halo_of(core, bounds=box, rule=rule).slices_in(box)])
            got[core.slices_in(box)] = neighbourhood_threshold(part, core=core, bounds=box, rule=rule)
        n_differ = int((got != whole).sum())
        differ |= n_differ > 0
        rows.append(("x".join(map(str, block)), n_differ))
    print_table("blocks", ("blocks", "voxels that differ"), rows)
    if differ:
        sys.exit("the blocks show")


if __name__ == "__main__":
    main()

"""Score plant segmentations on the held-out part of the root, and say what its labels are worth there.

Labels of plant cells follow walls, and walls are bright. So for each section: how much brighter the image is on the
labelled walls than inside the labelled cells, as a share of the brightness around. Where that is next to nothing the
labels say what the image does not show, and neither a network nor a reader of the image can find it. Only image and
labels enter, no prediction. The table has all sections and those whose walls can be seen; and, beside each
segmentation, what its supervoxels would score if each were given to the cell it overlaps most: no way to merge them
does much better.

Usage: python benchmarks/plants.py [--data data/plant] [data/plant/run_2d data/plant/run_3d]
(made as examples/plant.toml says)
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cloudseg.geometry import Box
from cloudseg.ops.contingency import contingency
from cloudseg.testing.runs import print_table
from cloudseg.volumes import open_volume

HELD_OUT = Box((0, 136, 0), (120, 200, 64))
SEEN = 0.1
AROUND_VX = 6.0


def wall_contrast(image: npt.NDArray[np.generic], labels: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Return for each section of ``(x, y, z)`` how much brighter labelled walls are; NaN where labels are unknown."""
    found = np.full(labels.shape[2], np.nan)
    for z in range(labels.shape[2]):
        ids, grey = labels[:, :, z], image[:, :, z].astype(np.float64)
        if not ids.all():
            continue
        relative = grey / np.maximum(ndimage.gaussian_filter(grey, AROUND_VX), 1e-6)
        wall = np.zeros(ids.shape, np.bool_)
        for axis in (0, 1):
            differs = np.diff(ids.astype(np.int64), axis=axis) != 0
            low = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
            high = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
            wall[low] |= differs
            wall[high] |= differs
        found[z] = relative[wall].mean() - relative[~wall].mean()
    return found


def best_merging(pieces: npt.NDArray[np.uint64], truth: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Give each supervoxel to the cell that it overlaps most."""
    _, piece = np.unique(pieces, return_inverse=True)
    piece = piece.reshape(pieces.shape)
    cells, cell = np.unique(truth, return_inverse=True)
    cell = cell.reshape(truth.shape)
    known = truth != 0
    pairs = piece[known].astype(np.int64) * len(cells) + cell[known]
    pair, n = np.unique(pairs, return_counts=True)
    owner = np.zeros(piece.max() + 1, np.uint64)
    for index in np.argsort(n, kind="stable"):
        owner[pair[index] // len(cells)] = cells[pair[index] % len(cells)]
    return owner[piece]


def main() -> None:
    """Print the contrast of each section, and the scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", default=["data/plant/run_2d", "data/plant/run_3d"])
    parser.add_argument(
        "--data", default="data/plant", help="folder of the volumes root_image and root_labels"
    )
    parser.add_argument("--box", type=Box.parse, default=HELD_OUT, help="what is scored")
    args = parser.parse_args()
    image = open_volume(f"{args.data}/root_image").read(args.box)
    truth = open_volume(f"{args.data}/root_labels").read(args.box)
    contrast = wall_contrast(image, truth)
    seen = ~(contrast < SEEN)
    print_table(
        "How much brighter labelled walls are than the rest",
        ("sections", *(f"{z} to {z + 7}" for z in range(0, len(contrast), 8))),
        [("", *(" ".join(f"{c:.2f}" for c in contrast[z : z + 8]) for z in range(0, len(contrast), 8)))],
    )
    rows = []
    for run in args.runs:
        segments = open_volume(f"{run}/segmentation").read(args.box)
        merged = best_merging(open_volume(f"{run}/supervoxels").read(args.box), truth)
        for what, sections in (("all", slice(None)), (f"{np.count_nonzero(seen)} seen", seen)):
            known = np.asfortranarray(truth[:, :, sections])
            s = contingency(np.asfortranarray(segments[:, :, sections]), known).scores()
            floor = contingency(np.asfortranarray(merged[:, :, sections]), known).scores()
            figures = (s.adapted_rand_error, s.voi_split, s.voi_merge, floor.adapted_rand_error)
            rows.append((run, what, *(f"{v:.3f}" for v in figures)))
    print_table(
        "Plants, root y 136 to 200",
        ("run", "sections", "ARE", "VOI split", "VOI merge", "ARE, supervoxels merged best"),
        rows,
    )


if __name__ == "__main__":
    main()

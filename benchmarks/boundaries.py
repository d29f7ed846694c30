"""Boundary networks on thick sections: single, joined and seen from 16 sides, beside an anisotropic affinity network.

Packages of ``examples/train_snemi3d_*.toml`` predict the sections of SNEMI3D's quarter that they never learned from.
Sections 72 to 84 choose threshold and depth; the figures are of sections 84 to 100. "SNEMI" is the challenge's error.
The SNEMI3D data state no licence: the packages stay where they are.

Usage: python benchmarks/boundaries.py [--affinities PACKAGE] [--deepem3d PACKAGE ...] [--views] [--threads 2]

``--views`` adds the mean over 16 views, which costs 16 times as much. Networks of DeepEM3D are joined by the maximum of
their blended maps (the stage ``boundaries`` takes the maximum of each patch, before blending).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cloudseg.geometry import Box
from cloudseg.models.ensemble import Views
from cloudseg.models.network import Network
from cloudseg.models.package import load_spec
from cloudseg.models.predict import load_model, use_threads
from cloudseg.ops.basins import basins, join_shallow
from cloudseg.ops.boundaries import boundary_affinities
from cloudseg.ops.contingency import contingency
from cloudseg.ops.metrics import Scores
from cloudseg.ops.remap import remap
from cloudseg.ops.watershed import supervoxels
from cloudseg.testing.runs import print_table
from cloudseg.training.judge import SegmentationSettings, predict_whole, segmentations
from cloudseg.volumes import open_volume

SECTIONS, N_CHOOSING = (72, 100), 12
THRESHOLDS = tuple(round(0.15 + 0.05 * i, 2) for i in range(16))
DEPTHS = (0.05, 0.1, 0.15, 0.19, 0.25, 0.3, 0.4)
Ways = Iterator[tuple[str, float, np.ndarray]]


def predicted(network: Network, image: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the prediction and the seconds per megavoxel."""
    started = time.perf_counter()
    maps = predict_whole(network, image)
    return maps, (time.perf_counter() - started) / (image.size / 1e6)


def linked(affinities: np.ndarray) -> Ways:
    """Yield the segments of average linkage at each threshold."""
    settings = SegmentationSettings(thresholds=THRESHOLDS, t_high=250, min_size_vx=50)
    for threshold, segments in segmentations(affinities, settings):
        yield "average linkage", threshold, segments


def deepened(boundaries: np.ndarray) -> Ways:
    """Yield the segments of the h-minima watershed at each depth, and those of average linkage."""
    box = Box.of_shape(boundaries.shape)
    affinities = boundary_affinities(boundaries, core=box, bounds=box, join="mean")
    yield from linked(affinities)
    labels = supervoxels(affinities, core=box, bounds=box, t_low=1, t_high=255).labels
    graph = basins(labels, boundaries, core=box, bounds=box)
    for depth in DEPTHS:
        yield "h-minima", depth, remap(labels, *join_shallow(graph, h=depth * 255))


def measured(
    name: str,
    maps: np.ndarray,
    s_per_megavoxel: float,
    truth: np.ndarray,
    segment: Callable[[np.ndarray], Ways],
) -> list[tuple[str, ...]]:
    """Return a row for each way to segment, with the number that the first sections choose."""
    chosen, held_back = np.s_[:, :, :N_CHOOSING], np.s_[:, :, N_CHOOSING:]
    best: dict[str, tuple[float, float]] = {}
    for way, number, segments in segment(maps[..., :N_CHOOSING]):
        error = contingency(segments, truth[chosen]).scores().snemi3d_error
        best[way] = min(best.get(way, (np.inf, 0.0)), (error, number))
    rows = []
    for way, number, segments in segment(maps[..., N_CHOOSING:]):
        if number == best[way][1]:
            rows.append(
                (name, f"{s_per_megavoxel:.1f}", way, f"{number:g}", *_figures(segments, truth[held_back]))
            )
    return rows


def _figures(segments: np.ndarray, truth: np.ndarray) -> tuple[str, ...]:
    scores: Scores = contingency(segments, truth).scores()
    return tuple(
        f"{v:.3f}"
        for v in (
            scores.snemi3d_error,
            scores.adapted_rand_error,
            scores.voi_split,
            scores.voi_merge,
            scores.voi_sum,
        )
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", default="data/snemi3d/image")
    parser.add_argument("--labels", default="data/snemi3d/labels")
    parser.add_argument("--affinities", default="models/snemi3d_affinities")
    parser.add_argument(
        "--deepem3d",
        nargs="*",
        default=[f"models/snemi3d_deepem3d_{n}" for n in (1, 3, 5)],
        metavar="PACKAGE",
    )
    parser.add_argument("--views", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    use_threads(args.threads)
    packages = [package for package in args.deepem3d if Path(package).exists()]
    if not Path(args.image).exists() or not (packages or Path(args.affinities or "-").exists()):
        print(f"nothing to measure: make {args.image} and packages as examples/train_snemi3d_*.toml say")
        return
    whole = open_volume(args.image).info.bounds
    box = Box((*whole.start[:2], SECTIONS[0]), (*whole.stop[:2], SECTIONS[1]))
    image = open_volume(args.image).read(box)
    truth = np.asfortranarray(open_volume(args.labels).read(box))
    rows = []
    if args.affinities and Path(args.affinities).exists():
        maps, seconds = predicted(load_model(args.affinities), image)
        rows += measured(_name(args.affinities), maps, seconds, truth, linked)
    for views in (False, True)[: 1 + args.views]:
        joined, total_s = None, 0.0
        for package in packages:
            model = load_model(package, offsets=())
            maps, seconds = predicted(Views(model) if views else model, image)
            name = _name(package) + (", 16 views" if views else "")
            rows += measured(name, maps[0], seconds, truth, deepened)
            joined, total_s = (maps[0] if joined is None else np.maximum(joined, maps[0])), total_s + seconds
        if joined is not None and len(packages) > 1:
            name = f"maximum of {len(packages)}" + (", 16 views" if views else "")
            rows += measured(name, joined, total_s, truth, deepened)
    header = ("network", "s / Mvx", "segments by", "at", "SNEMI", "ARE", "VOI split", "VOI merge", "VOI")
    print_table(f"SNEMI3D's quarter, sections 84 to 100, {args.threads} threads", header, rows)


def _name(package: str) -> str:
    spec = load_spec(package)
    return f"{spec.name} ({spec.training.n_steps:,} steps)"


if __name__ == "__main__":
    main()

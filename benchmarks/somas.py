"""How well somas are found and segmented on a phantom brain never seen in training, and at what work.

1. A dense pass over all of it, segmented with two block shapes, whose voxels must be equal: F1 of centres within
   1 um, intersection over union, touching pairs split, error of volumes. Bodies that the border cuts count, too.
2. On a part of it, where all are run: the dense pass, the same round candidates only, and the published patch scheme
   (seven patches a seed, windows at the faces of blocks, thresholds, stitching), with the same network and candidates,
   counted in voxels that pass through it. The heads of the dense pass are made with two block shapes.

Usage: python benchmarks/somas.py [--model models/soma_segment] [--shape 320,320,160] [--part 160,160,96] [--seed 301]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloudseg.models.package import load_spec
from cloudseg.tasking.steps import Layer, Site, Stage
from cloudseg.tasking.task import Context
from cloudseg.testing.phantom_brain import BrainSpec, brain_uri
from cloudseg.testing.runs import print_table, voxel_digest
from cloudseg.volumes import create_volume, open_objects, open_volume
from cloudseg.volumes.evaluate import Labels
from cloudseg.volumes.evaluate_somas import SomaRules, evaluate_somas
from cloudseg_tasks.registry import load_task
from cloudseg_tasks.soma_heads import SomaHeadsStage
from cloudseg_tasks.soma_locate import SomaLocateStage
from cloudseg_tasks.soma_patches import SomaPatchesStage
from cloudseg_tasks.soma_segment import SomaSegmentStage
from cloudseg_tasks.soma_stitch import SomaStitchStage

XYZ = tuple[int, int, int]


def run(spec: BrainSpec, folder: Path, stages: Sequence[Stage], *, heads: str = "") -> dict[str, int]:
    """Run every task of ``stages`` on the phantom, from its message; return voxels through networks by step."""
    image = open_volume(brain_uri(spec))
    layers = {"image": Layer("image", brain_uri(spec), image.info)}
    if heads:
        layers["soma_heads"] = Layer("soma_heads", heads, open_volume(heads).info)
    warm: dict[Any, Any] = {}
    done = {}
    for stage in stages:
        plan = stage.expand(Site(f"file://{folder}", layers, open_volume, open_objects))
        for layer in plan.layers:
            create_volume(layer.uri, layer.info)
            layers[layer.name] = layer
        for step in plan.steps:
            context = Context(open_volume=open_volume, open_objects=open_objects, warm=warm)
            for task in step.tasks():
                load_task(task.canonical_json()).run(context)
            done[step.name] = context.counters.get("network_voxels", 0)
    return done


def judged(spec: BrainSpec, uri: str, *, least_um3: float) -> dict[str, Any]:
    """Return the figures of a segmentation."""
    rules = SomaRules(distance_nm=1000.0, min_volume_um3=least_um3)
    figures, _ = evaluate_somas(Labels.open(uri), Labels.open(brain_uri(spec, "labels")), rules=rules)
    return figures


def row(figures: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a table."""
    pairs = figures["touching_pairs_split"]
    error = figures["median_volume_error"]
    return (
        str(figures["n_true"]),
        str(figures["n_found"]),
        f"{figures['f1']:.3f}",
        f"{figures['mean_iou']:.3f}",
        "-" if pairs is None else f"{pairs:.1%} of {figures['n_touching_pairs']}",
        "-" if error is None else f"{error:.1%}",
        f"{figures['ap50']:.3f}",
    )


COLUMNS = (
    "bodies",
    "found",
    "F1 at 1 um",
    "mean IoU",
    "touching pairs split",
    "volume error, median",
    "AP50",
)


def whole(args: argparse.Namespace, spec: BrainSpec, folder: Path) -> list[str]:
    """Segment all of it, with two block shapes; return what went wrong."""
    segment = {"heads": load_spec(args.model).heads, "min_size_um3": args.min_size, "extent": args.extent}
    started = time.process_time()
    run(
        spec,
        folder / "whole",
        [
            SomaHeadsStage(model=args.model, precision="float32", block_shape=(320, 320, 192)),
            SomaSegmentStage(block_shape=(128, 128, 64), **segment),
        ],
    )
    seconds = time.process_time() - started
    run(
        spec,
        folder / "again",
        [SomaSegmentStage(block_shape=(64, 192, 128), **segment)],
        heads=f"file://{folder}/whole/soma_heads",
    )
    uri = f"file://{folder}/whole/somas"
    same = voxel_digest(uri) == voxel_digest(f"file://{folder}/again/somas")
    print_table(
        f"Dense pass over {_x(spec.shape)} voxels of {_x(spec.voxel_size_nm)} nm, seed {spec.seed}; "
        f"{seconds:.0f} s of processor time",
        ("bodies from", *COLUMNS, "other blocks"),
        [
            (f"{least:g} um3", *row(judged(spec, uri, least_um3=least)), "equal" if same else "DIFFER")
            for least in args.least
        ],
    )
    return [] if same else ["the somas depend on the blocks"]


def part(args: argparse.Namespace, spec: BrainSpec, folder: Path) -> list[str]:
    """Compare ways to segment on a part; return what went wrong."""
    heads = load_spec(args.model).heads
    dense = SomaHeadsStage(model=args.model, precision="float32")
    segment = SomaSegmentStage(
        heads=heads, min_size_um3=args.min_size, extent=args.extent, block_shape=(128, 128, 64)
    )
    found = {"layer": "soma_seeds", "sigma_nm": 300.0, "distance_nm": 1500.0, "min_radius_nm": 700.0}
    if args.locate:
        coarse = SomaHeadsStage(
            name="coarse", model=args.locate, mip=1, output="soma_seeds", precision="float32"
        )
    else:
        coarse = dense.model_copy(update={"name": "coarse", "output": "soma_seeds"})
        found |= {"channel": heads.index("distance" if "distance" in heads else "interior"), "min_score": 0.4}
    locate = SomaLocateStage(**found)
    near = dense.model_copy(update={"candidates": locate.label})
    patches = SomaPatchesStage(
        model=args.model,
        precision="float32",
        interior=args.interior,
        boundary=args.boundary,
        block_shape=(192, 192, 64),
    )
    stitch = SomaStitchStage(rule="published", min_size_um3=args.min_size, block_shape=(192, 192, 64))
    ways = {
        "dense": [dense, segment],
        "round candidates": [coarse, locate, near, segment],
        "published patches": [coarse, locate, patches, stitch],
    }
    rows, least = [], 0
    for name, stages in ways.items():
        done = run(spec, folder / name, stages)
        located = done.pop("coarse", 0)
        n = sum(done.values())
        least = least or n
        uri = f"file://{folder / name}/somas"
        figures = judged(spec, uri, least_um3=args.least[-1])
        rows.append((name, f"{n / 1e6:.1f} M", f"{n / least:.2f}", f"{located / 1e6:.1f} M", *row(figures)))
    blocks = folder / "blocks"
    run(spec, blocks, [dense.model_copy(update={"block_shape": (64, 128, 64)})])
    same = voxel_digest(f"file://{folder}/dense/soma_heads") == voxel_digest(f"file://{blocks}/soma_heads")
    print_table(
        f"One network, three ways, over {_x(spec.shape)} voxels; heads with other blocks "
        f"{'equal' if same else 'DIFFER'}",
        ("way", "voxels through the network", "of dense", "to locate", *COLUMNS),
        rows,
    )
    return [] if same else ["the heads depend on the blocks"]


def _x(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)


def _shape(text: str) -> XYZ:
    x, y, z = map(int, text.split(","))
    return (x, y, z)


def main() -> None:
    """Print the tables; exit code 1 if a result depends on the blocks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="models/soma_segment", help="package of a network of heads")
    parser.add_argument(
        "--locate", help="package of a coarse network of seeds; default: the first network itself"
    )
    parser.add_argument(
        "--shape", type=_shape, default=(320, 320, 160), help="0,0,0 leaves the first table out"
    )
    parser.add_argument(
        "--part", type=_shape, default=(160, 160, 96), help="0,0,0 leaves the second table out"
    )
    parser.add_argument("--seed", type=int, default=301)
    parser.add_argument("--interior", type=float, default=0.97, help="threshold of the published scheme")
    parser.add_argument("--boundary", type=float, default=1.0, help="the same, of the boundary")
    parser.add_argument("--extent", type=float, default=0.65, help="interior from which on a voxel is soma")
    parser.add_argument("--min-size", type=float, default=1.0, help="smaller somas are dropped, um3")
    parser.add_argument(
        "--least", type=float, nargs="+", default=[1.0, 5.0], help="smaller true bodies do not count, um3"
    )
    args = parser.parse_args()
    args.model = str(Path(args.model).resolve()) if Path(args.model).exists() else args.model
    args.locate = args.locate and str(Path(args.locate).resolve())
    size = load_spec(args.model).voxel_size_nm
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        for number, (shape, table) in enumerate(((args.shape, whole), (args.part, part))):
            if min(shape) > 0:
                spec = BrainSpec(seed=args.seed + number, shape=shape, voxel_size_nm=size, tissue="all")
                wrong += table(args, spec, Path(name))
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()

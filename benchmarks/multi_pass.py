"""Multi-pass: what a slow pass over doubtful cells mends of a fast one, and how much was done again.

The two halves of ``examples/multi_pass.toml`` on FIB-25, z 120 to 160 of sample 2 (segmented from 104 to 176), which
neither network learned from: a 2D network and overlap linking over everything, doubts, then the affinity network where
in doubt, which decides which objects of the fast pass are one. For comparison the same decision everywhere. The slow
network works in patches of 96 voxels here, so that a mask can leave some out. Without data a phantom is used.

Usage: python benchmarks/multi_pass.py [--network models/fib25_2d] [--edge 250] [--end-um2 0.022]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from methods import judged, measured, tissue_of

import cloudseg.models
from cloudseg.geometry import Box
from cloudseg.testing.runs import print_table
from cloudseg.volumes import open_volume
from cloudseg.volumes.evaluate import Labels, skeletons_of_truth

EXAMPLES = Path(__file__).parents[1] / "examples"


def stages_of(name: str) -> list[dict[str, Any]]:
    """Return the stages of an example."""
    stages: list[dict[str, Any]] = tomllib.loads((EXAMPLES / name).read_text())["stage"]
    return stages


def small_patches(folder: Path) -> str:
    """Copy the shipped network, with patches of 96 voxels; return its address."""
    shutil.copytree(Path(cloudseg.models.__file__).parent / "zoo" / "fib25", folder)
    described = folder / "model.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"patch_shape": [96, 96, 96]}))
    return str(folder)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--network", type=Path, default=Path("models/fib25_2d"))
    parser.add_argument("--edge", type=int, default=250)
    parser.add_argument("--end-um2", type=float, help="instead of the example's")
    args = parser.parse_args()
    tissue = tissue_of(args.data and Path(args.data), args.edge, on="fib25")
    n_megavoxels, rows = tissue.image.size / 1e6, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = {"image": tissue.put(f"file://{folder}/image", tissue.image)}
        truth = Labels.open(tissue.put(f"file://{folder}/truth", tissue.truth))
        low, high = tissue.scored
        box = Box((0, 0, low), (truth.bounds.stop[0], truth.bounds.stop[1], high))
        skeletons = skeletons_of_truth(truth, truth, box=box)
        first, second = stages_of("multi_pass.toml"), stages_of("multi_pass_slow.toml")
        first[0]["models"] = [str(args.network.absolute())]
        if args.end_um2:
            first[-1]["end_um2"] = args.end_um2
        fast = f"file://{folder}/fast"
        cost = measured(first, image, fast)
        mask = open_volume(f"{fast}/doubts")
        share = float((mask.read(mask.info.bounds) > 0).mean())
        rows.append(
            ("fast", *row(judged(f"{fast}/segmentation", truth, box, skeletons), cost, n_megavoxels), "")
        )
        layers = image | {"fast": f"{fast}/segmentation"}
        second[0]["model"] = small_patches(folder / "slow_network")
        for what, masked, done in (
            ("fast, slow where in doubt", True, share),
            ("fast, slow everywhere", False, 1.0),
        ):
            affinities = {key: v for key, v in second[0].items() if key != "mask"}
            if masked:
                affinities["mask"] = f"{fast}/doubts"
            root = f"file://{folder}/{'some' if masked else 'all'}"
            more = measured([affinities, *second[1:]], layers, root)
            both = {key: cost[key] + more[key] for key in ("cpu_s", "products")}
            scores = judged(f"{root}/segmentation", truth, box, skeletons)
            rows.append((what, *row(scores, both, n_megavoxels), f"{done:.1%}"))
    names = (
        "passes",
        "ARE",
        "VOI split",
        "VOI merge",
        "VOI",
        "ERL",
        "CPU s / Mvx",
        "GMAC / Mvx",
        "done again",
    )
    print_table(tissue.name, names, rows)


def row(scores: list[str], cost: dict[str, float], n_megavoxels: float) -> list[str]:
    """Return scores and costs as the table shows them."""
    return [*scores, f"{cost['cpu_s'] / n_megavoxels:.1f}", f"{cost['products'] / 1e9 / n_megavoxels:.0f}"]


if __name__ == "__main__":
    main()

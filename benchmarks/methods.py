"""One table for choosing a method: the same held-out voxels, how good, at what cost, and whether the blocks show.

On FIB-25 (8 nm): sections 104 to 176 of sample 2 are segmented, 120 to 160 are scored; no network here learned from
them. On SNEMI3D (6 x 6 x 30 nm, ``--on snemi3d``, wants networks of your own): sections 80 to 100 are segmented, 84 to
100 scored; what starts from boundaries works at 12 nm, and all are scored there. On a phantom where there are no data.

Methods of sections start from segments of single sections: by average linkage of the basins of each, and, where
they say "watershed", by a distance watershed, which cuts far more. Settings were chosen on SNEMI3D, sections 72 to 84.

Every method is made of the stages that a pipeline file names, run one after the other in a process of its own: CPU
seconds of one core, multiply-adds of its networks, and peak memory, all with what it shares with others (affinities)
counted in. What the first run on a machine spends on compiling kernels counts: take the seconds of the second.

- affinities + agglomeration: examples/fib25.toml
- h-minima, distance watershed: of boundaries, one minus the mean affinity within the section
- overlap linking: segments of sections that are each other's largest overlap are one, however small it is
- MaxExtend, 3C: see docs/methods.md; 3C needs --tracker. "3C, pixels" is without votes and links of segments
- DeepEM3D: its boundaries, then h-minima; needs --deepem3d
- published FFN: the segmentation that comes with FIB-25, a reference; nothing of it is computed here
- threshold + components: FLoRIN, on tissue that it is not made for

Usage: python benchmarks/methods.py [--data $CLOUDSEG_DATA] [--tracker models/fib25_tracker] [--edge 250]
       python benchmarks/methods.py --on snemi3d --model models/snemi3d_affinities --tracker models/snemi3d_tracker
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloudseg.geometry import Box
from cloudseg.pipelines.spec import load_spec
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.testing.phantom import neurite_phantom
from cloudseg.testing.runs import print_table, stage_options
from cloudseg.volumes import VolumeInfo, create_volume, open_objects, open_volume
from cloudseg.volumes.evaluate import Labels, evaluate, skeletons_of_truth

EXAMPLE = stage_options(Path(__file__).parents[1] / "examples" / "fib25.toml")
NAMES = ("method", "ARE", "VOI split", "VOI merge", "VOI", "ERL", "CPU s / Mvx", "GMAC / Mvx", "MB", "exact")


def stage(kind: str, **options: Any) -> dict[str, Any]:
    """Return one ``[[stage]]``; options of the example first."""
    return {"kind": kind, **EXAMPLE.get(kind, {}), **options}


def methods(
    shape: tuple[int, ...],
    *,
    voxel_size_nm: tuple[float, ...],
    tracker: str | None = None,
    deepem3d: str | None = None,
) -> dict[str, tuple[list[dict[str, Any]], str, str]]:
    """Return the stages of each method, what they start from, and whether they are exact for any tiling."""
    edge = -(-max(shape[:2]) // 64) * 64
    sections = stage(
        "distance_watershed",
        stacked=True,
        block_shape=[edge, edge, 64],
        threshold=0.5,
        sigma=2.0,
        min_size_vx=30,
    )
    small = {"block_shape": [128, 128, 128]}
    least = 30 * float(np.prod(voxel_size_nm)) / 1e9
    alone = [
        stage("boundary_affinities", planar=True, **small),
        stage("supervoxels", name="basins", t_low=1, t_high=253, **small),
        stage(
            "agglomerate",
            name="alone",
            output="sections",
            threshold=0.3,
            emphasis=0,
            min_size_um3=least,
            **small,
        ),
    ]
    every = {"min_iou": 0, "min_overlap": 0}
    table = {
        "affinities + agglomeration": ([stage("supervoxels"), stage("agglomerate")], "affinities", "yes"),
        "h-minima": (
            [
                stage("boundary_affinities", **small),
                stage("supervoxels", t_high=255),
                stage("hmin_watershed", h=0.3, **small),
            ],
            "boundaries",
            "yes",
        ),
        "distance watershed, 3D": (
            [stage("distance_watershed", output="segmentation", threshold=0.5, min_size_vx=200)],
            "boundaries",
            "nearly",
        ),
    }
    if deepem3d:
        table["DeepEM3D + h-minima"] = (
            [
                stage("boundaries", models=[deepem3d], block_shape=[256, 256, 64]),
                stage("boundary_affinities", **small),
                stage("supervoxels", t_low=1, t_high=250, **small),
                stage("hmin_watershed", h=0.1, **small),
            ],
            "fine image",
            "yes",
        )
    for before, layer, note in ((alone, "sections", ""), ([sections], "supervoxels", ", watershed")):
        table[f"2D + overlap linking{note}"] = (
            [*before, stage("max_extend", layer=layer, **every, branch_overlap=2, **small)],
            "boundaries",
            "yes",
        )
        table[f"2D + overlap linking, branches{note}"] = (
            [*before, stage("max_extend", layer=layer, **every, branch_overlap=0.8, **small)],
            "boundaries",
            "yes",
        )
        table[f"2D + MaxExtend{note}"] = (
            [*before, stage("max_extend", layer=layer, **small)],
            "boundaries",
            "yes",
        )
        if tracker:
            track = {"layer": layer, "model": tracker, "sections_per_block": 128}
            table[f"2D + 3C, pixels{note}"] = (
                [*before, stage("colour_track", **track, vote=0, branch=0)],
                "boundaries",
                "no",
            )
            table[f"2D + 3C{note}"] = ([*before, stage("colour_track", **track)], "boundaries", "no")
    wide = [400, 400, 400] if min(shape) > 52 else [120, 120, 120]
    table["threshold + components"] = (
        [
            stage("threshold", neighbourhood_nm=wide, contrast=0.02, polarity="bright", **small),
            stage("components", layer="foreground", connectivity=6, **small),
        ],
        "image",
        "yes",
    )
    return table


def run_job(job: dict[str, Any]) -> dict[str, float]:
    """Run stages one task after the other in this process; return CPU seconds, multiply-adds, bytes."""
    n_products = [0]
    if any(s["kind"] in ("affinities", "boundaries", "colour_track") for s in job["stages"]):
        import torch

        def count(module: object, _inputs: object, output: Any) -> None:
            if isinstance(module, torch.nn.Conv3d):
                kernel = module.kernel_size[0] * module.kernel_size[1] * module.kernel_size[2]
                n_products[0] += output.numel() * (module.in_channels // module.groups) * kernel

        torch.set_num_threads(1)
        torch.nn.modules.module.register_module_forward_hook(count)
    spec = load_spec(
        {"image": job["layers"]["image"], "root": job["root"], "stage": job["stages"]}, where="a method"
    )
    layers = {name: Layer(name, uri, open_volume(uri).info) for name, uri in job["layers"].items()}
    context = Context(open_volume=open_volume, open_objects=open_objects)
    started = time.process_time()
    for one in spec.ordered():
        plan = one.expand(Site(job["root"], layers, open_volume, open_objects))
        for layer in plan.layers:
            create_volume(layer.uri, layer.info)
            layers[layer.name] = layer
        for step in plan.steps:
            for task in step.tasks():
                task.run(context)
    return {
        "cpu_s": time.process_time() - started,
        "products": n_products[0],
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def measured(stages: list[dict[str, Any]], layers: dict[str, str], root: str) -> dict[str, float]:
    """Run stages in a process of their own."""
    job = json.dumps({"stages": stages, "layers": layers, "root": root})
    done = subprocess.run(
        [sys.executable, __file__, "--job", job], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@dataclass(frozen=True)
class Tissue:
    """What is segmented and scored.

    Attributes
    ----------
    image, truth
        ``(x, y, z)``.
    scored
        First and last section that is scored.
    name
        What the table is called.
    voxel_size_nm
        Edges of a voxel.
    coarse
        Voxels within a section that methods of sections take as one, along x and y.
    reference
        A published segmentation.
    """

    image: np.ndarray
    truth: np.ndarray
    scored: tuple[int, int]
    name: str
    voxel_size_nm: tuple[float, float, float] = (8.0, 8.0, 8.0)
    coarse: int = 1
    reference: np.ndarray | None = None

    def put(self, uri: str, data: np.ndarray) -> str:
        """Store an image or labels, of the tissue's voxels or coarser ones."""
        factor = round(self.image.shape[0] / data.shape[-3])
        x, y, z = data.shape[-3:]
        info = VolumeInfo(
            bounds=Box.of_shape((x, y, z)),
            voxel_size_nm=(
                self.voxel_size_nm[0] * factor,
                self.voxel_size_nm[1] * factor,
                self.voxel_size_nm[2],
            ),
            dtype=data.dtype.name,
            layer="segmentation" if data.dtype == np.uint64 else "image",
        )
        create_volume(uri, info).write(info.bounds, np.asfortranarray(data))
        return uri

    def coarsened(self, grey: np.ndarray) -> np.ndarray:
        """Return the means of squares of a section."""
        x, y, z = grey.shape
        parts = grey.reshape(x // self.coarse, self.coarse, y // self.coarse, self.coarse, z)
        return parts.mean(axis=(1, 3)).astype(np.uint8)

    def thinned(self, labels: np.ndarray) -> np.ndarray:
        """Return one voxel of each square of a section."""
        return labels[:: self.coarse, :: self.coarse]


def tissue_of(folder: Path | None, edge: int, *, on: str) -> Tissue:
    """Load real tissue, or make a phantom where there is none."""
    if on == "snemi3d" and folder is not None:
        found = np.load(folder / "snemi3d_ac4_quarter" / "ac4_x0_512_y0_512.npz")
        cut = (slice(edge), slice(edge), slice(80, 100))
        name = f"SNEMI3D, z 84-100, {edge} voxels of 6 nm wide, at 12 nm"
        return Tissue(
            found["image"][cut], found["labels"][cut].astype(np.uint64), (4, 20), name, (6, 6, 30), 2
        )
    if folder is None or not (folder / "fib25" / "sample2_image.npz").is_file():
        phantom = neurite_phantom((edge, edge, min(edge, 72)), seed=0)
        return Tissue(
            phantom.image, phantom.labels, (0, phantom.image.shape[2]), f"phantom, {edge} voxels wide"
        )
    image = np.load(folder / "fib25" / "sample2_image.npz")["image"][:edge, :edge, 104:176]
    truth = np.zeros(image.shape, np.uint64)
    labels = np.load(folder / "fib25" / "sample2_labels_z000_160.npz")["labels"]
    truth[:, :, :56] = labels[:edge, :edge, 104:160]
    name = f"FIB-25 sample 2, z 120-160, {edge} voxels wide"
    published = next(iter(np.load(folder / "fib25" / "ffn_published_sample2.npz").values()))
    reference = published[:edge, :edge, 104:176].astype(np.uint64)
    return Tissue(image, truth, (16, 56), name, reference=reference)


def judged(uri: str, truth: Labels, box: Box, skeletons: Any) -> list[str]:
    """Return the scores of a segmentation, as the table shows them."""
    result = evaluate(Labels.open(uri), truth, box=box, skeletons=skeletons)
    scores = result.table.scores()
    assert result.run_length is not None
    numbers = (scores.adapted_rand_error, scores.voi_split, scores.voi_merge, scores.voi_sum)
    return [*(f"{v:.3f}" for v in numbers), f"{result.run_length.normalised_erl:.0%}"]


def boundaries_of(affinities_uri: str) -> np.ndarray:
    """Return one minus the mean affinity within the section."""
    volume = open_volume(affinities_uri)
    affinities = volume.read(volume.info.bounds)[:2].astype(np.uint16)
    boundaries: np.ndarray = (255 - (affinities[0] + affinities[1]) // 2).astype(np.uint8)
    return boundaries


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--edge", type=int, default=250)
    parser.add_argument("--on", choices=("fib25", "snemi3d"), default="fib25")
    parser.add_argument("--model", default="fib25", help="package of the affinity network")
    parser.add_argument("--tracker", help="package of a tracking network for these voxels")
    parser.add_argument("--deepem3d", help="package of a boundary network for these voxels")
    parser.add_argument(
        "--keep", type=Path, help="folder for the segmentations, which are thrown away otherwise"
    )
    parser.add_argument("--only", default="", help="regular expression: which methods")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(run_job(json.loads(args.job))))
        return
    tissue = tissue_of(args.data and Path(args.data), args.edge, on=args.on)
    n_megavoxels, rows = tissue.image.size / 1e6, []
    with tempfile.TemporaryDirectory() as name:
        folder = args.keep.absolute() if args.keep else Path(name)
        fine = {"image": tissue.put(f"file://{folder}/image", tissue.image)}
        network = stage("affinities", model=args.model, block_shape=[256, 256, 128])
        shared = measured([network], fine, f"file://{folder}/shared")
        fine["affinities"] = f"file://{folder}/shared/affinities"
        grey = {"image": tissue.image, "boundaries": boundaries_of(fine["affinities"])}
        layers = {
            key: tissue.put(f"file://{folder}/coarse/{key}", tissue.coarsened(v)) for key, v in grey.items()
        }
        truth = Labels.open(tissue.put(f"file://{folder}/truth", tissue.thinned(tissue.truth)))
        low, high = tissue.scored
        box = Box((0, 0, low), (truth.bounds.stop[0], truth.bounds.stop[1], high))
        skeletons = skeletons_of_truth(truth, truth, box=box)
        tracker = args.tracker and str(Path(args.tracker).absolute())
        info = open_volume(layers["image"]).info
        deepem3d = args.deepem3d and str(Path(args.deepem3d).absolute())
        table = methods(info.shape, voxel_size_nm=info.voxel_size_nm, tracker=tracker, deepem3d=deepem3d)
        for n, (method, (stages, start, exact)) in enumerate(table.items()):
            if not re.search(args.only, method):
                continue
            root = f"file://{folder}/{n}"
            is_fine = start in ("affinities", "fine image")
            cost = measured(stages, fine if is_fine else layers, root)
            found = f"{root}/segmentation"
            if is_fine and tissue.coarse > 1:
                labels = open_volume(found).read(Box.of_shape(tissue.image.shape))
                found = tissue.put(f"{root}/coarse", tissue.thinned(labels))
            if start not in ("image", "fine image"):
                for key in ("cpu_s", "products"):
                    cost[key] += shared[key]
                cost["memory_bytes"] = max(cost["memory_bytes"], shared["memory_bytes"])
            rows.append(
                (
                    method,
                    *judged(found, truth, box, skeletons),
                    f"{cost['cpu_s'] / n_megavoxels:.1f}",
                    f"{cost['products'] / 1e9 / n_megavoxels:.0f}",
                    f"{cost['memory_bytes'] / 1e6:.0f}",
                    exact,
                )
            )
            print(*rows[-1], file=sys.stderr, flush=True)
        if tissue.reference is not None:
            found = tissue.put(f"file://{folder}/published", tissue.thinned(tissue.reference))
            rows.append(
                ("published FFN, unsegmented as one", *judged(found, truth, box, skeletons), "", "", "", "no")
            )
    print_table(f"{tissue.name}, {os.cpu_count()} cores", NAMES, rows)


if __name__ == "__main__":
    main()

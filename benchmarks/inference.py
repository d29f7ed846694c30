"""What does everything around the network cost? Wall time of an affinities task over raw forward passes.

The task reads the image from disk, mirrors, predicts, blends, rounds and writes; the raw passes are the same patches
through the same network, nothing else. Both run in this process, turn by turn, with the same number of threads.

Usage: python benchmarks/inference.py [--data $CLOUDSEG_DATA] [--model fib25] [--threads 1] [--rounds 3] [--edge 250]

Without the real data, or with --phantom, a phantom of the same size takes its place.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cloudseg.geometry import Box
from cloudseg.models.predict import Model, load_model, n_threads, use_one_thread, use_threads
from cloudseg.ops.lattice import PatchLattice, mirror
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.testing.phantom import neurite_phantom
from cloudseg.volumes import VolumeInfo, create_volume, open_objects, open_volume
from cloudseg_tasks.affinities import AffinitiesStage, lattice_of


def image_of(data: Path | None, edge: int) -> np.ndarray:
    """Return ``(edge, edge, edge)`` voxels of real EM, or of a phantom."""
    source = data / "fib25" / "sample2_image.npz" if data else None
    if source is not None and source.is_file():
        return np.load(source)["image"][:edge, :edge, :edge]
    return neurite_phantom((edge, edge, edge), seed=0).image


def cut_patches(image: np.ndarray, lattice: PatchLattice) -> list[np.ndarray]:
    """Return every patch of the volume, mirrored at its border: not part of the time of the raw passes."""
    patches = []
    for index in lattice.order(lattice.bounds):
        box = lattice.patch_box(index)
        places = [
            mirror(a, b, low=0, high=s) for a, b, s in zip(box.start, box.stop, image.shape, strict=True)
        ]
        patches.append(np.ascontiguousarray(image[np.ix_(*places)])[None])
    return patches


def raw_seconds(model: Model, patches: list[np.ndarray]) -> float:
    """Time the forward passes alone, as many at once as the task computes."""
    with ThreadPoolExecutor(n_threads(), initializer=use_one_thread) as pool:
        started = time.monotonic()
        for _ in pool.map(model.predict, patches):
            pass
        return time.monotonic() - started


def measure(image: np.ndarray, *, model_name: str, rounds: int, device: str = "auto") -> dict[str, float]:
    """Run task and raw passes in turn and return the medians and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        bounds = Box.of_shape(image.shape)
        source = create_volume(f"file://{folder}/image", VolumeInfo(bounds=bounds, voxel_size_nm=(8, 8, 8)))
        source.write(bounds, np.asfortranarray(image))
        layers = {"image": Layer("image", source.uri, source.info)}
        stage = AffinitiesStage(model=model_name, device=device)
        plan = stage.expand(Site(f"file://{folder}/root", layers, open_volume, open_objects))
        create_volume(plan.layers[0].uri, plan.layers[0].info)
        (task,) = plan.steps[0].tasks()
        model = load_model(model_name, device=device)
        lattice = lattice_of(model.spec, bounds)
        patches = cut_patches(image, lattice)
        warm: dict[object, object] = {}

        def context() -> Context:
            return Context(open_volume=open_volume, open_objects=open_objects, warm=warm)

        model.predict(patches[0])
        task._load_model(context())
        walls, raws, ratios = [], [], []
        for turn in range(rounds):
            # Who goes first changes, so that a drift of the machine favours neither.
            if turn % 2:
                raws.append(raw_seconds(model, patches))
            ctx = context()
            started = time.monotonic()
            task.run(ctx)
            walls.append(time.monotonic() - started)
            if not turn % 2:
                raws.append(raw_seconds(model, patches))
            ratios.append(walls[-1] / raws[-1])
            print(
                f"  turn {turn + 1}: task {walls[-1]:.2f} s, raw passes {raws[-1]:.2f} s, {ctx.seconds}",
                flush=True,
            )
        return {
            "n_patches": len(patches),
            "patch_edge": lattice.patch_shape[0],
            "task_s": statistics.median(walls),
            "raw_s": statistics.median(raws),
            "ratio": statistics.median(ratios),
            "voxels_per_s": image.size / statistics.median(walls),
            "planned_mb": plan.steps[0].task_memory_bytes / 1e6,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--phantom", action="store_true")
    parser.add_argument("--model", default="fib25")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--edge", type=int, default=250)
    given = parser.parse_args()
    use_threads(given.threads)
    image = image_of(None if given.phantom or given.data is None else Path(given.data), given.edge)
    figures = measure(image, model_name=given.model, rounds=given.rounds, device=given.device)
    for name, value in figures.items():
        print(f"{name:<14} {value:>12,.3f}")


if __name__ == "__main__":
    main()

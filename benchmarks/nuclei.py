"""Nuclei of an ovule: a classical baseline beside a small trained network, on the part that neither has seen.

The baseline smooths the image, cuts it at Otsu's threshold and floods the distance to the background from its maxima.
The network (`examples/train_nuclei.toml`) predicts interior, boundary and depth; deep places grow through the interior.
Both learn from x < 56 only: the network its weights (unless models/nuclei exists), both their few numbers (the best
AP50 there). The figures are those of x >= 56. Without data, the nuclei of a phantom brain take the ovule's place.

Usage: python benchmarks/nuclei.py --data $CLOUDSEG_DATA [--steps 600]
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from cloudseg.geometry import Box
from cloudseg.ops.distance_watershed import DistanceRule, distance_watershed
from cloudseg.ops.soma_growth import SeedRule, extent_mask, grow, seed_mask
from cloudseg.testing.phantom_brain import BrainSpec, PhantomBrain
from cloudseg.testing.runs import cloudseg, print_table
from cloudseg.volumes import VolumeInfo, create_volume
from cloudseg.volumes.evaluate import Labels
from cloudseg.volumes.evaluate_somas import SomaRules, evaluate_somas

VOXEL_NM = (127.0, 127.0, 284.0)
EDGE = 100
SEEN = 0.56
# Voxels: pieces smaller than this are dust. The smallest nuclei of the truth are cut ones of 9 voxels.
DUST_VX = 100
EXAMPLE = Path(__file__).parents[1] / "examples" / "train_nuclei.toml"
Made = Iterator[tuple[dict[str, Any], np.ndarray]]


def store(uri: str, data: np.ndarray) -> str:
    """Write an image or labels; return the address."""
    layer = "segmentation" if data.dtype == np.uint64 else "image"
    info = VolumeInfo(
        bounds=Box.of_shape(data.shape), voxel_size_nm=VOXEL_NM, dtype=data.dtype.name, layer=layer
    )
    create_volume(uri, info).write(info.bounds, np.asfortranarray(data))
    return uri


def otsu(image: np.ndarray) -> float:
    """Return the threshold that parts the grey levels into the two most compact classes (Otsu 1979)."""
    counts = np.bincount(np.clip(np.rint(image), 0, 255).astype(int).reshape(-1), minlength=256)
    below, levels = np.cumsum(counts), np.arange(256)
    mean_below = np.cumsum(counts * levels) / np.maximum(below, 1)
    above = below[-1] - below
    mean_above = (np.cumsum((counts * levels)[::-1])[::-1] - counts * levels) / np.maximum(above, 1)
    return float(np.argmax(below * above * (mean_below - mean_above) ** 2))


def classical(image: np.ndarray) -> Made:
    """Yield the baseline's segmentations under the numbers that are tried."""
    box = Box.of_shape(image.shape)
    for blur, share, sigma in itertools.product((1.0, 2.0), (0.7, 1.0, 1.3), (1.5, 2.5, 4.0)):
        smooth = ndimage.gaussian_filter(
            image.astype(np.float32), (blur, blur, blur * VOXEL_NM[0] / VOXEL_NM[2])
        )
        inside = ndimage.binary_opening(smooth > share * otsu(smooth))
        rule = DistanceRule(
            sigma=sigma, alpha=0.0, min_size_vx=DUST_VX, spacing=(1.0, 1.0, VOXEL_NM[2] / VOXEL_NM[0])
        )
        regions = distance_watershed(
            np.asfortranarray(~inside).astype(np.uint8) * np.uint8(255), box=box, bounds=box, rule=rule
        )
        yield (
            {"blur": blur, "threshold": f"{share:g} Otsu", "sigma": sigma},
            clean(np.where(inside, regions, 0)),
        )


def grown(heads: dict[str, np.ndarray]) -> Made:
    """Yield the network's segmentations under the numbers that are tried."""
    for distance, boundary, extent in itertools.product(
        (77, 102, 128, 153, 179), (128, 256), (102, 128, 153)
    ):
        rule = SeedRule(interior=128, distance=distance, boundary=boundary, extent=extent)
        seeds, _ = ndimage.label(seed_mask(heads, rule))
        labels = grow(
            np.asfortranarray(seeds.astype(np.uint64)),
            extent_mask(heads, rule),
            heads["boundary"],
            voxel_size_nm=VOXEL_NM,
            reach_nm=3000.0,
        )
        yield {"distance": distance, "boundary": boundary, "extent": extent}, clean(labels)


def clean(labels: np.ndarray) -> np.ndarray:
    """Return the labels without dust."""
    ids, counts = np.unique(labels, return_counts=True)
    return np.where(np.isin(labels, ids[counts >= DUST_VX]), labels, 0).astype(np.uint64)


def figures(labels: np.ndarray, truth: np.ndarray, part: slice) -> dict[str, Any]:
    """Evaluate one part along x."""

    def of(name: str, array: np.ndarray) -> Labels:
        cut = np.asfortranarray(array[part])
        return Labels(
            name,
            Box.of_shape(cut.shape),
            VOXEL_NM,
            cut.dtype,
            lambda box: cut[box.slices_in(Box.of_shape(cut.shape))],
        )

    return evaluate_somas(of("found", labels), of("truth", truth), rules=SomaRules(distance_nm=1000.0))[0]


def nuclei(data: Path | None, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image and truth of the ovule, or of a phantom brain."""
    if data is not None:
        arrays = np.load(data / "nuclei" / "ovule_1135.npz")
        cut = (slice(edge),) * 3
        return np.asfortranarray(arrays["image"][cut]), np.asfortranarray(
            arrays["labels"][cut].astype(np.uint64)
        )
    brain = PhantomBrain(
        BrainSpec(
            seed=7, shape=(edge,) * 3, voxel_size_nm=VOXEL_NM, tissue="all", radius_nm=900.0, pitch_nm=2000.0
        )
    )
    return brain.image(brain.spec.bounds), brain.nuclei(brain.spec.bounds)


def best(made: Made, truth: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Return the numbers, and the segmentation, with the greatest AP50 (then AP) on the part that was seen."""

    def worth(item: tuple[dict[str, Any], np.ndarray]) -> tuple[float, float]:
        f = figures(item[1], truth, slice(round(SEEN * len(truth))))
        return f["ap50"], f["ap"]

    return max(made, key=worth)


def predict(uri: str, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return the heads of a model over the whole image."""
    from cloudseg.models.predict import load_model
    from cloudseg.training.judge import predict_whole

    model = load_model(uri, offsets=())
    return dict(zip(model.spec.heads, predict_whole(model, image), strict=True))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--edge", type=int, default=EDGE, help="voxels of the ovule to use along each axis")
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where data/nuclei and models/nuclei are made"
    )
    args = parser.parse_args()
    image, truth = nuclei(args.data and Path(args.data), args.edge)
    seen = round(SEEN * args.edge)
    folder = args.folder.absolute()
    rows = []
    ways: dict[str, Callable[[], Made]] = {
        "threshold + distance-transform watershed": lambda: classical(image)
    }
    if args.steps:
        model = folder / "models" / "nuclei"
        if not (model / "model.json").is_file():
            at = [
                store(f"file://{folder}/data/nuclei/{n}", a) for n, a in (("image", image), ("labels", truth))
            ]
            changes = [f"volume.0.image={at[0]}", f"volume.0.labels={at[1]}", f"output={model}"]
            changes += [f"checkpoint={model}.ckpt", f"schedule.n_steps={args.steps}"]
            changes += [f"volume.0.box=0,0,0:{seen},{args.edge},{args.edge}"]
            cloudseg("train", str(EXAMPLE), *(word for c in changes for word in ("--set", c)))
        ways["trained network, grown from its depth"] = lambda: grown(predict(str(model), image))
    for name, make in ways.items():
        started = time.process_time()
        numbers, labels = best(make(), truth)
        seconds = time.process_time() - started
        for part, where in (
            (f"held out, x >= {seen}", slice(seen, None)),
            (f"learned from, x < {seen}", slice(seen)),
        ):
            f = figures(labels, truth, where)
            shown = (
                f"{f[k]:.3f}" for k in ("ap50", "ap75", "ap", "matched_share_50", "f1", "mean_iou", "dice")
            )
            rows.append((part, name, f["n_true"], f["n_found"], *shown))
        print(f"{name}: {numbers}; {seconds:.0f} s of processor time for all numbers tried")
    header = (
        "part",
        "method",
        "true",
        "found",
        "AP50",
        "AP75",
        "AP",
        "TP/(TP+FP+FN)",
        "F1 at 1 um",
        "mean IoU",
        "Dice",
    )
    print_table("nuclei of an ovule" if args.data else "nuclei of a phantom brain", header, sorted(rows))


if __name__ == "__main__":
    main()

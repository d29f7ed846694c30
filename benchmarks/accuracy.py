"""Score the shipped model on voxels it never learned from, beside FFN's published result.

The example pipeline runs on each whole FIB-25 cube, as a user runs it. Scored are sections 120 to 160 of sample 2 and
the label planes of sample 1 at z >= 200, which the model never learned from, and what it did learn from. Truth id 0 is
ignored.

Usage: python benchmarks/accuracy.py [--data $CLOUDSEG_DATA] [--set agglomerate.threshold=0.4 ...]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from cloudseg.ops.contingency import contingency
from cloudseg.testing.runs import cloudseg, print_table, real_or_phantom, store
from cloudseg.volumes import open_volume

EXAMPLE = Path(__file__).parents[1] / "examples" / "fib25.toml"
SEGMENTATION_ONLY = ("affinities", "supervoxels", "agglomerate")


def segmentation_of(image: np.ndarray, overrides: list[str]) -> np.ndarray:
    """Run the example's first three stages on ``image``; return the segments."""
    text, _, _ = EXAMPLE.read_text(encoding="utf-8").partition('[[stage]]\nkind = "downsample"')
    with tempfile.TemporaryDirectory() as folder:
        uri = store(f"file://{folder}/image", image)
        pipeline = Path(folder) / "pipeline.toml"
        pipeline.write_text(text)
        sets = [f"image={uri}", f"root=file://{folder}/run", *overrides]
        cloudseg("run", str(pipeline), *(word for s in sets for word in ("--set", s)))
        volume = open_volume(f"file://{folder}/run/segmentation")
        return volume.read(volume.info.bounds)


def score(
    part: str, method: str, labels: np.ndarray, truth: np.ndarray, *, ignored: tuple[int, ...] = ()
) -> tuple[str, ...]:
    """Return a row of the table."""
    s = contingency(labels, truth).scores(ignore_seg=ignored)
    figures = (f"{v:.3f}" for v in (s.adapted_rand_error, s.voi_split, s.voi_merge, s.voi_sum))
    return (part, method, *figures)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--edge", type=int, default=250)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    args = parser.parse_args()
    data = args.data and Path(args.data)
    image, truth = real_or_phantom(data, args.edge)
    segments = segmentation_of(image, args.overrides)
    if args.edge != 250 or data is None:
        rows = [score("all", "cloudseg", segments, truth)]
    else:
        ffn = np.load(data / "fib25" / "ffn_published_sample2.npz")
        published = np.asfortranarray(next(iter(ffn.values()))).astype(np.uint64)
        rows = []
        for part, z in {
            "sample 2, z 120-160 (held out)": slice(120, 160),
            "sample 2, z 0-120": slice(120),
        }.items():
            cut, true = segments[:, :, z], truth[:, :, z]
            rows.append(score(part, "cloudseg", cut, true))
            theirs = published[:, :, z]
            rows.append(score(part, "FFN published, unsegmented as one segment", theirs, true))
            rows.append(score(part, "FFN published, unsegmented left out", theirs, true, ignored=(0,)))
        segments = segmentation_of(np.load(data / "fib25" / "sample1_image.npz")["image"], args.overrides)
        planes = np.load(data / "fib25" / "sample1_label_planes.npz")
        truth = planes["labels"].transpose(1, 2, 0).astype(np.uint64)
        for part, chosen in {
            "sample 1, planes z >= 200 (held out)": planes["z"] >= 200,
            "sample 1, planes z < 200": planes["z"] < 200,
        }.items():
            at = planes["z"][chosen]
            rows.append(score(part, "cloudseg", segments[:, :, at], truth[:, :, chosen]))
    print_table(
        "accuracy", ("part", "method", "adapted Rand error", "VOI split", "VOI merge", "VOI sum"), rows
    )


if __name__ == "__main__":
    main()

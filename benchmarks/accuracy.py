"""Score the shipped model on voxels it never learned from, beside FFN's published result.

The example pipeline runs on the whole FIB-25 cube, as a user runs it; scored are sections 120 to 160 of sample 2,
which are outside the training part (z < 120, and label planes of sample 1). Truth id 0 is ignored.

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


def segmentation_of(image: np.ndarray, folder: Path, overrides: list[str]) -> np.ndarray:
    """Run the example's first three stages on ``image``; return the segments."""
    uri = store(f"file://{folder}/image", image)
    text, _, _ = EXAMPLE.read_text(encoding="utf-8").partition('[[stage]]\nkind = "downsample"')
    pipeline = folder / "pipeline.toml"
    pipeline.write_text(text)
    sets = [f"image={uri}", f"root=file://{folder}/run", *overrides]
    cloudseg("run", str(pipeline), *(word for s in sets for word in ("--set", s)))
    volume = open_volume(f"file://{folder}/run/segmentation")
    return volume.read(volume.info.bounds)


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
    is_real = args.edge == 250 and data is not None
    with tempfile.TemporaryDirectory() as folder:
        segments = segmentation_of(image, Path(folder), args.overrides)
    parts = (
        {"z 120-160 (held out)": slice(120, 160), "z 0-120 (trained on)": slice(0, 120)}
        if is_real
        else {"all": slice(None)}
    )
    results = {"cloudseg": (segments, ())}
    if is_real:
        ffn = np.load(data / "fib25" / "ffn_published_sample2.npz")
        published = np.asfortranarray(next(iter(ffn.values()))).astype(np.uint64)
        results["FFN published, unsegmented as one segment"] = (published, ())
        results["FFN published, unsegmented left out"] = (published, (0,))
    rows = []
    for part, z in parts.items():
        for name, (labels, ignored) in results.items():
            s = contingency(labels[:, :, z], truth[:, :, z]).scores(ignore_seg=ignored)
            rows.append(
                (
                    part,
                    name,
                    f"{s.adapted_rand_error:.4f}",
                    f"{s.voi_split:.3f}",
                    f"{s.voi_merge:.3f}",
                    f"{s.voi_sum:.3f}",
                )
            )
    print_table(
        "accuracy", ("part", "method", "adapted Rand error", "VOI split", "VOI merge", "VOI sum"), rows
    )


if __name__ == "__main__":
    main()

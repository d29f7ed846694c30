"""Show that tilings and workers do not change the result.

Affinities are made with one worker and with two; then supervoxels and agglomeration run with the options of
examples/fib25.toml, for several block shapes and one or two one-thread workers. All voxels must be equal. What a
second worker gains is measured by scaling.py.

Usage: python benchmarks/tilings.py [--data $CLOUDSEG_DATA] [--edge 250]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from cloudseg.testing.runs import cloudseg, print_table, real_or_phantom, stage_options, store, voxel_digest

EXAMPLE = stage_options(Path(__file__).parents[1] / "examples" / "fib25.toml")
BLOCKS = ((256, 256, 256), (128, 128, 128), (64, 192, 128), (256, 64, 64))


def affinities_of(image_uri: str, folder: Path, *, workers: int, edge: int) -> None:
    """Predict into ``folder``."""
    folder.mkdir()
    z = 64 if edge <= 160 else 128
    (folder / "affinities.toml").write_text(
        f'image = "{image_uri}"\nroot = "file://{folder}"\nworkers = {workers}\n'
        f'[[stage]]\nkind = "affinities"\nblock_shape = [256, 256, {z}]\n'
    )
    cloudseg("run", str(folder / "affinities.toml"))


def segment(image_uri: str, source: Path, folder: Path, block: tuple[int, int, int], *, workers: int) -> None:
    """Run the segmentation of the affinities in ``source``."""
    folder.mkdir()
    shape = list(block)
    (folder / "pipeline.toml").write_text(
        f'image = "{image_uri}"\nroot = "file://{folder}"\nworkers = {workers}\n'
        f'inputs = {{ affinities = "file://{source}/affinities" }}\n'
        + "".join(
            f'[[stage]]\nkind = "{kind}"\n'
            + "".join(f"{k} = {v}\n" for k, v in (EXAMPLE[kind] | {"block_shape": shape}).items())
            for kind in ("supervoxels", "agglomerate")
        )
    )
    cloudseg("run", str(folder / "pipeline.toml"))


def main() -> None:
    """Print the table; exit code 1 if any two results differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--edge", type=int, default=250)
    args = parser.parse_args()
    image, _ = real_or_phantom(args.data and Path(args.data), args.edge)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image_uri = store(f"file://{folder}/image", image)
        for workers in (1, 2):
            affinities_of(image_uri, folder / f"affinities{workers}", workers=workers, edge=args.edge)
        digests = {"affinities": {voxel_digest(f"file://{folder}/affinities{n}/affinities") for n in (1, 2)}}
        rows = []
        for block in BLOCKS:
            what = "x".join(map(str, block))
            for workers in (1, 2):
                run = folder / f"{what}-{workers}"
                segment(image_uri, folder / "affinities1", run, block, workers=workers)
                found = [voxel_digest(f"file://{run}/{layer}") for layer in ("supervoxels", "segmentation")]
                for layer, digest in zip(("supervoxels", "segmentation"), found, strict=True):
                    digests.setdefault(layer, set()).add(digest)
                rows.append((what, workers, *(d[:16] for d in found)))
    print_table(
        f"SHA-256 of all voxels, {args.edge}^3", ("blocks", "workers", "supervoxels", "segmentation"), rows
    )
    differing = [layer for layer, found in digests.items() if len(found) != 1]
    if differing:
        sys.exit(f"these layers differ between runs: {', '.join(differing)}")


if __name__ == "__main__":
    main()

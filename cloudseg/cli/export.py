"""``cloudseg export``: a box of a volume as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cloudseg.cli.progress import bar
from cloudseg.geometry import Box


@click.command()
@click.argument("src")
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--box", metavar="X0,Y0,Z0:X1,Y1,Z1", help="Which voxels, in those of the scale [all].")
@click.option(
    "--mip", type=click.IntRange(0), default=0, show_default=True, help="Which scale; 0 is the finest."
)
@click.option(
    "--missing",
    type=click.Choice(["error", "zero"]),
    default="error",
    show_default=True,
    help="What chunks mean that were never written.",
)
@click.option("--overwrite/--keep", default=False, show_default=True, help="Replace a file that exists.")
def export(src: str, dst: Path, *, box: str | None, mip: int, missing: Any, overwrite: bool) -> None:
    """Write a box of the volume SRC to DST, a .npy, .npz, .tif, .h5, .zarr, .nii or .nii.gz.

    NPY, NPZ and NIfTI files have the axes x, y, z; TIFF, HDF5 and OME-Zarr z, y, x, as their readers expect.
    """
    from cloudseg.volumes import open_volume
    from cloudseg.volumes.export import export as run

    volume = open_volume(src, mip=mip)
    where = Box.parse(box) if box else None
    with bar("voxels") as progress:
        path = run(volume, dst, box=where, missing=missing, overwrite=overwrite, progress=progress)
    click.echo(path)

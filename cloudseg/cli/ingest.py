"""``cloudseg ingest``: from a file to a volume in a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import click

from cloudseg.cli.progress import bar
from cloudseg.cli.values import numbers, positive_numbers, print_notes, whole_numbers
from cloudseg.errors import SpecError
from cloudseg.volumes.protocol import DType, Encoding

if TYPE_CHECKING:
    from cloudseg.volumes.protocol import VolumeInfo

_EPILOG = """\b
Default order of the axes, where the file does not name them:
  TIFF, HDF5, Zarr    z, y, x   (c in front of them if there are four)
  NPY, NPZ            x, y, z   (c in front of them if there are four)
  N5, NIfTI           x, y, z   (c behind them)
"""


@click.command(epilog=_EPILOG)
@click.argument("src")
@click.argument("dst")
@click.option("--voxel-size", metavar="X,Y,Z", help="Edges of a voxel in nm; needed unless the file says.")
@click.option(
    "--layer",
    type=click.Choice(["image", "segmentation"]),
    default="image",
    show_default=True,
    help="What the voxels are: grey levels, or ids (which become uint64).",
)
@click.option("--dataset", help="The array inside the file, where there are several.")
@click.option("--axes", help="Order of the file's axes, e.g. zyx, xyz, czyx.")
@click.option(
    "--box", metavar="X0,Y0,Z0:X1,Y1,Z1", help="Part to take, in voxels of the file counted from 0."
)
@click.option(
    "--offset", metavar="X,Y,Z", help="Where the first voxel taken shall lie [its place in the file]."
)
@click.option(
    "--chunk", metavar="X,Y,Z", default="64,64,64", show_default=True, help="Edge of a stored chunk."
)
@click.option(
    "--mips", type=click.IntRange(0, 30), help="Coarser scales to build [until one chunk holds all]."
)
@click.option(
    "--encoding",
    type=click.Choice(get_args(Encoding)),
    help="Codec of the chunks [compressed_segmentation for segmentations, raw for images].",
)
@click.option(
    "--dtype", type=click.Choice(get_args(DType)), help="Convert; values that do not fit are refused."
)
@click.option(
    "--sharded/--unsharded", default=False, show_default=True, help="Pack chunks into large objects."
)
def ingest(
    src: str,
    dst: str,
    *,
    voxel_size: str | None,
    layer: str,
    dataset: str | None,
    axes: str | None,
    box: str | None,
    offset: str | None,
    chunk: str,
    mips: int | None,
    encoding: str | None,
    dtype: str | None,
    sharded: bool,
) -> None:
    """Copy the volume in SRC to a Precomputed volume at DST, and build its pyramid.

    SRC is a TIFF file or a folder of TIFF sections, an HDF5, NPY, NPZ or NIfTI file, a Zarr, OME-Zarr or N5
    folder, or a Precomputed volume. DST is file://, gs:// or s3://, or a local path. Memory depends on the block
    that is copied, not on the volume. A command that was stopped goes on where it stopped when it is given again.
    """
    from cloudseg.volumes.ingest import IngestOptions
    from cloudseg.volumes.ingest import ingest as run
    from cloudseg.volumes.sources import open_source

    options = IngestOptions.load(
        {
            "voxel_size_nm": positive_numbers(voxel_size, option="--voxel-size"),
            "layer": layer,
            "dtype": dtype,
            "chunk_shape": whole_numbers(chunk, option="--chunk"),
            "box": box,
            "offset": whole_numbers(offset, option="--offset"),
            "n_mips": mips,
            "encoding": encoding,
            "sharded": sharded,
        },
        where="ingest",
    )
    if axes is not None and not axes.isalpha():
        raise SpecError(f"--axes is a word of the letters x, y, z, c, t, e.g. zyx; got {axes!r}")
    with (
        open_source(src, dataset=dataset, axes=axes.lower() if axes else None) as source,
        bar("voxels") as progress,
    ):
        result = run(source, dst, options, progress=progress)
    print_notes(result.notes)
    if not result.n_blocks_written:
        click.echo(f"{result.uri} was complete already: nothing to do")
    for mip, info in enumerate(result.infos):
        click.echo(f"scale {mip}: {_describe(info)}")
    click.echo(result.uri)


def _describe(info: VolumeInfo) -> str:
    size = " x ".join(map(str, info.shape))
    voxel = " x ".join(f"{s:g}" for s in info.voxel_size_nm)
    channels = f"{info.n_channels} channels, " if info.n_channels > 1 else ""
    return f"{size} voxels of {voxel} nm, {channels}{info.dtype}, {info.encoding}, from {numbers(info.bounds.start)}"

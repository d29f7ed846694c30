"""``cloudseg info``: what a volume is, scale by scale."""

from __future__ import annotations

import math

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from cloudseg.geometry import grid_shape
from cloudseg.volumes import VolumeInfo, read_info, scales
from cloudseg.volumes.addresses import Address


@click.command()
@click.argument("uri")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a scale instead of a table.")
def info(uri: str, *, as_json: bool) -> None:
    """Show the scales of the volume at URI: a folder, gs://, s3:// or http(s)://."""
    infos = scales(uri)
    if as_json:
        for scale in infos:
            click.echo(scale.canonical_json())
        return
    finest = infos[0]
    channels = "" if finest.n_channels == 1 else f", {finest.n_channels} channels"
    extras = {key: read_info(uri).get(key) for key in ("mesh", "skeletons", "segment_properties")}
    beside = "".join(f", {key} in {folder}/" for key, folder in extras.items() if folder)
    click.echo(f"{Address.parse(uri).uri}: {finest.layer} of {finest.dtype}{channels}{beside}")
    console = Console(width=None if Console().is_terminal else 160)
    console.print(_table(infos))


def _table(infos: list[VolumeInfo]) -> Table:
    table = Table(box=SIMPLE)
    table.add_column("mip", justify="right")
    for name in ("voxel size (nm)", "size (voxels)", "offset", "chunk", "encoding", "write cell"):
        table.add_column(name, no_wrap=True)
    table.add_column("cells", justify="right")
    table.add_column("uncompressed", justify="right")
    for mip, scale in enumerate(infos):
        size_bytes = math.prod(scale.shape) * scale.n_channels * scale.numpy_dtype.itemsize
        table.add_row(
            str(mip),
            " x ".join(f"{v:g}" for v in scale.voxel_size_nm),
            _triple(scale.shape),
            ", ".join(map(str, scale.bounds.start)),
            _triple(scale.chunk_shape),
            scale.encoding,
            f"{'shard' if scale.sharding else 'chunk'} {_triple(scale.write_grid)}",
            f"{math.prod(grid_shape(scale.bounds, scale.write_grid)):,}",
            _bytes(size_bytes),
        )
    return table


def _triple(values: tuple[int, int, int]) -> str:
    return " x ".join(map(str, values))


def _bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} PiB"

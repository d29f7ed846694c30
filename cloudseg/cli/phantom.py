"""``cloudseg phantom``: tissue with exact truth, to try things on."""

from __future__ import annotations

import click

from cloudseg.cli.values import whole_numbers
from cloudseg.errors import SpecError


@click.command()
@click.argument("dst")
@click.option("--shape", default="192,192,160", show_default=True, help="Voxels along x, y, z.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same tissue.")
def phantom(dst: str, shape: str, seed: int) -> None:
    """Write an EM-like phantom to DST/image and its truth to DST/truth (8 nm voxels)."""
    from cloudseg.pipelines.spec import resolve_uri
    from cloudseg.testing.store import store_phantom

    size = whole_numbers(shape, option="--shape")
    if size is None or min(size) < 16:
        raise SpecError(f"--shape needs at least 16 voxels on every axis, got {shape}")
    image_uri, truth_uri = store_phantom(resolve_uri(dst, where="DST"), shape=size, seed=seed)
    click.echo(f"image {image_uri}\ntruth {truth_uri}")

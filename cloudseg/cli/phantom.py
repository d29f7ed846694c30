"""``cloudseg phantom``: tissue with exact truth, to try things on."""

from __future__ import annotations

import click

from cloudseg.cli.progress import bar
from cloudseg.cli.values import whole_numbers
from cloudseg.errors import SpecError


@click.command()
@click.argument("dst")
@click.option("--shape", default="192,192,160", show_default=True, help="Voxels along x, y, z.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same tissue.")
@click.option("--brain", is_flag=True, help="Cell bodies instead of neurites: a phantom brain.")
@click.option(
    "--voxel-size",
    default="64,64,40",
    show_default=True,
    help="nm along x, y, z; of a brain only, neurites have 8.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of a brain: pairs=0.5, tissue=all, artefacts=0, ... (BrainSpec has them all).",
)
def phantom(
    dst: str, shape: str, seed: int, *, brain: bool, voxel_size: str, settings: tuple[str, ...]
) -> None:
    """Write an EM-like phantom to DST/image and its truth to DST/truth.

    Without --brain, neurites in voxels of 8 nm. With it, cell bodies, vessels, axons and spoiled sections, and tables
    of the true bodies and of which touch: DST/bodies.parquet, DST/contacts.parquet. Pipelines can also read such a
    brain without writing it, of any size: image = "phantom-brain://image?seed=1&shape=1000x1000x500".
    """
    from cloudseg.pipelines.spec import resolve_uri
    from cloudseg.testing.store import store_brain, store_phantom

    size = whole_numbers(shape, option="--shape")
    if size is None or min(size) < 16:
        raise SpecError(f"--shape needs at least 16 voxels on every axis, got {shape}")
    if settings and not brain:
        raise SpecError("--set is for --brain: neurites have no other settings")
    if brain:
        from cloudseg.testing.phantom_brain import BrainSpec

        pairs = [text.partition("=") for text in settings]
        if bad := [text for text, (_, equals, _) in zip(settings, pairs, strict=True) if not equals]:
            raise SpecError(f"--set needs KEY=VALUE, e.g. pairs=0.5, got {bad[0]!r}")
        given = {key: value for key, _, value in pairs}
        spec = BrainSpec.load(
            {"shape": size, "seed": seed, "voxel_size_nm": voxel_size.split(","), **given}, where="the brain"
        )
        with bar("voxels") as progress:
            image_uri, truth_uri = store_brain(resolve_uri(dst, where="DST"), spec, progress=progress)
    else:
        image_uri, truth_uri = store_phantom(resolve_uri(dst, where="DST"), shape=size, seed=seed)
    click.echo(f"image {image_uri}\ntruth {truth_uri}")

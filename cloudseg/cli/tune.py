"""``cloudseg tune``: try settings of a pipeline on a small box; a table, and a picture of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from cloudseg.cli.progress import bar
from cloudseg.cli.values import ids
from cloudseg.errors import SpecError, StorageError
from cloudseg.geometry import Box

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cloudseg.pipelines.tune import Trial


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--try",
    "tries",
    multiple=True,
    required=True,
    metavar="KEY=[V,V,...]",
    help="Values of an option, e.g. threshold.contrast=[0.1,0.2]. Given several times: all combinations.",
)
@click.option("--box", required=True, metavar="X0,Y0,Z0:X1,Y1,Z1", help="Where, in voxels of the image.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Holds in all settings.")
@click.option("--layer", default="segmentation", show_default=True, help="The layer to look at.")
@click.option("--truth", "truth_uri", help="Labels to score against.")
@click.option(
    "--ignore-truth", metavar="IDS", default="0", show_default=True, help="Truth ids to leave out, or none."
)
@click.option(
    "--pictures",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for a PNG of each setting (image and layer, the middle section) and settings.json.",
)
def tune(
    file: Path,
    *,
    tries: tuple[str, ...],
    box: str,
    overrides: tuple[str, ...],
    layer: str,
    truth_uri: str | None,
    ignore_truth: str,
    pictures: Path,
) -> None:
    """Run pipeline FILE on a small box with every combination of some values, and draw each result.

    Nothing is written but the pictures and their list. Stages that settings share run once. The faces of the box
    count as the border of the volume, so take it larger than what the stages look at.
    """
    from cloudseg.ops.contingency import contingency
    from cloudseg.pipelines.spec import read_spec
    from cloudseg.pipelines.tune import settings_of
    from cloudseg.pipelines.tune import tune as trials_of
    from cloudseg.volumes import open_volume
    from cloudseg.volumes.evaluate import Labels

    where, settings = Box.parse(box), settings_of(tries)
    ignored = ids(ignore_truth, option="--ignore-truth")
    truth = None
    if truth_uri is not None:
        labels = Labels.open(truth_uri)
        if not labels.bounds.contains(where):
            raise SpecError(f"the truth {truth_uri} covers {labels.bounds}: not all of the box {where}")
        truth = labels.read(where)
    try:
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {pictures}: {error.strerror}") from error
    rows: list[dict[str, Any]] = []
    image = None
    with bar("settings") as progress:
        for number, trial in enumerate(
            trials_of(file, box=where, settings=settings, layer=layer, overrides=overrides), 1
        ):
            if image is None:
                middle = (where.start[2] + where.stop[2]) // 2
                cut = Box((*where.start[:2], middle), (*where.stop[:2], middle + 1))
                image = open_volume(read_spec(file, overrides=[*overrides, *trial.overrides]).image).read(
                    cut
                )[..., 0]
            name = f"{number:03d}.png"
            _write(pictures / name, _drawn(trial, image, truth))
            row: dict[str, Any] = {
                "picture": name,
                "settings": list(trial.overrides),
                "objects": trial.n_objects,
                "foreground": round(trial.foreground, 4),
                "seconds": round(trial.seconds, 2),
            }
            if truth is not None:
                scores = contingency(trial.labels, truth).scores(ignore_truth=ignored)
                row |= {
                    "are": scores.adapted_rand_error,
                    "voi_split": scores.voi_split,
                    "voi_merge": scores.voi_merge,
                }
            rows.append(row)
            progress("settings", number, len(settings))
    _write(pictures / "settings.json", json.dumps({"box": box, "rows": rows}, indent=1).encode() + b"\n")
    Console().print(_table(rows, scored=truth is not None))


def _drawn(trial: Trial, image: npt.NDArray[np.generic], truth: npt.NDArray[np.generic] | None) -> bytes:
    """Draw the middle section: image, layer, and truth if there is one."""
    from cloudseg.training.picture import encode_png, grey_picture, id_picture, side_by_side

    z = trial.labels.shape[2] // 2
    plane = image if image.ndim == 2 else image[0]
    grey = grey_picture(plane, low=float(plane.min()), high=float(plane.max()))
    pictures = [grey, id_picture(trial.labels[:, :, z], over=grey)]
    if truth is not None:
        pictures.append(id_picture(truth[:, :, z], over=grey))
    return encode_png(side_by_side(pictures))


def _table(rows: list[dict[str, Any]], *, scored: bool) -> Table:
    table = Table(title="settings, one picture each", title_justify="left")
    table.add_column("picture")
    for setting in rows[0]["settings"]:
        # Most options tell by their last word; the list of settings has the whole.
        table.add_column(setting.partition("=")[0].rpartition(".")[2], overflow="fold")
    for name in ("objects", "foreground", "s", *(("ARE", "split", "merge") if scored else ())):
        table.add_column(name, justify="right")
    for row in rows:
        scores = (f"{row['are']:.4f}", f"{row['voi_split']:.3f}", f"{row['voi_merge']:.3f}") if scored else ()
        table.add_row(
            row["picture"],
            *(setting.partition("=")[2] for setting in row["settings"]),
            f"{row['objects']:,}",
            f"{row['foreground']:.1%}",
            f"{row['seconds']:.1f}",
            *scores,
        )
    return table


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error

"""``cloudseg evaluate somas``: how well cell bodies, or nuclei, were found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from cloudseg.cli.progress import bar
from cloudseg.cli.values import print_notes
from cloudseg.errors import SpecError, StorageError
from cloudseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command("somas")
@click.argument("seg")
@click.argument("truth")
@click.option("--box", metavar="X0,Y0,Z0:X1,Y1,Z1", help="Compare here [where both have voxels].")
@click.option("--mask", "mask_uri", help="A volume: voxels where it is 0 do not count.")
@click.option(
    "--distance",
    "distance_nm",
    type=float,
    default=1000.0,
    show_default=True,
    help="nm between two centres that match.",
)
@click.option(
    "--min-volume",
    "min_volume_um3",
    type=float,
    default=0.0,
    show_default=True,
    help="um3; smaller true bodies are left out.",
)
@click.option(
    "--definitions",
    type=click.Choice(["corrected", "published"]),
    default="corrected",
    show_default=True,
    help="published: Dice and Jaccard of ids, true bodies from 2000 voxels, as the published code has them.",
)
@click.option(
    "--scores",
    "scores_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Parquet with columns id (or soma_id) and score: which bodies count first in AP [the largest].",
)
@click.option("--seconds", type=float, help="What the segmentation took: adds seconds per gigavoxel.")
@click.option(
    "--seg-mip", type=click.IntRange(0), default=0, show_default=True, help="Scale of the segmentation."
)
@click.option("--truth-mip", type=click.IntRange(0), default=0, show_default=True, help="Scale of the truth.")
@click.option(
    "--missing",
    type=click.Choice(["error", "zero"]),
    default="error",
    show_default=True,
    help="What chunks mean that were never written.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here; - for stdout."
)
def somas(
    seg: str,
    truth: str,
    *,
    box: str | None,
    mask_uri: str | None,
    scores_path: Path | None,
    seg_mip: int,
    truth_mip: int,
    missing: Any,
    json_path: Path | None,
    **rules: Any,
) -> None:
    """Compare the cell bodies (or nuclei) of SEG with those of TRUTH: each counts once, whatever its size.

    Average precision is COCO's, over overlaps of 0.5 to 0.95. Both are volumes, or files as for `cloudseg evaluate`.
    """
    from cloudseg.volumes.evaluate import Labels
    from cloudseg.volumes.evaluate_somas import SomaRules, evaluate_somas

    if json_path is not None and str(json_path) != "-" and not json_path.absolute().parent.is_dir():
        raise SpecError(f"--json {json_path}: there is no folder {json_path.absolute().parent}")
    for name, least in (("distance_nm", "--distance"), ("seconds", "--seconds")):
        if rules[name] is not None and not rules[name] > 0:
            raise SpecError(f"{least} must be above 0, got {rules[name]}")
    if not rules["min_volume_um3"] >= 0:
        raise SpecError(f"--min-volume must be 0 or more, got {rules['min_volume_um3']}")
    scores = _read_scores(scores_path) if scores_path else None
    inputs = (
        Labels.open(seg, mip=seg_mip, missing=missing),
        Labels.open(truth, mip=truth_mip, missing=missing),
    )
    with bar("voxels") as progress:
        figures, compared = evaluate_somas(
            *inputs,
            rules=SomaRules(scores=scores, **rules),
            box=Box.parse(box) if box else None,
            mask=Labels.open(mask_uri, missing=missing) if mask_uri else None,
            progress=progress,
        )
    document = {
        "seg": inputs[0].uri,
        "truth": inputs[1].uri,
        "box": str(compared.box),
        "figures": figures,
        "notes": list(compared.notes),
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    print_notes(compared.notes)
    if json_path is not None and str(json_path) == "-":
        click.echo(text)
        return
    table = Table(title=f"{seg} against {truth} in {compared.box}", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("meaning")
    for name, value, meaning in _rows(figures):
        shown = "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        table.add_row(name, shown, meaning)
    Console().print(table)
    if json_path is not None:
        try:
            json_path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write {json_path}: {error.strerror}") from error


def _rows(f: dict[str, Any]) -> Iterator[tuple[str, int | float | None, str]]:
    masks = "of ids, as published: may pass 1" if f["definitions"] == "published" else "of the masks"
    yield "true bodies", f["n_true"], f"of {f['min_size_vx']:,} voxels and more" if f["min_size_vx"] else ""
    yield "found bodies", f["n_found"], ""
    yield "AP", f["ap"], "mean over overlaps of 0.5 to 0.95"
    yield "AP50", f["ap50"], "at an overlap of 0.5"
    yield "AP75", f["ap75"], "at an overlap of 0.75"
    yield "F1 at 0.5", f["f1_50"], f"precision {f['precision_50']:.3f}, recall {f['recall_50']:.3f}"
    yield "  matched share", f["matched_share_50"], "TP / (TP + FP + FN)"
    near = f"precision {f['precision']:.3f}, recall {f['recall']:.3f}"
    yield f"F1 at {f['distance_nm']:g} nm", f["f1"], near
    yield "mean IoU", f["mean_iou"], "of true bodies; 0 where none was found"
    yield "  of matched", f["mean_iou_of_matched"], ""
    yield "Dice", f["dice"], masks
    yield "Jaccard", f["jaccard"], masks
    yield "touching pairs split", f["touching_pairs_split"], f"of {f['n_touching_pairs']:,}"
    yield "volume error", f["median_volume_error"], "median, relative"
    yield "  bias", f["median_volume_bias"], "median; positive: too large"
    yield "adapted Rand error", f["adapted_rand_error"], "inside true bodies; 0 is perfect"
    yield "VOI split", f["voi_split"], "bits"
    yield "VOI merge", f["voi_merge"], "bits"
    if f["seconds_per_gigavoxel"] is not None:
        yield "s / gigavoxel", f["seconds_per_gigavoxel"], ""


def _read_scores(path: Path) -> dict[int, float]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise SpecError(f"--scores {path} is no readable Parquet file: {error}") from error
    name = next((n for n in ("id", "soma_id") if n in table.column_names), None)
    if name is None or "score" not in table.column_names:
        raise SpecError(
            f"--scores {path} must have the columns id (or soma_id) and score, got {', '.join(table.column_names)}"
        )
    return dict(zip(table[name].to_pylist(), table["score"].to_pylist(), strict=True))

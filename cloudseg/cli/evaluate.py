"""``cloudseg evaluate``: how good a segmentation is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from cloudseg.cli.progress import bar
from cloudseg.cli.values import ids, print_notes
from cloudseg.errors import SpecError, StorageError
from cloudseg.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloudseg.ops.metrics import Culprit


class _Evaluate(click.Command):
    """The command, with another below it: a segmentation that is called somas is written ``./somas``."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Hand over to ``somas`` if that is the first word."""
        if args and args[0] == "somas":
            from cloudseg.cli.evaluate_somas import somas

            return somas.make_context(f"{info_name} somas", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_Evaluate)
@click.argument("seg")
@click.argument("truth")
@click.option("--box", metavar="X0,Y0,Z0:X1,Y1,Z1", help="Compare here [where both have voxels].")
@click.option("--mask", "mask_uri", help="A volume: voxels where it is 0 do not count.")
@click.option(
    "--ignore-truth", metavar="IDS", default="0", show_default=True, help="Truth ids to leave out, or none."
)
@click.option(
    "--ignore-seg",
    metavar="IDS",
    default="none",
    show_default=True,
    help="Segment ids to leave out, e.g. 0,7.",
)
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
    "--skeletons",
    "skeletons_uri",
    help="Adds run lengths: Precomputed folder, folder of .swc files, .npz, or the word truth.",
)
@click.option(
    "--skeleton-unit", type=float, default=1.0, show_default=True, help="nm in a unit of .swc and .npz."
)
@click.option(
    "--merge-tolerance",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Nodes a merger may graze.",
)
@click.option(
    "--worst", type=click.IntRange(0), default=5, show_default=True, help="Worst splits and mergers to list."
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here; - for stdout."
)
def evaluate(
    seg: str,
    truth: str,
    *,
    box: str | None,
    mask_uri: str | None,
    ignore_truth: str,
    ignore_seg: str,
    seg_mip: int,
    truth_mip: int,
    missing: Any,
    skeletons_uri: str | None,
    skeleton_unit: float,
    merge_tolerance: int,
    worst: int,
    json_path: Path | None,
) -> None:
    """Compare the segmentation SEG with TRUTH where both have voxels.

    Both are Precomputed volumes, or files that `cloudseg ingest` reads (file.h5#dataset names an array inside).
    Adapted Rand error and variation of information are those of scikit-image; all figures are exact, from one pass
    over blocks. Segment 0 counts as a segment unless it is ignored.

    `cloudseg evaluate somas SEG TRUTH` counts cell bodies or nuclei instead: AP, F1, touching pairs, volumes.
    """
    from cloudseg.ops.metrics import culprits
    from cloudseg.volumes.evaluate import Labels, skeletons_of_truth
    from cloudseg.volumes.evaluate import evaluate as run
    from cloudseg.volumes.skeletons import read_skeletons

    if json_path is not None and str(json_path) != "-" and not json_path.absolute().parent.is_dir():
        raise SpecError(f"--json {json_path}: there is no folder {json_path.absolute().parent}")
    no_truth, no_seg = ids(ignore_truth, option="--ignore-truth"), ids(ignore_seg, option="--ignore-seg")
    if not skeleton_unit > 0:
        raise SpecError(f"--skeleton-unit must be above 0, got {skeleton_unit}")
    inputs = (
        Labels.open(seg, mip=seg_mip, missing=missing),
        Labels.open(truth, mip=truth_mip, missing=missing),
    )
    mask = Labels.open(mask_uri, missing=missing) if mask_uri else None
    where = Box.parse(box) if box else None
    skeletons = None
    if skeletons_uri == "truth":
        with bar("objects") as progress:
            skeletons = skeletons_of_truth(*inputs, box=where, progress=progress)
    elif skeletons_uri:
        skeletons = read_skeletons(skeletons_uri, nm_per_unit=skeleton_unit)
    with bar("voxels") as progress:
        result = run(
            *inputs,
            box=where,
            mask=mask,
            skeletons=skeletons,
            merge_tolerance_nodes=merge_tolerance,
            progress=progress,
        )
    scores = result.table.scores(ignore_truth=no_truth, ignore_seg=no_seg)
    counted = result.table.without(truth=no_truth, seg=no_seg)
    split = culprits(counted.truth_ids, counted.counts, limit=worst)
    merged = culprits(counted.seg_ids, counted.counts, limit=worst)
    document = {
        "seg": inputs[0].uri,
        "truth": inputs[1].uri,
        "mask": mask.uri if mask else None,
        "box": str(result.box),
        "ignore_truth": list(map(str, no_truth)),
        "ignore_seg": list(map(str, no_seg)),
        "scores": scores.as_dict(),
        "run_length": result.run_length.as_dict() if result.run_length else None,
        "worst_splits": [_culprit(c) for c in split],
        "worst_mergers": [_culprit(c) for c in merged],
        "notes": list(result.notes),
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    print_notes(result.notes)
    if json_path is not None and str(json_path) == "-":
        click.echo(text)
        return
    console = Console()
    console.print(_table(f"{seg} against {truth} in {result.box}", document))
    for title, found in (("objects split most", split), ("segments that merge most", merged)):
        if found:
            console.print(_culprits_table(title, found))
    if json_path is not None:
        try:
            json_path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write {json_path}: {error.strerror}") from error


def _culprit(culprit: Culprit) -> dict[str, Any]:
    # Ids pass 2**53, which JSON readers keep as floats: written as strings.
    return {"id": str(culprit.id), "voxels": culprit.n_voxels, "parts": culprit.n_parts, "bits": culprit.bits}


def _table(title: str, document: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("meaning")
    for name, value, meaning in _rows(document):
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}", meaning)
    return table


def _rows(document: dict[str, Any]) -> Iterator[tuple[str, int | float, str]]:
    s = document["scores"]
    yield "adapted Rand error", s["adapted_rand_error"], "0 is perfect"
    yield "  precision", s["rand_precision"], "falls with mergers"
    yield "  recall", s["rand_recall"], "falls with splits"
    yield "VOI split", s["voi_split"], "bits; grows with splits"
    yield "VOI merge", s["voi_merge"], "bits; grows with mergers"
    yield "VOI sum", s["voi_sum"], "bits; 0 is perfect"
    yield "CREMI score", s["cremi_score"], "sqrt(VOI sum x adapted Rand error)"
    yield "SNEMI3D error", s["snemi3d_error"], "unsegmented voxels as singletons"
    yield "segments", s["n_segments"], "distinct ids, 0 left out"
    yield "truth objects", s["n_truth_objects"], ""
    yield "segmented", s["segmented_fraction"], "share of the counted voxels"
    yield "voxels counted", s["n_voxels"], ""
    r = document["run_length"]
    if r is not None:
        yield "expected run length", r["erl_nm"] / 1000, f"um, of at most {r['max_erl_nm'] / 1000:.3f}"
        yield "  normalised", r["normalised_erl"], "1 is perfect"
        yield "  correct", r["correct_fraction"], f"share of {r['total_length_nm'] / 1000:.1f} um"
        yield "  split", r["split_fraction"], f"{r['n_splits']:,} edges"
        yield (
            "  merged",
            r["merged_fraction"],
            f"{r['n_mergers']:,} segments, {r['n_merged_skeletons']:,} skeletons",
        )
        yield "  omitted", r["omitted_fraction"], f"{r['n_omitted_edges']:,} edges"


def _culprits_table(title: str, found: list[Culprit]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("id", "voxels", "parts", "bits"):
        table.add_column(name, justify="right")
    for culprit in found:
        table.add_row(str(culprit.id), f"{culprit.n_voxels:,}", f"{culprit.n_parts:,}", f"{culprit.bits:.4f}")
    return table

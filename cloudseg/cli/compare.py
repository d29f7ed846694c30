"""``cloudseg compare``: several segmentations against one truth, as a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from cloudseg.cli.progress import bar
from cloudseg.cli.values import ids, print_notes
from cloudseg.errors import CloudsegError, SpecError, StorageError
from cloudseg.geometry import Box

if TYPE_CHECKING:
    import numpy.typing as npt

    from cloudseg.training.picture import Picture
    from cloudseg.volumes.evaluate import Labels


@click.command()
@click.argument("segs", metavar="SEG...", nargs=-1, required=True)
@click.option("--truth", "truth_uri", required=True, help="Labels to compare with.")
@click.option("--name", "names", multiple=True, help="What a row is called; once for each SEG, in order.")
@click.option(
    "--box", metavar="X0,Y0,Z0:X1,Y1,Z1", help="Compare here [where all of them and the truth have voxels]."
)
@click.option(
    "--ignore-truth", metavar="IDS", default="0", show_default=True, help="Truth ids to leave out, or none."
)
@click.option(
    "--tolerance",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Voxels a boundary may lie beside the true one.",
)
@click.option(
    "--zero",
    type=click.Choice(["unknown", "boundary"]),
    default="unknown",
    show_default=True,
    help="What id 0 means for boundary F1.",
)
@click.option("--image", "image_uri", help="Shines through the colours of the picture.")
@click.option("--picture", type=click.Path(path_type=Path), help="Write sections side by side here, as PNG.")
@click.option(
    "--sections", type=click.IntRange(1), default=3, show_default=True, help="Sections in the picture."
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here; - for stdout."
)
def compare(
    segs: tuple[str, ...],
    *,
    truth_uri: str,
    names: tuple[str, ...],
    box: str | None,
    ignore_truth: str,
    tolerance: int,
    zero: str,
    image_uri: str | None,
    picture: Path | None,
    sections: int,
    json_path: Path | None,
) -> None:
    """Compare segmentations SEG... with one truth, in one table.

    Volumes and files are those of `cloudseg evaluate`, and so are the figures; all are measured over the same voxels.
    ARE: adapted Rand error. VOI: variation of information in bits, its splits and mergers. F1: of boundaries. s, MB:
    seconds of all tasks together and memory of the largest, from the receipts of the run that made a segmentation,
    where it lies beside them.
    """
    from cloudseg.volumes.boundary_score import boundary_score
    from cloudseg.volumes.evaluate import Labels, evaluate

    if names and len(names) != len(segs):
        raise SpecError(
            f"--name must be given once for each of the {len(segs)} segmentations, got {len(names)}"
        )
    for option, path in (("--picture", picture), ("--json", json_path)):
        if path is not None and str(path) != "-" and not path.absolute().parent.is_dir():
            raise SpecError(f"{option} {path}: there is no folder {path.absolute().parent}")
    no_truth = ids(ignore_truth, option="--ignore-truth")
    truth, opened = Labels.open(truth_uri), [Labels.open(seg) for seg in segs]
    where = _common_box(truth, opened, Box.parse(box) if box else None)
    rows, notes = [], {}
    for name, seg in zip(names or short_names(segs), opened, strict=True):
        with bar(name) as progress:
            result = evaluate(seg, truth, box=where, progress=progress)
            edges = boundary_score(
                seg,
                truth,
                box=where,
                tolerance_vx=tolerance,
                zero_is_boundary=zero == "boundary",
                progress=progress,
            )
        notes.update(dict.fromkeys(n for n in result.notes if "compared in" not in n))
        scores = result.table.scores(ignore_truth=no_truth).as_dict()
        found = (
            {"f1": edges.f1, "precision": edges.precision, "recall": edges.recall} if edges.n_truth else None
        )
        rows.append(
            {"name": name, "uri": seg.uri, "scores": scores, "boundary": found, "run": _cost(seg.uri)}
        )
    if picture is not None:
        drawn = _picture(opened, truth, where, image_uri, n_sections=sections)
        _write(picture, drawn)
    document = {"truth": truth.uri, "box": str(where), "boundary_tolerance_vx": tolerance, "rows": rows}
    text = json.dumps(document, indent=1, allow_nan=False)
    print_notes(notes)
    if json_path is not None and str(json_path) == "-":
        click.echo(text)
        return
    console = Console()
    console.print(_table(f"against {truth.uri} in {where}", rows))
    if picture is not None:
        columns = ["image", "truth"] if image_uri else ["truth"]
        console.print(
            f"{picture}: from left to right {', '.join([*columns, *(str(r['name']) for r in rows)])}",
            soft_wrap=True,
            highlight=False,
        )
    if json_path is not None:
        _write(json_path, (text + "\n").encode())


def short_names(uris: Sequence[str]) -> list[str]:
    """Return what tells addresses apart: without the first parts that all share, and the last that none needs.

    Examples
    --------
    >>> short_names(["file:///runs/one/supervoxels", "file:///runs/two/segmentation"])
    ['one', 'two']
    >>> short_names(["file:///runs/one/segmentation"])
    ['segmentation']
    """
    parts = [uri.rstrip("/").split("/") for uri in uris]
    while all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    while all(len(p) > 1 for p in parts) and len({tuple(p[:-1]) for p in parts}) == len(parts):
        parts = [p[:-1] for p in parts]
    return ["/".join(p) for p in parts]


def _common_box(truth: Labels, segs: Sequence[Labels], box: Box | None) -> Box:
    """Return where all have voxels: figures of different voxels could not be compared."""
    common = truth.bounds if box is None else box.intersect(truth.bounds)
    for seg in segs:
        inside = common.intersect(seg.bounds)
        if inside.is_empty:
            raise SpecError(
                f"nothing to compare: {seg.uri} covers {seg.bounds}, and the others and the truth share {common}"
            )
        common = inside
    if common.is_empty:
        raise SpecError(f"nothing to compare in box {box}: the truth {truth.uri} covers {truth.bounds}")
    return common


def _cost(uri: str) -> dict[str, float] | None:
    """Return what the stages up to this layer took, if it lies in the root of a run."""
    from cloudseg.pipelines.report import Summary, status
    from cloudseg.volumes import open_objects

    root, slash, _ = uri.rstrip("/").rpartition("/")
    if not slash or "#" in uri:
        return None
    try:
        found = status(open_objects(root))
    except CloudsegError:  # no run made it, or none that can be read: then there is nothing to tell
        return None
    total, labels = Summary(), set()
    for stage in found.record.stages:
        labels.add(stage.label)
        if any(layer.uri.rstrip("/") == uri.rstrip("/") for layer in stage.layers):
            break
    else:
        return None
    for step in found.steps:
        if step.stage in labels:
            total += step.summary
    return {
        "task_s": total.task_seconds,
        "wall_s": total.wall_s,
        "peak_memory_bytes": total.peak_memory_bytes,
    }


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("name", overflow="fold", min_width=12)
    for name in ("ARE", "VOI", "split", "merge", "F1", "objects", "s", "MB"):
        table.add_column(name, justify="right")
    for row in rows:
        s, b, r = row["scores"], row["boundary"], row["run"]
        table.add_row(
            row["name"],
            f"{s['adapted_rand_error']:.4f}",
            *(f"{s[k]:.3f}" for k in ("voi_sum", "voi_split", "voi_merge")),
            f"{b['f1']:.3f}" if b else "-",
            f"{s['n_segments']:,}",
            f"{r['task_s']:,.1f}" if r else "-",
            f"{r['peak_memory_bytes'] / 1e6:,.0f}" if r else "-",
        )
    return table


def _picture(
    segs: Sequence[Labels], truth: Labels, box: Box, image_uri: str | None, *, n_sections: int
) -> bytes:
    """Draw sections below one another; in each the image, the truth and the segmentations side by side."""
    from cloudseg.training.picture import encode_png, grey_picture, id_picture, side_by_side
    from cloudseg.volumes.evaluate import Labels

    image = Labels.open(image_uri) if image_uri else None
    if image is not None and not image.bounds.contains(box):
        raise SpecError(f"the image {image.uri} covers {image.bounds}: not all of the compared box {box}")
    low, high = box.start[2], box.stop[2]
    rows: list[Picture] = []
    for i in range(min(n_sections, high - low)):
        z = low + (2 * i + 1) * (high - low) // (2 * min(n_sections, high - low))
        cut = Box((box.start[0], box.start[1], z), (box.stop[0], box.stop[1], z + 1))
        true = truth.read(cut)[:, :, 0]
        grey = None
        if image is not None:
            values = image.read(cut)[:, :, 0].astype(np.float32)
            grey = grey_picture(values, low=float(values.min()), high=float(values.max()))
        pictures = [grey] if grey is not None else []
        pictures.append(_outlined(id_picture(true, over=grey), true))
        for seg in segs:
            found = seg.read(cut)[:, :, 0]
            pictures.append(_outlined(id_picture(named_after(found, true), over=grey), found))
        rows.append(side_by_side(pictures))
    gap = np.full((4, rows[0].shape[1], 3), 255, np.uint8)
    return encode_png(np.concatenate([part for row in rows for part in (gap, row)][1:], axis=0))


def named_after(found: npt.NDArray[Any], true: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return ids for colours: the largest segment in a true object is called like it, the others are new.

    Parameters
    ----------
    found, true
        ``(x, y)`` ids of one section.
    """
    pairs, counts = np.unique(np.stack([found.ravel(), true.ravel()]), axis=1, return_counts=True)
    names, index = np.unique(found, return_inverse=True)
    true_ids = np.unique(true)
    # New names lie above all true ones.
    new = np.arange(1, len(names) + 1, dtype=np.int64) + int(true_ids[-1])
    taken: set[int] = set()
    done: set[int] = set()
    for k in np.argsort(-counts, kind="stable"):
        seg = int(np.searchsorted(names, pairs[0, k]))
        obj = int(np.searchsorted(true_ids, pairs[1, k]))
        if seg in done or pairs[1, k] == 0:
            continue
        done.add(seg)  # its largest overlap decides, whether the name is free or not
        if obj not in taken:
            taken.add(obj)
            new[seg] = int(true_ids[obj])
    new[names == 0] = 0
    return new[index.reshape(found.shape)]


def _outlined(picture: Picture, ids_of: npt.NDArray[Any]) -> Picture:
    """Blacken the voxels where ids change, so that two colours that look alike are still told apart."""
    turned = ids_of.T
    edge = np.zeros(turned.shape, np.bool_)
    edge[1:] |= turned[1:] != turned[:-1]
    edge[:, 1:] |= turned[:, 1:] != turned[:, :-1]
    out = picture.copy()
    out[edge] = 0
    return out


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error

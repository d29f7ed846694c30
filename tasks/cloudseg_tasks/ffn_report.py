"""A page about a flood-filled volume: how objects grew, block by block, and what became of the seams."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.geometry import tile
from cloudseg.specs import BoxField
from cloudseg.tasking.blocks import block_name
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Site, Stage, StagePlan, Step
from cloudseg.tasking.task import Context, Task
from cloudseg.volumes.protocol import Positive3
from cloudseg.volumes.tables import get_table

PAGE = "report.html"
_BYTES_PER_BLOCK = 10_000
_BYTES_PER_PICTURE = 10_000_000
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 72rem;
padding: 0 1rem } h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } td, th { padding: .1rem .9rem .1rem 0;
text-align: right } th { font-weight: 600 } img { width: 100%; image-rendering: pixelated; border: 1px solid #ccc }
figure { margin: 1rem 0 } figcaption { color: #555; font-size: .9rem } .wide { overflow-x: auto }
"""


class FloodReportTask(Task):
    """Write the page.

    Attributes
    ----------
    flood_uri, seams_uri, graph_uri
        Folders of the stage that grew the objects and of the one that joined them; folder that gets the page.
    bounds, block_shape
        Of the objects.
    n_pictures
        Blocks with most objects that are shown.
    """

    kind: Literal["ffn_report/1"] = "ffn_report/1"
    flood_uri: str
    seams_uri: str
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3
    n_pictures: int

    def run(self, ctx: Context) -> None:
        """Read what the stages left, write one HTML file."""
        flood = ctx.open_objects(self.flood_uri)
        names = [block_name(core.start) for core in tile(self.bounds, self.block_shape)]
        tables = {name: get_table(flood, f"objects/{name}.parquet") for name in names}
        try:
            seams = get_table(ctx.open_objects(self.seams_uri), "seams.parquet")
        except NotFoundError:
            seams = {}
        most = sorted(names, key=lambda name: (-len(tables[name]["id"]), names.index(name)))
        pictures = [
            (name, _told(tables[name]), flood.get(f"growth/{name}.png")) for name in most[: self.n_pictures]
        ]
        page = _page(f"blocks of {' x '.join(str(n) for n in self.block_shape)}", tables, seams, pictures)
        ctx.open_objects(self.graph_uri).put(PAGE, page.encode())
        ctx.count(blocks=len(names), pictures=len(pictures))


class FloodReportStage(Stage):
    """A page about a flood-filled volume, ``graph/<stage>/report.html``: how objects grew, and the seams.

    Attributes
    ----------
    flood, stitch
        Names of the stages that grew the objects and that joined them; without the second there is no table of seams.
    layer
        What the first one wrote.
    n_pictures
        Blocks that are shown, those with most objects first.
    """

    kind: Literal["ffn_report"] = "ffn_report"
    flood: str = "ffn"
    stitch: str = "ffn_stitch"
    layer: str = "objects"
    n_pictures: PositiveInt = 16

    def expand(self, site: Site) -> StagePlan:
        """Plan the only task."""
        source = site.layer(self.layer, wanted_by=self.label)
        if source.block_shape is None or source.made_by != self.flood:
            raise SpecError(
                f"stage {self.label!r} tells how {self.flood!r} grew objects, but {source.uri} was made by "
                f"{source.made_by or 'something else'!r}: give the stage and the layer that belong together"
            )
        root, bounds, block_shape = site.root.rstrip("/"), source.info.bounds, source.block_shape

        def tasks() -> Iterator[Task]:
            yield FloodReportTask(
                flood_uri=f"{root}/graph/{self.flood}",
                seams_uri=f"{root}/graph/{self.stitch}",
                graph_uri=f"{root}/graph/{self.label}",
                bounds=bounds,
                block_shape=block_shape,
                n_pictures=self.n_pictures,
            )

        n_blocks = math.prod(-(-n // b) for n, b in zip(bounds.shape, block_shape, strict=True))
        memory = base_bytes([]) + _BYTES_PER_BLOCK * n_blocks + _BYTES_PER_PICTURE * self.n_pictures
        return StagePlan(
            self.label, (), (Step(self.label, 1, tasks, task_memory_bytes=memory),), outputs_bytes=0
        )


def _page(
    title: str,
    tables: dict[str, dict[str, npt.NDArray[Any]]],
    seams: dict[str, npt.NDArray[Any]],
    pictures: Sequence[tuple[str, str, bytes]],
) -> str:
    n_objects = sum(len(t["id"]) for t in tables.values())
    n_steps = sum(int(t["steps"].sum()) for t in tables.values())
    counts = f"{n_objects:,} objects before they were joined; {n_steps:,} steps in them"
    parts = [
        f"<h1>Flood filling</h1><p>{len(tables):,} {html.escape(title)}; {counts}.</p>",
        "<h2>How objects grew</h2>",
        "<p>Of each block the section with most objects: the image, and the objects after each sixth of all steps.</p>",
        "<p>Look for objects that leak over a membrane, and at what stays empty.</p>",
    ]
    for name, told, png in pictures:
        data = base64.b64encode(png).decode()
        where = html.escape(name.replace("_", ", "))
        parts.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="growth in the block at {where}">'
            f"<figcaption>block at {where}: {told}</figcaption></figure>"
        )
    parts.append("<h2>Seams</h2>")
    if seams and len(seams["x"]):
        share = seams["agreeing_vx"].sum() / max(1, seams["overlap_vx"].sum())
        parts.append(
            "<p>Objects of both sides that were joined (matched), whose partner belongs to another (split), that share "
            "too little (conflicting), and that have nothing opposite (alone). Both sides agree on "
            f"<b>{share:.1%}</b> of the voxels that both could see; the worst seams come first.</p>{_seams(seams)}"
        )
    else:
        parts.append("<p>There are none: the volume is one block, or nothing was joined yet.</p>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>Flood filling</title><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _seams(seams: dict[str, npt.NDArray[Any]]) -> str:
    share = seams["agreeing_vx"] / np.maximum(1, seams["overlap_vx"])
    head = ("upper block", "across", "matched", "split", "conflicting", "alone", "agreeing")
    rows = []
    for i in np.argsort(share, kind="stable")[:200]:
        numbers = [f"{int(seams[v][i]):,}" for v in head[2:6]]
        cells = [f"{seams['x'][i]}, {seams['y'][i]}, {seams['z'][i]}", "xyz"[seams["axis"][i]], *numbers]
        rows.append("".join(f"<td>{cell}</td>" for cell in [*cells, f"{share[i]:.1%}"]))
    titles = "".join(f"<th>{t}</th>" for t in head)
    return f'<div class="wide"><table><tr>{titles}</tr><tr>{"</tr><tr>".join(rows)}</tr></table></div>'


def _told(table: dict[str, npt.NDArray[Any]]) -> str:
    if not len(table["id"]):
        return "no object"
    longest = int(np.argmax(table["steps"]))
    seed = ", ".join(str(int(table[f"seed_{axis}"][longest])) for axis in "xyz")
    return (
        f"{len(table['id']):,} objects in {int(table['steps'].sum()):,} steps, the longest of "
        f"{int(table['steps'][longest]):,} steps from {seed}"
    )

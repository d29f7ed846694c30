"""A brain of 100,000 somas through stitching, catalogue and report: seconds and peak memory of each step.

**Simulated:** the voxels. Each soma is an ellipsoid of 100 points, each of which stands for thousands of voxels; blocks
cut it into pieces, whose partial sums are written as the stage writes them. So are the edges between pieces, with
contacts of neighbours among them that must not be joined, the segments that they lie in, and the deepest voxels, for
which masks would be read. **Real:** the rule and the union-find of stitching, the tasks that add up and publish, the
report. Each step runs in a process of its own; its memory includes Python and libraries, which the first row has alone.

The sums are checked: as many somas as were drawn, each with the voxels that were drawn for it.

Usage: python benchmarks/soma_catalogue.py [--somas 25000 100000]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from cloudseg.geometry import Box, grid_box, grid_shape
from cloudseg.ops.contingency import Contingency
from cloudseg.ops.soma_stitch import Overlaps, StitchRule, joins, stitched
from cloudseg.ops.soma_table import SomaTable, add_somas
from cloudseg.ops.statistics import partition_of
from cloudseg.somas.report import gather, write_report
from cloudseg.somas.store import iter_batches, read_catalog
from cloudseg.tasking.run_task import peak_memory_bytes
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context, Task
from cloudseg.testing.runs import print_table, watched
from cloudseg.volumes import VolumeInfo, open_objects, open_volume
from cloudseg.volumes.tables import get_table, put_table
from cloudseg_tasks.soma_catalogue import SomaCatalogueStage
from cloudseg_tasks.soma_catalogue.tables import (
    merged_key,
    overlap_columns,
    overlaps_key,
    places_key,
    soma_columns,
    somas_key,
)

VOXEL_NM = (64.0, 64.0, 40.0)
BLOCK = (1024, 1024, 1024)
N_POINTS = 100
EDGE_TABLES = 16
RULE = StitchRule(kind="published")
VOXEL_UM3 = float(np.prod(VOXEL_NM)) * 1e-9
STEPS = ("nothing", "stitch", "merge", "publish", "report")


def bounds_of(n_somas: int) -> Box:
    """Return a volume in which 100,000 somas have ten million voxels each to themselves, in whole blocks."""
    edge = round((n_somas * 1e7 / 2) ** (1 / 3) / BLOCK[0]) or 1
    return Box.of_shape((2 * edge * BLOCK[0], edge * BLOCK[1], edge * BLOCK[2]))


def stage_and_site(folder: str, n_somas: int) -> tuple[SomaCatalogueStage, Site]:
    """Return what plans the tasks."""
    info = VolumeInfo(bounds=bounds_of(n_somas), voxel_size_nm=VOXEL_NM, dtype="uint64", layer="segmentation")
    layers = {name: Layer(name, f"{folder}/{name}", info) for name in ("somas", "neurons")}
    stage = SomaCatalogueStage(segments="neurons", dataset="simulated", block_shape=BLOCK)
    return stage, Site(folder, layers, open_volume, open_objects)


def tasks_of(folder: str, n_somas: int, step: str) -> list[Task]:
    """Return the tasks of one step."""
    stage, site = stage_and_site(folder, n_somas)
    (found,) = (s for s in stage.expand(site).steps if s.name.endswith(f".{step}"))
    return list(found.tasks())


def simulate_pieces(folder: str, n_somas: int) -> dict[str, np.ndarray]:
    """Draw somas, cut them at blocks; store the edges between pieces, return the pieces."""
    rng = np.random.default_rng(0)
    bounds = bounds_of(n_somas)
    # Most somas lie in a rind: somewhere on an ellipsoid that fills the volume, a little below its surface.
    at = rng.normal(size=(n_somas, 3))
    at *= ((1 - np.abs(rng.normal(0, 0.06, n_somas))) / np.linalg.norm(at, axis=1))[:, None]
    centres = (at * 0.49 + 0.5) * bounds.shape
    radii_um = rng.lognormal(np.log(2.4), 0.25, n_somas)
    axes_vx = radii_um[:, None] * rng.uniform(0.8, 1.25, (n_somas, 3)) * 1e3 / np.asarray(VOXEL_NM)
    weights = np.rint(4 / 3 * np.pi * axes_vx.prod(axis=1) / N_POINTS).astype(np.int64)
    ball = rng.normal(size=(N_POINTS, 3))
    ball *= (np.cbrt(rng.uniform(0, 1, N_POINTS)) / np.linalg.norm(ball, axis=1))[:, None]
    grid = grid_shape(bounds, BLOCK)
    names, sources, tables = [], [], []
    for low in range(0, n_somas, 5000):
        some = slice(low, min(low + 5000, n_somas))
        points = np.rint(centres[some, None] + ball * axes_vx[some, None]).astype(np.int64)
        points = np.clip(points, 0, np.asarray(bounds.shape) - 1).reshape(-1, 3)
        soma = np.repeat(np.arange(some.start, some.stop), N_POINTS)
        block = np.ravel_multi_index(tuple((points // BLOCK).T), grid)
        order = np.lexsort((block, soma))
        points, soma, block = points[order], soma[order], block[order]
        first = np.flatnonzero(np.concatenate([[True], (np.diff(soma) != 0) | (np.diff(block) != 0)]))
        columns = np.zeros((len(points), 20), np.int64)
        w = weights[soma]
        x, y, z = points.T
        columns[:, 0] = w
        columns[:, 1:4] = points * w[:, None]
        for i, product in enumerate((x * x, y * y, z * z, x * y, x * z, y * z)):
            columns[:, 4 + i] = product * w
        summed = np.add.reduceat(columns, first, axis=0)
        summed[:, 10:13] = np.minimum.reduceat(points, first, axis=0)
        summed[:, 13:16] = np.maximum.reduceat(points, first, axis=0) + 1
        summed[:, 19] = 1
        names.append(block[first])
        sources.append(soma[first])
        tables.append(summed)
    block, soma, table = np.concatenate(names), np.concatenate(sources), np.concatenate(tables)
    # Ids as a block gives them, before stitching.
    ids = (block.astype(np.uint64) << np.uint64(32)) + np.arange(1, len(block) + 1).astype(np.uint64)
    same = np.flatnonzero(soma[1:] == soma[:-1])
    n = table[:, 0]
    # Pieces of one soma share most of the slab in which both were segmented; neighbours that touch a little of it.
    touching = rng.integers(0, len(ids), (2, len(ids) // 4))
    touching = touching[:, soma[touching[0]] != soma[touching[1]]]
    a, b = np.concatenate([same, touching[0]]), np.concatenate([same + 1, touching[1]])
    share = np.concatenate([rng.uniform(0.5, 1, len(same)), rng.uniform(0, 0.25, len(touching[0]))])
    slab_a, slab_b = np.maximum(n[a] // 5, 200), np.maximum(n[b] // 5, 200)
    n_ab = np.ceil(np.minimum(slab_a, slab_b) * share).astype(np.int64)
    n_ab[len(same) :] = np.minimum(n_ab[len(same) :], int(RULE.large_um3 * 0.9 / VOXEL_UM3))
    objects = open_objects(f"{folder}/edges")
    for part in range(EDGE_TABLES):
        mine = slice(part, None, EDGE_TABLES)
        edges = {"a": ids[a[mine]], "b": ids[b[mine]], "n_ab": n_ab[mine]}
        put_table(objects, f"{part}.parquet", {**edges, "n_a": slab_a[mine], "n_b": slab_b[mine]})
        put_table(objects, f"sizes-{part}.parquet", {"id": ids[mine], "n": n[mine]})
    return {"ids": ids, "block": block, "soma": soma, "table": table}


def stitch(folder: str) -> None:
    """Decide on every edge, join, store who is renamed."""
    objects = open_objects(f"{folder}/edges")
    a, b, ids, n = [], [], [], []
    for part in range(EDGE_TABLES):
        edges = Overlaps(**get_table(objects, f"{part}.parquet"))
        join = joins(edges, RULE, voxel_um3=VOXEL_UM3)
        a.append(edges.a[join])
        b.append(edges.b[join])
        sizes = get_table(objects, f"sizes-{part}.parquet")
        ids.append(sizes["id"])
        n.append(sizes["n"])
    old, new = stitched(
        (np.concatenate(a), np.concatenate(b)),
        np.concatenate(ids),
        np.concatenate(n),
        min_size_um3=1.0,
        voxel_um3=VOXEL_UM3,
    )
    put_table(objects, "names.parquet", {"old": old, "new": new})


def simulate_measures(folder: str, n_somas: int, pieces: dict[str, np.ndarray]) -> None:
    """Write what the blocks would have measured in the stitched volume."""
    names = get_table(open_objects(f"{folder}/edges"), "names.parquet")
    ids = pieces["ids"].copy()
    at = np.minimum(np.searchsorted(names["old"], ids), len(names["old"]) - 1)
    ids = np.where(names["old"][at] == ids, names["new"][at], ids)
    (task, *_) = tasks_of(folder, n_somas, "measure")
    objects, bounds = open_objects(task.dst_uri), bounds_of(n_somas)
    grid = grid_shape(bounds, BLOCK)
    order = np.argsort(pieces["block"], kind="stable")
    starts = np.searchsorted(pieces["block"][order], np.arange(np.prod(grid) + 1))
    for block in range(int(np.prod(grid))):
        rows = order[starts[block] : starts[block + 1]]
        core = grid_box(bounds, BLOCK, tuple(int(v) for v in np.unravel_index(block, grid)))
        table = SomaTable.of_columns(ids[rows], pieces["table"][rows])
        table = add_somas([table]) if len(rows) else add_somas([])
        # Nine of ten somas have a neuron, some neurons two somas.
        neuron = (pieces["soma"][rows] % (n_somas * 9 // 10)).astype(np.uint64) + np.uint64(1)
        inside = pieces["soma"][rows] % 10 != 3
        pairs = Contingency(ids[rows][inside], neuron[inside], pieces["table"][rows, 0][inside] * 9 // 10)
        owner = partition_of(table.ids, n_partitions=task.n_partitions)
        pair_owner = partition_of(pairs.seg_ids, n_partitions=task.n_partitions)
        for part in range(task.n_partitions):
            columns = soma_columns(table.take(owner == part), is_part=True)
            put_table(objects, somas_key(core, partition=part), columns)
            m = pair_owner == part
            shared = Contingency(pairs.seg_ids[m], pairs.truth_ids[m], pairs.counts[m])
            put_table(objects, overlaps_key(core, partition=part), overlap_columns(shared))


def simulate_places(folder: str, n_somas: int) -> None:
    """Write the centre of each bounding box for its deepest voxel."""
    for task in tasks_of(folder, n_somas, "places"):
        objects = open_objects(task.graph_uri)
        table = get_table(objects, merged_key(task.partition))
        mine = slice(task.portion, None, task.n_portions)
        columns = {"id": table["id"][mine]}
        for axis, size in zip("xyz", VOXEL_NM, strict=True):
            middle = (table[f"start_{axis}_vx"][mine] + table[f"stop_{axis}_vx"][mine]) // 2
            columns[f"anchor_{axis}_nm"] = (middle + 0.5) * size
        none = np.full(len(columns["id"]), np.nan)
        columns |= {"depth_nm": none, "region": np.zeros(len(none), np.uint64), "surface_um2": none}
        put_table(objects, places_key(task.partition, task.portion), columns)


def work(folder: str, n_somas: int, step: str) -> None:
    """Do one of the measured steps."""
    if step == "stitch":
        stitch(folder)
    elif step in ("merge", "publish"):
        for task in tasks_of(folder, n_somas, step):
            task.run(Context(open_volume=open_volume, open_objects=open_objects))
    elif step == "report":
        objects = open_objects(f"{folder}/somas")
        write_report(gather(objects, read_catalog(objects)), open_objects(f"{folder}/report"))


def one(folder: str, n_somas: int, step: str) -> tuple[float, float, float]:
    """Run a step in a process of its own; return its seconds, CPU seconds and peak memory in MB."""
    done = watched(sys.executable, __file__, "--folder", folder, "--step", step, "--somas", str(n_somas))
    return done.seconds, done.cpu_seconds, int(done.text) / 1e6


def check(folder: str, n_somas: int, pieces: dict[str, np.ndarray]) -> int:
    """Compare the catalogue with what was drawn; return its number of somas."""
    objects = open_objects(f"{folder}/somas")
    catalog = read_catalog(objects)
    found = np.concatenate(
        [b.column("n_voxels").to_numpy() for b in iter_batches(objects, catalog, columns=["n_voxels"])]
    )
    drawn = np.bincount(pieces["soma"], weights=pieces["table"][:, 0]).astype(np.uint64)
    np.testing.assert_array_equal(np.sort(found), np.sort(drawn))
    assert catalog.n_somas == n_somas
    return catalog.n_somas


def main() -> None:
    """Simulate, run the steps, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--somas", type=int, nargs="+", default=[25_000, 100_000])
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        work(options.folder, options.somas[0], options.step)
        # Not the parent's account of it: that begins with the memory that the parent itself had.
        print(peak_memory_bytes())
        return
    for n_somas in options.somas:
        with tempfile.TemporaryDirectory() as name:
            folder = f"file://{name}"
            pieces = simulate_pieces(folder, n_somas)
            rows: list[tuple[object, ...]] = []
            for step in STEPS:
                if step == "merge":
                    simulate_measures(folder, n_somas, pieces)
                if step == "publish":
                    simulate_places(folder, n_somas)
                seconds, cpu_seconds, peak_mb = one(folder, n_somas, step)
                rows.append((step, f"{seconds:.1f}", f"{cpu_seconds:.1f}", f"{peak_mb:.0f}"))
            n_found = check(folder, n_somas, pieces)
            size = sum(p.stat().st_size for p in Path(name, "somas").rglob("*.parquet")) / 1e6
        bounds = bounds_of(n_somas)
        extent = " x ".join(f"{n * s * 1e-3:.0f}" for n, s in zip(bounds.shape, VOXEL_NM, strict=True))
        print_table(
            f"{n_found:,} somas of {len(pieces['ids']):,} pieces in {np.prod(grid_shape(bounds, BLOCK)):,} blocks of "
            f"{BLOCK[0]}^3 ({extent} um), {os.cpu_count()} cores; the table has {size:.1f} MB",
            ("step", "seconds", "CPU seconds", "peak memory, MB"),
            rows,
        )


if __name__ == "__main__":
    main()

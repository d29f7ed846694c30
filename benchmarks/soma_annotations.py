"""Annotations of many somas: seconds, memory, objects and bytes of each step; what a real Neuroglancer then loads.

**Simulated:** the table; somas lie in the rind of an ellipsoid, like those of a brain. **Real:** the tasks of the stage
``soma_annotations``, each in a process of its own (its memory includes Python and libraries, which the first row has
alone); all files read back; with ``--browser`` headless Chromium with software rendering, on the link.

Usage: python benchmarks/soma_annotations.py [--somas 143000 1000000] [--browser] [--picture FILE]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cloudseg.geometry import Box
from cloudseg.server.app import create_app, running
from cloudseg.somas.annotation_rows import SHAPES
from cloudseg.somas.annotations import annotations_key
from cloudseg.somas.store import CatalogSpec, iter_batches, publish, read_catalog, write_version
from cloudseg.tasking.run_task import peak_memory_bytes
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context, Task
from cloudseg.testing.browser import ARGUMENTS, chromium_path
from cloudseg.testing.runs import print_table, watched
from cloudseg.volumes import VolumeInfo, create_volume, open_objects, open_volume
from cloudseg.volumes.annotations import Annotations
from cloudseg_tasks.soma_annotations import SomaAnnotationsStage
from cloudseg_viewer.links import build_link, mounts
from cloudseg_viewer.roots import read_root

VOXEL_NM = (4096.0, 4096.0, 4096.0)
STEPS = ("nothing", "plan", "write", "publish")

# Annotations in the graphics memory, of all cells of all levels: how many, and how many different.
LOADED = """() => {
  const state = window.viewer.layerManager.getLayerByName("somas").layer.annotationStates.states[0];
  const ids = [];
  for (const level of state.source.spatiallyIndexedSources)
    for (const cell of level.chunks.values())
      for (const some of cell.data?.serializedAnnotations?.typeToIds ?? []) ids.push(...some);
  return [ids.length, new Set(ids).size, window.viewer.isReady()];
}"""


SETTLE_S = 5

READY = """() => window.viewer?.isReady()
  && window.viewer.layerManager.getLayerByName("somas")?.layer.annotationStates.states.length > 0"""


def make_root(folder: str, n_somas: int) -> None:
    """Write a root with a catalogue, and a layer as large as the volume, without voxels."""
    rng = np.random.default_rng(0)
    # As in a fly's brain: 700 um3 for each, in a box twice as wide as high.
    edge = max(1, round((n_somas * 700 / 2) ** (1 / 3) * 1e3 / VOXEL_NM[0]))
    bounds = Box.of_shape((2 * edge, edge, edge))
    size = np.asarray(bounds.shape) * VOXEL_NM
    at = rng.normal(size=(n_somas, 3))
    at *= ((1 - np.abs(rng.normal(0, 0.06, n_somas))) / np.linalg.norm(at, axis=1))[:, None]
    centre = (at * 0.49 + 0.5) * size
    radius = rng.lognormal(np.log(2.4), 0.25, n_somas)
    axes = np.sort(radius[:, None] * rng.uniform(0.8, 1.25, (n_somas, 3)), axis=1)[:, ::-1]
    direction = rng.normal(size=(n_somas, 3))
    direction /= np.linalg.norm(direction, axis=1)[:, None]
    columns: dict[str, Any] = {
        "soma_id": rng.permutation(10 * n_somas)[:n_somas].astype(np.uint64) + np.uint64(1),
        "n_voxels": np.full(n_somas, 1000, np.uint64),
        "volume_um3": 4 / 3 * np.pi * axes.prod(axis=1),
        "radius_um": np.cbrt(axes.prod(axis=1)).astype(np.float32),
        "score": rng.uniform(0.5, 1, n_somas).astype(np.float32),
        "nearest_um": rng.gamma(3, 2, n_somas).astype(np.float32),
        "edge_faces": np.zeros(n_somas, np.uint8),
        "status": pa.array(["auto"] * n_somas),
        "segment_id": pa.array(
            rng.integers(1, n_somas, n_somas).astype(np.uint64), mask=rng.random(n_somas) < 0.1
        ),
    }
    for i, axis in enumerate("xyz"):
        for prefix, shift in (("", 0), ("anchor_", 0), ("bbox_min_", -1), ("bbox_max_", 1)):
            columns[f"{prefix}{axis}_nm"] = centre[:, i] + shift * radius * 1000
        columns[f"axis_dir_{axis}"] = direction[:, i].astype(np.float32)
    for i, name in enumerate(("major", "mid", "minor")):
        columns[f"axis_{name}_um"] = axes[:, i].astype(np.float32)
    lower, upper = (0.0, 0.0, 0.0), (float(size[0]), float(size[1]), float(size[2]))
    spec = CatalogSpec(dataset="simulated", voxel_size_nm=VOXEL_NM, bounds_nm=(lower, upper))
    objects = open_objects(f"{folder}/somas")
    write_version(objects, pa.table(columns), spec, version=1)
    publish(objects, 1)
    create_volume(f"{folder}/somas", info_of(bounds))


def info_of(bounds: Box) -> VolumeInfo:
    """Return what the layer of masks is."""
    return VolumeInfo(bounds=bounds, voxel_size_nm=VOXEL_NM, dtype="uint64", layer="segmentation")


def tasks_of(folder: str, step: str) -> list[Task]:
    """Return the tasks of one step."""
    info = open_volume(f"{folder}/somas").info
    site = Site(folder, {"somas": Layer("somas", f"{folder}/somas", info)}, open_volume, open_objects)
    (found,) = (s for s in SomaAnnotationsStage().expand(site).steps if s.name.endswith(f".{step}"))
    return list(found.tasks())


def one(folder: str, step: str, number: int) -> tuple[float, float, float]:
    """Run one task in a process of its own; return its seconds, CPU seconds and peak memory in MB."""
    done = watched(sys.executable, __file__, "--folder", folder, "--step", step, "--number", str(number))
    return done.seconds, done.cpu_seconds, int(done.text) / 1e6


def check(folder: str) -> list[tuple[object, ...]]:
    """Read everything back; return levels, objects and bytes of each set."""
    objects = open_objects(f"{folder}/somas")
    catalog = read_catalog(objects)
    ids = np.sort(
        np.concatenate([b.column(0).to_numpy() for b in iter_batches(objects, catalog, columns=["soma_id"])])
    )
    rows: list[tuple[object, ...]] = []
    for shape in SHAPES:
        key = annotations_key(1, shape)
        annotations = Annotations(f"{folder}/somas/{key}")
        found, _ = annotations.all()
        np.testing.assert_array_equal(np.unique(found), ids)
        for soma in ids[:: max(1, len(ids) // 200)].tolist():
            assert annotations.related("soma", soma)[0].tolist() == [soma]
            assert annotations.by_id(soma)[1]["soma"] == (soma,)
        files = [p for p in Path(folder.removeprefix("file://"), "somas", key).rglob("*") if p.is_file()]
        levels = " ".join(
            "x".join(map(str, level["grid_shape"])) + f":{level['limit']}"
            for level in annotations.info["spatial"]
        )
        size = sum(p.stat().st_size for p in files) / 1e6
        rows.append((shape, levels, f"{len(found) - len(ids):,}", len(files), f"{size:.1f}"))
    return rows


def look(folder: str, picture: Path | None) -> list[tuple[object, ...]]:
    """Open the link in a browser, far and near; return seconds and annotations."""
    from playwright.sync_api import sync_playwright

    found = read_root(folder)
    rows: list[tuple[object, ...]] = []
    with running(create_app(mounts(found.uri, found.layers))) as base, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(), headless=True, args=list(ARGUMENTS)
        )
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        link = build_link(found.uri, found.layers, server=base, somas=found.somas)
        started = time.monotonic()
        page.goto(link.url, timeout=300_000)
        for name, zoom in (("all of the volume", None), ("a twentieth of its edge", 0.05)):
            if zoom is not None:
                started = time.monotonic()
                # Into the rind, where somas are.
                x, y, z = found.layers[0].bounds.shape
                page.evaluate(
                    """([zoom, at]) => {
                      window.viewer.navigationState.position.value = Float32Array.from(at);
                      window.viewer.projectionScale.value *= zoom;
                    }""",
                    [zoom, [x / 2, y * 0.03, z / 2]],
                )
            page.wait_for_function(READY, timeout=300_000)
            # The viewer is ready until the next frame asks for something.
            page.wait_for_timeout(SETTLE_S * 1000)
            page.wait_for_function(READY, timeout=300_000)
            n, n_different, _ = page.evaluate(LOADED)
            rows.append((name, f"{time.monotonic() - started:.1f}", f"{n:,}", f"{n_different:,}"))
            if picture is not None and zoom is None:
                page.screenshot(path=picture)
        browser.close()
    return rows


def main() -> None:
    """Simulate, run the steps, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--somas", type=int, nargs="+", default=[143_000])
    parser.add_argument("--browser", action="store_true", help="open the link in Chromium")
    parser.add_argument("--picture", type=Path, help="where to put a picture of it")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        if options.step != "nothing":
            task = tasks_of(options.folder, options.step)[options.number]
            task.run(Context(open_volume=open_volume, open_objects=open_objects))
        print(peak_memory_bytes())
        return
    for n_somas in options.somas:
        with tempfile.TemporaryDirectory() as name:
            folder = f"file://{name}/run"
            make_root(folder, n_somas)
            rows: list[tuple[object, ...]] = []
            for step in STEPS:
                n_tasks = 1 if step == "nothing" else len(tasks_of(folder, step))
                runs = [one(folder, step, number) for number in range(n_tasks)]
                seconds, cpu_seconds = sum(run[0] for run in runs), sum(run[1] for run in runs)
                peak_mb = max(run[2] for run in runs)
                rows.append((step, n_tasks, f"{seconds:.1f}", f"{cpu_seconds:.1f}", f"{peak_mb:.0f}"))
            print_table(
                f"{n_somas:,} somas as annotations, {os.cpu_count()} cores",
                ("step", "tasks", "seconds, one after another", "CPU seconds", "peak memory, MB"),
                rows,
            )
            print_table(
                f"{n_somas:,} somas: what was written, and read back whole",
                ("set", "levels: cells, most in one", "in several cells", "objects", "MB"),
                check(folder),
            )
            if options.browser:
                print_table(
                    f"{n_somas:,} somas in Neuroglancer (headless Chromium, software rendering)",
                    (
                        "view",
                        f"seconds to ready, {SETTLE_S} of them to settle",
                        "points loaded",
                        "different somas",
                    ),
                    look(folder, options.picture),
                )


if __name__ == "__main__":
    main()

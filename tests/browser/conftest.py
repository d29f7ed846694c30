"""A real browser, and a real little root to look at: image, segmentation, meshes, skeletons, properties."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from cloudseg.geometry import Box
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.testing.browser import ARGUMENTS, chromium_path
from cloudseg.testing.phantom import neurite_phantom
from cloudseg.volumes import VolumeInfo, create_volume, open_objects, open_volume, update_info
from cloudseg.volumes.segment_properties import segment_properties_info, write_segment_properties
from cloudseg_tasks.igneous import DownsampleStage, MeshesStage, SkeletonsStage

SHAPE = (96, 96, 64)
OFFSET = (64, 32, 16)


@pytest.fixture(scope="session")
def chromium():
    """One headless Chromium for the session; a missing one fails: what nobody looks at is not shown to work."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(), headless=True, args=list(ARGUMENTS), timeout=90_000
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def new_page(chromium):
    """Opens fresh pages; each keeps its console errors in ``problems`` and the addresses it asked for in ``asked``."""
    contexts = []

    def open_page():
        context = chromium.new_context(viewport={"width": 900, "height": 650})
        contexts.append(context)
        context.set_default_timeout(90_000)  # a busy machine takes a minute to start the viewer
        page = context.new_page()
        page.problems, page.asked = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A pipeline root as a run leaves it, with the image outside of it."""
    folder = tmp_path_factory.mktemp("look")
    phantom = neurite_phantom(SHAPE, seed=3)
    bounds = Box.of_shape(SHAPE, at=OFFSET)
    layout = {"bounds": bounds, "voxel_size_nm": phantom.voxel_size_nm, "chunk_shape": (32, 32, 32)}

    image = create_volume(folder / "em", VolumeInfo(**layout))
    image.write(bounds, phantom.image)

    root = folder / "run"
    open_objects(root).put(
        "pipeline/spec.toml", f'image = "file://{folder}/em"\nroot = "file://{root}"\n'.encode()
    )
    labels = {"dtype": "uint64", "layer": "segmentation", "encoding": "compressed_segmentation"}
    for name in ("supervoxels", "segmentation"):
        create_volume(root / name, VolumeInfo(**layout, **labels)).write(bounds, phantom.labels)
    affinities = np.zeros((3, *SHAPE), np.uint8, order="F")
    for axis in range(3):
        same = phantom.labels == np.roll(phantom.labels, 1, axis=axis)
        affinities[axis] = np.where(same, 235, 20)
    create_volume(root / "affinities", VolumeInfo(**layout, n_channels=3)).write(bounds, affinities)
    tissue = np.ones(SHAPE, np.uint8, order="F")
    tissue[:20] = 0
    create_volume(root / "mask", VolumeInfo(**layout)).write(bounds, tissue)

    _products(root, VolumeInfo(**layout, **labels), phantom.labels)
    return root


def _products(root: Path, info: VolumeInfo, labels: np.ndarray) -> None:
    """Coarser scales, meshes, skeletons and properties, made by the pipeline's own stages."""
    segmentation = f"file://{root}/segmentation"
    site = Site(
        f"file://{root}",
        {"segmentation": Layer("segmentation", segmentation, info)},
        open_volume,
        open_objects,
    )
    stages = (
        DownsampleStage(n_mips=1),
        MeshesStage(simplification_error_nm=8.0),
        SkeletonsStage(dust_vx=100, min_cable_nm=50, tick_nm=50),
    )
    for stage in stages:
        for step in stage.expand(site).steps:
            if step.prepare:
                step.prepare()
            for task in step.tasks():
                task.run(Context(open_volume=open_volume, open_objects=open_objects))
    ids, counts = np.unique(labels, return_counts=True)
    properties = segment_properties_info(
        ids, labels=[f"neurite {i}" for i in ids], numbers={"voxels": (counts, "voxels inside")}
    )
    write_segment_properties(open_objects(segmentation), properties)
    update_info(segmentation, segment_properties="segment_properties")


# State and tier of each source's chunks: Neuroglancer keeps [(state * 3 + tier) * 3 + quantity] in one array, where
# tier 0 is what is on screen and quantity 0 is the number of chunks.
_STATISTICS = """async () => {
  const viewer = window.viewer ?? window.page.space.viewer;
  const statistics = await viewer.chunkQueueManager.getStatistics();
  const states = ["gpu", "system", "worker", "downloading", "queued", "new", "failed", "expired"];
  const out = Object.fromEntries(states.map((s) => [s, 0]));
  out.sources = [];
  for (const [source, numbers] of statistics) {
    states.forEach((s, i) => { out[s] += numbers[i * 9]; });
    out.sources.push({ kind: source.constructor.name, key: source.RPC_TYPE_ID ?? "",
                       text: source.toString?.() ?? "", gpu: numbers[0] });
  }
  out.ready = viewer.isReady();
  out.names = viewer.layerManager.managedLayers.map((layer) => layer.name);
  out.errors = viewer.layerManager.managedLayers.flatMap((layer) => (layer.layer?.dataSources ?? []).flatMap(
    (d) => d.loadState?.error ? [layer.name + ": " + d.loadState.error.message] : []));
  return out;
}"""


class NotLoadedError(AssertionError):
    """The viewer failed to show what it was asked to show."""


@pytest.fixture(scope="session")
def wait_loaded():
    """Wait until a page's viewer has everything on screen; fail at once where it never will."""

    def wait(page, *, names: list[str], timeout_s: float = 60.0) -> dict:
        deadline = time.monotonic() + timeout_s
        page.wait_for_function("() => window.viewer ?? window.page?.space?.viewer", timeout=timeout_s * 1000)
        quiet, state = 0, {}
        while time.monotonic() < deadline:
            state = page.evaluate(_STATISTICS)
            if state["failed"] or state["errors"]:
                raise NotLoadedError(f"chunks or sources failed: {state}")
            busy = state["downloading"] + state["queued"] + state["new"]
            quiet = quiet + 1 if state["ready"] and not busy else 0
            if quiet >= 3:
                if state["names"] != names:
                    raise NotLoadedError(f"layers {names} were asked for, but {state['names']} are there")
                return state
            page.wait_for_timeout(150)
        raise NotLoadedError(f"not ready after {timeout_s:g} s: {state}")

    return wait

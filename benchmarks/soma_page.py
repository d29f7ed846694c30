"""How fast is the soma page? Opening it, and from a change of a filter to the frame that shows it.

    python benchmarks/soma_page.py [--somas 150000] [--rounds 20] [--picture FILE]

A small volume with made-up somas, served on this machine, in headless Chromium. ``page`` is the time from the change to
the frame after the one in which table, plots and counts were painted and the points' states were handed to the
graphics memory (`performance.now`, two animation frames). ``drawn`` waits, beyond that, until Neuroglancer has drawn
its four panels and the pixels have come back from the renderer, which is software here and a graphics card elsewhere.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from cloudseg.geometry import Box
from cloudseg.server.app import create_app, running
from cloudseg.server.datasets import Datasets
from cloudseg.testing.browser import ARGUMENTS, chromium_path
from cloudseg.testing.phantom import neurite_phantom
from cloudseg.testing.runs import print_table
from cloudseg.testing.somas_in_volume import write_catalogue
from cloudseg.volumes import VolumeInfo, create_volume
from cloudseg_viewer.links import build_link, mounts
from cloudseg_viewer.roots import read_root

SHAPE = (96, 96, 64)

# Each changes what is shown, by another number in each round (t, 0 to 1).
CHANGES = {
    "brush on a histogram": "(t) => model.setBrush('volume_um3', [20 + 100 * t, 150 + 200 * t])",
    "filter line, two conditions": (
        "(t) => { line.value = `score >= ${t} and side in [left, right]`; return window.page.readLine(); }"
    ),
    "box on the map": "(t) => model.setBox({ axes: 'xy', low: [512 + 200 * t, 256], high: [1000 + 200 * t, 900] })",
    "all filters cleared": "() => document.getElementById('clear').click()",
    "sorted by a column": "(t) => model.setSort('nearest_um', t > 0.5)",
    "next soma: fly, select": "() => window.page.table.step(1, true)",
}
MEASURE = """async (t) => {
  const { model, space } = window.page, line = document.getElementById("line");
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  await frame();
  const start = performance.now();
  await (CHANGE)(t);
  await frame();
  await frame();
  const page = performance.now() - start;
  space.viewer.display.draw();
  const gl = space.viewer.display.gl;
  gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
  return [page, performance.now() - start, model.shown.length];
}"""


def make_root(folder: Path, n_somas: int) -> Path:
    """Write image, segmentation and catalogue."""
    phantom = neurite_phantom(SHAPE, seed=3)
    bounds = Box.of_shape(SHAPE, at=(64, 32, 16))
    layout: dict[str, Any] = {
        "bounds": bounds,
        "voxel_size_nm": phantom.voxel_size_nm,
        "chunk_shape": (32, 32, 32),
    }
    create_volume(folder / "image", VolumeInfo(**layout)).write(bounds, phantom.image)
    labels = {"dtype": "uint64", "layer": "segmentation", "encoding": "compressed_segmentation"}
    create_volume(folder / "segmentation", VolumeInfo(**layout, **labels)).write(bounds, phantom.labels)
    write_catalogue(folder, n_somas)
    return folder


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--somas", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--picture", type=Path, help="where to put a picture of the page")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = read_root(str(make_root(Path(folder) / "run", asked.somas)))
        offered = mounts(root.uri, root.layers)
        link = build_link(root.uri, root.layers, server="http://127.0.0.1:8642", focus_nm=root.focus_nm).url
        app = create_app(offered, links={root.uri: link}, datasets=Datasets([root.uri]))
        with running(app) as base:
            rows = measure(base, asked.rounds, asked.picture)
    print_table(
        f"{asked.somas} somas, {asked.rounds} rounds, headless Chromium with software rendering, 1440 x 900",
        ["", "page, median (ms)", "page, longest (ms)", "drawn, median (ms)"],
        rows,
    )


def measure(base: str, n_rounds: int, picture: Path | None) -> list[list[object]]:
    """Return the rows of the table."""
    rows: list[list[object]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(), headless=True, args=list(ARGUMENTS)
        )
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        began = time.monotonic()
        page.goto(f"{base}/page/")
        for state, what in (("table", "opened: table and plots"), ("ready", "opened: points in the view")):
            wanted = ["table", "ready"] if state == "table" else ["ready"]
            page.wait_for_function(
                f"() => {wanted}.includes(document.documentElement.dataset.state)", timeout=120_000
            )
            if state == "ready":
                page.wait_for_function("() => [...window.page.space.cells()].length > 0", timeout=120_000)
            rows.append([what, round((time.monotonic() - began) * 1000), "", ""])
        page.evaluate(MEASURE.replace("CHANGE", "() => {}"), 0.0)
        for what, change in CHANGES.items():
            script = MEASURE.replace("CHANGE", change)
            found = [page.evaluate(script, (i + 1) / n_rounds) for i in range(n_rounds)]
            on_page, drawn = [each[0] for each in found], [each[1] for each in found]
            median, longest = statistics.median(on_page), max(on_page)
            rows.append([what, round(median), round(longest), round(statistics.median(drawn))])
        if picture is not None:
            page.wait_for_timeout(3000)
            page.screenshot(path=picture)
        browser.close()
    return rows


if __name__ == "__main__":
    main()

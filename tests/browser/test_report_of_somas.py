"""The report of a soma catalogue in a real browser: it needs nothing else, and fits a telephone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from cloudseg.somas.report import gather, write_report
from cloudseg.somas.store import CatalogSpec, write_version
from cloudseg.volumes import open_objects

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    rng, n = np.random.default_rng(0), 500
    at = rng.uniform(0, 100_000, (n, 3))
    radius = rng.lognormal(1, 0.2, n)
    columns = {
        "soma_id": np.arange(1, n + 1, dtype=np.uint64) + np.uint64(2**60),
        "n_voxels": np.full(n, 1000, np.uint64),
        "volume_um3": radius**3 * 4.19,
        "radius_um": radius.astype(np.float32),
        "nearest_um": rng.uniform(1, 9, n).astype(np.float32),
        "edge_faces": rng.choice(np.array([0, 0, 1, 32], np.uint8), n),
        "status": pa.array(["auto"] * n, pa.string()),
        "region": pa.array(rng.choice(["calyx", "a region with quite a long name"], n).tolist(), pa.string()),
        "side": pa.array(rng.choice(["left", "right"], n).tolist(), pa.string()),
        "segment_id": rng.integers(1, 300, n).astype(np.uint64),
    }
    for i, axis in enumerate("xyz"):
        for name in (f"{axis}_nm", f"anchor_{axis}_nm", f"bbox_min_{axis}_nm", f"bbox_max_{axis}_nm"):
            columns[name] = at[:, i]
    folder = tmp_path_factory.mktemp("report")
    spec = CatalogSpec(
        dataset="toy",
        voxel_size_nm=(64, 64, 40),
        bounds_nm=((0, 0, 0), (100_000, 100_000, 100_000)),
        made_from={"segments": "gs://bucket/neurons"},
    )
    objects = open_objects(folder / "somas")
    catalog = write_version(objects, pa.table(columns), spec, version=1).catalog
    write_report(gather(objects, catalog), open_objects(folder / "report"))
    return folder / "report" / "index.html"


def test_the_report_is_drawn_in_both_schemes_and_widths_and_asks_for_nothing(report, new_page):
    page = new_page()
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (1200, 400):
            page.set_viewport_size({"width": width, "height": 800})
            page.goto(f"file://{report}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            plots = page.locator("svg")
            boxes = [plots.nth(i).bounding_box() for i in range(plots.count())]
            assert len(boxes) == 3 + 1 + 3  # distributions, legend, maps
            assert all(box["width"] > 60 and box["height"] > 20 for box in boxes)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        bars = page.evaluate("getComputedStyle(document.querySelector('.bar')).fill")
        assert len({grounds[-1], ink, bars}) == 3
    assert grounds[0] != grounds[1]
    assert not page.problems
    assert set(page.asked) == {f"file://{report}"}

"""The soma page in a real browser: table, plots and view say the same, and what fails says so."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from cloudseg import Somas
from cloudseg.server.access import Access, TokenEntry, TokenFile
from cloudseg.server.app import create_app, running
from cloudseg.server.datasets import Datasets
from cloudseg.somas.schema import BY_NAME
from cloudseg.testing.somas_in_volume import write_catalogue
from cloudseg.volumes import open_objects
from cloudseg_viewer.links import build_link, mounts
from cloudseg_viewer.roots import read_root

pytestmark = pytest.mark.browser

N = 5000
LAYERS = ["image", "mask", "affinities", "supervoxels", "segmentation", "somas"]
ARTIFACTS = Path(__file__).resolve().parents[2] / "test-artifacts"
EDITOR, READER, OLD = "cs_editor-secret", "cs_reader-secret", "cs_old-secret"


def entry(name, token, **more):
    return TokenEntry(name=name, sha256=hashlib.sha256(token.encode()).hexdigest(), **more)


TOKENS = TokenFile(
    secret="a secret of sixteen",
    tokens=(
        entry("ben", EDITOR, scopes=("read", "edit")),
        entry("ann", READER),
        entry("cat", OLD, expires=datetime(2020, 1, 1, tzinfo=UTC)),
    ),
)


@contextmanager
def served(root, *, tokens=None):
    """The root and its catalogue as `cloudseg serve` offers them."""
    found = read_root(str(root))
    access = Access(tokens)
    offered = mounts(found.uri, found.layers)
    url = build_link(found.uri, found.layers, server="http://127.0.0.1:8642", focus_nm=found.focus_nm).url
    for mount in offered:
        url = url.replace(f"/data/{mount.name}", f"/data/{access.capability(mount.name)}")
    app = create_app(offered, links={found.uri: url}, datasets=Datasets([found.uri]), access=access)
    with running(app) as base:
        yield base


@pytest.fixture(scope="module")
def somas(root):
    """The made-up somas of the little root."""
    return write_catalogue(root, N)


@pytest.fixture(scope="module")
def base(root, somas):
    with served(root) as base:
        yield base


STATE = "() => document.documentElement.dataset.state"


def opened(page, url, *, state="ready", size=(1440, 900)):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(url)
    page.wait_for_function(f"() => document.documentElement.dataset.state === '{state}'", timeout=60_000)
    return page


@pytest.fixture(scope="module")
def page(new_page, base):
    """The page, opened once; each test leaves its filters as it found them."""
    return opened(new_page(), f"{base}/page/")


@pytest.fixture(autouse=True)
def _cleared(request):
    yield
    if "page" in request.fixturenames:
        page = request.getfixturevalue("page")
        page.evaluate("() => { document.getElementById('clear').click(); window.page.model.choose(-1); }")


# What the graphics memory was told: states of the points, by value.
IN_SPACE = """() => {
  const counts = {};
  for (const [data] of window.page.space.cells()) {
    const bytes = data.serializedAnnotations.data;
    for (let i = 28; i < bytes.length; i += 32) counts[bytes[i]] = (counts[bytes[i]] ?? 0) + 1;
  }
  return counts;
}"""


def shown(page):
    """How many somas model, table, count and view show: one number, or the test fails."""
    page.wait_for_function(
        f"() => Object.values(({IN_SPACE})()).reduce((a, b) => a + b, 0) === window.page.model.n", timeout=30_000
    )
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    n = page.evaluate("() => window.page.model.shown.length")
    in_space = {int(k): v for k, v in page.evaluate(IN_SPACE).items()}
    assert sum(v for k, v in in_space.items() if k != 0) == n
    assert int(page.inner_text("#count").split(" of ")[0].replace("\u2009", "")) == n
    assert int(page.get_attribute("#table .body", "aria-rowcount")) == n + 1
    return n


def type_filter(page, text):
    page.fill("#line", text)
    page.press("#line", "Enter")


def test_image_neurons_somas_table_and_plots_appear_together(page, wait_loaded):
    state = wait_loaded(page, names=LAYERS)
    assert state["errors"] == []
    assert shown(page) == page.evaluate("() => window.page.model.n - 500") or shown(page) > 4000
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / "soma-page-light.png")
    rows = page.locator("#table .spacer .row:visible")
    assert 10 < rows.count() < 60, "only the rows on screen exist"
    for canvas in page.locator("#plots canvas").all():
        size = canvas.bounding_box()
        assert size["width"] > 80
        assert size["height"] > 60
    assert page.problems == []

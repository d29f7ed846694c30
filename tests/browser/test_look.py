"""The link in a real browser: everything in it appears, and what is broken is noticed."""

from __future__ import annotations

import base64
from collections import Counter
from pathlib import Path

import pytest

from cloudseg.server.app import create_app, running
from cloudseg_viewer.links import build_link, mounts
from cloudseg_viewer.roots import read_root

pytestmark = pytest.mark.browser

NAMES = ["image", "mask", "affinities", "supervoxels", "segmentation"]
ARTIFACTS = Path(__file__).resolve().parents[2] / "test-artifacts"

# Drawn and read in one turn: the buffer is not kept between frames. Four panels, below the bar with the layers.
_PANELS = """() => {
  const viewer = window.viewer;
  viewer.display.draw();
  const gl = viewer.display.canvas;
  const copy = document.createElement("canvas");
  copy.width = gl.width; copy.height = gl.height;
  const context = copy.getContext("2d");
  context.drawImage(gl, 0, 0);
  const bar = gl.height - document.querySelector(".neuroglancer-panel")?.closest("div")?.clientHeight;
  const w = gl.width >> 1, h = gl.height >> 1;
  return [[0, 0], [w, 0], [0, h], [w, h]].map(([x, y]) => {
    const bytes = context.getImageData(x, y, w, h).data;
    let text = "";
    for (let i = 0; i < bytes.length; i += 4 * 7) {
      text += String.fromCharCode(bytes[i], bytes[i + 1], bytes[i + 2]);
    }
    return btoa(text);
  });
}"""


def colours(page) -> list[Counter]:
    """How often each colour comes in a sample of each panel: xy, xz, 3D, yz."""
    panels = [base64.b64decode(text) for text in page.evaluate(_PANELS)]
    return [Counter(zip(p[0::3], p[1::3], p[2::3], strict=True)) for p in panels]


def coloured(counter: Counter) -> int:
    """How many pixels are neither grey nor nearly so."""
    return sum(n for (r, g, b), n in counter.items() if max(r, g, b) - min(r, g, b) > 40)


def chunks(state: dict) -> Counter:
    """Chunks in the graphics memory by what kind of source they come from."""
    found: Counter = Counter()
    for source in state["sources"]:
        found[source["key"]] += source["gpu"]
    return found


@pytest.fixture(scope="module")
def look(root):
    """What the link shows, and a server that serves it."""
    found = read_root(str(root))
    with running(create_app(mounts(found.uri, found.layers))) as base:
        yield found, base


@pytest.fixture(scope="module")
def link(look):
    found, base = look
    return build_link(found.uri, found.layers, server=base, focus_nm=found.focus_nm)


@pytest.fixture(scope="module")
def loaded(new_page, link, wait_loaded):
    """The link in a page, loaded once for the tests that leave it as it was; and what was loaded."""
    page = new_page()
    page.goto(link.url)
    return page, wait_loaded(page, names=NAMES)


def test_image_segmentation_meshes_and_skeletons_appear(loaded, look):
    page, state = loaded
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / "look.png")

    segments = len(look[0].layers[-1].segments)
    kinds = chunks(state)
    assert segments >= 8
    assert kinds["precomputed/MultiscaleMeshSource"] == segments
    assert kinds["mesh/MultiscaleFragmentSource"] >= segments
    assert kinds["precomputed/SkeletonSource"] == segments
    assert kinds["precomputed/VolumeChunkSource"] >= 2 * 8
    for folder, wanted in [
        ("/em-", True),
        ("/segmentation/", True),
        ("/affinities/", False),
        ("/mask/", False),
    ]:
        assert any(folder in url and "/8_8_8/" in url for url in page.asked) is wanted, folder

    xy, xz, space, yz = colours(page)
    for panel in (xy, xz, yz):
        assert len(panel) > 500, "EM is grainy: a section has many colours"
        assert coloured(panel) > 1000, "the segmentation lies over the image"
    assert len(space) > 300, "shaded surfaces have many colours"
    assert coloured(space) > 1000


def test_nothing_complains(loaded):
    page, _ = loaded
    assert page.problems == []
    assert "Disconnected" not in page.inner_text("body")


def test_segments_can_be_found_by_their_properties(loaded):
    page, _ = loaded
    n = page.evaluate(
        """() => {
          const layer = window.viewer.layerManager.getLayerByName("segmentation").layer;
          const map = layer.displayState.segmentationGroupState.value.segmentPropertyMap.value;
          return map.segmentPropertyMap.inlineProperties.ids.length;
        }"""
    )
    assert n > 20


def test_the_state_stays_in_the_address(loaded):
    page, _ = loaded
    before = page.evaluate("() => Array.from(window.viewer.navigationState.position.value)")
    move = "(to) => { window.viewer.navigationState.position.value = Float32Array.from(to); }"
    page.evaluate(move, [70.5, 40.5, 20.5])
    page.wait_for_function("() => decodeURIComponent(location.hash).includes('[70.5,40.5,20.5]')")
    page.evaluate(move, before)


@pytest.mark.parametrize("name", ["mask", "affinities", "supervoxels"])
def test_layers_that_are_switched_off_draw_when_they_are_switched_on(loaded, wait_loaded, name):
    page, _ = loaded
    switch = "([name, on]) => window.viewer.layerManager.getLayerByName(name).setVisible(on)"
    try:
        for other in NAMES:
            page.evaluate(switch, [other, other == name])
        assert chunks(wait_loaded(page, names=NAMES))["precomputed/VolumeChunkSource"] > 0
        page.screenshot(path=ARTIFACTS / f"{name}.png")
        assert coloured(colours(page)[0]) > 1000, "a shader that does not compile draws nothing"
    finally:
        for other in NAMES:
            page.evaluate(switch, [other, other in ("image", "segmentation")])


@pytest.mark.parametrize("broken", ["image", "mesh", "skeletons"])
def test_a_source_that_the_server_cannot_read_is_noticed(new_page, link, root, wait_loaded, broken):
    spoilt = {
        "image": [root.parent / "em" / "8_8_8" / "96-128_64-96_48-80"],  # in the middle of the view
        "mesh": list((root / "segmentation" / "mesh").glob("*.shard")),
        "skeletons": list((root / "segmentation" / "skeletons").glob("*.shard")),
    }[broken]
    assert spoilt
    # Beside a twin that may be newer, the gateway refuses to choose: a real HTTP 500.
    twins = [path.with_name(path.name + ".gz") for path in spoilt]
    for twin in twins:
        twin.write_bytes(b"newer, or older")
    page = new_page()
    try:
        page.goto(link.url)
        with pytest.raises(AssertionError, match="chunks or sources failed"):
            wait_loaded(page, names=NAMES)
    finally:
        for twin in twins:
            twin.unlink()


def test_a_layer_that_is_lost_is_noticed(new_page, look, wait_loaded):
    found, base = look
    less = build_link(found.uri, found.layers[1:], server=base, focus_nm=found.focus_nm)
    page = new_page()
    page.goto(less.url)
    with pytest.raises(AssertionError, match=r"were asked for, but \['mask', "):
        wait_loaded(page, names=NAMES)


def test_the_old_spelling_opens_too(new_page, look, wait_loaded):
    found, base = look
    link = build_link(found.uri, found.layers, server=base, focus_nm=found.focus_nm, spelling="prefix")
    assert "precomputed://http://127.0.0.1" in str(link.state["layers"][0]["source"])
    page = new_page()
    page.goto(link.url)
    assert chunks(wait_loaded(page, names=NAMES))["precomputed/VolumeChunkSource"] > 0
    assert page.problems == []

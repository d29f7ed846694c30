"""Somas of a link in a real browser: all there, far and near; filtered by sliders; tied to their neurons."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cloudseg.server.app import create_app, running
from cloudseg.somas.store import CatalogSpec, publish, read_catalog, write_version
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.testing.somas_in_volume import write_catalogue
from cloudseg.volumes import VolumeInfo, create_volume, open_objects, open_volume, scales
from cloudseg.volumes.segment_properties import segment_properties_info, write_segment_properties
from cloudseg_tasks.soma_annotations import SomaAnnotationsStage
from cloudseg_viewer.links import Link, build_link, mounts, shorten, state_fragment
from cloudseg_viewer.roots import read_root

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

N = 3000
NAMES = [
    *("somas", "soma_shapes"),
    *("image", "mask", "affinities", "supervoxels", "soma_masks", "segmentation"),
]
ARTIFACTS = Path(__file__).resolve().parents[2] / "test-artifacts"

# Ids in the graphics memory: those of the spatial index, and those that came as related to segments.
_LOADED = """([name, related]) => {
  const source = window.viewer.layerManager.getLayerByName(name).layer.annotationStates.states[0].source;
  const sources = related ? source.segmentFilteredSources : source.spatiallyIndexedSources;
  const ids = [];
  for (const each of sources)
    for (const chunk of each.chunks.values())
      for (const some of chunk.data?.serializedAnnotations?.typeToIds ?? []) ids.push(...some);
  return ids;
}"""

# Pixels of the panel in 3D, below on the left, that are neither grey nor nearly so. Drawn and read in one turn.
_COLOURED = """() => {
  window.viewer.display.draw();
  const gl = window.viewer.display.canvas, copy = document.createElement("canvas");
  copy.width = gl.width; copy.height = gl.height;
  const context = copy.getContext("2d");
  context.drawImage(gl, 0, 0);
  const bytes = context.getImageData(0, gl.height >> 1, gl.width >> 1, gl.height >> 1).data;
  let n = 0;
  for (let i = 0; i < bytes.length; i += 4) {
    const [r, g, b] = bytes.subarray(i, i + 3);
    if (Math.max(r, g, b) - Math.min(r, g, b) > 40) n++;
  }
  return n;
}"""

_SLIDER = """([name, control, value]) => {
  const layer = window.viewer.layerManager.getLayerByName(name).layer;
  layer.annotationDisplayState.shaderControls.state.get(control).trackable.value = value;
}"""


@pytest.fixture(scope="module")
def somas(root, tmp_path_factory):
    """A root like that of the other tests, with somas of its own: masks, a catalogue, annotations; and its rows."""
    mine = tmp_path_factory.mktemp("linked") / "run"
    shutil.copytree(root, mine, ignore=shutil.ignore_patterns("somas"))
    segmentation = scales(f"file://{mine}/segmentation")[0]
    info = VolumeInfo(
        bounds=segmentation.bounds,
        voxel_size_nm=segmentation.voxel_size_nm,
        chunk_shape=(32, 32, 32),
        dtype="uint64",
        layer="segmentation",
    )
    uri = f"file://{mine}/somas"
    table = write_catalogue(mine, N)
    # The volume is less than a micrometre wide: so are these somas.
    radius = np.random.default_rng(2).uniform(0.01, 0.04, N)
    columns = {name: table[name] for name in table.column_names if not name.startswith("axis_")}
    columns |= {"radius_um": radius.astype(np.float32), "volume_um3": 4 / 3 * np.pi * radius**3}
    table = pa.table(columns)
    objects = open_objects(uri)
    before = read_catalog(objects)
    spec = CatalogSpec(**{name: getattr(before, name) for name in CatalogSpec.model_fields})
    write_version(objects, table, spec, version=2)
    publish(objects, 2)
    masks = np.zeros(info.bounds.shape, np.uint64, order="F")
    masks[10:20, 10:20, 10:20] = table["soma_id"][0].as_py()
    create_volume(uri, info).write(info.bounds, masks)
    site = Site(f"file://{mine}", {"somas": Layer("somas", uri, info)}, open_volume, open_objects)
    for step in SomaAnnotationsStage(version=2, limit=300).expand(site).steps:
        for task in step.tasks():
            task.run(Context(open_volume=open_volume, open_objects=open_objects))
    # As the stage `statistics` writes them: tags and numbers beside those of the somas.
    ids = np.unique(open_volume(f"file://{mine}/segmentation").read(info.bounds))
    properties = segment_properties_info(
        ids,
        labels=[f"neurite {i}" for i in ids],
        numbers={"volume_um3": (np.ones(len(ids), np.float32), "volume")},
        tags={"on_border": (ids % 2 == 0, "touches the border")},
    )
    write_segment_properties(open_objects(f"file://{mine}/segmentation"), properties)
    living = [row for row in table.to_pylist() if row["status"] not in ("rejected", "merged")]
    return mine, living


@pytest.fixture(scope="module")
def look(somas):
    found = read_root(str(somas[0]))
    with running(create_app(mounts(found.uri, found.layers))) as base:
        yield (
            found,
            build_link(found.uri, found.layers, server=base, focus_nm=found.focus_nm, somas=found.somas),
        )


@pytest.fixture(scope="module")
def loaded(new_page, look, wait_loaded):
    page = new_page()
    page.goto(look[1].url, timeout=120_000)
    wait_loaded(page, names=NAMES, timeout_s=120)
    return page


def test_far_and_near_a_soma_is_loaded_once_and_nothing_complains(loaded, wait_loaded, somas):
    ARTIFACTS.mkdir(exist_ok=True)
    loaded.screenshot(path=ARTIFACTS / "soma_link.png")
    known = {str(row["soma_id"]) for row in somas[1]}
    far = Counter(loaded.evaluate(_LOADED, ["somas", False]))
    assert loaded.evaluate(_COLOURED) > 3000
    loaded.evaluate("() => { window.viewer.projectionScale.value /= 6; }")
    wait_loaded(loaded, names=NAMES, timeout_s=120)
    loaded.screenshot(path=ARTIFACTS / "soma_link_near.png")
    near = Counter(loaded.evaluate(_LOADED, ["somas", False]))
    assert loaded.evaluate(_COLOURED) > 500
    for found in (far, near):
        assert set(found.values()) == {1}, "in one level, and one cell, each"
        assert set(found) == known
    assert loaded.problems == []


def test_a_slider_hides_points_and_fetches_nothing(loaded, wait_loaded, somas):
    hide = {"segmentation": False, "soma_masks": False, "image": False}
    switch = "([name, on]) => window.viewer.layerManager.getLayerByName(name).setVisible(on)"
    for name, on in hide.items():
        loaded.evaluate(switch, [name, on])
    all_points = loaded.evaluate(_COLOURED)
    asked = len(loaded.asked)
    volumes = sorted(row["volume_um3"] for row in somas[1])
    loaded.evaluate(_SLIDER, ["somas", "volume_um3_min", volumes[len(volumes) * 9 // 10]])
    some_points = loaded.evaluate(_COLOURED)
    loaded.evaluate(_SLIDER, ["somas", "volume_um3_min", 0])
    back = loaded.evaluate(_COLOURED)
    for name in hide:
        loaded.evaluate(switch, [name, True])
    wait_loaded(loaded, names=NAMES)
    assert 0 < some_points < 0.6 * all_points
    assert back == all_points
    assert not any("/annotations/" in url for url in loaded.asked[asked:])


def test_the_shapes_draw_when_they_are_switched_on(loaded, wait_loaded, somas):
    switch = "([name, on]) => window.viewer.layerManager.getLayerByName(name).setVisible(on)"
    loaded.evaluate(switch, ["soma_shapes", True])
    wait_loaded(loaded, names=NAMES)
    ids = set(loaded.evaluate(_LOADED, ["soma_shapes", False]))
    loaded.screenshot(path=ARTIFACTS / "soma_shapes.png")
    loaded.evaluate(switch, ["soma_shapes", False])
    known = {str(row["soma_id"]) for row in somas[1]}
    assert ids <= known
    assert len(ids) > 0.9 * len(known)


def test_neurons_can_be_searched_by_their_somas(loaded, somas):
    found = loaded.evaluate(
        """() => {
          const layer = window.viewer.layerManager.getLayerByName("segmentation").layer;
          const map = layer.displayState.segmentationGroupState.value.segmentPropertyMap.value;
          const { ids, properties } = map.segmentPropertyMap.inlineProperties;
          const n = properties.find((p) => p.id === "n_somas").values;
          return { numbers: map.numericalProperties.map((p) => p.id), tags: map.tags.tags,
                   n: Object.fromEntries(Array.from(ids, (id, i) => [String(id), n[i]]).filter(([, n]) => n > 0)) };
        }"""
    )
    assert {"n_somas", "soma_volume_um3", "volume_um3"} == set(found["numbers"]), "those of both tables"
    assert found["tags"] == ["on_border"], "the viewer takes the tags of one table only: the first"
    expected = Counter(str(row["segment_id"]) for row in somas[1] if row["segment_id"] is not None)
    assert found["n"] == expected


def test_a_short_link_shows_the_same_and_somas_of_chosen_neurons_come_by_themselves(
    new_page, look, wait_loaded, somas
):
    found, link = look
    state = {**link.state, "layers": [dict(layer) for layer in link.state["layers"]]}
    state["layers"][0]["filterBySegmentation"] = ["segment"]
    narrowed = Link(link.url.partition("#")[0] + "#!" + state_fragment(state), state, link.server)
    short = shorten(narrowed, root=found.uri)
    assert len(short.url) < 200
    page = new_page()
    page.goto(short.url, timeout=120_000)
    wait_loaded(page, names=NAMES, timeout_s=120)
    chosen = set(state["layers"][-1]["segments"])
    expected = {str(row["soma_id"]) for row in somas[1] if str(row["segment_id"]) in chosen}
    assert expected
    assert set(page.evaluate(_LOADED, ["somas", True])) == expected


def test_a_token_goes_with_every_request(new_page, look, wait_loaded):
    found, link = look
    link = build_link(
        found.uri,
        found.layers,
        server=link.server,
        focus_nm=found.focus_nm,
        somas=found.somas,
        through="?token=a1b2",
    )
    page = new_page()
    page.goto(link.url, timeout=120_000)
    wait_loaded(page, names=NAMES, timeout_s=120)
    data = [url for url in page.asked if "/data/" in url]
    assert len(data) > 20
    assert all("token=a1b2" in url for url in data)


@pytest.mark.slow
def test_no_layer_is_lost_on_a_slow_start(new_page, look, wait_loaded):
    page = new_page()
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 6})
    page.goto(look[1].url, timeout=120_000)
    wait_loaded(page, names=NAMES, timeout_s=180)
    assert not any("Cannot read properties" in each for each in page.problems)

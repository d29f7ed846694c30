"""Roots: what is found at an address, and what is picked for the first look."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from cloudseg.errors import NotFoundError, SpecError, VolumeFormatError
from cloudseg.geometry import Box
from cloudseg.somas.annotations import write_annotations
from cloudseg.somas.store import publish, write_version
from cloudseg.testing.somas import SPEC, soma_table
from cloudseg.volumes import VolumeInfo, create_volume, open_objects, update_info
from cloudseg.volumes.by_id import stored_ids
from cloudseg_viewer.links import build_link, link_for_root, state_of
from cloudseg_viewer.roots import contrast_of, read_root

BOUNDS = Box((10, 20, 30), (80, 90, 100))


def make(uri, *, data=None, bounds=BOUNDS, **info):
    settings = {"bounds": bounds, "voxel_size_nm": (8, 8, 8), "chunk_shape": (32, 32, 32), **info}
    volume = create_volume(uri, VolumeInfo(**settings))
    if data is not None:
        volume.write(bounds, np.asfortranarray(data))
    return volume


def grey(seed=0, low=60, high=200, shape=BOUNDS.shape):
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


def labels(shape=BOUNDS.shape):
    """Slabs along x: ids 11, 22, 33 with 40, 20 and 10 planes."""
    ids = np.zeros(shape, np.uint64)
    ids[:40], ids[40:60], ids[60:] = 11, 22, 33
    return ids


def segmentation(uri, data=None):
    return make(uri, data=labels() if data is None else data, dtype="uint64", layer="segmentation")


def test_layers_are_found_by_the_layout_of_a_root(tmp_path):
    make(tmp_path / "em", data=grey())
    root = tmp_path / "run"
    open_objects(root).put("pipeline/spec.toml", f'image = "file://{tmp_path}/em"\n'.encode())
    segmentation(root / "segmentation")
    make(root / "affinities", n_channels=3, data=np.ones((3, *BOUNDS.shape), np.uint8))
    found = read_root(str(root))
    assert [f.name for f in found.layers] == ["image", "affinities", "segmentation"]
    assert [f.uri for f in found.layers] == [
        f"file://{tmp_path}/em",
        f"file://{root}/affinities",
        f"file://{root}/segmentation",
    ]
    assert found.layers[2].segments == (11, 22, 33)
    assert found.layers[1].n_channels == 3


def test_a_root_without_a_pipeline_file_has_its_own_image(tmp_path):
    make(tmp_path / "image", data=grey())
    assert [f.name for f in read_root(str(tmp_path)).layers] == ["image"]


@pytest.mark.parametrize(("layer", "role"), [("image", "image"), ("segmentation", "segmentation")])
def test_a_single_volume_is_a_root_of_its_own(tmp_path, layer, role):
    make(tmp_path / "vol", layer=layer, dtype="uint8")
    (facts,) = read_root(f"file://{tmp_path}/vol").layers
    assert (facts.name, facts.role, facts.bounds) == ("vol", role, BOUNDS)


def test_a_volume_of_three_channels_is_taken_for_affinities(tmp_path):
    make(tmp_path / "vol", n_channels=3)
    assert read_root(str(tmp_path / "vol")).layers[0].role == "affinities"


def test_a_root_whose_run_goes_on_shows_what_is_there(tmp_path):
    make(tmp_path / "image", data=grey())
    create_volume(
        tmp_path / "segmentation",
        VolumeInfo(bounds=BOUNDS, voxel_size_nm=(8, 8, 8), dtype="uint64", layer="segmentation"),
    )
    update_info(
        tmp_path / "segmentation", mesh="mesh", skeletons="skeletons", segment_properties="properties"
    )
    image, seg = read_root(str(tmp_path)).layers
    assert seg.segments == ()
    assert seg.lacking == {"mesh", "skeletons", "properties"}
    assert image.contrast is not None


def test_the_view_opens_where_there_is_something_to_see(tmp_path):
    shape = BOUNDS.shape
    corner = np.zeros(shape, np.uint64)
    corner[:35, :35, :35] = 7
    segmentation(tmp_path / "segmentation", corner)
    found = read_root(str(tmp_path))
    assert found.focus_nm == (27 * 8, 37 * 8, 47 * 8), "a quarter of the way, for the middle is empty"
    middle = read_root(str(_moved(tmp_path, np.full(shape, 7, np.uint64))))
    assert middle.focus_nm == (45 * 8, 55 * 8, 65 * 8)


def _moved(tmp_path, data):
    segmentation(tmp_path / "full" / "segmentation", data)
    return tmp_path / "full"


def test_only_segments_that_can_be_shown_whole_are_picked(tmp_path):
    """Neuroglancer never comes to rest while one of its segments has no mesh or no skeleton."""
    segmentation(tmp_path / "segmentation")
    objects = open_objects(tmp_path / "segmentation")
    objects.put("mesh/info", json.dumps({"@type": "neuroglancer_legacy_mesh"}).encode())
    objects.put("skeletons/info", json.dumps({"@type": "neuroglancer_skeletons"}).encode())
    for name in ("mesh/11:0", "mesh/33:0", "skeletons/22", "skeletons/33"):
        objects.put(name, b"x")
    update_info(tmp_path / "segmentation", mesh="mesh", skeletons="skeletons")
    assert read_root(str(tmp_path)).layers[0].segments == (33,)
    objects.delete("skeletons/22")
    objects.delete("skeletons/33")
    (facts,) = read_root(str(tmp_path)).layers
    assert (facts.segments, facts.lacking) == ((11, 33), {"skeletons"})


def test_contrast_leaves_out_padding_and_outliers():
    image = np.zeros(100_000, np.uint8)
    image[50_000:] = grey(shape=50_000)
    image[-1] = 255
    contrast = contrast_of([image])
    assert 60 <= contrast.low <= 62
    assert 197 <= contrast.high <= 199
    assert contrast.window == (0, 255)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_contrast_of_wide_values_has_a_window_around_it(dtype):
    values = np.random.default_rng(0).normal(1000, 10, 10_000).astype(dtype)
    if dtype is np.float32:
        values[:3] = np.nan, np.inf, -np.inf
    contrast = contrast_of([values])
    assert 950 < contrast.window[0] < contrast.low < 1000 < contrast.high < contrast.window[1] < 1050


@pytest.mark.parametrize("samples", [[], [np.zeros(5, np.uint8)], [np.full(5, 9, np.uint8)]])
def test_an_empty_or_flat_image_has_no_contrast(samples):
    assert contrast_of(samples) is None


def test_the_link_of_a_root_holds_what_was_measured(tmp_path):
    make(tmp_path / "image", data=grey())
    segmentation(tmp_path / "segmentation")
    state = state_of(link_for_root(str(tmp_path), "http://127.0.0.1:9000"))
    image, seg = state["layers"]
    assert image["shaderControls"]["normalized"]["range"] == [60, 199]
    assert seg["segments"] == ["11", "22", "33"]
    assert state["position"] == [45.5, 55.5, 65.5]


def test_nothing_at_an_address_is_said_so(tmp_path):
    with pytest.raises(
        NotFoundError, match=r"no volume lies at .*expected a Precomputed 'info' there, or a pipeline"
    ):
        read_root(str(tmp_path))


def test_an_image_that_the_pipeline_names_but_that_is_gone_is_said_so(tmp_path):
    open_objects(tmp_path).put("pipeline/spec.toml", f'image = "{tmp_path}/gone"\n'.encode())
    segmentation(tmp_path / "segmentation")
    with pytest.raises(NotFoundError, match=r"no volume at .*gone"):
        read_root(str(tmp_path))


def test_a_broken_pipeline_file_is_said_so(tmp_path):
    objects = open_objects(tmp_path)
    objects.put("pipeline/spec.toml", b"image = ")
    with pytest.raises(SpecError, match=r"spec.toml is no TOML"):
        read_root(str(tmp_path))
    objects.put("pipeline/spec.toml", b"image = 5")
    with pytest.raises(SpecError, match=r"image must be an address, got 5"):
        read_root(str(tmp_path))


def test_memory_is_refused():
    with pytest.raises(SpecError, match="where no browser can read it"):
        read_root("memory://somewhere")


def test_a_chunk_that_cannot_be_read_does_not_hide_the_rest(tmp_path):
    make(tmp_path / "image", data=grey())
    middle = next((tmp_path / "image" / "8_8_8").glob("42-74_52-84_62-94"))
    middle.write_bytes(b"torn")
    assert read_root(str(tmp_path)).layers[0].contrast is not None


def test_stored_ids_are_told_for_files_and_refused_for_unknown_kinds(tmp_path):
    objects = open_objects(tmp_path)
    with pytest.raises(NotFoundError, match="no meshes or skeletons at"):
        stored_ids(tmp_path, [1])
    objects.put("info", json.dumps({"@type": "neuroglancer_multilod_draco"}).encode())
    objects.put("5.index", b"x")
    assert stored_ids(tmp_path, [4, 5]) == {5}
    objects.put("info", json.dumps({"@type": "something_else"}).encode())
    with pytest.raises(VolumeFormatError, match="'@type' must be one of .*, got 'something_else'"):
        stored_ids(tmp_path, [1])
    objects.put("info", gzip.compress(b"{}"))
    with pytest.raises(VolumeFormatError, match="is not JSON"):
        stored_ids(tmp_path, [1])


def test_somas_are_found_with_what_they_are_shown_by(tmp_path):
    root = f"file://{tmp_path}/run"
    for name, how in (("image", {}), ("somas", {"dtype": "uint64", "layer": "segmentation"})):
        info = VolumeInfo(bounds=Box.of_shape((8, 8, 8)), voxel_size_nm=(8.0, 8.0, 40.0), **how)
        create_volume(f"{root}/{name}", info).write(
            info.bounds, np.ones((8, 8, 8), info.numpy_dtype, order="F")
        )
    objects = open_objects(f"{root}/somas")
    written = write_version(objects, soma_table(50), SPEC, version=1)
    publish(objects, 1)
    assert read_root(root).somas is None, "a catalogue without annotations"
    write_annotations(objects, written.catalog)
    found = read_root(root)
    assert [facts.role for facts in found.layers] == ["image", "soma_masks"]
    assert found.somas is not None
    assert found.somas.points == f"{root}/somas/v1/annotations/points"
    low, high = found.somas.ranges["volume_um3"]
    assert 0 < low < high
    link = build_link(found.uri, found.layers, somas=found.somas)
    assert [layer["name"] for layer in link.state["layers"]] == [
        *("somas", "soma_shapes", "image", "soma_masks")
    ]
    objects.put("v1/properties/segments/info", b"{}")
    create_volume(
        f"{root}/segmentation",
        VolumeInfo(
            bounds=Box.of_shape((8, 8, 8)),
            voxel_size_nm=(8.0, 8.0, 40.0),
            dtype="uint64",
            layer="segmentation",
        ),
    )
    neurons = read_root(root).layers[-1]
    assert neurons.properties == (f"{root}/somas/v1/properties/segments",)

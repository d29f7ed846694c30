"""Links: pure, so everything about them can be said exactly."""

from __future__ import annotations

import json
import os
from pathlib import Path

import neuroglancer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg_viewer.layers import Contrast, LayerFacts, SomaFacts, soma_shader
from cloudseg_viewer.links import (
    DEFAULT_SERVER,
    PUBLIC_CLIENT,
    build_link,
    layer_source,
    mount_name,
    mounts,
    shorten,
    state_fragment,
    state_of,
)
from cloudseg_viewer.state import viewer_state

ROOT = "gs://bucket/run"
SERVER = "http://127.0.0.1:9000"


def facts(name="image", uri="", **other) -> LayerFacts:
    settings = {
        "name": name,
        "role": name,
        "uri": uri or f"{ROOT}/{name}",
        "voxel_size_nm": (8.0, 8.0, 40.0),
        "bounds": Box((100, 200, 300), (1100, 1200, 400)),
    }
    return LayerFacts(**{**settings, **other})


IMAGE = facts(contrast=Contrast(57.0, 174.5, (0.0, 255.0)))
SEGMENTATION = facts("segmentation", segments=(2**64 - 1, 5), lacking=frozenset({"skeletons"}))
ALL = [IMAGE, facts("mask"), facts("affinities", n_channels=3), facts("supervoxels"), SEGMENTATION]


def test_neuroglancer_itself_reads_the_link_and_writes_the_same():
    link = build_link(ROOT, ALL, server=SERVER)
    state = neuroglancer.parse_url(link.url)
    assert [layer.name for layer in state.layers] == [f.name for f in ALL]
    assert neuroglancer.url_state.to_url_fragment(link.state) == state_fragment(link.state)
    assert state.layers["segmentation"].segments == {2**64 - 1, 5}
    assert state.layers["image"].shaderControls["normalized"].range.tolist() == [57, 174.5]
    assert state.dimensions.scales.tolist() == [8e-9, 8e-9, 4e-8]
    assert state.layout.type == "4panel"


def test_the_state_of_a_link_is_what_went_in():
    link = build_link(ROOT, ALL, server=SERVER)
    assert state_of(link.url) == link.state
    json.dumps(link.state, allow_nan=False)


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()), max_size=3))
@settings(max_examples=40)
def test_any_state_survives_its_way_through_an_address(value):
    url = PUBLIC_CLIENT + "#!" + state_fragment({"value": value})
    assert url.isascii()
    assert state_of(url) == {"value": value}


def test_intermediate_layers_are_there_but_switched_off():
    layers = {layer["name"]: layer for layer in build_link(ROOT, ALL).state["layers"]}
    shown = [name for name, layer in layers.items() if layer.get("visible", True)]
    assert shown == ["image", "segmentation"]


def test_ids_travel_as_text_because_browsers_round_large_numbers():
    layer = build_link(ROOT, [SEGMENTATION]).state["layers"][0]
    assert layer["segments"] == ["18446744073709551615", "5"]


def test_a_part_that_is_not_there_is_switched_off():
    layer = build_link(ROOT, [SEGMENTATION]).state["layers"][0]
    assert layer["source"]["subsources"] == {"skeletons": False}
    assert layer["source"]["url"] == f"{ROOT}/segmentation/|neuroglancer-precomputed:"


def test_two_channels_are_drawn_as_grey_and_three_as_colour():
    one, three = (build_link(ROOT, [facts("affinities", n_channels=n)]).state["layers"][0] for n in (2, 3))
    assert "emitGrayscale" in one["shader"]
    assert "emitRGB" in three["shader"]


def test_the_view_opens_on_the_middle_in_voxels_of_the_lowest_layer():
    state = viewer_state([(IMAGE, "s")], title="t")
    assert state["position"] == [600.5, 700.5, 350.5]
    # 1000 x 8 nm across, in a panel of 420 pixels, counted in the finest voxel edge.
    assert state["crossSectionScale"] == pytest.approx(1000 / 420, rel=1e-3)
    assert state["projectionScale"] == 1500.0


def test_a_place_to_look_at_is_taken_to_its_voxel():
    for focus_nm, voxel in [
        ((800.0, 1600.0, 12000.0), (100, 200, 300)),
        ((807.9, 1600.1, 12039.0), (100, 200, 300)),
    ]:
        state = viewer_state([(IMAGE, "s")], title="t", focus_nm=focus_nm)
        assert state["position"] == [v + 0.5 for v in voxel]


def test_a_huge_volume_opens_on_a_part_that_can_be_seen():
    huge = facts(bounds=Box((0, 0, 0), (200_000, 200_000, 5_000)))
    state = viewer_state([(huge, "s")], title="t")
    assert state["crossSectionScale"] == 4
    assert state["projectionScale"] < 10_000


def test_a_view_of_nothing_is_refused():
    with pytest.raises(SpecError, match="at least one layer, got none"):
        viewer_state([], title="t")


@pytest.mark.parametrize("root", ["gs://bucket/run", "s3://bucket/run", "https://host.example/run"])
def test_public_buckets_are_read_by_the_public_client_directly(root):
    link = build_link(root, [facts(uri=f"{root}/image")])
    assert link.server is None
    assert link.url.startswith(PUBLIC_CLIENT + "#!")
    assert link.state["layers"][0]["source"] == f"{root}/image/|neuroglancer-precomputed:"


@pytest.mark.parametrize("root", ["file:///data/run", "http://host.example/run"])
def test_what_the_public_client_cannot_read_goes_through_a_server(root):
    link = build_link(root, [facts(uri=f"{root}/image")])
    assert link.server == DEFAULT_SERVER
    assert link.url.startswith(f"{DEFAULT_SERVER}/v/0/#!")
    expected = f"{DEFAULT_SERVER}/data/{mount_name(root)}/image/|neuroglancer-precomputed:"
    assert link.state["layers"][0]["source"] == expected


def test_one_local_layer_takes_the_whole_link_to_the_server():
    link = build_link(ROOT, [facts(uri="file:///data/em"), SEGMENTATION])
    sources = [str(layer["source"]) for layer in link.state["layers"]]
    assert all(DEFAULT_SERVER in source for source in sources)


def test_a_server_that_is_named_is_used_even_for_buckets():
    link = build_link(ROOT, [IMAGE], server=SERVER + "/")
    assert link.url.startswith(f"{SERVER}/v/0/#!")
    assert link.state["layers"][0]["source"].startswith(f"{SERVER}/data/{mount_name(ROOT)}/image/")


@pytest.mark.parametrize("server", ["127.0.0.1:9000", "ftp://host", "http://", "localhost"])
def test_a_server_that_is_no_address_is_refused(server):
    with pytest.raises(SpecError, match="a server is written http://host:port"):
        build_link(ROOT, [IMAGE], server=server)


def test_both_spellings_come_from_one_place():
    where = {"root": ROOT, "server": None}
    assert layer_source(f"{ROOT}/a b", **where) == f"{ROOT}/a b/|neuroglancer-precomputed:"
    assert layer_source(f"{ROOT}/a b", spelling="prefix", **where) == f"precomputed://{ROOT}/a b"


def test_a_token_in_the_address_stays_with_the_pipeline_spelling():
    uri = "https://host.example/run/image?token=abc"
    where = {"root": "https://host.example/run?token=abc", "server": None}
    assert layer_source(uri, **where) == "https://host.example/run/image/?token=abc|neuroglancer-precomputed:"
    with pytest.raises(SpecError, match="carries a query .* use the spelling 'pipeline'"):
        layer_source(uri, spelling="prefix", **where)


def test_the_address_of_a_layer_on_the_server_is_safe_for_browsers():
    source = layer_source("/data/my run/sub dir/image", root="/data/my run", server=SERVER)
    assert source == f"{SERVER}/data/{mount_name('/data/my run')}/sub%20dir/image/|neuroglancer-precomputed:"


def test_memory_cannot_be_shown():
    with pytest.raises(SpecError, match="memory of one process, where no browser can read it"):
        build_link("memory://x", [facts(uri="memory://x/image")])


def test_a_mount_is_named_by_its_address_alone():
    here = Path.cwd()
    assert mount_name("file:///data/run") == mount_name("/data/run/") == mount_name("precomputed:///data/run")
    assert mount_name(os.fspath(here / "x")) == mount_name("x")
    assert mount_name("file:///data/run") != mount_name("file:///other/run")
    assert mount_name("file:///data/run").startswith("run-")
    assert mount_name("gs://bucket").startswith("root-")


@given(st.text(alphabet="aü %/.?#-_\\'\"", min_size=1, max_size=20))
def test_a_mount_name_is_one_plain_part_of_a_path(text):
    name = mount_name("/" + text)
    assert name.replace("-", "").replace("_", "").isalnum()
    assert name.isascii()


def test_a_server_mounts_the_root_and_what_lies_outside_it():
    inside, outside = facts("segmentation"), facts(uri="gs://bucket/run2/em")
    assert [m.uri for m in mounts(ROOT, [inside, outside, outside])] == [ROOT, "gs://bucket/run2/em"]
    assert [m.uri for m in mounts(ROOT, [inside])] == [ROOT]
    assert [m.uri for m in mounts("gs://bucket", [inside, outside])] == ["gs://bucket"]
    assert [m.uri for m in mounts(f"{ROOT}/segmentation", [inside])] == [f"{ROOT}/segmentation"]


# ------------------------------------------------------------------------------------------ somas, private data, short

SOMAS = SomaFacts(
    points=f"{ROOT}/somas/v1/annotations/points",
    ellipsoids=f"{ROOT}/somas/v1/annotations/ellipsoids",
    ranges={"volume_um3": (1.234, 4321.0), "radius_um": (2.0, 2.0), "score": (0.0, 0.987)},
)


def test_somas_come_first_and_select_in_the_layers_that_are_there():
    masks = facts("soma_masks")
    points, shapes, *rest = build_link(ROOT, [IMAGE, masks, SEGMENTATION], somas=SOMAS).state["layers"]
    assert [layer["name"] for layer in rest] == ["image", "soma_masks", "segmentation"]
    assert points["linkedSegmentationLayer"] == {"segment": "segmentation", "soma": "soma_masks"}
    assert points["source"] == f"{ROOT}/somas/v1/annotations/points/|neuroglancer-precomputed:"
    assert points.get("visible", True)
    assert not shapes["visible"]
    alone = build_link(ROOT, [IMAGE], somas=SOMAS).state["layers"][0]
    assert "linkedSegmentationLayer" not in alone, (
        "a link to a layer that is not there is an error in the viewer"
    )


def test_a_slider_reaches_over_all_values_and_there_is_none_where_all_are_the_same():
    shader = soma_shader(SOMAS.ranges, size=True)
    assert "float volume_um3_min slider(min=1.2, max=4400, default=1.2" in shader
    assert "float score_max slider(min=0, max=0.99, default=0.99" in shader
    assert "radius_um" not in shader
    assert "nearest_um" not in shader


def test_tables_of_properties_are_further_sources_of_their_layer():
    table = f"{ROOT}/somas/v1/properties/segments"
    seg = facts("segmentation", segments=(5,), properties=(table,))
    (layer,) = build_link(ROOT, [seg]).state["layers"]
    assert layer["source"][1:] == [f"{table}/|neuroglancer-precomputed:"]


@pytest.mark.parametrize(
    ("through", "server", "source"),
    [
        ("ngauth+https://auth.lab.org", None, "gs+ngauth+https://auth.lab.org/bucket/run/image/"),
        ("gs+ngauth+https://auth.lab.org/", None, "gs+ngauth+https://auth.lab.org/bucket/run/image/"),
        (
            "middleauth",
            "https://seg.lab.org",
            f"middleauth+https://seg.lab.org/data/{mount_name('gs://bucket/run')}/image/",
        ),
        (
            "?token=a1",
            "https://seg.lab.org",
            f"https://seg.lab.org/data/{mount_name('gs://bucket/run')}/image/?token=a1",
        ),
    ],
)
def test_private_data_is_reached_as_asked(through, server, source):
    root = "gs://bucket/run"
    link = build_link(root, [facts(uri=f"{root}/image")], server=server, through=through)
    assert link.state["layers"][0]["source"] == source + "|neuroglancer-precomputed:"
    logs_in = "auth" in through
    assert link.url.startswith(PUBLIC_CLIENT if logs_in else f"{server}/v/0/"), "ours has no logins"


@pytest.mark.parametrize(
    ("root", "through", "message"),
    [
        ("s3://bucket/run", "ngauth+https://auth.lab.org", "buckets of Google"),
        ("gs://bucket/run", "middleauth", "middleauth wants https"),
        ("gs://bucket/run", "?token=a1", r"a token \(\?toke...\) goes to a web server"),
        ("gs://bucket/run", "magic", "got 'magic'"),
    ],
)
def test_a_way_that_does_not_lead_there_is_refused(root, through, message):
    with pytest.raises(SpecError, match=message):
        build_link(root, [facts(uri=f"{root}/image")], through=through)


def test_a_query_in_an_address_goes_with_the_token():
    root = "https://host.example/run?sig=x"
    link = build_link(root, [facts(uri="https://host.example/run/image?sig=x")], through="?token=a1")
    assert link.state["layers"][0]["source"].endswith("/image/?sig=x&token=a1|neuroglancer-precomputed:")


def test_a_short_link_names_a_state_that_never_changes(tmp_path):
    root = f"file://{tmp_path}"
    link = build_link(root, [facts(uri=f"{root}/image")])
    short = shorten(link, root=root)
    (name,) = (tmp_path / "links").iterdir()
    assert short.url == f"{DEFAULT_SERVER}/v/0/#!{DEFAULT_SERVER}/data/{mount_name(root)}/links/{name.name}"
    assert len(short.url) < 150
    assert json.loads(name.read_bytes()) == link.state
    assert shorten(link, root=root) == short, "the same view, the same link"
    assert len(list((tmp_path / "links").iterdir())) == 1
    other = shorten(build_link(root, [facts(uri=f"{root}/image")], focus_nm=(0, 0, 0)), root=root)
    assert other.url != short.url

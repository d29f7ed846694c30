"""3C as queued stages: one slab equals one call, several slabs give whole objects, in any order and twice."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from cloudseg.errors import ModelError, SpecError
from cloudseg.geometry import Box
from cloudseg.models.package import Normalisation, Provenance
from cloudseg.models.predict import use_one_thread
from cloudseg.models.tracker import (
    TrackerArguments,
    TrackerDescription,
    load_tracker,
    order_of,
    save_tracker,
)
from cloudseg.ops.track_links import borne_out
from cloudseg.ops.tracking import TrackRule, filled, joined, track
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume
from cloudseg_tasks.colour_track import ColourTrackStage
from cloudseg_tasks.registry import load_task

BOUNDS = Box.of_shape((40, 36, 12), at=(5, -3, 100))
OPTIONS = {"cell": 8, "min_area_px": 5, "fill_px": 2, "precision": "float32", "device": "cpu"}
PIXELS = {"vote": 0.0, "branch": 0.0}


@pytest.fixture
def root():
    clear_memory()
    use_one_thread()  # the sections are tiny: threads would only wait for each other
    yield "memory://colour-track"
    clear_memory()


def model(uri):
    """A network made by hand: a colour spreads by a pixel or two, but not into what is dark in the next section."""
    arguments = TrackerArguments(widths=(5,))
    network = arguments.build().eval()
    first, second = network.down[0][0][0], network.down[0][1][0]
    with torch.no_grad():
        for layer in (first, second, network.head):
            layer.weight.zero_()
        for colour in range(4):
            first.weight[colour, 2 + colour] = 1.0
            second.weight[colour, colour, 1, 1] = 1.0
            second.weight[colour, 4, 1, 1] = -20.0
            network.head.weight[colour, colour] = 5.0
        first.weight[4, 1, 1, 1] = -1.0
        network.head.bias[:] = torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0])
    description = TrackerDescription(
        name="by hand",
        arguments=arguments,
        voxel_size_nm=(6, 6, 30),
        normalisation=Normalisation(mean=128, deviation=60),
        training=Provenance(data=(), n_steps=0, seed=0),
        licence="CC0",
    )
    weights = {name: t.numpy() for name, t in network.state_dict().items()}
    save_tracker(uri, description, weights)
    return uri


def tissue():
    """Bright discs that wander on dark ground: image and truth."""
    truth = np.zeros(BOUNDS.shape, np.uint64, order="F")
    x, y = np.mgrid[: BOUNDS.shape[0], : BOUNDS.shape[1]]
    rng = np.random.default_rng(1)
    centres = np.array([(i, j) for i in (8, 20, 32) for j in (9, 26)], float)
    for z in range(BOUNDS.shape[2]):
        centres += rng.normal(0, 0.4, centres.shape)
        for k, (cx, cy) in enumerate(centres, 1):
            truth[(x - cx) ** 2 + (y - cy) ** 2 < 16, z] = k
    return np.asfortranarray(np.where(truth > 0, 200, 60).astype(np.uint8)), truth


def in_sections(truth):
    z = np.arange(truth.shape[2], dtype=np.uint64)
    return np.where(truth > 0, truth + 100 * (z + 1), 0).astype(np.uint64)


def layers_of(root, image, segments):
    info = VolumeInfo(bounds=BOUNDS, voxel_size_nm=(6, 6, 30), chunk_shape=(40, 36, 4))
    labels = info.model_copy(
        update={"dtype": "uint64", "layer": "segmentation", "encoding": "compressed_segmentation"}
    )
    create_volume(f"{root}/image", info).write(BOUNDS, image)
    create_volume(f"{root}/supervoxels", labels).write(BOUNDS, segments)
    return {
        "image": Layer("image", f"{root}/image", info),
        "supervoxels": Layer("supervoxels", f"{root}/supervoxels", labels),
    }


def run(stage, layers, root, *, seed=0, repeat=1):
    plan = stage.expand(Site(root, layers, open_volume, open_objects))
    counters = {}
    for made in plan.layers:
        create_volume(made.uri, made.info)
    for step in plan.steps:
        tasks = list(step.tasks())
        assert len({t.id for t in tasks}) == step.n_tasks > 0
        tasks = tasks * repeat
        random.Random(seed).shuffle(tasks)
        for task in tasks:
            ctx = Context(open_volume=open_volume, open_objects=open_objects)
            load_task(task.canonical_json()).run(ctx)
            for name, n in ctx.counters.items():
                counters[name] = counters.get(name, 0) + n
    return open_volume(f"{root}/segmentation").read(BOUNDS), counters


@pytest.mark.parametrize(
    ("missing", "votes"), [((), PIXELS), ((104, 107), PIXELS), ((104, 107), {"vote": 0.5, "branch": 0.8})]
)
def test_one_slab_is_one_call_and_several_give_whole_objects(root, missing, votes):
    image, truth = tissue()
    segments = in_sections(truth)
    layers, uri = layers_of(root, image, segments), model(f"{root}/model")
    tracker = load_tracker(uri, device="cpu", precision="float32")

    def predict(z, following, colours):
        return tracker.predict(image[:, :, order_of(z, following, around=0)], colours)

    present = [z for z in range(12) if z + 100 not in missing]
    rule = TrackRule(cell=8, min_area_px=5, vote=votes["vote"])
    ways = [track(segments, sections=order, predict=predict, rule=rule) for order in (present, present[::-1])]
    if votes["branch"]:
        empty = [z - 100 for z in missing]
        linked = borne_out(segments, up=ways[0], down=ways[1], branch=votes["branch"], missing=empty)
    else:
        linked = joined(*ways, rule=rule)
    expected = filled(linked, reach=2)
    shown = [z for z in present if (truth[:, :, z] > 0).any()]
    for z in shown:  # the network made by hand follows every disc
        for label in range(1, 7):
            names = np.unique(expected[:, :, z][truth[:, :, z] == label])
            assert set(names.tolist()) - {0} == {label + 100}
    stage = ColourTrackStage(model=uri, missing_sections=missing, chunk_shape=(40, 36, 4), **OPTIONS, **votes)
    whole = stage.model_copy(update={"sections_per_block": 12})
    got, counters = run(whole, layers, f"{root}/whole")
    np.testing.assert_array_equal(got, expected)
    assert counters["sections_skipped"] == len(missing)
    assert counters["network_calls"] == tracker.n_calls > 0
    slabs = stage.model_copy(update={"sections_per_block": 4})
    cut, counters = run(slabs, layers, f"{root}/slabs", seed=3, repeat=2)
    assert counters["sections_skipped"] == 2 * len(missing)
    again, _ = run(slabs, layers, f"{root}/again", seed=4)
    np.testing.assert_array_equal(cut, again)
    for label in range(1, 7):
        names, n = np.unique(cut[truth == label], return_counts=True)
        assert n[names == label + 100][0] > 0.8 * n[names > 0].sum()
    for z in missing:
        assert not cut[:, :, z - 100].any()


def test_what_does_not_fit_is_refused(root):
    image, truth = tissue()
    layers, uri = layers_of(root, image, in_sections(truth)), model(f"{root}/model")
    site = Site(root, layers, open_volume, open_objects)
    with pytest.raises(SpecError, match="missing_sections has 99, but the sections of .* are 100 to 111"):
        ColourTrackStage(model=uri, missing_sections=(99,)).expand(site)
    with pytest.raises(SpecError, match="'colour_track' needs segments of single sections"):
        ColourTrackStage(model=uri, layer="image").expand(site)
    with pytest.raises(SpecError, match="needs an image of uint8 with 1 channel, got 1 of uint64"):
        ColourTrackStage(model=uri, image="supervoxels").expand(site)
    with pytest.raises(ValueError, match="sections_per_block=5 is not a multiple of chunk_shape"):
        ColourTrackStage(model=uri, sections_per_block=5)
    coarse = layers["image"].info.model_copy(update={"voxel_size_nm": (12.0, 12.0, 30.0)})
    other = Site(root, layers | {"image": Layer("image", f"{root}/image", coarse)}, open_volume, open_objects)
    with pytest.raises(ModelError, match=r"'by hand' was trained on voxels of \(6.0, 6.0, 30.0\) nm"):
        ColourTrackStage(model=uri).expand(other)

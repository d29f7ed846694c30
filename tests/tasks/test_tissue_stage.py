"""The stage ``tissue``: what it calls tissue, that blocks do not show, and that others look only there."""

from __future__ import annotations

import numpy as np
import pytest
from stage_runs import run_and_count, run_stages

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.tasking.steps import Layer, Site
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume
from cloudseg.volumes.mask import TissueMask
from cloudseg_tasks.soma_locate import SomaLocateStage
from cloudseg_tasks.tissue import TissueStage

SIZE_NM = (100.0, 100.0, 200.0)
BOUNDS = Box((-3, 5, 7), (61, 66, 40))


@pytest.fixture
def root():
    clear_memory()
    yield "memory://tissue-stage"
    clear_memory()


def put(data, uri, bounds=BOUNDS):
    info = VolumeInfo(bounds=bounds, voxel_size_nm=SIZE_NM, chunk_shape=(16, 16, 16))
    create_volume(uri, info).write(bounds, np.asfortranarray(data))
    return Layer("image", uri, info)


def scene(seed=0):
    """Texture in the middle; resin, flat grey, on one side; never imaged on the other."""
    grey = np.random.default_rng(seed).integers(60, 200, BOUNDS.shape).astype(np.uint8)
    grey[40:] = 150
    grey[:9] = 0
    return grey


def by_definition(grey, stage, cell):
    """Judge each cell alone, in plain Python."""
    low = [a // n for a, n in zip(BOUNDS.start, cell, strict=True)]
    high = [-(-b // n) for b, n in zip(BOUNDS.stop, cell, strict=True)]
    found = np.zeros([b - a for a, b in zip(low, high, strict=True)], bool)
    for at in np.ndindex(*found.shape):
        corner = [(a + i) * n for a, i, n in zip(low, at, cell, strict=True)]
        index = tuple(
            slice(max(c, s) - s, c + n - s) for c, n, s in zip(corner, cell, BOUNDS.start, strict=True)
        )
        values = grey[index].astype(float).ravel()
        known = values[values != 0]
        if 2 * len(known) < len(values):
            continue
        found[at] = (
            known.std() >= stage.min_deviation and stage.grey_range[0] <= known.mean() <= stage.grey_range[1]
        )
    reach = [int(np.ceil(stage.margin_nm / (n * s))) for n, s in zip(cell, SIZE_NM, strict=True)]
    grown = found.copy()
    for at in np.argwhere(found):
        grown[tuple(slice(max(0, a - r), a + r + 1) for a, r in zip(at, reach, strict=True))] = True
    return grown


@pytest.mark.parametrize("block", [(32, 32, 32), (3, 2, 5), (4, 4, 1)])
@pytest.mark.parametrize("margin_nm", [0.0, 900.0])
def test_mask_is_the_definition_for_any_blocks(root, block, margin_nm):
    grey = scene()
    stage = TissueStage(
        cell_nm=800, min_deviation=5, margin_nm=margin_nm, block_shape=block, chunk_shape=block
    )
    layers = run_stages([stage], {"image": put(grey, f"{root}/image")}, root, seed=block[0], repeat=True)
    expected = by_definition(grey, stage, (8, 8, 4))
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(layers["tissue"] != 0, expected)


def test_other_stages_look_only_at_tissue(root):
    grey = scene()
    layer = put(grey, f"{root}/image")
    run_stages(
        [TissueStage(cell_nm=800, block_shape=(4, 4, 4), chunk_shape=(4, 4, 4))], {"image": layer}, root
    )
    mask = TissueMask.open(f"{root}/tissue", mip=0, image=layer.info, open_volume=open_volume)
    tissue = mask.read(BOUNDS)
    assert tissue[12:36].all()
    assert not tissue[44:].any()
    locate = SomaLocateStage(
        method="blobs", min_radius_nm=300, max_radius_nm=500, mask=f"{root}/tissue", block_shape=(16, 16, 16)
    )
    _, counters = run_and_count([locate], {"image": layer}, root)
    looked_at = sum(n for (_, name), n in counters.items() if name == "looked_at_voxels")
    assert 0 < looked_at < 0.8 * BOUNDS.n_voxels


def test_refuses_what_cannot_be(root):
    layer = put(scene(), f"{root}/image")
    site = Site(root, {"image": layer}, open_volume, open_objects)
    with pytest.raises(SpecError, match="must rise from least to greatest"):
        TissueStage(grey_range=(200, 100)).expand(site)
    with pytest.raises(SpecError, match="70 x 70 x 35 voxels"):
        TissueStage(cell_nm=7000).expand(site)
    labels = VolumeInfo(bounds=BOUNDS, voxel_size_nm=SIZE_NM, chunk_shape=(16, 16, 16), layer="segmentation")
    with pytest.raises(SpecError, match="needs an image of one channel"):
        TissueStage().expand(Site(root, {"image": Layer("image", "x", labels)}, open_volume, open_objects))

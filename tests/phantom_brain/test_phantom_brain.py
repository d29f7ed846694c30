"""The phantom brain: the same from wherever it is looked at, and its truth is the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cloudseg.errors import BoxOutOfBoundsError, SpecError
from cloudseg.geometry import Box, tile
from cloudseg.testing.phantom_brain import BrainSpec, PhantomBrain, truth_table

# Coarse voxels: many bodies in few voxels. Every third section or so has something wrong.
SMALL = {"shape": (190, 170, 100), "voxel_size_nm": (160.0, 160.0, 160.0), "artefacts": 8.0}


@pytest.fixture(scope="module")
def brain():
    return PhantomBrain(BrainSpec(seed=3, **SMALL))


@pytest.fixture(scope="module")
def whole(brain):
    box = brain.spec.bounds
    return brain.image(box), brain.labels(box), brain.nuclei(box)


@settings(max_examples=12)
@given(
    start=st.tuples(st.integers(0, 180), st.integers(0, 160), st.integers(0, 90)),
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40)),
    cut=st.integers(5, 60),
)
def test_every_box_shows_the_same_voxels(brain, whole, start, shape, cut):
    box = Box.of_shape(shape, at=start).intersect(brain.spec.bounds)
    for part in tile(box, (cut, cut + 7, cut)):
        there = part.slices_in(brain.spec.bounds)
        np.testing.assert_array_equal(brain.image(part), whole[0][there])
        np.testing.assert_array_equal(brain.labels(part), whole[1][there])
        np.testing.assert_array_equal(brain.nuclei(part), whole[2][there])


def test_another_seed_is_another_brain(brain, whole):
    box = Box.of_shape((64, 64, 16), at=(40, 40, 40))
    other = PhantomBrain(BrainSpec(seed=4, **SMALL))
    assert np.mean(other.labels(box) != whole[1][box.slices_in(brain.spec.bounds)]) > 0.1


def test_the_table_says_what_the_voxels_show(brain, whole):
    labels, size = whole[1], 160.0
    bodies, contacts = truth_table(brain)
    ids = np.unique(labels[labels > 0])
    assert len(ids) > 40
    # A body whose centre lies outside may still reach in: those alone are not in the table.
    missing = np.setdiff1d(ids, bodies["id"])
    assert len(missing) < 0.2 * len(ids)
    counts = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    middles = ndimage.center_of_mass(labels > 0, labels, bodies["id"])
    for n, name in enumerate(bodies["id"]):
        assert bodies["n_voxels"][n] == counts[name]
        place = [bodies[f"{a}_nm"][n] / size - 0.5 for a in "xyz"]
        np.testing.assert_allclose(place, middles[n], atol=1e-6)
        box = ndimage.find_objects((labels == name).astype(np.uint8))[0]
        on_face = any(s.start == 0 or s.stop == n_vx for s, n_vx in zip(box, labels.shape, strict=True))
        assert bodies["cut"][n] == on_face
    assert bodies["cut"].any()
    assert not bodies["cut"].all()
    assert set(bodies["kind"]) == {"neuron", "glia"}
    found = {}
    for axis in range(3):
        a, b = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
        differ = (a != b) & (a > 0) & (b > 0)
        for pair in zip(np.minimum(a, b)[differ].tolist(), np.maximum(a, b)[differ].tolist(), strict=True):
            found[pair] = found.get(pair, 0) + 1
    listed = {
        (a, b): k for a, b, k in zip(*(contacts[c].tolist() for c in ("a", "b", "n_faces")), strict=True)
    }
    known = set(bodies["id"].tolist())
    assert listed == {pair: k for pair, k in found.items() if known & set(pair)}
    assert len(listed) >= 8, "touching pairs are what it is for"


def test_bodies_hang_together_and_hold_their_nuclei(whole):
    _, labels, nuclei = whole
    assert ((nuclei == 0) | (nuclei == labels)).all()
    assert 0.15 < np.count_nonzero(nuclei) / np.count_nonzero(labels) < 0.45
    whole_ones = 0
    names = np.unique(labels[labels > 0])
    for name in names:
        _, n_pieces = ndimage.label(labels == name)
        whole_ones += n_pieces == 1
    assert whole_ones >= 0.99 * len(names)


def test_the_picture_shows_the_truth(whole):
    """Nuclei are bright, membranes dark, the outside of the tissue brighter and even."""
    image, labels, nuclei = whole
    seen = image.max(axis=(0, 1)) > 0
    image, labels, nuclei = image[:, :, seen], labels[:, :, seen], nuclei[:, :, seen]
    inner = ndimage.binary_erosion(nuclei > 0, iterations=2)
    surface = (labels > 0) & ~ndimage.binary_erosion(labels > 0)
    assert image[inner].mean() > image[surface].mean() + 15
    assert image[0, 0].mean() > image[labels > 0].mean() + 15


def test_lost_sections_are_black_and_their_truth_stays(brain, whole):
    image, labels, _ = whole
    black = np.flatnonzero(image.max(axis=(0, 1)) == 0)
    assert 0 < len(black) < 20
    assert (labels[:, :, black].max(axis=(0, 1)) > 0).all()
    still = PhantomBrain(brain.spec.model_copy(update={"artefacts": 0.0}))
    assert still.image(Box.of_shape((8, 8, 100), at=(70, 60, 0))).max(axis=(0, 1)).min() > 0


def test_a_petavoxel_brain_needs_no_storage():
    spec = BrainSpec(seed=1, shape=(200_000, 200_000, 25_000), tissue="all")
    brain = PhantomBrain(spec)
    box = Box.of_shape((80, 80, 20), at=(198_000, 100_000, 12_500))
    labels = brain.labels(box)
    assert brain.image(box).std() > 10
    ids = np.unique(labels[labels > 0])
    assert len(ids)
    assert int(ids.max()) < 2**53
    np.testing.assert_array_equal(
        labels[20:50, 30:60, 5:9], brain.labels(Box((198_020, 100_030, 12_505), (198_050, 100_060, 12_509)))
    )


def test_what_does_not_fit_is_refused(brain):
    with pytest.raises(BoxOutOfBoundsError, match="the phantom brain"):
        brain.image(Box.of_shape((10, 10, 10), at=(185, 0, 0)))
    with pytest.raises(SpecError, match="at least 2.2 radii"):
        BrainSpec.load({"radius_nm": 3000.0}, where="test")
    with pytest.raises(SpecError, match="more than ids"):
        BrainSpec.load({"shape": [2**40, 2**40, 2**40]}, where="test")

"""Sixteen views and several networks: inverted exactly, averaged, and the greatest taken."""

from __future__ import annotations

import numpy as np
import pytest

from cloudseg.errors import ModelError
from cloudseg.geometry import Box, tile
from cloudseg.models.ensemble import VIEWS, Maximum, Views, seen, seen_back
from cloudseg.models.predict import Model, set_weights
from cloudseg.models.registry import build_network
from cloudseg.models.stream import predict_block
from cloudseg.ops.lattice import PatchLattice
from cloudseg.testing.tiny_model import tiny_description, tiny_weights

BOUNDARIES = {
    "output": "boundaries",
    "offsets": (),
    "arguments": {"n_out": 1, "widths": (4, 6), "pools": ((2, 2, 1),)},
}


def model(seed=0, **changes):
    description = tiny_description(**(BOUNDARIES | changes))
    network = build_network(description)
    set_weights(network, tiny_weights(description, seed=seed), where="test")
    return Model(description, network, offsets=())


def grey(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_there_are_sixteen_views_all_different_and_each_is_undone():
    patch = grey((3, 4, 5))
    views = [seen(patch, view) for view in VIEWS]
    assert len({(v.shape, v.tobytes()) for v in views}) == len(VIEWS) == 16
    for view, turned in zip(VIEWS, views, strict=True):
        np.testing.assert_array_equal(seen_back(turned, view), patch)


def test_the_mean_of_views_does_not_care_which_side_is_up():
    network = model()
    views = Views(network)
    patch = grey((1, 16, 16, 8))
    mean = views.predict(patch)
    assert mean.shape == (1, 1, 16, 16, 8)
    for view in VIEWS:
        np.testing.assert_allclose(views.predict(seen(patch, view)), seen(mean, view), atol=1e-6)
    # and the network alone does care, else this would say nothing
    alone = network.predict(patch)
    assert np.abs(seen_back(network.predict(seen(patch, VIEWS[3])), VIEWS[3]) - alone).max() > 1e-3


def test_patches_that_are_not_square_can_be_turned():
    assert Views(model()).predict(grey((2, 16, 8, 4))).shape == (2, 1, 16, 8, 4)


def test_the_greatest_of_several_networks_is_taken():
    a, b = model(0), model(1)
    patch = grey((1, 16, 16, 8))
    greatest = Maximum([a, b]).predict(patch)
    np.testing.assert_array_equal(greatest, np.maximum(a.predict(patch), b.predict(patch)))
    assert (greatest > a.predict(patch)).any()
    assert (greatest > b.predict(patch)).any()


def test_a_block_is_predicted_alike_in_any_tiling():
    network = Maximum([Views(model(0)), model(1)])
    image = grey((40, 36, 20))
    bounds = Box.of_shape(image.shape)
    lattice = PatchLattice(bounds, (16, 16, 20), (2, 2, 2), (2, 3, 4))
    results = []
    for block in ((40, 36, 20), (17, 36, 9)):
        out = np.zeros((1, *image.shape), np.uint8)

        def write(box, slab, out=out):
            out[(slice(None), *box.slices_in(bounds))] = slab

        for core in tile(bounds, block):
            predict_block(network, lattice, core, read=lambda b: image[b.slices_in(bounds)], write=write)
        results.append(out)
    np.testing.assert_array_equal(*results)
    assert results[0].std() > 1


def test_networks_that_do_not_fit_are_refused():
    affinities = tiny_description()
    network = build_network(affinities)
    with pytest.raises(ModelError, match=r"model 'tiny' predicts affinities: only boundaries mean the same"):
        Views(Model(affinities, network))
    skew = {"n_out": 1, "widths": (4, 6), "pools": ((2, 1, 1),)}
    with pytest.raises(ModelError, match=r"multiples of 4 on x and of 2 on y"):
        Views(model(arguments=skew))
    with pytest.raises(
        ModelError, match=r"'tiny' and 'other' cannot be joined: context is \(2, 2, 2\) in the"
    ):
        Maximum([model(), model(name="other", context=(1, 2, 2))])


def test_a_model_of_boundaries_has_no_affinities_and_the_other_way_round():
    description = tiny_description(**BOUNDARIES)
    with pytest.raises(
        ModelError, match=r"predicts boundaries, not affinities: run it in a stage of kind 'b"
    ):
        description.select(((-1, 0, 0),))
    with pytest.raises(ModelError, match=r"predicts affinities, not boundaries"):
        tiny_description().select(())

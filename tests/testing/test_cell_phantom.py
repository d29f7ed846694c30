"""Phantom cells: the same bytes for the same seed, whole cells, walls that the picture shows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from cloudseg.ops.affinities import thick_boundary
from cloudseg.testing.cell_phantom import cell_phantom

SHAPE = (56, 48, 30)


@pytest.fixture(scope="module")
def phantoms():
    return [cell_phantom(SHAPE, seed=seed) for seed in range(6)]


def test_the_same_seed_gives_the_same_bytes(phantoms):
    again = cell_phantom(SHAPE, seed=2)
    np.testing.assert_array_equal(again.image, phantoms[2].image)
    np.testing.assert_array_equal(again.labels, phantoms[2].labels)


def test_seeds_differ_in_tissue_and_in_light(phantoms):
    assert len({int(p.labels.max()) for p in phantoms}) > 2
    assert np.ptp([np.median(p.image) for p in phantoms]) > 10


def test_each_cell_hangs_together(phantoms):
    for phantom in phantoms:
        assert phantom.labels.min() == 1
        for cell in range(1, int(phantom.labels.max()) + 1):
            assert ndimage.label(phantom.labels == cell)[1] == 1


def test_walls_are_where_the_labels_change(phantoms):
    for phantom in phantoms:
        wall = thick_boundary(phantom.labels)
        inside = ~ndimage.binary_dilation(wall, iterations=3)
        assert phantom.image[wall].mean() > 1.1 * phantom.image[inside].mean()


def test_voxels_of_another_size_show_cells_of_the_same_size():
    fine, coarse = (
        cell_phantom(SHAPE, seed=5, voxel_size_nm=(size, size, size)).labels.max() for size in (100.0, 300.0)
    )
    assert coarse > 2 * fine

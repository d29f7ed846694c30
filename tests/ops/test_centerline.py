"""Centre lines run through the middle, reach the ends, and follow branches."""

from __future__ import annotations

import numpy as np
import pytest

from cloudseg.errors import SpecError
from cloudseg.ops.centerline import centerlines


def length(nodes: np.ndarray, edges: np.ndarray) -> float:
    return float(np.linalg.norm(nodes[edges[:, 0]] - nodes[edges[:, 1]], axis=1).sum())


def test_a_straight_tube_gives_its_axis():
    labels = np.zeros((60, 21, 21), np.uint64)
    y, z = np.ogrid[:21, :21]
    labels[:, (y - 10) ** 2 + (z - 10) ** 2 <= 36] = 2**60 + 1
    ((name, nodes, edges),) = centerlines(labels, (8, 8, 8))
    assert name == 2**60 + 1
    assert length(nodes, edges) == pytest.approx(59 * 8, rel=0.15)
    middle = nodes[(nodes[:, 0] > 100) & (nodes[:, 0] < 380)]
    assert len(middle) > 20
    assert np.abs(middle[:, 1:] - 10.5 * 8).max() <= 8


def test_a_cross_has_four_ends_and_one_tree():
    labels = np.zeros((81, 81, 9), np.uint8)
    labels[38:43, :, 2:7] = labels[:, 38:43, 2:7] = 3
    ((_, nodes, edges),) = centerlines(labels, (16, 16, 16), const_nm=100)
    degree = np.bincount(edges.ravel(), minlength=len(nodes))
    assert np.count_nonzero(degree == 1) == 4
    assert len(edges) == len(nodes) - 1
    assert length(nodes, edges) == pytest.approx(2 * 80 * 16, rel=0.1)


def test_parts_of_one_object_stay_one_skeleton_and_dust_is_left_out():
    labels = np.zeros((100, 12, 12), np.uint16)
    labels[:40, 4:8, 4:8] = labels[60:, 4:8, 4:8] = 5
    labels[50, 0, 0] = 9
    labels[48:52, 2:4, 2:4] = 11
    found = list(centerlines(labels, (20, 20, 20)))
    assert [name for name, _, _ in found] == [5]
    _, nodes, edges = found[0]
    assert len(edges) == len(nodes) - 2
    assert np.linalg.norm(nodes[edges[:, 0]] - nodes[edges[:, 1]], axis=1).max() < 20 * 2


def test_labels_without_background_are_followed_too():
    labels = np.ones((50, 8, 8), np.uint8)
    labels[:, :, 4:] = 2
    assert [name for name, _, _ in centerlines(labels, (20, 20, 20))] == [1, 2]


def test_floats_are_refused():
    with pytest.raises(SpecError, match=r"labels must be \(x, y, z\) integers, got float64"):
        list(centerlines(np.zeros((3, 3, 3)), (8, 8, 8)))

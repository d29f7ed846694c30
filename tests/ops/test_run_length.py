"""Expected run length on skeletons whose answer is known by hand."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from cloudseg.errors import SpecError
from cloudseg.ops.run_length import expected_run_length


def line(n_nodes: int, *, y: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A straight skeleton along x with 10 nm edges."""
    nodes = np.stack([np.arange(n_nodes) * 10.0, np.full(n_nodes, y), np.zeros(n_nodes)], axis=1)
    return nodes, np.stack([np.arange(n_nodes - 1), np.arange(1, n_nodes)], axis=1)


def two_lines(n_nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, edges = line(n_nodes)
    b, _ = line(n_nodes, y=100.0)
    return np.concatenate([a, b]), np.concatenate([edges, edges + n_nodes]), np.repeat([1, 2], n_nodes)


def test_a_perfect_segmentation_reaches_the_whole_length():
    nodes, edges, skeletons = two_lines(11)
    result = expected_run_length(nodes, edges, skeletons, skeletons + 40)
    assert result.erl_nm == result.max_erl_nm == pytest.approx(100)
    assert result.normalised_erl == 1
    assert (result.n_splits, result.n_mergers, result.n_omitted_edges) == (0, 0, 0)
    assert result.total_length_nm == pytest.approx(200)


def test_a_split_in_the_middle_leaves_two_shorter_runs():
    nodes, edges = line(11)
    segments = np.where(np.arange(11) < 5, 8, 9)  # edges: 4 in segment 8, 1 between, 5 in segment 9
    result = expected_run_length(nodes, edges, np.ones(11, int), segments)
    assert result.erl_nm == pytest.approx((40**2 + 50**2) / 100)
    assert result.n_splits == 1
    assert result.split_fraction == pytest.approx(0.1)
    assert result.correct_fraction == pytest.approx(0.9)


def test_a_merger_makes_the_run_of_both_skeletons_zero():
    nodes, edges, skeletons = two_lines(11)
    result = expected_run_length(nodes, edges, skeletons, np.full(22, 5))
    assert result.erl_nm == 0
    assert result.merged_fraction == 1
    assert (result.n_mergers, result.n_merged_skeletons) == (1, 2)


def test_a_graze_of_few_nodes_is_tolerated_when_asked():
    nodes, edges, skeletons = two_lines(11)
    segments = skeletons.copy()
    segments[11] = 1  # one node of skeleton 2 lies in the segment of skeleton 1
    assert expected_run_length(nodes, edges, skeletons, segments).n_mergers == 1
    tolerant = expected_run_length(nodes, edges, skeletons, segments, merge_tolerance_nodes=1)
    assert tolerant.n_mergers == 0
    assert tolerant.erl_nm == pytest.approx((100**2 + 90**2) / 200)


def test_background_is_omitted_and_never_a_merger():
    nodes, edges, skeletons = two_lines(11)
    segments = skeletons.copy()
    segments[[0, 11]] = 0
    result = expected_run_length(nodes, edges, skeletons, segments)
    assert result.n_omitted_edges == 2
    assert result.n_mergers == 0
    assert result.omitted_fraction == pytest.approx(0.1)
    assert result.erl_nm == pytest.approx(2 * 90**2 / 200)


def slow_reference(nodes, edges, skeletons, segments) -> float:
    """The published definition, skeleton by skeleton, on a graph."""
    graph = nx.Graph()
    graph.add_nodes_from(range(len(nodes)))
    graph.add_edges_from(map(tuple, edges))
    holders: dict[int, set[int]] = {}
    for skeleton, segment in zip(skeletons, segments, strict=True):
        holders.setdefault(int(segment), set()).add(int(skeleton))
    length, runs = {}, {}
    for a, b in graph.edges:
        d = float(np.linalg.norm(nodes[a] - nodes[b]))
        skeleton = int(skeletons[a])
        length[skeleton] = length.get(skeleton, 0.0) + d
        if segments[a] == segments[b] != 0 and len(holders[int(segments[a])]) == 1:
            key = (skeleton, int(segments[a]))
            runs[key] = runs.get(key, 0.0) + d
    total = sum(length.values())
    return sum(
        length[i] / total * sum(run * run / length[i] for (s, _), run in runs.items() if s == i)
        for i in length
    )


@pytest.mark.parametrize("seed", range(8))
def test_random_trees_agree_with_a_skeleton_by_skeleton_reference(seed):
    rng = np.random.default_rng(seed)
    nodes, edges, skeletons = [], [], []
    for skeleton in range(6):
        n, start = int(rng.integers(5, 40)), len(nodes)
        for i in range(n):
            nodes.append(rng.random(3) * 1000)
            skeletons.append(skeleton)
            if i:
                edges.append((start + int(rng.integers(0, i)), start + i))
    skeletons = np.array(skeletons)
    segments = skeletons * 3 + rng.integers(0, 3, len(nodes))
    segments[rng.random(len(nodes)) < 0.05] = 0
    segments[rng.random(len(nodes)) < 0.02] = 7
    result = expected_run_length(np.array(nodes), np.array(edges), skeletons, segments)
    assert result.erl_nm == pytest.approx(
        slow_reference(np.array(nodes), np.array(edges), skeletons, segments)
    )
    shares = (result.correct_fraction, result.split_fraction, result.merged_fraction, result.omitted_fraction)
    assert sum(shares) == pytest.approx(1)


def test_malformed_skeletons_are_refused():
    nodes, edges = line(4)
    ids = np.ones(4, int)
    with pytest.raises(SpecError, match=r"nodes must have the shape \(n, 3\)"):
        expected_run_length(nodes[:, :2], edges, ids, ids)
    with pytest.raises(SpecError, match="must be finite"):
        expected_run_length(nodes * np.nan, edges, ids, ids)
    with pytest.raises(SpecError, match=r"segment ids must be one for each of the 4 nodes, got shape \(3,\)"):
        expected_run_length(nodes, edges, ids, ids[:3])
    with pytest.raises(SpecError, match=r"edges must be integers of the shape \(m, 2\)"):
        expected_run_length(nodes, edges.astype(float), ids, ids)
    with pytest.raises(SpecError, match="no edge inside"):
        expected_run_length(nodes, edges[:0], ids, ids)
    with pytest.raises(SpecError, match=r"nodes 0\.\.3, got 1\.\.4"):
        expected_run_length(nodes, edges + 1, ids, ids)
    with pytest.raises(SpecError, match="edge 1 joins skeletons 1 and 2"):
        expected_run_length(nodes, edges, np.array([1, 1, 2, 2]), ids)
    with pytest.raises(SpecError, match="no length"):
        expected_run_length(nodes * 0, edges, ids, ids)

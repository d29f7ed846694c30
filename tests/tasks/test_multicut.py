"""Multicut and mutex linkage: what a partition is worth, and that blocks do not show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from stage_runs import run_stages

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.affinities import labels_to_affinities
from cloudseg.ops.edges import Edges, pairs
from cloudseg.ops.multicut import CutRule, costs, partition
from cloudseg.tasking.steps import Layer, Site
from cloudseg.testing.phantom import neurite_phantom
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume
from cloudseg_tasks.agglomerate import AgglomerateStage
from cloudseg_tasks.multicut import MulticutStage
from cloudseg_tasks.supervoxels import SupervoxelsStage

BLOCKS = [(22, 18, 12), (8, 8, 8), (11, 18, 5)]


@pytest.fixture
def root():
    clear_memory()
    yield "memory://multicut"
    clear_memory()


def graph(n, seed):
    rng = np.random.default_rng(seed)
    u, v = np.array(list(itertools.combinations(range(n), 2))).T
    weight = rng.integers(1, 50, len(u))
    return Edges.summed(pairs(u, v), rng.integers(0, 255 * weight + 1), weight)


def cut_cost(edges, cost, name):
    return cost[name[edges.u] != name[edges.v]].sum()


def partitions(n):
    """Yield every partition of n things, as the smallest member of each one's group."""
    for code in itertools.product(*(range(i + 1) for i in range(n))):
        if all(code[c] == c for c in code):
            yield np.array(code)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("beta", [0.3, 0.5, 0.8])
def test_multicut_of_a_small_graph_is_nearly_the_best_of_all_partitions(seed, beta):
    edges = graph(7, seed)
    cost = costs(edges, beta=beta) * np.sqrt(edges.weight / edges.weight.max())
    found = partition(edges, n_voxels=np.ones(7, np.int64), rule=CutRule(beta=beta))
    every = [cut_cost(edges, cost, name) for name in partitions(7)]
    assert cut_cost(edges, cost, found) <= min(every) + 0.05 * (max(every) - min(every))


@pytest.mark.parametrize("seed", range(8))
def test_mutex_linkage_equals_its_definition(seed):
    edges = graph(9, seed)
    cost = costs(edges, beta=0.5)
    group, apart = list(range(9)), set()
    for e in np.argsort(-np.abs(cost), kind="stable"):
        a, b = group[edges.u[e]], group[edges.v[e]]
        if a == b:
            continue
        if cost[e] < 0:
            apart.add(frozenset((a, b)))
        elif frozenset((a, b)) not in apart:
            keep, gone = min(a, b), max(a, b)
            group = [keep if g == gone else g for g in group]
            apart = {frozenset(keep if g == gone else g for g in pair) for pair in apart}
    found = partition(edges, n_voxels=np.ones(9, np.int64), rule=CutRule(method="mutex"))
    np.testing.assert_array_equal(found, group)


def test_small_segments_go_to_the_neighbour_they_are_best_connected_to():
    u, v = np.array([0, 1]), np.array([1, 2])
    edges = Edges.summed(pairs(u, v), np.array([10, 60]), np.array([1, 1]))
    sizes = np.array([100, 3, 100])
    assert partition(edges, n_voxels=sizes, rule=CutRule()).tolist() == [0, 1, 2]
    assert partition(edges, n_voxels=sizes, rule=CutRule(min_size_vx=10)).tolist() == [0, 1, 1]


def test_nothing_to_cut():
    nothing = np.zeros(0, np.int64)
    edges = Edges.summed(pairs(nothing, nothing), nothing, nothing)
    assert partition(edges, n_voxels=np.ones(3, np.int64), rule=CutRule()).tolist() == [0, 1, 2]


def put_affinities(root, *, seed=2):
    labels = neurite_phantom(BLOCKS[0], seed=seed, calibre_vx=5.0).labels
    rng = np.random.default_rng(seed)
    links = np.stack(list(labels_to_affinities(labels)[0])).astype(np.float32)
    noisy = np.clip(links * 150 + rng.normal(50, 45, links.shape), 0, 255).astype(np.uint8)
    info = VolumeInfo(
        bounds=Box.of_shape(labels.shape, at=(3, -5, 8)),
        voxel_size_nm=(8, 8, 8),
        chunk_shape=(1, 1, 1),
        n_channels=3,
    )
    create_volume(f"{root}/affinities", info).write(info.bounds, np.asfortranarray(noisy))
    return Layer("affinities", f"{root}/affinities", info)


@pytest.mark.parametrize("method", ["multicut", "mutex"])
def test_blocks_do_not_show(root, method):
    results = []
    for i, block in enumerate(BLOCKS):
        clear_memory()
        common = {"block_shape": block, "chunk_shape": (1, 1, 1)}
        stages = [
            SupervoxelsStage(**common),
            AgglomerateStage(threshold=0.5, **common),
            MulticutStage(method=method, min_size_um3=2e-6, **common),
        ]
        got = run_stages(stages, {"affinities": put_affinities(root)}, root, seed=i, repeat=i == 1)
        results.append(got["multicut"])
        assert len(np.unique(results[0])) < len(np.unique(got["supervoxels"])) / 2
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_a_graph_that_is_too_large_is_refused_before_anything_is_written(root):
    common = {"block_shape": BLOCKS[0], "chunk_shape": (1, 1, 1)}
    stages = [SupervoxelsStage(**common), AgglomerateStage(**common), MulticutStage(max_edges=10, **common)]
    with pytest.raises(SpecError, match=r"has [\d,]+ edges, more than max_edges = 10"):
        run_stages(stages, {"affinities": put_affinities(root)}, root)
    assert not open_objects(f"{root}/graph/multicut").exists("names.parquet")


def test_a_stage_without_a_graph_says_what_it_needs(root):
    layer = put_affinities(root)
    labels = Layer(
        "supervoxels", "memory://multicut/supervoxels", layer.info.model_copy(update={"n_channels": 1})
    )
    site = Site(root, {"supervoxels": labels}, open_volume, open_objects)
    with pytest.raises(SpecError, match="cuts the region graph of a stage 'agglomerate' before it"):
        MulticutStage().expand(site)


def test_beta_is_no_threshold():
    with pytest.raises(SpecError, match="between 0"):
        CutRule(beta=1.0)

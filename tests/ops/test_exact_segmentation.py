"""The result of affinity segmentation does not depend on how the volume is cut into blocks."""

from __future__ import annotations

import numpy as np
import pytest
from blockwise import blockwise, rules
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cloudseg.geometry import Box
from cloudseg.ops.agglomerate import Rule
from cloudseg.ops.region_graph import region_graph
from cloudseg.ops.segment import segment


@st.composite
def volumes_and_cuts(draw):
    shape = tuple(draw(st.integers(1, 11)) for _ in range(3))
    seed = draw(st.integers(0, 2**31))
    n_values = draw(st.sampled_from([2, 3, 8, 256]))  # few values: many ties
    cuts = [draw(st.sets(st.integers(1, s - 1), max_size=s - 1)) if s > 1 else set() for s in shape]
    rng = np.random.default_rng(seed)
    levels = np.linspace(0, 255, n_values).astype(np.uint8)
    affinities = np.asfortranarray(levels[rng.integers(0, n_values, (3, *shape))])
    mask = (rng.random(shape) < 0.8) if draw(st.booleans()) else None
    return affinities, cuts, mask, seed


@pytest.fixture(scope="module", autouse=True)
def _compiled_kernels():
    """Compile before hypothesis watches: its tracing makes the compiler a hundred times slower."""
    affinities = np.full((3, 3, 3, 3), 200, np.uint8, order="F")
    blockwise(affinities, cuts=[{1}, {1}, {1}], t_low=1, t_high=250, rule=Rule(100.0, 150.0, 1, 2, 2))


@settings(max_examples=300, deadline=None, phases=set(Phase) - {Phase.explain})
@given(
    case=volumes_and_cuts(),
    rule=rules,
    emphasis=st.sampled_from([0, 0, 3, 1000]),
    t_low=st.sampled_from([1, 2, 100]),
    t_high=st.sampled_from([130, 250, 255]),
    fanout=st.sampled_from([2, 3, 16]),
    repeat=st.booleans(),
)
def test_blockwise_equals_one_shot_bit_for_bit(case, rule, emphasis, t_low, t_high, fanout, repeat):
    affinities, cuts, mask, seed = case
    whole = segment(affinities, t_low=t_low, t_high=t_high, rule=rule, emphasis=emphasis, mask=mask)
    names, final, graph = blockwise(
        affinities,
        cuts=cuts,
        t_low=t_low,
        t_high=t_high,
        rule=rule,
        emphasis=emphasis,
        mask=mask,
        fanout=fanout,
        seed=seed,
        repeat=repeat,
    )
    np.testing.assert_array_equal(names, whole.supervoxels)
    box = Box.of_shape(affinities.shape[1:])
    one, _ = region_graph(whole.supervoxels, affinities, core=box, bounds=box, emphasis=emphasis)
    for column in ("u", "v", "total", "weight"):
        np.testing.assert_array_equal(getattr(graph, column), getattr(one, column), err_msg=column)
    np.testing.assert_array_equal(final, whole.segments)


@pytest.mark.parametrize("emphasis", [0, 10, 1000])
def test_edges_are_weighted_means_of_their_faces(emphasis):
    rng = np.random.default_rng(emphasis)
    labels = np.asfortranarray(rng.integers(0, 4, (6, 5, 4)).astype(np.uint64))
    affinities = np.asfortranarray(rng.integers(0, 256, (3, 6, 5, 4)).astype(np.uint8))
    box = Box.of_shape(labels.shape)
    graph, _ = region_graph(labels, affinities, core=box, bounds=box, emphasis=emphasis)
    faces = {}
    for at in np.ndindex(labels.shape):
        for axis in range(3):
            below = tuple(p - (a == axis) for a, p in enumerate(at))
            pair = tuple(sorted((int(labels[at]), int(labels[below])))) if min(below) >= 0 else (0, 0)
            if pair[0] and pair[0] != pair[1]:
                faces.setdefault(pair, []).append(int(affinities[(axis, *at)]))
    assert list(zip(graph.u.tolist(), graph.v.tolist(), strict=True)) == sorted(faces)
    for k, pair in enumerate(sorted(faces)):
        a = np.array(faces[pair], np.float64)
        expected = np.average(a, weights=1 + emphasis * a / 255)
        assert graph.total[k] / graph.weight[k] == pytest.approx(expected, rel=1e-12)


def test_emphasis_joins_through_a_neck_that_the_mean_drowns():
    affinities = np.full((3, 4, 20, 20), 254, np.uint8, order="F")
    affinities[0, 2] = 8  # membrane between two slabs
    affinities[0, 2, 5:13, 5:10] = 150  # but for a neck of 40 of the 400 faces
    joined = [
        len(np.unique(segment(affinities, t_low=1, t_high=253, rule=Rule(0.3 * 255), emphasis=e).segments))
        for e in (0, 32)
    ]
    assert joined == [2, 1]

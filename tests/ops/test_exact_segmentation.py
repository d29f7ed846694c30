"""The result of affinity segmentation does not depend on how the volume is cut into blocks."""

from __future__ import annotations

import numpy as np
import pytest
from blockwise import blockwise
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


rules = st.builds(
    Rule,
    threshold=st.sampled_from([0.0, 60.0, 127.5, 200.0]),
    guard_affinity=st.sampled_from([0.0, 150.0, 255.0]),
    guard_min_vx=st.sampled_from([1, 3, 20]),
    guard_sum_vx=st.sampled_from([2, 10, 50]),
    min_size_vx=st.sampled_from([0, 3, 30]),
)


@pytest.fixture(scope="module", autouse=True)
def _compiled_kernels():
    """Compile before hypothesis watches: its tracing makes the compiler a hundred times slower."""
    affinities = np.full((3, 3, 3, 3), 200, np.uint8, order="F")
    blockwise(affinities, cuts=[{1}, {1}, {1}], t_low=1, t_high=250, rule=Rule(100.0, 150.0, 1, 2, 2))


@settings(max_examples=300, deadline=None, phases=set(Phase) - {Phase.explain})
@given(
    case=volumes_and_cuts(),
    rule=rules,
    t_low=st.sampled_from([1, 2, 100]),
    t_high=st.sampled_from([130, 250, 255]),
    fanout=st.sampled_from([2, 3, 16]),
    repeat=st.booleans(),
)
def test_blockwise_equals_one_shot_bit_for_bit(case, rule, t_low, t_high, fanout, repeat):
    affinities, cuts, mask, seed = case
    whole = segment(affinities, t_low=t_low, t_high=t_high, rule=rule, mask=mask)
    names, final, graph = blockwise(
        affinities,
        cuts=cuts,
        t_low=t_low,
        t_high=t_high,
        rule=rule,
        mask=mask,
        fanout=fanout,
        seed=seed,
        repeat=repeat,
    )
    np.testing.assert_array_equal(names, whole.supervoxels)
    box = Box.of_shape(affinities.shape[1:])
    one = region_graph(whole.supervoxels, affinities, core=box, bounds=box)
    for column in ("u", "v", "total", "count"):
        np.testing.assert_array_equal(getattr(graph, column), getattr(one, column), err_msg=column)
    np.testing.assert_array_equal(final, whole.segments)

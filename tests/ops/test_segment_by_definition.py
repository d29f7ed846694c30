"""Supervoxels and agglomeration equal their definitions, written down as plainly as possible."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from blockwise import rules
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cloudseg.geometry import Box
from cloudseg.ops import merge
from cloudseg.ops.agglomerate import Rule
from cloudseg.ops.segment import segment


class Joined:
    """Union-find over anything that sorts; a set is called by its smallest member."""

    def __init__(self):
        self.parent = {}

    def name(self, x):
        while self.parent.get(x, x) != x:
            x = self.parent[x]
        return x

    def join(self, a, b):
        a, b = sorted((self.name(a), self.name(b)))
        self.parent[b] = a
        return a


def links_of(affinities):
    """``{(lower voxel, upper voxel): affinity}`` inside the volume, and the direction codes of both ends."""
    shape = affinities.shape[1:]
    for at in np.ndindex(shape):
        for axis in range(3):
            below = tuple(p - (a == axis) for a, p in enumerate(at))
            if min(below) >= 0:
                yield below, at, axis, int(affinities[(axis, *at)])


def supervoxels_by_definition(affinities, t_low, t_high):
    best = {}
    for below, at, axis, affinity in links_of(affinities):
        if affinity >= t_low:
            for end, code in ((at, axis), (below, axis + 3)):
                best[end] = min(best.get(end, (0, 9, None, None)), (-affinity, code, below, at))
    joined = Joined()
    index = {at: n for n, at in enumerate((x, y, z) for z, y, x in np.ndindex(affinities.shape[:0:-1]))}
    for below, at, _, affinity in links_of(affinities):
        if affinity >= t_high or any(best.get(e, (0,) * 4)[2:] == (below, at) for e in (below, at)):
            joined.join(index[below], index[at])
    labels = np.zeros(affinities.shape[1:], np.uint64)
    for at in best:
        labels[at] = joined.name(index[at]) + 1
    return labels


def segments_by_definition(labels, affinities, rule, emphasis):
    """Merge the best of all edges, one after the other, with exact fractions and plain dictionaries."""
    edges = {}
    for below, at, _, a in links_of(affinities):
        pair = tuple(sorted((int(labels[below]), int(labels[at]))))
        if pair[0] and pair[0] != pair[1]:
            total, weight, _ = edges.get(pair, (0, 0, pair))
            # 255 times the weight of a face, so that all is whole.
            edges[pair] = (total + (255 + emphasis * a) * a, weight + 255 + emphasis * a, pair)
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    size = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    joined = Joined()

    def join(pair):
        nonlocal edges
        a = joined.join(*pair)
        (b,) = set(pair) - {a}
        size[a] += size.pop(b)
        pooled = {}
        for (u, v), (total, weight, key) in edges.items():
            ends = tuple(sorted((a if u == b else u, a if v == b else v)))
            if ends[0] != ends[1]:
                t, w, k = pooled.get(ends, (0, 0, key))
                pooled[ends] = (t + total, w + weight, max(k, key))
        edges = pooled

    def order(pair):
        total, weight, key = edges[pair]
        return (-Fraction(total, weight), key)

    while True:
        pair = min(edges, key=order, default=None)
        if pair is None or Fraction(*edges[pair][:2]) < Fraction(rule.threshold):
            break
        sizes = [size[i] for i in pair]
        if (
            Fraction(*edges[pair][:2]) < Fraction(rule.guard_affinity)
            and min(sizes) > rule.guard_min_vx
            and sum(sizes) > rule.guard_sum_vx
        ):
            del edges[pair]
        else:
            join(pair)
    while True:  # rounds of small segments
        picks = set()
        for i, n in size.items():
            mine = [pair for pair in edges if i in pair]
            if n < rule.min_size_vx and mine:
                picks.add(min(mine, key=order))
        if not picks:
            break
        for pair in picks:
            ends = tuple(sorted({joined.name(i) for i in pair}))
            if len(ends) == 2:
                join(ends)
    return np.vectorize(lambda i: joined.name(int(i)), otypes=[np.uint64])(labels)


@settings(max_examples=80, deadline=None, phases=set(Phase) - {Phase.explain})
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    n_values=st.sampled_from([2, 3, 8, 256]),
    seed=st.integers(0, 2**31),
    rule=rules,
    emphasis=st.sampled_from([0, 3, 1000]),
    t_low=st.sampled_from([1, 100]),
    t_high=st.sampled_from([130, 250, 255]),
)
def test_segments_are_what_the_definition_says(shape, n_values, seed, rule, emphasis, t_low, t_high):
    rng = np.random.default_rng(seed)
    levels = np.linspace(0, 255, n_values).astype(np.uint8)
    affinities = np.asfortranarray(levels[rng.integers(0, n_values, (3, *shape))])
    got = segment(affinities, t_low=t_low, t_high=t_high, rule=rule, emphasis=emphasis)
    labels = supervoxels_by_definition(affinities, t_low, t_high)
    np.testing.assert_array_equal(got.supervoxels, labels)
    np.testing.assert_array_equal(got.segments, segments_by_definition(labels, affinities, rule, emphasis))


def test_chains_and_queue_merge_alike(monkeypatch):
    rng = np.random.default_rng(5)
    affinities = np.asfortranarray(rng.integers(0, 256, (3, 24, 24, 24)).astype(np.uint8))
    rule = Rule(110.0, guard_affinity=140.0, guard_min_vx=30, guard_sum_vx=90, min_size_vx=20)
    segments = []
    for long_list in (0, 3, 20, 10**6):  # nothing by chains ... everything by chains
        monkeypatch.setattr(merge, "_LONG_LIST", long_list)
        segments.append(segment(affinities, t_low=1, t_high=250, rule=rule).segments)
    assert len(np.unique(segments[0])) > 20
    for other in segments[1:]:
        np.testing.assert_array_equal(other, segments[0])


def test_a_block_without_a_link_is_background():
    box = Box.of_shape((4, 3, 2))
    got = segment(
        np.zeros((3, *box.shape), np.uint8, order="F"), t_low=1, t_high=255, rule=Rule(10.0, min_size_vx=5)
    )
    assert not got.segments.any()
    assert not got.supervoxels.any()

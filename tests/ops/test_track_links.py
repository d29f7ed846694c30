"""Links of sections against their definition, pair by pair."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudseg.ops.contingency import contingency
from cloudseg.ops.track_links import borne_out
from cloudseg.ops.tracking import voted


def most(tracks, where):
    ids, n = np.unique(tracks[where], return_counts=True)
    return int(ids[np.argmax(n)])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), branch=st.sampled_from([0.1, 0.6, 1.0]), gap=st.booleans())
def test_segments_are_linked_as_tracks_bear_out(seed, branch, gap):
    rng = np.random.default_rng(seed)
    shape, n = (9, 8, 4), 4
    cut = rng.integers(0, n + 1, (3, 4, 4)).repeat(3, 0).repeat(2, 1).astype(np.uint64)
    segments = np.asfortranarray(np.where(cut > 0, cut + 10 * np.arange(1, 5, dtype=np.uint64), 0))
    up, down = (
        np.asfortranarray(np.where(rng.random(shape) < 0.8, cut, rng.integers(0, 3, shape)).astype(np.uint64))
        for _ in range(2)
    )
    missing = {1} if gap else set()
    sections = [z for z in range(4) if z not in missing]
    name = {int(s): int(s) for z in sections for s in np.unique(segments[:, :, z]) if s}
    for low, high in itertools.pairwise(sections):
        a, b = segments[:, :, low], segments[:, :, high]
        n_common = {
            (int(p), int(q)): int(((a == p) & (b == q)).sum())
            for p in np.unique(a[a > 0])
            for q in np.unique(b[b > 0])
            if ((a == p) & (b == q)).any()
        }
        for (p, q), n_pq in n_common.items():
            best_p = min((-n, r) for (s, r), n in n_common.items() if s == p)[1] == q
            best_q = min((-n, s) for (s, r), n in n_common.items() if r == q)[1] == p
            yes = [most(t, segments == p) == most(t, segments == q) != 0 for t in (up, down)]
            on_it = n_pq >= branch * min((a == p).sum(), (b == q).sum())
            if (best_p and best_q and any(yes)) or (best_p != best_q and all(yes) and on_it):
                old, new = sorted((name[p], name[q]), reverse=True)
                name = {s: new if m == old else m for s, m in name.items()}
    expected = np.zeros(shape, np.uint64)
    for segment, called in name.items():
        expected[segments == segment] = called
    got = borne_out(segments, up=up, down=down, branch=branch, missing=missing)
    np.testing.assert_array_equal(got, expected)


def test_a_segment_goes_to_the_track_that_its_middle_agrees_on():
    segments = np.repeat(np.array([7, 8, 9], np.uint64), 12)[:, None].repeat(12, 1)
    found = np.zeros(segments.shape, np.int32)
    found[2:9] = 1  # most of 7
    found[10:15] = 2  # beyond the border of 7, into 8: of its middle but a corner
    found[24:31], found[31:36] = 3, 4  # 9 is of two
    whole = voted(found, segments, vote=0.8, explained=0.5)
    assert set(whole[:12].ravel().tolist()) == {1}
    assert set(whole[12:24].ravel().tolist()) == {0}
    np.testing.assert_array_equal(whole[24:], found[24:])
    assert set(voted(found, segments, vote=0.5, explained=0.5)[24:].ravel().tolist()) == {3}
    assert len(contingency(segments[..., None], whole[..., None].astype(np.uint64)).counts) == 4

"""Colour codes against their definition, and tracks with a network that knows the truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudseg.errors import SpecError
from cloudseg.ops.colours import decode, n_digits, paint, random_codes
from cloudseg.ops.tracking import TrackRule, both_ways, filled, inner, joined, track

RULE = TrackRule(min_area_px=5, cell=8)


@given(n=st.integers(1, 400), n_colours=st.integers(2, 6), redundancy=st.integers(0, 12))
def test_codes_are_different_and_as_long_as_they_must_be(n, n_colours, redundancy):
    k = n_digits(n, n_colours=n_colours, redundancy=redundancy)
    assert n_colours ** (k - redundancy) >= n
    assert k - redundancy == 1 or n_colours ** (k - redundancy - 1) < n
    codes = random_codes(n, n_colours=n_colours, n_digits=k, seed=(1, 2))
    assert codes.shape == (n, k)
    assert 0 <= codes.min() <= codes.max() < n_colours
    assert len({tuple(row) for row in codes.tolist()}) == n


@settings(max_examples=15)
@given(
    seed=st.integers(0, 99),
    cell=st.sampled_from([2, 3, 50]),
    least=st.sampled_from([0.0, 0.4, 0.9]),
)
def test_a_pixel_gets_the_candidate_that_all_pictures_like_best(seed, cell, least):
    rng = np.random.default_rng(seed)
    n, n_colours, k, shape = 7, 3, 4, (9, 7)
    codes = random_codes(n, n_colours=n_colours, n_digits=k, seed=(seed,))
    before = rng.integers(0, n + 1, (3, 3)).repeat(3, 0).repeat(3, 1)[:9, :7].astype(np.int32)
    log_p = np.log(rng.dirichlet(np.ones(n_colours + 1) * 0.5, (k, *shape)) + 1e-6)
    log_p = np.moveaxis(log_p, -1, 1).astype(np.float32)
    got = decode(log_p, codes, before, cell=cell, min_posterior=least)
    for x, y in itertools.product(*map(range, shape)):
        i, j = x // cell, y // cell
        near = before[max(0, i - 1) * cell : (i + 2) * cell, max(0, j - 1) * cell : (j + 2) * cell]
        scores = {0: float(log_p[:, n_colours, x, y].sum())}
        for label in set(near.ravel().tolist()) - {0}:
            scores[label] = float(sum(log_p[d, codes[label - 1, d], x, y] for d in range(k)))
        best = max(scores, key=scores.get)
        share = 1 / sum(np.exp(s - scores[best]) for s in scores.values())
        if abs(share - least) > 1e-3:
            assert got[x, y] == (best if share >= least else 0)


def wandering(n_sections=10, shape=(60, 50)):
    """Discs that wander, one that comes late and one that ends early; ids 1 to 5."""
    truth = np.zeros((*shape, n_sections), np.uint64, order="F")
    x, y = np.mgrid[: shape[0], : shape[1]]
    for label, (cx, cy, vx, vy, low, high) in enumerate(
        [(10, 10, 1, 0.5, 0, 99), (12, 35, 0, -1, 0, 99), (40, 12, -0.5, 0.5, 4, 99), (45, 40, 0, -0.7, 0, 5),
         (28, 28, 0.3, 0.6, 0, 99)], 1
    ):  # fmt: skip
        for z in range(n_sections):
            if low <= z < high:
                truth[(x - cx - vx * z) ** 2 + (y - cy - vy * z) ** 2 < 40, z] = label
    return truth


def in_sections(truth):
    """The same, numbered anew in each section."""
    z = np.arange(truth.shape[2], dtype=np.uint64)
    return np.where(truth > 0, truth + 100 * (z + 1), 0).astype(np.uint64)


def oracle(truth, n_colours, *, blind=(), asked=None):
    """A network that knows the truth, but for sections in which it sees nothing."""

    def predict(z, following, colours):
        if asked is not None:
            asked.append((z, following, len(colours)))
        p = np.full((len(colours), n_colours + 1, *truth.shape[:2]), 0.02, np.float32)
        carried = {int(i): colours[:, truth[:, :, z] == i] for i in np.unique(truth[:, :, z]) if i}
        for digit in range(len(colours)):
            p[digit, n_colours] = 0.5
            for label, seen in carried.items():
                known = seen[digit][seen[digit] >= 0]
                here = truth[:, :, following] == label
                if len(known) and following not in blind:
                    p[digit, n_colours, here] = 0.02
                    p[digit, known[0], here] = 0.9
        return np.log(p / p.sum(1, keepdims=True))

    return predict


def as_truth(tracks, truth):
    """Which tracks each true object has, and which objects each track."""
    both = (tracks > 0) & (truth > 0)
    pairs = set(zip(tracks[both].tolist(), truth[both].tolist(), strict=True))
    return [sorted(t for t, o in pairs if o == label) for label in (1, 2, 3, 4, 5)]


def test_objects_are_followed_begun_and_ended():
    truth, asked = wandering(), []
    tracks = track(
        in_sections(truth),
        sections=range(10),
        predict=oracle(truth, 4, asked=asked),
        rule=RULE,
    )
    assert as_truth(tracks, truth) == [[101], [102], [503], [104], [105]]
    assert not tracks[:, :, 5:][truth[:, :, 5:] == 0].any()
    assert [(a, b) for a, b, _ in asked] == [(z, z + 1) for z in range(9)]
    assert {k for _, _, k in asked} == {1 + RULE.redundancy, 2 + RULE.redundancy}
    assert (filled(tracks, reach=2)[truth > 0] > 0).all()


def test_missing_sections_are_passed_over():
    truth = wandering()
    tracks = track(
        in_sections(truth), sections=[0, 1, 2, 4, 5, 6, 7, 8, 9], predict=oracle(truth, 4), rule=RULE
    )
    assert not tracks[:, :, 3].any()
    assert as_truth(tracks, truth)[0] == [101]


def test_a_track_that_breaks_one_way_is_mended_by_the_other():
    truth = wandering()
    segments = in_sections(truth)
    up = track(segments, sections=range(10), predict=oracle(truth, 4, blind={6}), rule=RULE)
    assert as_truth(up, truth)[0] == [101, 701]
    down = track(segments, sections=range(9, -1, -1), predict=oracle(truth, 4), rule=RULE)
    whole = joined(up, down, rule=RULE)
    assert as_truth(whole, truth) == [[101], [102], [503], [104], [105]]
    again = both_ways(segments, sections=range(10), predict=oracle(truth, 4), rule=RULE)
    assert as_truth(again, truth) == [[101], [102], [503], [104], [105]]


def test_tracks_side_by_side_are_not_joined():
    up = np.zeros((10, 10, 2), np.uint64, order="F")
    up[:5, :, :], up[5:, :, :] = 1, 2
    down = np.ones((10, 10, 2), np.uint64, order="F")
    np.testing.assert_array_equal(joined(up, down, rule=TrackRule(join=0.3)), up)


def test_borders_between_segments_are_left_out():
    section = np.array([[1, 1, 1, 2, 2, 2]], np.uint64)
    assert inner(section).tolist() == [[1, 1, 0, 0, 2, 2]]


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        SpecError, match="17 labels cannot be told apart by 2 pictures of 4 colours, which make 16"
    ):
        random_codes(17, n_colours=4, n_digits=2, seed=(0,))
    codes = random_codes(3, n_colours=4, n_digits=2, seed=(0,))
    with pytest.raises(SpecError, match="do not fit codes of shape"):
        decode(np.zeros((3, 5, 4, 4), np.float32), codes, np.zeros((4, 4), np.int32), cell=4, min_posterior=0)
    truth = wandering()
    with pytest.raises(SpecError, match="the network must return"):
        track(in_sections(truth), sections=[0, 1], predict=lambda *_: np.zeros((1, 5, 2, 2)), rule=RULE)
    assert paint(np.array([[0, 1]], np.int32), codes)[:, 0, 0].tolist() == [-1, -1]

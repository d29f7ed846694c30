"""Flood filling step by step as its definition says, seeds to the last one, and states that can be put away."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudseg.errors import SpecError
from cloudseg.ops.flood import Canvas, FloodRule, closed_by_shift, normalised
from cloudseg.ops.flood_agglomerate import ReseedRule, contact_point, resegment
from cloudseg.ops.flood_seeds import (
    bright_seeds,
    empty_seeds,
    grid_seeds,
    peak_seeds,
    peak_seeds_2d,
    with_full_view,
)

FOV, DELTAS = (9, 7, 5), (2, 2, 1)
RULE = FloodRule(fov=FOV, deltas=DELTAS, min_size_vx=400)


def grow(views):
    """Stand in for a network: grey levels like the one at the centre attract, others repel; with some noise."""
    image, so_far = views[:, 0], views[:, 1]
    x, y, z = (n // 2 for n in image.shape[1:])
    unlike = np.abs(image - image[:, x : x + 1, y : y + 1, z : z + 1])
    return (0.6 * so_far + 3.8 - 9 * unlike + 3 * np.sin(37 * image + so_far)).astype(np.float32)


def scene(seed, shape=(26, 22, 15)):
    """Return an image of a few regions, some alike, with a little noise; and places to start from."""
    rng = np.random.default_rng(seed)
    middles = rng.uniform(0, 1, (8, 3)) * shape
    places = np.moveaxis(np.indices(shape), 0, -1)
    nearest = np.linalg.norm(places[..., None, :] - middles, axis=-1).argmin(axis=-1)
    image = rng.permutation(8)[nearest] * 0.4 + rng.normal(scale=0.1, size=shape)
    return np.asfortranarray(image, np.float32), rng.integers(0, shape, (60, 3))


def logit(p):
    return np.float32(np.log(p / (1 - p)))


def by_definition(image, seeds, rule, *, closed=None, no_seeds=None):
    """Flood as the paper's code does, in z, y, x, one field of view at a time; nothing is shared with ours."""
    image = np.ascontiguousarray(image.T)
    half = tuple(n // 2 for n in rule.fov[::-1])
    deltas = rule.deltas[::-1]
    move, segment = logit(rule.move), logit(rule.segment)
    seg = np.zeros(image.shape, int)
    origins, overlaps, closed = [], [], (np.zeros(image.shape, bool) if closed is None else closed.T)
    no_seeds = np.zeros(image.shape, bool) if no_seeds is None else no_seeds.T

    def window(p):
        return tuple(slice(a - h, a + h + 1) for a, h in zip(p, half, strict=True))

    def fits(p):
        return all(h <= a < n - h for a, h, n in zip(p, half, image.shape, strict=True))

    for seed in (tuple(s[::-1]) for s in seeds.tolist()):
        if not fits(seed) or seg[seed] > 0 or closed[seed] or no_seeds[seed]:
            continue
        if (seg[tuple(slice(max(0, a - 1), a + 2) for a in seed)] > 0).any():
            seg[seed] = -1
            continue
        pom = np.full(image.shape, np.nan, np.float32)
        pom[seed] = logit(rule.start)
        queue, done, centres = deque([seed]), set(), []
        while queue:
            q = queue.popleft()
            cell = tuple((a - s + d // 2) // d for a, s, d in zip(q, seed, deltas, strict=True))
            if cell in done or pom[q] < move or not fits(q) or seg[q] > 0:
                continue
            if pom[seed] < move:
                break
            if closed[q]:
                continue
            old = pom[window(q)].copy()
            given_ = np.where(np.isnan(old), logit(rule.pad), old)
            views = np.stack([image[window(q)].T, given_.T])[None]
            new = np.ascontiguousarray(grow(views)[0].T)
            if rule.freeze is not None and np.mean(new >= move) > rule.freeze:
                with np.errstate(invalid="ignore"):
                    fixed = (old < 0) & (new > old)
                new[fixed] = old[fixed]
            pom[window(q)] = new
            done.add(cell)
            centres.append(q)
            found = set()
            for axis in range(3):
                for side in (-1, 1):
                    face = [slice(h - d, h + d + 1) for h, d in zip(half, deltas, strict=True)]
                    at = half[axis] + side * deltas[axis]
                    face[axis] = slice(at, at + 1)
                    part = new[tuple(face)]
                    best = np.unravel_index(np.argmax(part), part.shape)
                    if part[best] >= move:
                        offset = tuple(int(b + f.start - h) for b, f, h in zip(best, face, half, strict=True))
                        found.add((part[best], offset))
            for _, offset in sorted(found, reverse=True):
                queue.append(tuple(a + o for a, o in zip(q, offset, strict=True)))
        if not centres:
            continue
        if pom[seed] < move:
            seg[seed] = -1 if seg[seed] == 0 else seg[seed]
            continue
        with np.errstate(invalid="ignore"):
            mask = pom >= segment
        ids, counts = np.unique(seg[mask & (seg > 0)], return_counts=True)
        mask &= seg <= 0
        if mask.sum() < rule.min_size_vx:
            seg[seed] = -1 if seg[seed] == 0 else seg[seed]
            continue
        n = len(origins) + 1
        seg[mask] = n
        origins.append((n, *seed[::-1], len(centres)))
        overlaps += [(n, i, c) for i, c in zip(ids.tolist(), counts.tolist(), strict=True)]
    return np.maximum(seg, 0).T, origins, overlaps


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    freeze=st.sampled_from([0.0, 0.2, None]),
    masked=st.booleans(),
)
def test_the_flood_is_its_definition(seed, freeze, masked):
    image, seeds = scene(seed)
    rule = FloodRule(fov=FOV, deltas=DELTAS, min_size_vx=400, freeze=freeze)
    rng = np.random.default_rng(seed)
    masks = {}
    if masked:
        masks["closed"] = np.zeros(image.shape, bool)
        masks["closed"][:, rng.integers(3, 15) :] = True
        masks["no_seeds"] = rng.random(image.shape) < 0.3
    canvas = Canvas(image, rule, grow, **masks)
    assert canvas.run(seeds)
    expected, origins, overlaps = by_definition(image, seeds, rule, **masks)
    np.testing.assert_array_equal(canvas.labels(), expected)
    assert (canvas.origins, canvas.overlaps) == (origins, overlaps)


def test_the_examples_have_objects_that_meet():
    """So that the test above compares something."""
    canvases = []
    for seed in range(4):
        image, seeds = scene(seed)
        canvases.append(Canvas(image, RULE, grow))
        canvases[-1].run(seeds)
    assert sum(c.counts.objects for c in canvases) > 8
    assert sum(c.counts.steps for c in canvases) > 300
    assert any(c.overlaps for c in canvases)
    assert any(c.counts.weak_seeds or c.counts.stopped for c in canvases)
    assert any(c.counts.too_small for c in canvases)


@pytest.mark.parametrize("wave", [1, 4])
def test_a_flood_that_is_put_away_goes_on_as_if_nothing_had_happened(wave):
    image, seeds = scene(1)
    rule = FloodRule(fov=FOV, deltas=DELTAS, min_size_vx=400, wave=wave)
    whole = Canvas(image, rule, grow)
    assert whole.run(seeds)
    left = 20

    def tired():
        nonlocal left
        left -= 1
        return left == 0

    canvas, n_pauses = Canvas(image, rule, grow), 0
    while not canvas.run(seeds, pause=tired):
        state = {name: array.copy() for name, array in canvas.state().items()}
        canvas, left = Canvas(image, rule, grow), 20
        canvas.restore(state)
        n_pauses += 1
    assert n_pauses > 5
    np.testing.assert_array_equal(canvas.labels(), whole.labels())
    np.testing.assert_array_equal(canvas.age, whole.age)
    assert (canvas.origins, canvas.counts) == (whole.origins, whole.counts)
    with pytest.raises(SpecError, match=r"the state is of a volume of \(26, 22, 15\) voxels"):
        Canvas(np.zeros((20, 20, 20)), rule, grow).restore(canvas.state())


def test_waves_share_steps_and_objects_have_an_age():
    image, seeds = scene(2)
    canvas = Canvas(image, FloodRule(fov=FOV, deltas=DELTAS, min_size_vx=400, wave=8), grow)
    canvas.run(seeds)
    assert canvas.counts.waves < 0.7 * canvas.counts.steps
    np.testing.assert_array_equal(canvas.age > 0, canvas.labels() > 0)
    for label, *_, steps in canvas.origins:
        assert 1 <= canvas.age[canvas.segments == label].max() <= steps


def test_segments_that_exist_stay_and_only_the_rest_is_filled():
    image, seeds = scene(3)
    first = Canvas(image, RULE, grow)
    first.run(seeds)
    kept = np.where(first.labels() % 2 == 0, first.labels(), 0)
    again = Canvas(image, RULE, grow, labels=kept)
    again.run(np.concatenate([empty_seeds(kept), seeds]))
    np.testing.assert_array_equal(again.labels()[kept > 0], kept[kept > 0])
    assert again.counts.objects
    assert again.n_labels == kept.max() + again.counts.objects


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((9, 6, 9))}, "6 voxels on y, fewer than the field of view of 7"),
        ({"closed": np.zeros((20, 20, 19), bool)}, r"closed has shape \(20, 20, 19\)"),
        ({"fov": (9, 8, 5)}, "on y it has 8 voxels and moves by 2"),
        ({"deltas": (2, 4, 1)}, "on y it has 7 voxels and moves by 4"),
    ],
)
def test_what_cannot_be_flooded_is_refused(change, message):
    given_ = {"image": np.zeros((20, 20, 20)), "closed": None, "fov": FOV, "deltas": DELTAS} | change
    with pytest.raises(SpecError, match=message):
        Canvas(
            given_["image"],
            FloodRule(fov=given_["fov"], deltas=given_["deltas"]),
            grow,
            closed=given_["closed"],
        )


def test_a_seed_outside_is_refused():
    canvas = Canvas(np.zeros((20, 20, 20)), RULE, grow)
    with pytest.raises(SpecError, match=r"the seed \(3, 10, 10\) lies outside, or nearer than \(4, 3, 2\)"):
        canvas.grow_from((3, 10, 10))


def test_a_mask_that_closes_everything_leaves_nothing():
    image, seeds = scene(0)
    closed = np.ones(image.shape, bool)
    assert peak_seeds(image, closed=closed).shape == (0, 3)
    assert peak_seeds_2d(image, closed=closed).shape == (0, 3)
    canvas = Canvas(image, RULE, grow, closed=closed)
    assert canvas.run(seeds)
    assert not canvas.labels().any()


def test_a_slip_in_view_closes_a_place():
    shifts = np.random.default_rng(0).normal(scale=1.6, size=(2, 12, 11, 10))
    closed = closed_by_shift(shifts, fov=(5, 3, 1), threshold=4.0)
    for x, y, z in np.ndindex(12, 11, 10):
        view = shifts[:, max(0, x - 2) : x + 3, max(0, y - 1) : y + 2, z]
        assert closed[x, y, z] == (np.abs(view) >= 4.0).any(), (x, y, z)
    assert 0 < closed.sum() < closed.size


# -- seeds


def test_peaks_are_those_of_scikit_image():
    from scipy import ndimage
    from skimage.feature import peak_local_max

    image = np.random.default_rng(5).normal(size=(30, 36, 40)).astype(np.float32)
    steep = ndimage.generic_gradient_magnitude(image, ndimage.sobel)
    edges = steep > ndimage.gaussian_filter(steep, 49 / 6)
    depth = ndimage.distance_transform_edt(~edges).astype(np.float32)
    noisy = depth + np.random.RandomState(42).rand(*depth.shape) * 1e-4
    expected = peak_local_max(noisy, min_distance=3, threshold_abs=0, threshold_rel=0)
    expected = expected[np.lexsort(expected.T[::-1])][:, ::-1]
    np.testing.assert_array_equal(peak_seeds(np.asfortranarray(image.T)), expected)
    assert len(expected) > 20
    grey = np.random.default_rng(0).integers(-40, 40, (30, 30, 30)).astype(np.float32)  # many are equal
    expected = peak_local_max(grey.T, min_distance=3, threshold_abs=0, threshold_rel=0)
    found = bright_seeds(grey)
    assert len(found) == len(expected) > 10
    assert {tuple(p) for p in found.tolist()} == {tuple(p[::-1]) for p in expected.tolist()}


def test_grids_and_empty_places():
    places = grid_seeds((40, 30, 20), offsets=(0, 8))
    assert places[:3].tolist() == [[0, 0, 0], [16, 0, 0], [32, 0, 0]]
    assert len(places) == 3 * 2 * 2 + 2 * 2 * 1
    assert with_full_view(places, (40, 30, 20), fov=(33, 5, 5)).tolist() == [[16, 16, 16]]
    labels = np.ones((30, 30, 30), int)
    labels[5:12, 8:15, 15:22] = 0
    assert empty_seeds(labels).tolist() == [[8, 11, 18]]
    assert len(empty_seeds(np.ones((9, 9, 9)))) == len(empty_seeds(np.zeros((9, 9, 9)))) == 0
    sections = peak_seeds_2d(scene(4, (60, 60, 3))[0], floor=1.0)
    assert set(sections[:, 2]) <= {0, 1, 2}
    assert len(sections)


def test_seeds_of_the_published_run(cloudseg_data):
    image = np.load(cloudseg_data / "fib25" / "sample2_image.npz")["image"]
    seeds = with_full_view(
        peak_seeds(normalised(image, mean=128, deviation=33)), (250, 250, 250), fov=(33, 33, 33)
    )
    assert len(seeds) == 12464
    assert seeds[0].tolist() == [109, 18, 16]


# -- one object or two


def plain(views):
    """Stand in for a network: bright voxels are of the object, dark ones not."""
    return (5 * views[:, 0] + 0.2 * views[:, 1]).astype(np.float32)


def test_what_grows_into_each_other_is_joined_and_what_does_not_is_not():
    image = np.full((50, 30, 20), -1, np.float32)
    image[3:47, 4:12, 4:16] = 1  # one rod, cut in two; beside it another
    image[3:47, 16:26, 4:16] = 1
    labels = np.zeros(image.shape, np.uint64)
    labels[3:25, 4:12, 4:16], labels[25:47, 4:12, 4:16], labels[3:47, 16:26, 4:16] = 7, 8, 9
    labels[10:20, 12:16] = 5  # what is between them is somebody else's
    rule = ReseedRule(radius=(25, 25, 25), analysis_radius=(12, 12, 12))
    given_ = {"grow": plain, "flood": FloodRule(fov=FOV, deltas=DELTAS), "rule": rule}
    point = contact_point(labels, 7, 8)
    assert point is not None
    assert abs(point[0] - 24) <= 1
    one = resegment(image, labels, (7, 8), point, **given_)
    assert one.joined
    assert min(one.consistency) > 0.8
    assert one.deleted == (0, 0)
    two = resegment(image, labels, (7, 9), (20, 14, 10), **given_)
    assert not two.joined
    assert two.iou == 0
    assert two.consistency[0] > 0.5
    assert two.consistency[1] == two.consistency[2] == 0
    assert contact_point(labels, 7, 9) is None
    with pytest.raises(SpecError, match=r"segment 6 is not within \(25, 25, 25\) voxels"):
        resegment(image, labels, (7, 6), point, **given_)


def test_voxels_that_fall_out_again_are_counted():
    def fickle(views):
        """Bright voxels are in when seen first, and out when seen again."""
        seen = views[:, 1] > 0
        out = np.where(seen, -3.0, 3.0) * np.ones_like(views[:, 0])
        c = tuple(slice(n // 2 - 1, n // 2 + 2) for n in out.shape[1:])
        out[(slice(None), *c)] = 5
        return out.astype(np.float32)

    canvas = Canvas(np.zeros((30, 30, 30)), FloodRule(fov=FOV, deltas=DELTAS, freeze=None), fickle)
    assert canvas.grow_from((15, 15, 15)) > 1
    assert canvas.n_deleted > 100

"""MaxExtend against its definition read aloud, and block by block."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from blockwise import blocks_of
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.max_extend import LinkRule, SectionOverlaps, box_of, links, section_overlaps

SHAPE = (12, 10, 7)
BOUNDS = Box.of_shape(SHAPE, at=(5, -3, 100))


def sections(seed):
    """Random patches, numbered anew in each section."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (4, 4, SHAPE[2]))
    labels = coarse.repeat(3, 0).repeat(3, 1)[: SHAPE[0], : SHAPE[1]].astype(np.uint64)
    moved = rng.random(labels.shape) < 0.2
    labels[moved] = rng.integers(0, 4, moved.sum())
    return np.where(labels > 0, labels + 10 * np.arange(SHAPE[2], dtype=np.uint64), 0).astype(np.uint64)


def naive_links(labels, rule, missing):
    """Read the definition aloud, section by section, segment by segment."""
    found = set()
    present = [z for z in range(SHAPE[2]) if z not in missing]
    for low, high in itertools.pairwise(present):
        lower, upper = labels[:, :, low], labels[:, :, high]
        ids = [[int(i) for i in np.unique(s) if i] for s in (lower, upper)]
        shared = {(a, b): int(((lower == a) & (upper == b)).sum()) for a in ids[0] for b in ids[1]}
        shared = {pair: n for pair, n in shared.items() if n}
        for (a, b), n in shared.items():
            best_of_a = min((-m, y) for (x, y), m in shared.items() if x == a)[1] == b
            best_of_b = min((-m, x) for (x, y), m in shared.items() if y == b)[1] == a
            n_a, n_b = int((lower == a).sum()), int((upper == b).sum())
            smaller = min(n_a, n_b)
            if best_of_a and best_of_b:
                linked = n >= rule.min_iou * (n_a + n_b - n) or n >= rule.min_overlap * smaller
            else:
                linked = (best_of_a or best_of_b) and n >= rule.branch_overlap * smaller
            if linked:
                found.add((a, b))
    return found


@settings(max_examples=30)
@given(
    seed=st.integers(0, 99),
    cut=st.tuples(*(st.sets(st.integers(1, n - 1), max_size=2) for n in SHAPE)),
    rule=st.builds(
        LinkRule,
        min_iou=st.sampled_from([0.2, 0.6, 1.0]),
        min_overlap=st.sampled_from([0.5, 1.0]),
        branch_overlap=st.sampled_from([0.3, 0.7, 2.0]),
    ),
    missing=st.sampled_from([set(), {3}, {0, 3, 4}, {5, 6}]),
)
def test_links_of_blocks_are_those_of_the_definition(seed, cut, rule, missing):
    labels = sections(seed)
    skipped = {z + 100 for z in missing}
    layers: dict[int, list[SectionOverlaps]] = {}
    for block in blocks_of(SHAPE, cut).values():
        core = block.shift(BOUNDS.start)
        part = labels[box_of(core, bounds=BOUNDS, missing=skipped).slices_in(BOUNDS)]
        found = section_overlaps(part, core=core, bounds=BOUNDS, missing=skipped)
        layers.setdefault(core.start[2], []).append(found)
    got = [links(SectionOverlaps.total(parts), rule) for parts in layers.values()]
    pairs = [(int(a), int(b)) for one in got for a, b in zip(*one, strict=True)]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == naive_links(labels, rule, missing)


def test_a_segment_in_two_sections_is_refused():
    labels = np.full(SHAPE, 7, np.uint64)
    found = section_overlaps(labels, core=BOUNDS, bounds=BOUNDS, missing=())
    with pytest.raises(SpecError, match="segment 7 lies in section 100 and in section 101"):
        links(found, LinkRule())
    with pytest.raises(SpecError, match=r"labels must have shape \(12, 10, 7\)"):
        section_overlaps(labels[1:], core=BOUNDS, bounds=BOUNDS, missing=())


def test_a_branch_joins_only_where_it_overlaps_enough():
    labels = np.zeros((10, 1, 2), np.uint64)
    labels[:, 0, 0] = 1
    labels[:6, 0, 1] = 2
    labels[6:, 0, 1] = 3
    box = Box.of_shape(labels.shape)
    overlaps = section_overlaps(labels, core=box, bounds=box, missing=())

    def joined(rule):
        return [(int(a), int(b)) for a, b in zip(*links(overlaps, rule), strict=True)]

    assert joined(LinkRule(branch_overlap=0.3)) == [(1, 2), (1, 3)]
    assert joined(LinkRule()) == [(1, 2)]
    assert joined(LinkRule(min_iou=0.7, min_overlap=1.0, branch_overlap=1.1)) == [(1, 2)]

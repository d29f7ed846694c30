"""Segmentation block by block with the pure operations alone, for any cuts and rules."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict

import numpy as np
from hypothesis import strategies as st

from cloudseg.geometry import Box
from cloudseg.ops.agglomerate import Merged, Rule, agglomerate
from cloudseg.ops.region_graph import Numbering, Sizes, face_ids, region_graph
from cloudseg.ops.remap import lookup, remap
from cloudseg.ops.union_find import components
from cloudseg.ops.watershed import halo_of, mask_halo_of, supervoxels

rules = st.builds(
    Rule,
    threshold=st.sampled_from([0.0, 60.0, 127.5, 200.0]),
    guard_affinity=st.sampled_from([0.0, 150.0, 255.0]),
    guard_min_vx=st.sampled_from([1, 3, 20]),
    guard_sum_vx=st.sampled_from([2, 10, 50]),
    min_size_vx=st.sampled_from([0, 3, 30]),
)


def blocks_of(shape, cuts):
    """Boxes by index for cut positions per axis."""
    edges = [[0, *sorted(c), s] for c, s in zip(cuts, shape, strict=True)]
    grid = [list(itertools.pairwise(e)) for e in edges]
    return {
        (i, j, k): Box((x[0], y[0], z[0]), (x[1], y[1], z[1]))
        for i, x in enumerate(grid[0])
        for j, y in enumerate(grid[1])
        for k, z in enumerate(grid[2])
    }


def blockwise(
    affinities, *, cuts, t_low, t_high, rule: Rule, emphasis=0, mask=None, fanout=2, seed=0, repeat=False
):
    """Return supervoxels and segments; blocks and nodes in random order, optionally each computed twice."""
    rng = random.Random(seed)
    bounds = Box.of_shape(affinities.shape[1:])
    blocks = blocks_of(bounds.shape, cuts)

    def shuffled(keys):
        keys = list(keys) * (2 if repeat else 1)
        rng.shuffle(keys)
        return keys

    fragments = np.zeros(bounds.shape, np.uint64, order="F")
    crossings = {}
    for key in shuffled(blocks):
        core = blocks[key]
        outer = halo_of(core, bounds=bounds).slices_in(bounds)
        part = supervoxels(
            affinities[(slice(None), *outer)], core=core, bounds=bounds, t_low=t_low, t_high=t_high,
            mask=None if mask is None else mask[mask_halo_of(core, bounds=bounds).slices_in(bounds)],
        )  # fmt: skip
        fragments[core.slices_in(bounds)] = part.labels
        crossings[key] = part.crossings
    ends = []
    for key in shuffled(blocks):
        core = blocks[key]
        for axis in range(3):
            kept = crossings[key][axis]
            if core.start[axis] == 0:
                continue
            inner = list(core.slices_in(bounds))
            inner[axis] = core.start[axis]
            outer = list(inner)
            outer[axis] = core.start[axis] - 1
            ends.append((fragments[tuple(inner)][kept], fragments[tuple(outer)][kept]))
    if ends:
        old, new = components(np.concatenate([e[0] for e in ends]), np.concatenate([e[1] for e in ends]))
    else:
        old = new = np.zeros(0, np.uint64)
    names = remap(fragments, old, new)

    graphs, faces, voxels = {}, {}, {}
    for key in shuffled(blocks):
        core = blocks[key]
        outer = Box(core.grow((1, 1, 1)).start, core.stop).intersect(bounds)
        labels = names[outer.slices_in(bounds)]
        graphs[key], voxels[key] = region_graph(
            np.asfortranarray(labels),
            affinities[(slice(None), *core.slices_in(bounds))],
            core=core,
            bounds=bounds,
            emphasis=emphasis,
        )
        faces[key] = face_ids(labels, core=core, bounds=bounds)
    numbering, (edges,) = Numbering.of(list(graphs.values()))
    pooled = numbering.named(edges.pooled())

    level = {key: ([graphs[key]], [], voxels[key], [key]) for key in blocks}
    remaps = []
    size = tuple(max(k[a] for k in blocks) + 1 for a in range(3))
    step = 1
    while True:
        decided: dict[tuple[int, ...], Merged] = {}
        for key in shuffled(level):
            graph, small, n, members = level[key]
            low = tuple(k * step for k in key)
            high = tuple(min((k + 1) * step, s) for k, s in zip(key, size, strict=True))
            frozen = [np.zeros(0, np.uint64)]
            for leaf in members:
                for a, name in enumerate("xyz"):
                    if leaf[a] == low[a] and low[a] > 0:
                        frozen.append(faces[leaf][f"{name}-"])
                    if leaf[a] == high[a] - 1 and high[a] < size[a]:
                        frozen.append(faces[leaf][f"{name}+"])
            decided[key] = agglomerate(graph, frozen=np.concatenate(frozen), sizes=n, rule=rule, small=small)
        remaps.append({key: (d.old, d.new) for key, d in decided.items()})
        if len(level) == 1:
            break
        groups = defaultdict(list)
        for key in level:
            groups[tuple(k // fanout for k in key)].append(key)
        level = {
            parent: (
                [decided[c].residual for c in children],
                [decided[c].small for c in children],
                Sizes.added([decided[c].sizes for c in children]),
                [leaf for c in children for leaf in level[c][3]],
            )
            for parent, children in groups.items()
        }
        step *= fanout
    root = next(iter(decided.values()))
    assert root.residual.n_edges == root.small.n_edges == 0
    final = np.zeros(bounds.shape, np.uint64, order="F")
    for key, core in blocks.items():
        at = core.slices_in(bounds)
        ids = np.unique(names[at])
        to = ids
        for depth, tables in enumerate(remaps):
            to = lookup(to, *tables[tuple(k // fanout**depth for k in key)])
        final[at] = remap(np.asfortranarray(names[at]), ids, to)
    return names, final, pooled

"""Mean-affinity agglomeration that an octree of blocks computes exactly as one machine would.

The edge with the highest mean affinity is merged first, until the mean falls below a threshold. The mean is the
quotient of integer sums, rounded once to double precision; equal quotients rank by the smaller key, the largest pair
of original ids pooled in the edge. A pooled edge never ranks above the better of its parts in this order (the mean
of a pool lies between the means of its parts, correct rounding is monotone, and the larger key ranks lower), so the
linkage is *reducible*: two segments that are each other's best may be merged at any time, and the outcome does not
depend on when.

That is what lets a block merge early. Segments that touch the outside of the block are *frozen*: their edges are not
all known. An edge with a frozen end is not merged but passed up, and freezes its other end. The block's parent, which
knows more, goes on (after Lu, Zlateski & Seung 2021, arXiv 2106.10795; integers and keys are project-defined).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.ops.absorb import absorb_complete
from cloudseg.ops.edges import Edges
from cloudseg.ops.merge import merge
from cloudseg.ops.region_graph import Numbering, RegionGraph, Sizes
from cloudseg.ops.remap import places

Ids = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rule:
    """When two segments become one.

    Attributes
    ----------
    threshold
        Lowest mean affinity that is merged, 0..255 (the uint8 scale, not rounded).
    guard_affinity, guard_min_vx, guard_sum_vx
        Below ``guard_affinity`` an edge is refused for good when the smaller segment has more than ``guard_min_vx``
        voxels and both together more than ``guard_sum_vx``: two large neurons need better evidence than a twig does
        (abiss uses 0.35 * 255, 1e6, 1e7). ``guard_affinity`` = 0: no guard.
    min_size_vx
        Segments under this size are small: :func:`cloudseg.ops.absorb.absorb_small` gives them away. 0: none is.
    """

    threshold: float
    guard_affinity: float = 0.0
    guard_min_vx: int = 0
    guard_sum_vx: int = 0
    min_size_vx: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 255:
            raise SpecError(f"the agglomeration threshold is on the scale 0..255, got {self.threshold}")


@dataclass(frozen=True, slots=True)
class Merged:
    """What one node of the octree decides, and what it passes up.

    Attributes
    ----------
    old, new
        Ids that got another name here, sorted; the name is the smallest id of the segment.
    residual
        Edges that a node above must decide: both ends frozen.
    small
        Edges with an end that is, or may turn out, smaller than ``rule.min_size_vx``, and that a node above must
        absorb: the small segment, or one that hangs together with it through small ones, touches a frozen segment.
    sizes
        Sizes (so far) of the segments in ``residual`` and ``small``, and of the frozen ones.
    """

    old: Ids
    new: Ids
    residual: RegionGraph
    small: RegionGraph
    sizes: Sizes


def agglomerate(
    graphs: Collection[RegionGraph],
    *,
    frozen: Ids,
    sizes: Sizes,
    rule: Rule,
    small: Collection[RegionGraph] = (),
) -> Merged:
    """Merge what a node of the octree can decide, then give away the small segments that nothing outside can change.

    Parameters
    ----------
    graphs
        All edges the node knows and has not decided yet, in parts that may share edges.
    frozen
        Ids that touch the outside of the node (sorted or not); empty at the root, or for one block that is the volume.
    sizes
        Voxels inside the node, at least of every id in ``graphs`` and ``small``.
    rule
        Threshold, guards, smallest size.
    small
        Edges of small segments passed up by the children, in parts; renamed and pooled here.

    Returns
    -------
    Decisions and what remains.

    Raises
    ------
    SpecError
        If an edge's end has no size although the rule needs sizes.
    """
    numbering, read = Numbering.of(graphs, small, and_ids=frozen)
    ids = numbering.ids
    is_frozen = np.zeros(len(ids), np.bool_)
    is_frozen[places(frozen, ids)] = True
    n_voxels = sizes.of(ids)
    if rule.min_size_vx or rule.guard_affinity:
        unknown = (n_voxels == 0) & ~is_frozen
        if unknown.any():
            raise SpecError(
                f"segment {ids[unknown][0]} has edges but no size; the guards need the size of each segment"
            )
    # Handed over, not kept: a table is freed as soon as it was used.
    small_edges, edges = read.pop(), read.pop()
    if len(graphs) > 1:
        edges = edges.pooled()
    parts = [edges, small_edges]
    del edges, small_edges
    done = decide(parts.pop(0), is_frozen=is_frozen, n_voxels=n_voxels, rule=rule, small=parts.pop())
    moved = done.name != np.arange(len(ids))
    passed = done.is_frozen
    for end in (done.residual.u, done.residual.v, done.small.u, done.small.v):
        passed[end] = True
    passed &= done.n_voxels > 0
    return Merged(
        ids[moved],
        ids[done.name[moved]],
        numbering.named(done.residual),
        numbering.named(done.small),
        Sizes(ids[passed], done.n_voxels[passed]),
    )


@dataclass(frozen=True, slots=True)
class Decided:
    """What :func:`decide` returns; segments are numbers, in the order of their ids.

    Attributes
    ----------
    name
        ``(n,)``: the smallest segment of those that became one.
    is_frozen, n_voxels
        ``(n,)``, by name.
    residual, small
        See :class:`Merged`; sorted, each pair once.
    """

    name: npt.NDArray[np.int64]
    is_frozen: npt.NDArray[np.bool_]
    n_voxels: Counts
    residual: Edges
    small: Edges


def decide(
    edges: Edges,
    *,
    is_frozen: npt.NDArray[np.bool_],
    n_voxels: Counts,
    rule: Rule,
    small: Edges | None = None,
) -> Decided:
    """Do what :func:`agglomerate` does, for segments that are numbered already.

    Parameters
    ----------
    edges
        Each pair of segments once.
    is_frozen, n_voxels
        ``(n,)``, by segment.
    rule
        Threshold, guards, smallest size.
    small
        Edges of small segments passed up by the children, in any order.
    """
    merged = merge(
        edges,
        is_frozen=is_frozen,
        n_voxels=n_voxels,
        threshold=rule.threshold,
        guard_affinity=rule.guard_affinity,
        guard_min_vx=rule.guard_min_vx,
        guard_sum_vx=rule.guard_sum_vx,
    )
    del edges
    left, is_open, n_voxels = merged.edges, merged.is_frozen, merged.n_voxels
    both = is_open[left.u] & is_open[left.v]
    residual = left.take(both).pooled()
    is_small = n_voxels < rule.min_size_vx
    waiting = [left.take(~both & (is_small[left.u] | is_small[left.v]))]
    if small is not None:
        small = small.between(merged.name)
        waiting.append(small.take(is_small[small.u] | is_small[small.v]))
        del small
    rest, name = absorb_complete(
        Edges.drained(waiting).pooled(), is_open=is_open, n_voxels=n_voxels, min_size_vx=rule.min_size_vx
    )
    n_voxels = np.bincount(name, weights=n_voxels, minlength=len(name)).astype(np.int64)
    return Decided(name[merged.name], is_open, n_voxels, residual, rest)

"""Join what overlapping blocks have found on their own: count overlaps once, decide as often as one likes.

Two blocks that were segmented separately see a slab of tissue both. Where an object of one and an object of the other
share voxels there, an edge says how many, and how many each has in the slab. A rule on these numbers decides which
edges join, a union-find over all edges says what belongs together, and objects that are still too small are dropped
afterwards: half a soma at a face survives. Thresholds are volumes, so they mean the same at every voxel size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError

Ids = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Edges between objects of neighbouring blocks.

    Attributes
    ----------
    a, b
        ``(n,)`` uint64: object of the lower block, object of the upper one.
    n_ab, n_a, n_b
        ``(n,)`` int64: voxels of both, of ``a`` and of ``b`` in the slab that the two blocks share.
    """

    a: Ids
    b: Ids
    n_ab: Counts
    n_a: Counts
    n_b: Counts

    def __len__(self) -> int:
        return len(self.a)

    @classmethod
    def joined(cls, parts: Sequence[Overlaps]) -> Self:
        """Return the edges of all ``parts``; none of none."""
        ids, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        every = [Overlaps(ids, ids, counts, counts, counts), *parts]
        return cls(*(np.concatenate([getattr(p, n) for p in every]) for n in cls.__dataclass_fields__))


@dataclass(frozen=True, slots=True)
class StitchRule:
    """Which overlaps join.

    Attributes
    ----------
    kind
        ``published``: an overlap of ``large_um3`` and more joins; one of more than ``least_um3`` does if it is more
        than ``share_one`` of either object's part in the slab, or more than ``share_both`` of each. ``mutual``: each of
        the two is the one that the other shares most with, and the overlap is more than ``least_um3`` and more than
        ``share_one`` of the smaller part.
    large_um3, least_um3, share_one, share_both
        See ``kind``; as published for 16 x 16 x 40 nm.
    """

    kind: Literal["published", "mutual"] = "mutual"
    large_um3: float = 4.096
    least_um3: float = 0.00512
    share_one: float = 0.4
    share_both: float = 0.3


def overlaps(lower: Ids, upper: Ids) -> Overlaps:
    """Return which objects of two blocks share voxels.

    Parameters
    ----------
    lower, upper
        Labels of the same voxels by the lower and by the upper block, uint64; 0 is none.

    Raises
    ------
    SpecError
        If the shapes differ.
    """
    if lower.shape != upper.shape:
        raise SpecError(f"two labels of one slab must have one shape, got {lower.shape} and {upper.shape}")
    a_ids, n_a = np.unique(lower[lower != 0], return_counts=True)
    b_ids, n_b = np.unique(upper[upper != 0], return_counts=True)
    both = (lower != 0) & (upper != 0)
    a, b = np.searchsorted(a_ids, lower[both]), np.searchsorted(b_ids, upper[both])
    pair, n_ab = np.unique(a * max(len(b_ids), 1) + b, return_counts=True)
    a, b = np.divmod(pair, max(len(b_ids), 1))
    return Overlaps(
        a_ids[a], b_ids[b], n_ab.astype(np.int64), n_a[a].astype(np.int64), n_b[b].astype(np.int64)
    )


def joins(edges: Overlaps, rule: StitchRule, *, voxel_um3: float) -> npt.NDArray[np.bool_]:
    """Return which edges join, ``(n,)``.

    Parameters
    ----------
    edges
        Of one slab between two blocks: ``mutual`` asks for the greatest overlap there.
    rule
        See :class:`StitchRule`.
    voxel_um3
        Volume of a voxel.
    """
    n_ab = edges.n_ab.astype(np.float64)
    of_a, of_b = n_ab / edges.n_a, n_ab / edges.n_b
    enough = n_ab * voxel_um3 > rule.least_um3
    if rule.kind == "published":
        one = (of_a > rule.share_one) | (of_b > rule.share_one)
        each = (of_a > rule.share_both) & (of_b > rule.share_both)
        published: npt.NDArray[np.bool_] = (n_ab * voxel_um3 > rule.large_um3) | (enough & (one | each))
        return published
    mutual: npt.NDArray[np.bool_] = _is_best(edges.a, edges.b, edges.n_ab) & _is_best(
        edges.b, edges.a, edges.n_ab
    )
    return mutual & enough & (np.maximum(of_a, of_b) > rule.share_one)


def stitched(
    pairs: tuple[Ids, Ids], ids: Ids, n: Counts, *, min_size_um3: float, voxel_um3: float
) -> tuple[Ids, Ids]:
    """Return what each object is finally called.

    Parameters
    ----------
    pairs
        Both ends of the edges that join.
    ids, n
        Objects of all blocks and their voxels; an object may be listed more than once, its voxels add up.
    min_size_um3
        What is smaller when all is joined is dropped.
    voxel_um3
        Volume of a voxel.

    Returns
    -------
    old, new
        Sorted by ``old``: the objects that change their name; to the smallest id of all that they are joined with, or
        to 0 if that is too small.
    """
    from cloudseg.ops.remap import lookup
    from cloudseg.ops.union_find import components

    old, new = components(*pairs)
    every = np.unique(np.concatenate([ids, old, new]))
    called = lookup(every, old, new)
    names, place = np.unique(called, return_inverse=True)
    total = np.zeros(len(names), np.int64)
    np.add.at(total, place[np.searchsorted(every, ids)], n)
    called[(total * voxel_um3 < min_size_um3)[place]] = 0
    moved = called != every
    return every[moved], called[moved]


def _is_best(mine: Ids, others: Ids, n: Counts) -> npt.NDArray[np.bool_]:
    """Return for each edge whether it is the greatest of ``mine``; of equals, the one of the smaller id."""
    order = np.lexsort((others, -n, mine))
    best = np.zeros(len(mine), np.bool_)
    first: npt.NDArray[Any] = np.ones(len(mine), np.bool_)
    first[1:] = mine[order][1:] != mine[order][:-1]
    best[order[first]] = True
    return best

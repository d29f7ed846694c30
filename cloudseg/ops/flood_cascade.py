"""Two methods as one: a cheap segmentation keeps what it is sure of, flood filling grows the rest.

Large objects of the cheap segmentation stay; smaller ones, and what it left empty, are grown anew. A grown object
does not enter one that stays, but looks into it by half a field of view. Where it would have taken most of what it saw
there, both are one. The rule is project-defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint64]


def keep_large(labels: npt.NDArray[Any], *, min_vx: int) -> tuple[npt.NDArray[np.int32], Ids]:
    """Return the objects of at least ``min_vx`` voxels, counted up from 1, and what they were called.

    Parameters
    ----------
    labels
        ``(x, y, z)``, 0: none.
    min_vx
        Smaller objects are left out.

    Returns
    -------
    kept, names
        ``(x, y, z)`` int32; ``(n,)``: the name of 1, 2, ...
    """
    ids, place, n = np.unique(labels, return_inverse=True, return_counts=True)
    large = (ids > 0) & (n >= min_vx)
    numbers = np.where(large, np.cumsum(large), 0).astype(np.int32)
    return np.asfortranarray(numbers[place].reshape(labels.shape)), ids[large].astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Join:
    """A grown object and one that stayed.

    Attributes
    ----------
    grown, kept
        Their ids.
    shared_vx, seen_vx
        Voxels that the grown one would have taken, of those that it saw of the other.
    joined
        Whether they are one.
    """

    grown: int
    kept: int
    shared_vx: int
    seen_vx: int
    joined: bool


def decide_joins(
    overlaps: Sequence[tuple[int, int, int]],
    seen: Sequence[tuple[int, int, int]],
    *,
    n_kept: int,
    min_share: float,
) -> list[Join]:
    """Join each grown object with the one that stayed of which it would have taken the largest share.

    Parameters
    ----------
    overlaps, seen
        Of :class:`cloudseg.ops.flood.Canvas`: grown object, other segment, voxels.
    n_kept
        How many objects stayed; they have the first ids.
    min_share
        The share that it must be.

    Returns
    -------
    One entry for each pair that touched. An object that reaches the share with several joins the one with the largest
    (of equal ones the first): what stayed is never joined with what stayed.
    """
    n_seen = {(grown, other): n for grown, other, n in seen}
    pairs = [(g, k, n, n_seen[g, k]) for g, k, n in overlaps if k <= n_kept]
    best: dict[int, tuple[float, int]] = {}
    for grown, kept, n, of in pairs:
        share = n / of
        if share >= min_share and (grown not in best or (share, -kept) > (best[grown][0], -best[grown][1])):
            best[grown] = (share, kept)
    return [Join(g, k, n, of, joined=g in best and best[g][1] == k) for g, k, n, of in pairs]

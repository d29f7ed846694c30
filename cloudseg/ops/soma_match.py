"""Which soma of a new segmentation is which of an older one, by the voxels that they share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.ops.contingency import Contingency

Ids = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Matches:
    """What became of the old somas.

    Attributes
    ----------
    new, old
        ``(n,)`` pairs that are the same soma, sorted by ``new``; each id comes once.
    covered, by
        ``(m,)`` old somas without such a partner that lie mostly in a new one, and which, sorted by ``covered``.
    """

    new: Ids
    old: Ids
    covered: Ids
    by: Ids


def match(pairs: Contingency, *, min_share: float) -> Matches:
    """Pair new somas with old ones.

    Parameters
    ----------
    pairs
        Voxels by new soma (``seg_ids``) and old soma (``truth_ids``), those of only one (the other is 0) included:
        sizes come from them.
    min_share
        Two are the same only if they share more than this part of the smaller; an old one is covered by a new one
        that has more than this part of it.

    Returns
    -------
    The pairs with the most shared voxels first, as long as both are free; of equal ones that with the smaller old id,
    then with the smaller new id. Of two old somas that became one, the one that gave more voxels goes on; of two new
    ones that were one, the one that got more.

    Raises
    ------
    SpecError
        If ``min_share`` is not from 0 to below 1.
    """
    if not 0 <= min_share < 1:
        raise SpecError(f"min_share is a part of a soma, from 0 to below 1, got {min_share}")
    new_ids, new_size = _sizes(pairs.seg_ids, pairs.counts)
    old_ids, old_size = _sizes(pairs.truth_ids, pairs.counts)
    shared = (pairs.seg_ids > 0) & (pairs.truth_ids > 0)
    new, old, n = pairs.seg_ids[shared], pairs.truth_ids[shared], pairs.counts[shared]
    size_of_new = new_size[np.searchsorted(new_ids, new)]
    size_of_old = old_size[np.searchsorted(old_ids, old)]
    order = np.lexsort((new, old, -n))
    enough = n > min_share * np.minimum(size_of_new, size_of_old)
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for row in order[enough[order]]:
        a, b = int(new[row]), int(old[row])
        if a not in partner and b not in taken:
            partner[a] = b
            taken.add(b)
    cover: dict[int, int] = {}
    mostly = n > min_share * size_of_old
    for row in order[mostly[order]]:
        cover.setdefault(int(old[row]), int(new[row]))
    covered = sorted(set(cover) - taken)
    matched = sorted(partner)
    return Matches(
        np.array(matched, np.uint64),
        np.array([partner[a] for a in matched], np.uint64),
        np.array(covered, np.uint64),
        np.array([cover[b] for b in covered], np.uint64),
    )


def fresh_ids(labels: Ids, *, used: Ids) -> Ids:
    """Return an id for each new soma that nobody has had: its own label where that is free.

    Parameters
    ----------
    labels
        ``(n,)``, sorted, without repeats.
    used
        All ids that there have ever been, sorted.

    Examples
    --------
    >>> fresh_ids(np.array([3, 5, 6], np.uint64), used=np.array([5, 9], np.uint64)).tolist()
    [3, 10, 6]
    """
    ids = labels.copy()
    gone = np.isin(labels, used)
    highest = max(int(each[-1]) if len(each) else 0 for each in (labels, used))
    if highest + int(gone.sum()) >= 1 << 64:
        raise SpecError(f"{int(gone.sum())} new somas need ids above {highest}, but 64 bits hold no more")
    ids[gone] = np.uint64(highest) + np.arange(1, int(gone.sum()) + 1, dtype=np.uint64)
    return ids


def _sizes(ids: Ids, counts: Counts) -> tuple[Ids, Counts]:
    found, place = np.unique(ids, return_inverse=True)
    sizes = np.zeros(len(found), np.int64)
    np.add.at(sizes, place, counts)
    return found, sizes

"""Ids of a labelled block as training sees them: renumbered, with what the source's 0 means made explicit.

==========  ==============================================================================================
id          meaning
==========  ==============================================================================================
-1          unknown: nothing is learned here
0           membrane: belongs to no object, and every link to it is broken
1           background: the outside of the tissue, an object like any other, but not one worth looking at
2 and more  objects
==========  ==============================================================================================
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError

UNKNOWN = -1
MEMBRANE = 0
BACKGROUND = 1
FIRST_OBJECT = 2

Ids = npt.NDArray[np.int32]
Zero = Literal["unknown", "membrane", "background"]
"""What label 0 of a source stands for."""


def renumber(labels: npt.NDArray[np.generic], *, zero: Zero) -> Ids:
    """Return ``labels`` with ids counted up from 2, and 0 replaced by what it stands for.

    Ids of any size fit: only how many there are counts.

    Parameters
    ----------
    labels
        ``(x, y, z)`` integers.
    zero
        Meaning of label 0.

    Raises
    ------
    SpecError
        If labels are negative, or there are more than an int32 can count.
    """
    if labels.dtype.kind == "i" and labels.size and int(labels.min()) < 0:
        raise SpecError(
            f"labels must be 0 or positive, got {labels.min()} ({labels.dtype}): an id too large for its type comes "
            "back negative; store the labels as uint32 or uint64, and write 0 where nothing is known"
        )
    names, place = np.unique(labels, return_inverse=True)
    # Only a block of several billion voxels could hold so many; better a sentence than ids that wrap round.
    if names.size > np.iinfo(np.int32).max - FIRST_OBJECT:
        raise SpecError(f"{names.size} different labels are more than training can count; take a smaller box")
    meaning = {"unknown": UNKNOWN, "membrane": MEMBRANE, "background": BACKGROUND}[zero]
    ids = np.arange(names.size, dtype=np.int32) + np.int32(FIRST_OBJECT)
    ids[names == 0] = meaning
    return ids[place].reshape(labels.shape)

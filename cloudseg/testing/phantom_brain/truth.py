"""The exact truth about each cell body, measured on the voxels that the truth shows: size, place, contacts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import Box
from cloudseg.testing.phantom_brain.anatomy import MOST_SHIFT_NM, SHEATH_NM
from cloudseg.testing.phantom_brain.brain import PhantomBrain

Table = dict[str, npt.NDArray[Any]]
KINDS = ("neuron", "glia")


def truth_table(brain: PhantomBrain, box: Box | None = None) -> tuple[Table, Table]:
    """Return a table of the bodies in ``box`` (the whole brain), and one of the contacts between them.

    Each body is made by itself in a box of its own size, so that the time is that of the bodies, not of the volume.

    Parameters
    ----------
    brain
        Whose bodies.
    box
        Where their centres lie.

    Returns
    -------
    bodies
        ``id``, ``kind`` (``neuron``, ``glia``), ``n_voxels``, ``volume_um3``, ``x_nm``, ``y_nm``, ``z_nm`` (centre of
        mass of the voxels), ``cut`` (whether a face of the volume cuts it), ``n_contacts``.
    contacts
        ``a``, ``b`` (ids, a below b), ``n_faces`` (faces of voxels that they share).
    """
    spec = brain.spec
    found = brain.bodies(box)
    size = np.array(spec.voxel_size_nm)
    rows: list[tuple[Any, ...]] = []
    contacts: Counter[tuple[int, int]] = Counter()
    voxel_um3 = float(np.prod(size)) * 1e-9
    for n, name in enumerate(found.ids.tolist()):
        reach = found.reach_nm[n] - SHEATH_NM + np.array([MOST_SHIFT_NM, MOST_SHIFT_NM, 0.0])
        low = np.floor((found.centre_nm[n] - reach) / size).astype(int)
        high = np.ceil((found.centre_nm[n] + reach) / size).astype(int) + 1
        own = Box(tuple(low.tolist()), tuple(high.tolist())).intersect(spec.bounds)
        labels = brain.labels(own)
        mask = labels == name
        at = np.argwhere(mask)
        if not len(at):
            continue
        here = _contacts(labels, name)
        # Each pair is seen from both sides; the table has it once.
        contacts.update(
            {(min(name, b), max(name, b)): k for b, k in here.items() if b > name or b not in found.ids}
        )
        middle = (at.mean(axis=0) + own.start + 0.5) * size
        first, last = at.min(axis=0) + own.start, at.max(axis=0) + own.start
        cut = bool((first == 0).any() or (last == np.array(spec.shape) - 1).any())
        rows.append((name, KINDS[found.kind[n]], len(at), len(at) * voxel_um3, *middle, cut, len(here)))
    names = ("id", "kind", "n_voxels", "volume_um3", "x_nm", "y_nm", "z_nm", "cut", "n_contacts")
    types: tuple[Any, ...] = (np.uint64, "U6", np.int64, float, float, float, float, bool, np.int64)
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    pairs = sorted(contacts)
    return (
        {name: np.array(column, dtype) for name, column, dtype in zip(names, columns, types, strict=True)},
        {
            "a": np.array([a for a, _ in pairs], np.uint64),
            "b": np.array([b for _, b in pairs], np.uint64),
            "n_faces": np.array([contacts[p] for p in pairs], np.int64),
        },
    )


def _contacts(labels: npt.NDArray[np.uint64], name: int) -> Counter[int]:
    """Faces that the voxels of a body share with those of each other body."""
    found: Counter[int] = Counter()
    for axis in range(3):
        here, there = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
        for a, b in ((here, there), (there, here)):
            others, counts = np.unique(b[(a == name) & (b != name) & (b != 0)], return_counts=True)
            found.update(dict(zip(others.tolist(), counts.tolist(), strict=True)))
    return found

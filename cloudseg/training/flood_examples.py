"""What a flood-filling network learns from: patches round a voxel of an object, thin places as often as thick ones.

After google/ffn (Januszewski et al. 2018): voxels are sorted by how much of their surroundings is of the same object,
and each such class is drawn equally often; otherwise the insides of the largest objects would be all that is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box
from cloudseg.training import augment
from cloudseg.training.labels import FIRST_OBJECT, UNKNOWN, Ids
from cloudseg.training.sampling import LabelledBlock

SHARES = (0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the surroundings at which one class ends and the next begins."""


@dataclass(frozen=True, slots=True, eq=False)
class FloodExample:
    """A patch round a voxel of an object.

    Attributes
    ----------
    image
        ``(x, y, z)`` normalised grey levels.
    inside, known
        ``(x, y, z)``: voxels of the object in the middle, and those of which that is known.
    where
        Which voxels of which volume it was made from.
    """

    image: npt.NDArray[np.float32]
    inside: npt.NDArray[np.bool_]
    known: npt.NDArray[np.bool_]
    where: str


@dataclass(frozen=True)
class FloodSampler:
    """Draws patches.

    Parameters
    ----------
    blocks
        What to draw from.
    fov, deltas
        Of the network; a patch is as large as what can be seen after one move to any side.
    mean, deviation
        Normalisation of grey levels, as the model package records it.
    min_size_vx
        Smaller objects are no centres.
    isotropic, flips
        Whether z may be exchanged with x and y; whether a patch is turned and mirrored at all.
    """

    blocks: Sequence[LabelledBlock]
    fov: XYZ
    deltas: XYZ
    mean: float
    deviation: float
    min_size_vx: int = 10_000
    isotropic: bool = True
    flips: bool = True
    _places: list[list[npt.NDArray[np.int64]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        places = []
        for block in self.blocks:
            classes = surroundings(block.ids, reach=self._reach, min_size_vx=self.min_size_vx)
            flat = classes.reshape(-1)
            found = [np.flatnonzero(flat == c) for c in range(1, len(SHARES) + 2)]
            places.append([f for f in found if len(f)])
            if not places[-1]:
                x, y, z = (2 * r + 1 for r in self._reach)
                raise SpecError(
                    f"{block.name} has {_told(block.ids.shape)} voxels, and no object of {self.min_size_vx} voxels or "
                    f"more round which a patch of {x} x {y} x {z} fits: take a larger box, a smaller field of view, or "
                    "lower sampling.min_size_vx"
                )
        object.__setattr__(self, "_places", places)

    @property
    def patch_shape(self) -> XYZ:
        """Voxels of a patch."""
        x, y, z = (f + 2 * d for f, d in zip(self.fov, self.deltas, strict=True))
        return (x, y, z)

    @property
    def _reach(self) -> XYZ:
        """Voxels that a patch needs on each side, whichever way it is turned."""
        x, y, z = (edge // 2 for edge in self.patch_shape)
        if self.flips:
            x = y = max(x, y)
        if self.flips and self.isotropic:
            x = y = z = max(x, z)
        return (x, y, z)

    def draw(self, rng: np.random.Generator) -> FloodExample:
        """Return one random example."""
        weights = np.array([b.weight for b in self.blocks], np.float64)
        n = int(rng.choice(len(self.blocks), p=weights / weights.sum()))
        block, classes = self.blocks[n], self._places[n]
        places = classes[int(rng.integers(len(classes)))]
        place = np.unravel_index(int(places[rng.integers(len(places))]), block.ids.shape)
        orientation: augment.Orientation = ((0, 1, 2), (False, False, False))
        if self.flips:
            orientation = augment.draw_orientation(rng, isotropic=self.isotropic)
        shape = augment.shape_before(self.patch_shape, orientation)
        x, y, z = (int(p) - edge // 2 for p, edge in zip(place, shape, strict=True))
        cut = tuple(slice(c, c + edge) for c, edge in zip((x, y, z), shape, strict=True))
        ids: npt.NDArray[Any] = augment.orient(block.ids[cut], orientation)
        grey: npt.NDArray[Any] = augment.orient(block.image[cut], orientation)
        at = (x + block.start[0], y + block.start[1], z + block.start[2])
        return FloodExample(
            np.ascontiguousarray(
                (grey.astype(np.float32) - np.float32(self.mean)) / np.float32(self.deviation)
            ),
            np.ascontiguousarray(ids == block.ids[place]),
            np.ascontiguousarray(ids != UNKNOWN),
            f"{block.name}, patch {Box.of_shape(shape, at=at)}",
        )


def surroundings(ids: Ids, *, reach: XYZ, min_size_vx: int) -> npt.NDArray[np.uint8]:
    """Return the class of each voxel by the share of its surroundings that is of the same object.

    Parameters
    ----------
    ids
        See :mod:`cloudseg.training.labels`.
    reach
        Half edges of the box that counts as its surroundings.
    min_size_vx
        Objects with fewer voxels are left out.

    Returns
    -------
    ``(x, y, z)``: 0 where there is no object, or the box does not fit into the volume; 1 for shares below the first of
    :data:`SHARES`, and so on.
    """
    classes = np.zeros(ids.shape, np.uint8)
    whole = np.prod([2 * r + 1 for r in reach])
    objects = np.maximum(ids - (FIRST_OBJECT - 1), 0)
    for number, found in enumerate(ndimage.find_objects(objects), 1):
        if found is None:
            continue
        # Where the box fits, of the part of the volume that this object can count in.
        inner = tuple(
            slice(max(s.start, r), min(s.stop, n - r))
            for s, r, n in zip(found, reach, ids.shape, strict=True)
        )
        if np.count_nonzero(objects[found] == number) < min_size_vx or any(s.start >= s.stop for s in inner):
            continue
        wide = tuple(slice(s.start - r, s.stop + r) for s, r in zip(inner, reach, strict=True))
        n_same = objects[wide] == number
        here = n_same[tuple(slice(r, -r or None) for r in reach)]
        total: npt.NDArray[Any] = n_same.astype(np.int32)
        for axis, r in enumerate(reach):
            total = _summed(total, 2 * r + 1, axis)
        classes[inner][here] = np.digitize(total[here] / whole, SHARES).astype(np.uint8) + 1
    return classes


def _summed(values: npt.NDArray[Any], n: int, axis: int) -> npt.NDArray[Any]:
    """Return the sums of ``n`` values in a row along ``axis``."""
    pad = [(1, 0) if a == axis else (0, 0) for a in range(values.ndim)]
    total = np.moveaxis(np.cumsum(np.pad(values, pad), axis=axis), axis, 0)
    return np.moveaxis(total[n:] - total[:-n], 0, axis)


def _told(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)

"""The lattice of overlapping patches that covers a volume.

Patches lie at positions that depend on the volume's bounds and on the network, never on the blocks of a run. A block
computes every patch that touches it, so each voxel is the same blend of the same patches for any block grid.
Project-defined.

A patch has, on each side of each axis, a rim of ``context`` voxels whose prediction is thrown away (a network sees
too little there), then ``blend`` voxels in which it fades into its neighbour::

    patch i      |context|blend|        flat        |blend|context|
    patch i+1                                |context|blend|        flat ...
                                                     ^^^^^^^ the two weights add up to 1
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box


@dataclass(frozen=True, slots=True)
class PatchLattice:
    """Where the patches of a volume lie.

    Attributes
    ----------
    bounds
        The volume. The first patch begins ``context`` voxels before it, the last ends at or after its end.
    patch_shape
        Edges of a patch in voxels.
    context
        Voxels at each side of a patch that are read, and whose prediction is thrown away.
    blend
        Voxels in which two neighbours fade into each other.

    Raises
    ------
    SpecError
        If the rims leave nothing of a patch.
    """

    bounds: Box
    patch_shape: XYZ
    context: XYZ
    blend: XYZ

    def __post_init__(self) -> None:
        for axis, patch, context, blend in zip(
            "xyz", self.patch_shape, self.context, self.blend, strict=True
        ):
            if context < 0 or blend < 0:
                raise SpecError(
                    f"context and blend must not be negative, got {context} and {blend} on {axis}"
                )
            if patch - 2 * (context + blend) < 1:
                raise SpecError(
                    f"a patch of {patch} voxels on {axis} is used up by its rims (2 x ({context} context + {blend} "
                    f"blend)); it needs at least {2 * (context + blend) + 1}"
                )

    @classmethod
    def fit(cls, bounds: Box, *, patch_shape: XYZ, context: XYZ, blend: XYZ, multiple: XYZ) -> Self:
        """Return the lattice of ``bounds``, with smaller patches on axes that need only one or two.

        Parameters
        ----------
        bounds
            The volume.
        patch_shape
            The patch on axes that need three or more.
        context, blend
            Rims, as in the class.
        multiple
            What each edge of a patch must be a multiple of.
        """
        full = cls(bounds, patch_shape, context, blend)
        shape = list(patch_shape)
        for axis in range(3):
            n = full.count[axis]
            if n <= 2:
                useful = -(-(bounds.shape[axis] + (n - 1) * blend[axis]) // n)
                # With two patches the rims must leave a flat part, with one there is no fading at all.
                least = max(useful, 2 * blend[axis] + 1) + 2 * context[axis]
                shape[axis] = min(patch_shape[axis], -(-least // multiple[axis]) * multiple[axis])
        return cls(bounds, (shape[0], shape[1], shape[2]), context, blend)

    @property
    def stride(self) -> XYZ:
        """Distance between neighbouring patches."""
        x, y, z = (p - 2 * c - b for p, c, b in zip(self.patch_shape, self.context, self.blend, strict=True))
        return (x, y, z)

    @property
    def count(self) -> XYZ:
        """Number of patches along each axis."""
        x, y, z = (
            max(1, -(-(size - b) // s))
            for size, s, b in zip(self.bounds.shape, self.stride, self.blend, strict=True)
        )
        return (x, y, z)

    @property
    def n_patches(self) -> int:
        """Number of patches of the whole volume."""
        x, y, z = self.count
        return x * y * z

    def patch_box(self, index: XYZ) -> Box:
        """Return the voxels that patch ``index`` reads; they may lie outside the bounds."""
        x, y, z = (
            f - c + i * s
            for f, c, i, s in zip(self.bounds.start, self.context, index, self.stride, strict=True)
        )
        return Box.of_shape(self.patch_shape, at=(x, y, z))

    def support_box(self, index: XYZ) -> Box:
        """Return the voxels of the volume that patch ``index`` has a say in."""
        box = self.patch_box(index)
        x, y, z = self.context
        return box.grow((-x, -y, -z)).intersect(self.bounds)

    def touching(self, box: Box) -> tuple[range, range, range]:
        """Return the indices, axis by axis, of the patches that have a say in a voxel of ``box``."""
        inside = box.intersect(self.bounds)
        if inside.is_empty:
            return (range(0), range(0), range(0))
        ranges = []
        for axis in range(3):
            first, step, blend = self.bounds.start[axis], self.stride[axis], self.blend[axis]
            # Patch i covers [i * step, (i + 1) * step + blend) past the start.
            low = max(0, (inside.start[axis] - first - blend) // step)
            high = min(self.count[axis] - 1, (inside.stop[axis] - 1 - first) // step)
            ranges.append(range(low, high + 1))
        return (ranges[0], ranges[1], ranges[2])

    def order(self, box: Box) -> Iterator[XYZ]:
        """Yield the patches that touch ``box`` in the one order in which they are blended: x fastest."""
        xs, ys, zs = self.touching(box)
        for k in zs:
            for j in ys:
                for i in xs:
                    yield (i, j, k)

    def weights(self, axis: int, index: int) -> npt.NDArray[np.float32]:
        """Return the blending weights of patch ``index`` along ``axis`` over its :meth:`support_box`.

        They rise and fall linearly where a neighbour exists and add up to 1 with it.
        """
        blend, n = self.blend[axis], self.count[axis]
        length = self.patch_shape[axis] - 2 * self.context[axis]
        weights = np.ones(length, np.float32)
        rise = ((2 * np.arange(blend) + 1) / (2 * max(blend, 1))).astype(np.float32)
        if index > 0:
            weights[:blend] = rise
        if index < n - 1:
            weights[length - blend :] = np.float32(1.0) - rise
        end = self.bounds.shape[axis] - index * self.stride[axis]
        return weights[: min(length, end)]


def mirror(start: int, stop: int, *, low: int, high: int) -> npt.NDArray[np.int64]:
    """Return positions in ``[low, high)`` for ``[start, stop)``, reflected at the first and last one.

    The same as numpy's padding mode ``reflect``: the border itself is not repeated, and reflections repeat for as
    long as needed.
    """
    size = high - low
    if size == 1:
        return np.full(stop - start, low, np.int64)
    period = 2 * (size - 1)
    position = np.mod(np.arange(start - low, stop - low, dtype=np.int64), period)
    reflected: npt.NDArray[np.int64] = low + np.minimum(position, period - position)
    return reflected

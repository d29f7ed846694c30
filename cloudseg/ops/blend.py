"""Blend overlapping patches into one block, slab by slab, in memory that does not grow along z."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import XYZ, Box
from cloudseg.ops.lattice import PatchLattice


class SlabBlender:
    """Weighted sums of the patches of one block.

    Patches must be added in lattice order (:meth:`PatchLattice.order`): then each voxel sums the same numbers in the
    same order for any block that holds it. Weights add up to 1, so the sum is the average.

    Parameters
    ----------
    lattice
        Where patches lie.
    core
        The block; inside the lattice's bounds.
    n_channels
        Channels of a prediction.
    """

    def __init__(self, lattice: PatchLattice, core: Box, *, n_channels: int) -> None:
        self._lattice = lattice
        self._core = core
        shape = (n_channels, *core.shape[:2], 0)
        self._sums = np.zeros(shape, np.float32)
        self._z = core.start[2]

    def add(self, index: XYZ, prediction: npt.NDArray[np.float32]) -> None:
        """Add the prediction of one patch.

        Parameters
        ----------
        index
            Which patch.
        prediction
            ``(c, x, y, z)`` over the whole patch, context included, values 0 to 1.
        """
        lattice = self._lattice
        support = lattice.support_box(index)
        part = support.intersect(self._core)
        assert part.start[2] >= self._z, "patches must come in lattice order"
        self._reach(part.stop[2])
        window = Box((*self._core.start[:2], self._z), (*self._core.stop[:2], self._z + self._sums.shape[3]))
        cut = part.slices_in(support)
        weights = [lattice.weights(axis, index[axis])[cut[axis]] for axis in range(3)]
        value = prediction[(slice(None), *part.slices_in(lattice.patch_box(index)))]
        plane = weights[0][:, None, None] * weights[1][None, :, None]
        self._sums[(slice(None), *part.slices_in(window))] += value * (plane * weights[2][None, None, :])

    def take(self, z_stop: int) -> tuple[Box, npt.NDArray[np.float32]]:
        """Hand out the finished voxels below ``z_stop`` (absolute) and forget them: their box and ``(c, x, y, z)``."""
        self._reach(z_stop)
        box = Box((*self._core.start[:2], self._z), (*self._core.stop[:2], z_stop))
        depth = z_stop - self._z
        done, rest = self._sums[..., :depth], self._sums[..., depth:]
        self._sums, self._z = rest.copy(), z_stop
        return box, done

    def finished_below(self, k: int) -> int:
        """Return the z (absolute, within the core) below which no patch of rows after ``k`` has a say."""
        z = self._lattice.bounds.start[2] + (k + 1) * self._lattice.stride[2]
        last = k >= self._lattice.touching(self._core)[2][-1]
        return self._core.stop[2] if last else max(self._z, min(z, self._core.stop[2]))

    def _reach(self, z_stop: int) -> None:
        lack = z_stop - self._z - self._sums.shape[3]
        if lack > 0:
            fresh = np.zeros((*self._sums.shape[:3], lack), np.float32)
            self._sums = np.concatenate([self._sums, fresh], axis=3) if self._sums.shape[3] else fresh


def to_uint8(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return probabilities (0 to 1) as 0 to 255, rounded half to even, a new Fortran-ordered array."""
    scaled = probabilities * np.float32(255.0)
    np.rint(scaled, out=scaled)
    # Two weights may add up to a hair over 1.
    np.clip(scaled, 0.0, 255.0, out=scaled)
    return np.asfortranarray(scaled.astype(np.uint8))

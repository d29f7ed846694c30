"""A brain that is nowhere stored: any box of its picture and of its truth, made when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import BoxOutOfBoundsError
from cloudseg.geometry import Box, tile
from cloudseg.testing.phantom_brain import anatomy, paint
from cloudseg.testing.phantom_brain.anatomy import Bodies, Floats
from cloudseg.testing.phantom_brain.spec import BrainSpec

# Bodies and tubes that may reach into one tile of a section; a kernel asserts it.
_MOST_NEAR = 256
# Made at once: 3 MB of picture, and small against the region whose bodies have to be looked up.
_PIECE = (256, 256, 64)


@dataclass(frozen=True, slots=True)
class PhantomBrain:
    """The brain of some settings.

    Attributes
    ----------
    spec
        What it is like.
    """

    spec: BrainSpec

    def image(self, box: Box) -> npt.NDArray[np.uint8]:
        """Return the picture of ``box``: ``(x, y, z)`` uint8, Fortran order.

        Raises
        ------
        BoxOutOfBoundsError
            If the box reaches out of the brain's bounds.
        """
        return self._made(box, np.uint8, self._image)

    def labels(self, box: Box) -> npt.NDArray[np.uint64]:
        """Return the body each voxel of ``box`` belongs to: ``(x, y, z)`` uint64, Fortran order; 0 is none.

        Raises
        ------
        BoxOutOfBoundsError
            If the box reaches out of the brain's bounds.
        """
        return self._made(box, np.uint64, lambda part, out: self._labels(part, out, paint.BODY))

    def nuclei(self, box: Box) -> npt.NDArray[np.uint64]:
        """Return the body whose nucleus each voxel belongs to; see :meth:`labels`."""
        return self._made(box, np.uint64, lambda part, out: self._labels(part, out, paint.NUCLEUS))

    def bodies(self, box: Box | None = None) -> Bodies:
        """Return the cell bodies whose centre lies in ``box`` (all of them), ordered by id, without making a voxel."""
        box = box or self.spec.bounds
        parts = [self._centred(part) for part in tile(box, self._region())]
        order = np.argsort(np.concatenate([p.ids for p in parts]))
        joined = Bodies(*(np.concatenate([getattr(p, n) for p in parts]) for n in Bodies.__slots__))
        return joined.take(order)

    def _region(self) -> tuple[int, int, int]:
        """Voxels of a region whose bodies are looked up at once: some thousand homes."""
        x, y, z = (max(int(20 * self.spec.pitch_nm / s), 1) for s in self.spec.voxel_size_nm)
        return (x, y, z)

    def _centred(self, box: Box) -> Bodies:
        size = np.array(self.spec.voxel_size_nm)
        low, high = np.array(box.start) * size, np.array(box.stop) * size
        found = anatomy.bodies(self.spec, low, high)
        return found.take(np.flatnonzero(np.all((found.centre_nm >= low) & (found.centre_nm < high), axis=1)))

    def _made(self, box: Box, dtype: Any, make: Callable[[Box, npt.NDArray[Any]], None]) -> npt.NDArray[Any]:
        if not self.spec.bounds.contains(box):
            raise BoxOutOfBoundsError.of(box, self.spec.bounds, uri="the phantom brain")
        whole = np.empty(box.shape, dtype, order="F")
        for part in tile(box, _PIECE):
            made = np.empty(part.shape[::-1], dtype)
            make(part, made)
            whole[part.slices_in(box)] = made.T
        return whole

    def _near(self, box: Box) -> tuple[Bodies, tuple[Any, ...], Floats, Floats]:
        """Bodies, sections, and the corners of what may be seen in ``box``."""
        size = np.array(self.spec.voxel_size_nm)
        sections = anatomy.sections(self.spec, box.start[2], box.stop[2])
        low, high = np.array(box.start) * size, np.array(box.stop) * size
        low[:2] += np.minimum(sections.shift_nm.min(axis=0), 0)
        high[:2] += np.maximum(sections.shift_nm.max(axis=0), 0)
        near = anatomy.bodies(self.spec, low, high)
        return near, (sections.gain, sections.offset, sections.shift_nm, sections.lost), low, high

    def _seeds(self) -> npt.NDArray[np.uint64]:
        return np.array(
            [int(anatomy.random(self.spec.seed, 300, n) * 2.0**53) for n in range(16)], np.uint64
        ) * np.uint64(0x9E3779B97F4A7C15)

    def _labels(self, box: Box, out: npt.NDArray[np.uint64], what: int) -> None:
        near, sections, _, _ = self._near(box)
        start, size = np.array(box.start), np.array(self.spec.voxel_size_nm)
        paint.labels(out, start, size, self._seeds(), _columns(near), sections, what, _MOST_NEAR)

    def _image(self, box: Box, out: npt.NDArray[np.uint8]) -> None:
        near, sections, low, high = self._near(box)
        spec = self.spec
        tubes = anatomy.tubes(spec, low, high, near)
        middle = (tubes.start_nm + tubes.stop_nm) / 2
        widest = np.maximum(tubes.start_radius_nm, tubes.stop_radius_nm)
        reach = np.linalg.norm(tubes.stop_nm - tubes.start_nm, axis=1) / 2 + widest + anatomy.TUBE_NM
        extent = np.array(spec.extent_nm)
        paint.image(
            out,
            np.array(box.start),
            np.array(spec.voxel_size_nm),
            self._seeds(),
            _columns(near),
            (
                tubes.kind,
                tubes.start_nm,
                tubes.stop_nm,
                tubes.start_radius_nm,
                tubes.stop_radius_nm,
                middle,
                reach,
            ),
            sections,
            (spec.tissue == "all", extent * 0.5 * anatomy.TISSUE_SIZE, extent / 2),
            (spec.contrast, spec.noise),
            _MOST_NEAR,
        )


def _columns(bodies: Bodies) -> tuple[Any, ...]:
    return tuple(getattr(bodies, name) for name in Bodies.__slots__)

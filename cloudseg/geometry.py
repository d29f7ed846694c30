"""Boxes and tilings in voxels: integers only, X, Y, Z order everywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from cloudseg.errors import SpecError

XYZ = tuple[int, int, int]
"""Three integers in X, Y, Z order."""

_BOX_TEXT = re.compile(r"^(-?\d+),(-?\d+),(-?\d+):(-?\d+),(-?\d+),(-?\d+)$")


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """Half-open box ``[start, stop)`` in voxels, X, Y, Z order.

    Raises
    ------
    SpecError
        If a corner is not three integers, or ``stop`` lies below ``start``.
    """

    start: XYZ
    stop: XYZ

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            corner = tuple(int(v) for v in getattr(self, name))
            if len(corner) != 3:
                raise SpecError(f"box {name} must have 3 numbers (x, y, z), got {corner}")
            object.__setattr__(self, name, corner)
        for axis, low, high in zip("xyz", self.start, self.stop, strict=True):
            if high < low:
                raise SpecError(f"box is upside down on {axis}: start {low} is above stop {high}")

    @classmethod
    def of_shape(cls, shape: XYZ, *, at: XYZ = (0, 0, 0)) -> Self:
        """Return the box of ``shape`` voxels whose lowest corner is ``at``."""
        return cls(at, _plus(at, shape))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``x0,y0,z0:x1,y1,z1``, the form :meth:`__str__` writes."""
        match = _BOX_TEXT.match(text.replace(" ", ""))
        if not match:
            raise SpecError(
                f"a box is written x0,y0,z0:x1,y1,z1 in voxels (e.g. 0,0,0:64,64,64), got {text!r}"
            )
        numbers = [int(g) for g in match.groups()]
        return cls((numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4], numbers[5]))

    def __str__(self) -> str:
        return ",".join(map(str, self.start)) + ":" + ",".join(map(str, self.stop))

    @property
    def shape(self) -> XYZ:
        """Edge lengths in voxels."""
        return _minus(self.stop, self.start)

    @property
    def n_voxels(self) -> int:
        """Number of voxels inside."""
        return math.prod(self.shape)

    @property
    def is_empty(self) -> bool:
        """Whether no voxel is inside."""
        return self.n_voxels == 0

    def grow(self, halo_vx: XYZ) -> Box:
        """Return the box with ``halo_vx`` voxels added on every side."""
        return Box(_minus(self.start, halo_vx), _plus(self.stop, halo_vx))

    def with_lower_neighbours(self, *, bounds: Box) -> Box:
        """Return the box with one voxel more at each lower side that is not the border of ``bounds``."""
        return Box(self.grow((1, 1, 1)).start, self.stop).intersect(bounds)

    def shift(self, by: XYZ) -> Box:
        """Return the box moved by ``by`` voxels."""
        return Box(_plus(self.start, by), _plus(self.stop, by))

    def intersect(self, other: Box) -> Box:
        """Return the common part; an empty box at the nearest corner where there is none."""
        start = _max(self.start, other.start)
        return Box(start, _max(start, _min(self.stop, other.stop)))

    def union(self, other: Box) -> Box:
        """Return the smallest box that holds both."""
        return Box(_min(self.start, other.start), _max(self.stop, other.stop))

    def contains(self, other: Box) -> bool:
        """Whether every voxel of ``other`` is inside this box."""
        return other.is_empty or self.intersect(other) == other

    def slices_in(self, outer: Box) -> tuple[slice, slice, slice]:
        """Return the slices that cut this box out of an array covering ``outer``."""
        low, high = _minus(self.start, outer.start), _minus(self.stop, outer.start)
        x, y, z = (slice(a, b) for a, b in zip(low, high, strict=True))
        return (x, y, z)

    def is_aligned(self, grid: XYZ, *, bounds: Box) -> bool:
        """Whether each edge lies on ``grid`` (which starts at ``bounds.start``) or on the border of ``bounds``."""
        for low, high, step, first, last in zip(
            self.start, self.stop, grid, bounds.start, bounds.stop, strict=True
        ):
            if (low - first) % step or ((high - first) % step and high != last):
                return False
        return True

    def align_out(self, grid: XYZ, *, bounds: Box) -> Box:
        """Return the smallest box on ``grid`` (clipped to ``bounds``) that holds this one."""
        start = tuple(f + (v - f) // g * g for v, g, f in zip(self.start, grid, bounds.start, strict=True))
        stop = tuple(f - (f - v) // g * g for v, g, f in zip(self.stop, grid, bounds.start, strict=True))
        return Box(start, stop).intersect(bounds)  # type: ignore[arg-type]


def tile(bounds: Box, block_shape: XYZ) -> Iterator[Box]:
    """Cut ``bounds`` into blocks of ``block_shape`` (smaller at the far edges), X fastest.

    Raises
    ------
    SpecError
        If an edge of ``block_shape`` is not positive.
    """
    n_x, n_y, n_z = grid_shape(bounds, block_shape)
    for k in range(n_z):
        for j in range(n_y):
            for i in range(n_x):
                yield grid_box(bounds, block_shape, (i, j, k))


def grid_shape(bounds: Box, block_shape: XYZ) -> XYZ:
    """Return how many blocks of ``block_shape`` cover ``bounds`` along each axis."""
    if min(block_shape) < 1:
        raise SpecError(f"block shape must be positive on every axis, got {tuple(block_shape)}")
    x, y, z = (-(-s // b) for s, b in zip(bounds.shape, block_shape, strict=True))
    return (x, y, z)


def grid_box(bounds: Box, block_shape: XYZ, index: XYZ) -> Box:
    """Return block ``index`` of the tiling of ``bounds``, clipped to it."""
    x, y, z = (f + i * b for f, i, b in zip(bounds.start, index, block_shape, strict=True))
    return Box.of_shape(block_shape, at=(x, y, z)).intersect(bounds)


def _plus(a: XYZ, b: XYZ) -> XYZ:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def _minus(a: XYZ, b: XYZ) -> XYZ:
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def _min(a: XYZ, b: XYZ) -> XYZ:
    return (min(a[0], b[0]), min(a[1], b[1]), min(a[2], b[2]))


def _max(a: XYZ, b: XYZ) -> XYZ:
    return (max(a[0], b[0]), max(a[1], b[1]), max(a[2], b[2]))

"""Which tasks of the step before a task waits for: its own block's and its neighbours', instead of all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cloudseg.geometry import XYZ, Box, grid_box, grid_shape

if TYPE_CHECKING:
    from cloudseg.tasking.task import Task


@dataclass(frozen=True, slots=True)
class Near:
    """What a step reads of the step before, task by task. Tasks have numbers: their places in the step's list.

    Attributes
    ----------
    after
        Name of the step before.
    needs
        The tasks of that step which must be done before a task of this one may start.
    task
        A task by its number.
    """

    after: str
    needs: Callable[[int], Iterable[int]]
    task: Callable[[int], Task]


@dataclass(frozen=True, slots=True)
class Grid:
    """The blocks of a tiling, numbered X fastest, as :func:`cloudseg.geometry.tile` yields them.

    Examples
    --------
    >>> grid = Grid(Box.of_shape((10, 10, 4)), (4, 4, 4))
    >>> str(grid.box(4))
    '4,4,0:8,8,4'
    >>> list(grid.numbers(Box((3, 4, 0), (5, 6, 1))))
    [3, 4]
    """

    bounds: Box
    block_shape: XYZ

    def index(self, number: int) -> XYZ:
        """Return the place of a block in the grid."""
        n_x, n_y, _ = grid_shape(self.bounds, self.block_shape)
        return (number % n_x, number // n_x % n_y, number // (n_x * n_y))

    def box(self, number: int) -> Box:
        """Return a block."""
        return grid_box(self.bounds, self.block_shape, self.index(number))

    def number(self, index: XYZ) -> int:
        """Return the number of the block at a place."""
        n_x, n_y, _ = grid_shape(self.bounds, self.block_shape)
        return index[0] + n_x * (index[1] + n_y * index[2])

    def numbers(self, box: Box) -> Iterator[int]:
        """Yield the blocks that share voxels with ``box``, which lies inside the bounds."""
        first, block = self.bounds.start, self.block_shape
        axes = [
            range((a - f) // n, -(-(b - f) // n))
            for a, b, f, n in zip(box.start, box.stop, first, block, strict=True)
        ]
        for k, j, i in itertools.product(*reversed(axes)):
            yield self.number((i, j, k))


def near(
    after: str, *, blocks: Grid, before: Grid, reads: Callable[[Box], Box], task: Callable[[int], Task]
) -> Near:
    """Say that the task of a block reads a box of what the blocks of the step before have written.

    Parameters
    ----------
    after
        Name of the step before.
    blocks, before
        The blocks of this step, and of that one.
    reads
        Of a block, the box that its task reads, inside the bounds.
    task
        The task of a block, by its number.
    """
    return Near(after, lambda number: before.numbers(reads(blocks.box(number))), task)

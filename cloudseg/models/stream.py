"""Predict one block: read ahead, compute, blend, write behind, each in threads of its own.

The network is the costly part, so everything else hides behind it: while it works on some patches, the image of the
next row of patches is read and finished slabs are written. Memory holds one row of patches, not the block: a block
may be as long along z as one likes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import XYZ, Box
from cloudseg.models.network import Lanes, Network, Probabilities
from cloudseg.ops.blend import SlabBlender, to_uint8
from cloudseg.ops.lattice import PatchLattice, mirror

T = TypeVar("T")
Image = npt.NDArray[Any]


@dataclass(slots=True)
class BlockReport:
    """What one block took.

    Attributes
    ----------
    n_patches, n_skipped
        Patches computed, and left out because they hold no tissue.
    n_read_bytes, n_written_bytes
        Uncompressed sizes.
    seconds
        Time the threads spent in ``read``, ``network`` (summed over its threads) and ``write``, and the time ``wait``
        in which the block had nothing to do but wait for the network.
    """

    n_patches: int = 0
    n_skipped: int = 0
    n_read_bytes: int = 0
    n_written_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def predict_block(
    model: Network,
    lattice: PatchLattice,
    core: Box,
    *,
    read: Callable[[Box], Image],
    write: Callable[[Box, npt.NDArray[np.uint8]], None],
    tissue: Callable[[Box], npt.NDArray[np.bool_]] | None = None,
    grey_range: tuple[float, float] | None = None,
    batch_size: int = 1,
    write_grid_z: int = 1,
) -> BlockReport:
    """Predict the voxels of ``core`` from every patch that touches it.

    Each voxel comes out the same, bit for bit, for any block that holds it and any number of CPU threads, in whatever
    batches its patches are computed.

    Parameters
    ----------
    model, lattice
        The network, and where the patches of the volume lie.
    core
        The block, inside ``lattice.bounds``.
    read
        Returns the image of a box inside the bounds, ``(x, y, z)``. Called from one other thread.
    write
        Stores a finished slab of ``core``, ``(c, x, y, z)`` uint8. Called from one other thread, upwards along z.
    tissue
        Returns where a box holds tissue; elsewhere the result is 0. Called from this thread and the writer's.
    grey_range
        See :meth:`cloudseg.models.predict.Model.predict`.
    batch_size
        Patches per forward pass on a GPU; always padded to this size, so that it rounds alike.
    write_grid_z
        Slabs begin and end at multiples of this from the bounds' start (or at the end of ``core``).
    """
    lanes = model.lanes(lattice.patch_shape, batch_size=batch_size)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader,
        ThreadPoolExecutor(
            lanes.n_threads, thread_name_prefix="network", initializer=lanes.initializer
        ) as network,
        ThreadPoolExecutor(1, thread_name_prefix="write-behind") as writer,
    ):
        block = _Block(model, lattice, core, read, write, tissue, grey_range, lanes)
        try:
            block.run(reader, network, writer, write_grid_z=write_grid_z)
        except BaseException:
            for pool in (reader, network, writer):
                pool.shutdown(wait=False, cancel_futures=True)
            raise
    return block.report


@dataclass(frozen=True, slots=True)
class _Batch:
    """Some patches of the row ``k``; ``last`` closes the row (and may hold no patch at all)."""

    k: int
    patches: tuple[XYZ, ...]
    last: bool


@dataclass(frozen=True, slots=True)
class _Slab:
    """The image under one row of patches, mirrored where it leaves the volume."""

    box: Box
    image: Image
    n_read_bytes: int


class _Job(Generic[T]):
    """A call in another thread, and how long it took there."""

    def __init__(self, pool: ThreadPoolExecutor, call: Callable[..., T], *args: Any) -> None:
        self._future: Future[tuple[T, float]] = pool.submit(self._timed, call, *args)

    @staticmethod
    def _timed(call: Callable[..., T], *args: Any) -> tuple[T, float]:
        started = time.monotonic()
        result = call(*args)
        return result, time.monotonic() - started

    def result(self) -> tuple[T, float]:
        return self._future.result()


@dataclass
class _Block:
    model: Network
    lattice: PatchLattice
    core: Box
    read: Callable[[Box], Image]
    write: Callable[[Box, npt.NDArray[np.uint8]], None]
    tissue: Callable[[Box], npt.NDArray[np.bool_]] | None
    grey_range: tuple[float, float] | None
    lanes: Lanes
    report: BlockReport = field(default_factory=BlockReport)

    def run(
        self,
        reader: ThreadPoolExecutor,
        network: ThreadPoolExecutor,
        writer: ThreadPoolExecutor,
        *,
        write_grid_z: int,
    ) -> None:
        """Drive the threads; blending happens here, in lattice order."""
        blender = SlabBlender(self.lattice, self.core, n_channels=self.model.n_channels)
        running: deque[tuple[_Batch, _Job[Probabilities]]] = deque()
        writing: deque[_Job[int]] = deque()

        def retire() -> None:
            batch, job = running.popleft()
            started = time.monotonic()
            predictions = self._collect("network", job)
            self._spent("wait", time.monotonic() - started)
            for index, prediction in zip(batch.patches, predictions, strict=True):
                blender.add(index, prediction)
            if batch.last:
                z_stop = self._on_grid(blender.finished_below(batch.k), write_grid_z)
                box, sums = blender.take(z_stop)
                if not box.is_empty:
                    while len(writing) > 1:  # one slab is written, one waits: no more lie in memory
                        self.report.n_written_bytes += self._collect("write", writing.popleft())
                    writing.append(_Job(writer, self._write, box, sums))

        for batch, slab in self._with_images(reader):
            running.append((batch, _Job(network, self._predict, batch, slab)))
            # One batch lies ready for each that is being computed: the network never waits for the blending.
            while len(running) > 2 * self.lanes.n_threads:
                retire()
        while running:
            retire()
        while writing:
            self.report.n_written_bytes += self._collect("write", writing.popleft())

    def _with_images(self, reader: ThreadPoolExecutor) -> Iterator[tuple[_Batch, _Slab | None]]:
        """Yield the batches in order, with their image; the image of the next row is already being read."""
        rows = iter([self._row(k) for k in self.lattice.touching(self.core)[2]])
        ahead: deque[tuple[list[_Batch], _Job[_Slab] | None]] = deque()

        def look_ahead() -> None:
            row = next(rows, None)
            if row is not None:
                box = self._row_box(row)
                ahead.append((row, None if box is None else _Job(reader, self._read_mirrored, box)))

        look_ahead()
        while ahead:
            row, job = ahead.popleft()
            look_ahead()
            slab = None
            if job is not None:
                slab = self._collect("read", job)
                self.report.n_read_bytes += slab.n_read_bytes
            for batch in row:
                yield batch, slab

    def _row(self, k: int) -> list[_Batch]:
        xs, ys, _ = self.lattice.touching(self.core)
        patches = [(i, j, k) for j in ys for i in xs]
        with_tissue = [index for index in patches if self._holds_tissue(index)]
        self.report.n_patches += len(with_tissue)
        self.report.n_skipped += len(patches) - len(with_tissue)
        n = self.lanes.n_patches
        starts = range(0, max(len(with_tissue), 1), n)
        return [_Batch(k, tuple(with_tissue[i : i + n]), last=i + n >= len(with_tissue)) for i in starts]

    def _holds_tissue(self, index: XYZ) -> bool:
        # A patch only matters to voxels of the core that are tissue: the others become 0 whatever it says.
        part = self.lattice.support_box(index).intersect(self.core)
        return self.tissue is None or bool(self.tissue(part).any())

    def _row_box(self, row: list[_Batch]) -> Box | None:
        boxes = [self.lattice.patch_box(index) for batch in row for index in batch.patches]
        if not boxes:
            return None
        whole = boxes[0]
        for box in boxes[1:]:
            whole = whole.union(box)
        return whole

    def _read_mirrored(self, box: Box) -> _Slab:
        bounds = self.lattice.bounds
        positions = [
            mirror(a, b, low=low, high=high)
            for a, b, low, high in zip(box.start, box.stop, bounds.start, bounds.stop, strict=True)
        ]
        low = tuple(int(p.min()) for p in positions)
        high = tuple(int(p.max()) + 1 for p in positions)
        inside = self.read(Box(low, high))  # type: ignore[arg-type]
        if box != Box(low, high):  # type: ignore[arg-type]
            inside_bytes = inside.nbytes
            inside = inside[np.ix_(*(p - first for p, first in zip(positions, low, strict=True)))]
            return _Slab(box, inside, inside_bytes)
        return _Slab(box, inside, inside.nbytes)

    def _predict(self, batch: _Batch, slab: _Slab | None) -> Probabilities:
        if slab is None or not batch.patches:
            return np.empty((0, self.model.n_channels, *self.lattice.patch_shape), np.float32)
        patches = np.zeros((self.lanes.padded_to, *self.lattice.patch_shape), slab.image.dtype)
        for i, index in enumerate(batch.patches):
            patches[i] = slab.image[self.lattice.patch_box(index).slices_in(slab.box)]
        return self.model.predict(patches, grey_range=self.grey_range)[: len(batch.patches)]

    def _write(self, box: Box, sums: Probabilities) -> int:
        affinities = to_uint8(sums)
        if self.tissue is not None:
            affinities[:, ~self.tissue(box)] = 0
        self.write(box, affinities)
        return affinities.nbytes

    def _on_grid(self, z: int, grid: int) -> int:
        first = self.lattice.bounds.start[2]
        return z if z == self.core.stop[2] else max(self.core.start[2], first + (z - first) // grid * grid)

    def _collect(self, step: str, job: _Job[T]) -> T:
        result, seconds = job.result()
        self._spent(step, seconds)
        return result

    def _spent(self, step: str, seconds: float) -> None:
        self.report.seconds[step] = self.report.seconds.get(step, 0.0) + seconds

"""Compare a segmentation with the truth, block by block: neither is ever held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.geometry import XYZ, Box, tile
from cloudseg.ops.centerline import centerlines
from cloudseg.ops.contingency import Contingency, contingency
from cloudseg.ops.downsample import coarse_box, downsample_mode, fine_box, next_factor
from cloudseg.ops.run_length import RunLength, expected_run_length
from cloudseg.volumes.open import open_volume
from cloudseg.volumes.protocol import Array, Volume
from cloudseg.volumes.skeletons import Skeletons
from cloudseg.volumes.sources.base import Source
from cloudseg.volumes.sources.open import open_source

VoxelSize = tuple[float, float, float]
Look = Callable[[Box, Array, Array, npt.NDArray[np.bool_] | None, Box], None]
"""What another measure does with a block; see :func:`evaluate`."""

# Two blocks of ids (uint64) of this size and their mask are 70 MiB; the next pair is read meanwhile.
_BLOCK: XYZ = (256, 256, 64)

# 1 GiB of uint64; and what a minute traces.
_TRACED_VOXELS = 1 << 27
_TRACED_AT_VOXELS = 2_000_000

# Relative difference under which two voxel sizes are the same: headers round.
_SAME_SIZE = 1e-3


@dataclass(frozen=True, slots=True)
class Labels:
    """Something with voxels to compare: a volume in a bucket, or a file.

    Attributes
    ----------
    uri, bounds, voxel_size_nm, dtype
        What it is; the voxel size is None for files that do not say.
    read
        Returns the voxels of a box inside the bounds.
    """

    uri: str
    bounds: Box
    voxel_size_nm: VoxelSize | None
    dtype: np.dtype[Any]
    read: Callable[[Box], Array]

    @classmethod
    def of_volume(cls, volume: Volume, *, missing: Literal["error", "zero"] = "error") -> Self:
        """Wrap an open volume; ``missing`` says what chunks that were never written mean."""
        info = volume.info
        if info.n_channels != 1:
            raise SpecError(f"{volume.uri} has {info.n_channels} channels: labels and masks have one")
        return cls(
            volume.uri,
            info.bounds,
            info.voxel_size_nm,
            info.numpy_dtype,
            lambda box: volume.read(box, missing=missing),
        )

    @classmethod
    def of_source(cls, source: Source) -> Self:
        """Wrap an open file."""
        if source.n_channels != 1:
            raise SpecError(f"{source.uri} has {source.n_channels} channels: labels and masks have one")
        x, y, z = (-v for v in source.offset)
        return cls(
            source.uri,
            Box.of_shape(source.shape, at=source.offset),
            source.voxel_size_nm,
            source.dtype,
            lambda box: source.read(box.shift((x, y, z))),
        )

    @classmethod
    def open(cls, uri: str, *, mip: int = 0, missing: Literal["error", "zero"] = "error") -> Self:
        """Open a Precomputed volume, or what ``cloudseg ingest`` reads (``file.npz#name``: an array inside)."""
        try:
            return cls.of_volume(open_volume(uri, mip=mip), missing=missing)
        except (NotFoundError, SpecError) as error:
            if not isinstance(error, NotFoundError) and "#" not in uri and not _is_file(uri):
                raise
            path, _, dataset = uri.partition("#")
            if mip:
                raise SpecError(f"{uri} is a file: it has no scale {mip}") from error
            return cls.of_source(open_source(path, dataset=dataset or None))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was compared.

    Attributes
    ----------
    box
        Voxels compared, in the coordinates both share.
    voxel_size_nm
        Edges of a voxel; None if neither side says.
    table
        Voxels of each pair (segment, truth object) inside the mask.
    run_length
        How the segmentation follows the skeletons, if there were any.
    notes
        What a reader of the figures should know.
    """

    box: Box
    voxel_size_nm: VoxelSize | None
    table: Contingency
    run_length: RunLength | None
    notes: tuple[str, ...]


def evaluate(
    seg: Labels,
    truth: Labels,
    *,
    box: Box | None = None,
    mask: Labels | None = None,
    skeletons: Skeletons | None = None,
    merge_tolerance_nodes: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    look: Look | None = None,
) -> Evaluation:
    """Count the voxels that segments and truth objects share where both exist.

    Parameters
    ----------
    seg, truth
        What to compare; the same voxel size.
    box
        Where, in voxels; None compares where both have voxels.
    mask
        Voxels where it is 0, or outside its bounds, do not count. Its voxels may be coarser by whole factors.
    skeletons
        Traces of the true neurons, in nm.
    merge_tolerance_nodes
        See :func:`~cloudseg.ops.run_length.expected_run_length`.
    progress
        Called after every block.
    look
        Called with every block: its box, segments, truth, mask (None: all counts), and the box of all blocks.

    Raises
    ------
    SpecError
        If voxel sizes differ, nothing overlaps, or labels are not integers.
    """
    notes: list[str] = []
    size = _voxel_size(seg, truth, notes)
    common = _common_box(seg, truth, box, notes)
    factor = _mask_factor(mask, size)
    nodes = _Nodes.inside(skeletons, common, size, notes) if skeletons is not None else None

    def read(block: Box) -> tuple[Box, Array, Array, npt.NDArray[np.bool_] | None]:
        inside = _read_mask(mask, block, factor) if mask is not None else None
        return block, seg.read(block), truth.read(block), inside

    def tables() -> Iterator[Contingency]:
        done = 0
        for block, a, b, inside in _ahead(list(tile(common, _BLOCK)), read):
            if nodes is not None:
                nodes.look_up(a, inside, block)
            if look is not None:
                look(block, a, b, inside, common)
            yield contingency(a, b, inside)
            done += block.n_voxels
            if progress is not None:
                progress("comparing", done, common.n_voxels)

    table = Contingency.total(tables())
    run_length = nodes.score(merge_tolerance_nodes, notes) if nodes is not None else None
    return Evaluation(common, size, table, run_length, tuple(notes))


def skeletons_of_truth(
    seg: Labels,
    truth: Labels,
    *,
    box: Box | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Skeletons:
    """Trace the truth objects where both are compared: for scoring where nobody traced by hand.

    The truth is held in memory, and traced at a scale of at most some million voxels: fine for blocks with dense
    truth, which are small. For more, run the skeleton stage on the truth and pass its folder.

    Parameters
    ----------
    seg, truth, box
        As for :func:`evaluate`.
    progress
        Called after every object.

    Raises
    ------
    SpecError
        If the compared box is too large, the voxel size unknown, or no object long enough to follow.
    """
    size = _voxel_size(seg, truth, [])
    if size is None:
        raise SpecError(
            "skeletons are in nm: neither the segmentation nor the truth says how large its voxels are"
        )
    common = _common_box(seg, truth, box, [])
    if common.n_voxels > _TRACED_VOXELS:
        raise SpecError(
            f"tracing the truth in {common} would hold {common.n_voxels:,} voxels in memory, the limit is "
            f"{_TRACED_VOXELS:,}: choose a smaller --box, or run the skeleton stage on the truth and pass its folder"
        )
    fine = truth.read(common)
    labels, start, cell = fine, common.start, (1, 1, 1)
    while labels.size > _TRACED_AT_VOXELS:
        coarse_size = (size[0] * cell[0], size[1] * cell[1], size[2] * cell[2])
        factor = next_factor(coarse_size, (labels.shape[0], labels.shape[1], labels.shape[2]))
        labels = downsample_mode(labels, factor, start=start)
        start = coarse_box(Box.of_shape((1, 1, 1), at=start), factor).start
        cell = (cell[0] * factor[0], cell[1] * factor[1], cell[2] * factor[2])
    cell_size = (size[0] * cell[0], size[1] * cell[1], size[2] * cell[2])
    n_objects = int(np.count_nonzero(np.unique(labels)))

    def traced() -> Iterator[tuple[int, Array, Array]]:
        for done, (name, nodes, edges) in enumerate(centerlines(labels, cell_size), start=1):
            if progress is not None:
                progress("tracing truth", done, n_objects)
            cells = np.floor(nodes / np.array(cell_size)).astype(np.int64) + start
            voxels = _own_voxels(cells, cell, fine == name, common)
            yield name, (voxels + 0.5) * np.array(size), edges
        if progress is not None:
            progress("tracing truth", n_objects, n_objects)

    return Skeletons.joined(traced(), uri=f"the truth {truth.uri} in {common}")


def _own_voxels(
    cells: npt.NDArray[np.int64], cell: XYZ, inside: npt.NDArray[np.bool_], box: Box
) -> npt.NDArray[np.int64]:
    """Return, for each coarse cell, the fine voxel nearest to its middle that lies in the object.

    The object is the most frequent in the cell, but the middle may be a neighbour's: a node there would count as
    a merger that nobody made.
    """
    offsets = np.argwhere(np.ones(cell, bool))
    middle = (np.array(cell) - 1) / 2
    offsets = offsets[np.argsort(((offsets - middle) ** 2).sum(axis=1), kind="stable")]
    found: npt.NDArray[np.int64] = cells * np.array(cell) + offsets[0]
    open_ = np.ones(len(cells), bool)
    for offset in offsets:
        voxels = cells * np.array(cell) + offset
        there = open_ & ((voxels >= box.start) & (voxels < box.stop)).all(axis=1)
        there[there] = inside[tuple((voxels[there] - box.start).T)]
        found[there] = voxels[there]
        open_ &= ~there
    return found


class _Nodes:
    """The skeleton nodes inside the compared box, and the segment found at each."""

    def __init__(
        self, skeletons: Skeletons, voxels: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_]
    ) -> None:
        self._skeletons = skeletons
        self._voxels = voxels
        self._kept = kept
        self._segments = np.zeros(len(voxels), np.uint64)

    @classmethod
    def inside(
        cls, skeletons: Skeletons, box: Box, voxel_size_nm: VoxelSize | None, notes: list[str]
    ) -> Self:
        if voxel_size_nm is None:
            raise SpecError(
                "skeletons are in nm: neither the segmentation nor the truth says how large its voxels are"
            )
        # A thousandth of a voxel: corners computed in float32 fall just below the voxel they mean.
        voxels = np.floor(skeletons.nodes_nm / np.array(voxel_size_nm) + 1e-3).astype(np.int64)
        kept = ((voxels >= box.start) & (voxels < box.stop)).all(axis=1)
        if not kept.any():
            low, high = skeletons.nodes_nm.min(axis=0), skeletons.nodes_nm.max(axis=0)
            raise SpecError(
                f"no skeleton node lies in the compared box {box}: nodes reach from {low.round(1).tolist()} to "
                f"{high.round(1).tolist()} nm, voxels are {voxel_size_nm} nm; check the units of the skeletons"
            )
        if not kept.all():
            notes.append(
                f"{int((~kept).sum())} of {kept.size} skeleton nodes lie outside the compared box: cut off"
            )
        return cls(skeletons, voxels, kept)

    def look_up(self, seg: Array, mask: npt.NDArray[np.bool_] | None, block: Box) -> None:
        """Note the segments at the nodes of one block; nodes outside the mask are cut off."""
        here = np.flatnonzero(((self._voxels >= block.start) & (self._voxels < block.stop)).all(axis=1))
        places = tuple((self._voxels[here] - block.start).T)
        self._segments[here] = seg[places].astype(np.uint64)
        if mask is not None:
            self._kept[here] &= mask[places]

    def score(self, merge_tolerance_nodes: int, notes: list[str]) -> RunLength:
        """Score what is left of the skeletons."""
        edges = self._skeletons.edges
        whole = self._kept[edges].all(axis=1)
        if not whole.all():
            notes.append(
                f"{int((~whole).sum())} of {whole.size} skeleton edges leave the compared voxels: not counted"
            )
        numbers = np.cumsum(self._kept) - 1
        return expected_run_length(
            self._skeletons.nodes_nm[self._kept],
            numbers[edges[whole]],
            self._skeletons.skeleton_ids[self._kept],
            self._segments[self._kept],
            merge_tolerance_nodes=merge_tolerance_nodes,
        )


def _voxel_size(seg: Labels, truth: Labels, notes: list[str]) -> VoxelSize | None:
    a, b = seg.voxel_size_nm, truth.voxel_size_nm
    if a is None or b is None:
        silent = [labels.uri for labels, size in ((seg, a), (truth, b)) if size is None]
        notes.append(f"{' and '.join(silent)} does not say how large its voxels are: taken to fit")
        return a or b
    if any(abs(p - q) > _SAME_SIZE * max(p, q) for p, q in zip(a, b, strict=True)):
        raise SpecError(
            f"voxels of the segmentation {seg.uri} are {a} nm, those of the truth {truth.uri} {b} nm: "
            "choose scales of one size with --seg-mip and --truth-mip"
        )
    return a


def _common_box(seg: Labels, truth: Labels, box: Box | None, notes: list[str]) -> Box:
    common = seg.bounds.intersect(truth.bounds)
    if common.is_empty:
        raise SpecError(
            f"nothing to compare: the segmentation {seg.uri} covers {seg.bounds}, the truth {truth.uri} {truth.bounds}"
        )
    if box is not None:
        inside = box.intersect(common)
        if inside.is_empty:
            raise SpecError(f"nothing to compare in box {box}: segmentation and truth share {common}")
        if inside != box:
            notes.append(f"box {box} reaches out of what both cover: compared in {inside}")
        return inside
    if seg.bounds != truth.bounds:
        notes.append(f"the segmentation covers {seg.bounds}, the truth {truth.bounds}: compared in {common}")
    return common


def _mask_factor(mask: Labels | None, voxel_size_nm: VoxelSize | None) -> XYZ:
    if mask is None or mask.voxel_size_nm is None or voxel_size_nm is None:
        return (1, 1, 1)
    ratios = [m / v for m, v in zip(mask.voxel_size_nm, voxel_size_nm, strict=True)]
    x, y, z = (round(r) for r in ratios)
    if min(x, y, z) < 1 or any(abs(r - f) > _SAME_SIZE * r for r, f in zip(ratios, (x, y, z), strict=True)):
        raise SpecError(
            f"voxels of the mask {mask.uri} are {mask.voxel_size_nm} nm: they must be whole multiples of the "
            f"labels' {voxel_size_nm} nm"
        )
    return (x, y, z)


def _read_mask(mask: Labels, block: Box, factor: XYZ) -> npt.NDArray[np.bool_]:
    cells = coarse_box(block, factor)
    there = cells.intersect(mask.bounds)
    coarse = np.zeros(cells.shape, bool, order="F")
    if not there.is_empty:
        coarse[there.slices_in(cells)] = mask.read(there) != 0
    fine = coarse.repeat(factor[0], 0).repeat(factor[1], 1).repeat(factor[2], 2)
    return fine[block.slices_in(fine_box(cells, factor))]


def _ahead(blocks: list[Box], read: Callable[[Box], Any]) -> Iterator[Any]:
    """Yield what is read of each block; the next is read while the caller works on the last."""
    with ThreadPoolExecutor(1, thread_name_prefix="evaluate-read") as reader:
        waiting = reader.submit(read, blocks[0])
        for block in blocks[1:]:
            following = reader.submit(read, block)
            yield waiting.result()
            waiting = following
        yield waiting.result()


def _is_file(uri: str) -> bool:
    from pathlib import Path

    from cloudseg.volumes.addresses import Address

    address = Address.parse(uri)
    return address.scheme == "file" and Path(address.path).is_file()

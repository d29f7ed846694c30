"""Annotations as the Precomputed format stores them: records, lists of them, and which cell of which level has which.

The format is Neuroglancer's ("neuroglancer_annotations_v1"). Its spatial index has levels of ever smaller cells, and
each annotation is in exactly one level, so that a viewer which has loaded the coarse levels has an even sample of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ

Ids = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]

MAX_LEVELS = 20
# The viewer expects more padding than the specification names in larger records.
_MAX_RECORD_BYTES = 252


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the spatial index.

    Attributes
    ----------
    grid
        Cells along x, y, z.
    from_rank, to_rank
        The annotations of this level are those whose :func:`rank` lies between, the upper end included.
    n_listed
        Annotations of the level, each counted in every cell that it touches.
    most
        In the fullest cell.
    """

    grid: XYZ
    from_rank: int
    to_rank: int
    n_listed: int
    most: int


def rank(ids: Ids) -> Ids:
    """Return a number for each id that looks random and is the same everywhere: no two ids share one.

    The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    mixed = np.asarray(ids, np.uint64).copy()
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def record_dtype(properties: Mapping[str, str], *, n_coordinates: int) -> np.dtype[Any]:
    """Return the layout of a record: geometry, then properties, then zeros up to a multiple of four bytes.

    Parameters
    ----------
    properties
        Name to type (``float32``, ``uint32``, ``int32``, ``uint16``, ``int16``, ``uint8``, ``int8``), larger types
        first: readers differ in whether they sort them.
    n_coordinates
        3 for a point, 6 for an ellipsoid.

    Raises
    ------
    SpecError
        If a larger type comes after a smaller one, or the record is longer than viewers read.
    """
    types = {name: np.dtype(kind).newbyteorder("<") for name, kind in properties.items()}
    sizes = [each.itemsize for each in types.values()]
    if sizes != sorted(sizes, reverse=True) or any(size not in (1, 2, 4) for size in sizes):
        raise SpecError(
            f"properties of annotations must come in the order of their sizes, 4, 2 and 1 bytes, got {dict(properties)}"
        )
    size = 4 * n_coordinates + sum(sizes)
    fields: list[Any] = [("geometry", "<f4", (n_coordinates,)), *types.items()]
    if size % 4:
        fields.append(("padding", "V", 4 - size % 4))
    layout = np.dtype(fields)
    if layout.itemsize > _MAX_RECORD_BYTES:
        raise SpecError(
            f"a record has {layout.itemsize} bytes, and viewers read at most {_MAX_RECORD_BYTES}; "
            "leave some properties out"
        )
    return layout


def listed(records: npt.NDArray[Any], ids: Ids) -> bytes:
    """Return a list of annotations, as cells and relationships hold them."""
    n = np.array(len(ids), "<u8").tobytes()
    return b"".join([n, records.tobytes(), np.asarray(ids).astype("<u8").tobytes()])


def single(records: npt.NDArray[Any], related: Sequence[Ids]) -> list[bytes]:
    """Return each annotation as the index by id holds it.

    Parameters
    ----------
    records
        ``(n,)``, see :func:`record_dtype`.
    related
        ``(n,)`` for each relationship: the id it relates to, 0 for none.
    """
    width = records.dtype.itemsize
    rows = np.zeros((len(records), width + 12 * len(related)), np.uint8)
    rows[:, :width] = np.ascontiguousarray(records).view(np.uint8).reshape(-1, width)
    kept = np.ones(rows.shape, np.bool_)
    for i, ids in enumerate(related):
        at = width + 12 * i
        rows[:, at : at + 4] = (ids != 0).astype("<u4").view(np.uint8).reshape(-1, 4)
        rows[:, at + 4 : at + 12] = np.asarray(ids).astype("<u8").view(np.uint8).reshape(-1, 8)
        kept[:, at + 4 : at + 12] = (ids != 0)[:, None]
    flat = rows[kept].tobytes()
    stops = np.cumsum(kept.sum(axis=1)).tolist()
    return [flat[low:high] for low, high in zip([0, *stops], stops, strict=False)]


def grouped(records: npt.NDArray[Any], ids: Ids, keys: Ids) -> Iterator[tuple[int, bytes]]:
    """Yield each key, rising, with the list of the annotations that have it, in the order of their :func:`rank`.

    Parameters
    ----------
    records, ids, keys
        ``(n,)`` each. Key 0 counts like any other.
    """
    order = np.lexsort((rank(ids), keys))
    found, first = np.unique(keys[order], return_index=True)
    stops = [*first[1:].tolist(), len(order)]
    for key, low, high in zip(found.tolist(), first.tolist(), stops, strict=True):
        mine = order[low:high]
        yield key, listed(records[mine], ids[mine])


def levels_of(
    ids: Ids,
    boxes: npt.NDArray[np.float64],
    *,
    lower: npt.NDArray[np.float64],
    upper: npt.NDArray[np.float64],
    limit: int,
) -> list[Level]:
    """Return the levels of the spatial index: each takes the largest even share that leaves no cell too full.

    Parameters
    ----------
    ids
        ``(n,)``, each once.
    boxes
        ``(n, 2, 3)``: the lowest and the highest point of each annotation; equal for points.
    lower, upper
        ``(3,)`` corners of what the index covers.
    limit
        At most so many annotations are in a cell. The last level takes what is left, however many: it is reached
        after :data:`MAX_LEVELS`, or where cells would be smaller than the largest annotation.
    """
    ranks = rank(ids)
    order = np.argsort(ranks)
    ranks, boxes = ranks[order], boxes[order]
    largest = float((boxes[:, 1] - boxes[:, 0]).max()) if len(ids) else 0.0
    grid: XYZ = (1, 1, 1)
    found: list[Level] = []
    start, n_done = 0, 0
    while not found or n_done < len(ids):
        finer = _halved(grid, upper - lower)
        is_last = len(found) == MAX_LEVELS - 1 or _smallest(finer, grid, upper - lower) < largest
        rows, cells = cells_of(boxes[n_done:], grid=grid, lower=lower, upper=upper)
        n_taken = len(ids) - n_done
        if not is_last:
            n_taken = _even_share(rows, cells, n_taken, limit=limit)
        taken = cells[rows < n_taken]
        most = int(np.unique(taken, return_counts=True)[1].max(initial=0))
        n_done += n_taken
        stop = (1 << 64) - 1 if n_done == len(ids) else int(ranks[n_done - 1])
        found.append(Level(grid, start, stop, len(taken), most))
        start, grid = stop + 1, finer
    return found


def cells_of(
    boxes: npt.NDArray[np.float64],
    *,
    grid: XYZ,
    lower: npt.NDArray[np.float64],
    upper: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int64], Ids]:
    """Return which cells the boxes touch, as pairs of row and cell; a cell is its compressed Morton code.

    Parameters
    ----------
    boxes
        ``(n, 2, 3)`` lowest and highest points.
    grid
        Cells along x, y, z.
    lower, upper
        ``(3,)`` corners of the grid.

    Returns
    -------
    ``(m,)`` rows, rising, and ``(m,)`` codes.
    """
    edges = (upper - lower) / grid
    at = np.floor((boxes - lower) / edges)
    at = np.clip(at, 0, np.asarray(grid) - 1).astype(np.int64)
    spans = at[:, 1] - at[:, 0] + 1
    n_cells = spans.prod(axis=1)
    rows = np.repeat(np.arange(len(boxes)), n_cells)
    # Count through the cells of each box, x fastest.
    number = np.arange(len(rows)) - np.repeat(np.cumsum(n_cells) - n_cells, n_cells)
    x, number = number % spans[rows, 0], number // spans[rows, 0]
    y, z = number % spans[rows, 1], number // spans[rows, 1]
    return rows, compressed_morton(at[rows, 0] + np.stack([x, y, z], axis=1), grid=grid)


def compressed_morton(places: npt.NDArray[np.int64], *, grid: XYZ) -> Ids:
    """Return the number of each cell: the bits of x, y, z in turn, without those that the grid does not need."""
    code = np.zeros(len(places), np.uint64)
    out = 0
    for bit in range(max(n - 1 for n in grid).bit_length()):
        for axis in range(3):
            if (grid[axis] - 1) >> bit:
                code |= (places[:, axis] >> bit & 1).astype(np.uint64) << np.uint64(out)
                out += 1
    return code


def _halved(grid: XYZ, size: npt.NDArray[np.float64]) -> XYZ:
    """Return the grid in which the longer edges of the cells are halved."""
    edges = size / grid
    x, y, z = (n * 2 if edge * 1.42 > edges.max() else n for n, edge in zip(grid, edges, strict=True))
    return (x, y, z)


def _smallest(finer: XYZ, grid: XYZ, size: npt.NDArray[np.float64]) -> float:
    """Return the shortest of the edges that were halved."""
    return min(float(edge) / n for n, before, edge in zip(finer, grid, size, strict=True) if n != before)


def ellipsoid_radii(
    axes: npt.NDArray[np.float64], direction: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return radii along x, y, z of an upright ellipsoid that stands for one which lies at a slant.

    Parameters
    ----------
    axes
        ``(n, 3)`` half axes, the longest first.
    direction
        ``(n, 3)`` unit vectors along the longest.

    Returns
    -------
    ``(n, 3)``: in proportion to how far it reaches along x, y and z if its two shorter axes were equal; of the same
    volume. Where the longest axis lies along x, y or z and the others are equal, nothing is changed.
    """
    longest, others = axes[:, :1] ** 2, (axes[:, 1:] ** 2).mean(axis=1, keepdims=True)
    reach = np.sqrt(others + (longest - others) * direction**2)
    same: npt.NDArray[np.float64] = reach * np.cbrt(axes.prod(axis=1) / reach.prod(axis=1))[:, None]
    return same


def _even_share(rows: npt.NDArray[np.int64], cells: Ids, n: int, *, limit: int) -> int:
    """Return how many annotations, first come first, can be taken before a cell would hold more than ``limit``."""
    order = np.argsort(cells, kind="stable")  # rows rise, so they rise in each cell
    ordered, by_cell = cells[order], rows[order]
    first = np.searchsorted(ordered, ordered)
    too_many = np.arange(len(ordered)) - first >= limit
    return int(by_cell[too_many].min()) if too_many.any() else n

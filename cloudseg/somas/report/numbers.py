"""What the report says, in numbers: gathered in one pass over the rows, about 40 bytes a soma in memory."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cloudseg.somas.renewal import TOMBSTONES
from cloudseg.somas.store import Catalog, iter_batches
from cloudseg.volumes.objects import Objects

if TYPE_CHECKING:
    import pyarrow as pa

FACES = ("-x", "+x", "-y", "+y", "-z", "+z")
"""Faces of the volume, in the order of the bits of ``edge_faces``."""

# Cells of the density map along the longest side of the volume: few somas want large ones.
_FEWEST, _MOST = 12, 80
_COLUMNS = (
    "soma_id",
    "x_nm",
    "y_nm",
    "z_nm",
    "n_voxels",
    "volume_um3",
    "radius_um",
    "sphericity",
    "score",
    "edge_faces",
    "segment_id",
    "region",
    "side",
    "nearest_um",
    "status",
)

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Quantity:
    """One measure of many somas.

    Attributes
    ----------
    name, title, axis, unit
        Of the column, in words, in one word, and of the values.
    values
        Finite numbers, in no order.
    n_left_out
        Somas that have a value which does not count here.
    note
        Which do count, and why the others do not.
    """

    name: str
    title: str
    axis: str
    unit: str
    values: Floats
    n_left_out: int
    note: str


@dataclass(frozen=True, slots=True)
class SegmentCounts:
    """How many somas each neuron segment has.

    Attributes
    ----------
    ids, n_somas
        Segments with at least one, sorted by id.
    first_somas
        Up to three soma ids of each.
    n_somas_outside
        Somas without a segment.
    n_segments
        All segments that there are; None where nobody has counted them.
    n_large, n_large_without
        Segments at least as large as the median soma, and those of them without one; None likewise.
    """

    ids: npt.NDArray[np.uint64]
    n_somas: npt.NDArray[np.int64]
    first_somas: list[list[int]]
    n_somas_outside: int
    n_segments: int | None = None
    n_large: int | None = None
    n_large_without: int | None = None


@dataclass(frozen=True, slots=True)
class DensityMap:
    """Somas in the cells of a grid over the volume.

    Attributes
    ----------
    cell_nm
        Edge of a cell, the same along all axes; cells at the far sides may reach beyond the volume.
    lower_nm
        Where the grid begins.
    counts
        ``(x, y, z)`` int64.
    """

    cell_nm: float
    lower_nm: tuple[float, float, float]
    counts: npt.NDArray[np.int64]

    def projected(self, axis: int) -> npt.NDArray[np.int64]:
        """Return the sums along an axis."""
        summed: npt.NDArray[np.int64] = self.counts.sum(axis=axis)
        return summed


@dataclass(slots=True)
class Numbers:
    """All that the page shows.

    Attributes
    ----------
    catalog
        The version.
    by_status
        All rows.
    by_place
        ``(region, side)`` of living somas; None where it is not known.
    n_living, n_measured, n_whole
        Somas that are no tombstones; of them those with a mask; of them those that touch no face of the volume.
    by_face
        Living somas at each of :data:`FACES`; a soma may be at several.
    quantities
        Volume, radius, and so on; those without values are left out.
    density
        None without living somas.
    segments
        None where no neurons were given.
    """

    catalog: Catalog
    by_status: Counter[str] = field(default_factory=Counter)
    by_place: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    n_living: int = 0
    n_measured: int = 0
    n_whole: int = 0
    by_face: list[int] = field(default_factory=lambda: [0] * len(FACES))
    quantities: list[Quantity] = field(default_factory=list)
    density: DensityMap | None = None
    segments: SegmentCounts | None = None

    @property
    def has_atlas(self) -> bool:
        """Whether any soma has a region or a side."""
        return any(place != (None, None) for place in self.by_place)


def gather(objects: Objects, catalog: Catalog, *, segments: Objects | None = None) -> Numbers:
    """Read a version once.

    Parameters
    ----------
    objects
        The catalogue's folder.
    catalog
        The version.
    segments
        Folder of the neuron segmentation, if it can be opened: its table of statistics says which segments there are.
    """
    numbers = Numbers(catalog)
    lower, upper = (np.asarray(corner) for corner in catalog.bounds_nm)
    cell = float((upper - lower).max()) / min(max(_FEWEST, math.isqrt(catalog.n_somas)), _MOST)
    shape = np.maximum(np.ceil((upper - lower) / cell - 1e-9), 1).astype(int)
    grid = np.zeros(int(np.prod(shape)), np.int64)
    kept: dict[str, list[npt.NDArray[Any]]] = {}
    for batch in iter_batches(objects, catalog, columns=list(_COLUMNS)):
        status = batch.column("status").cast("string").to_pylist()
        numbers.by_status.update(status)
        living = np.array([each not in TOMBSTONES for each in status], bool)
        rows = batch.filter(_mask(living))
        if not rows.num_rows:
            continue
        _count_places(numbers, rows)
        columns = _numeric(rows)
        points = np.stack([columns[f"{axis}_nm"] for axis in "xyz"], axis=1)
        place = np.clip(((points - lower) / cell).astype(int), 0, shape - 1)
        np.add.at(grid, np.ravel_multi_index(tuple(place.T), tuple(shape)), 1)
        measured = columns["n_voxels"] > 0
        faces = columns["edge_faces"].astype(np.uint8)
        numbers.n_living += len(points)
        numbers.n_measured += int(measured.sum())
        numbers.n_whole += int((measured & (faces == 0)).sum())
        for bit in range(len(FACES)):
            numbers.by_face[bit] += int((faces >> bit & 1).sum())
        to_border = np.minimum(points - lower, upper - points).min(axis=1) * 1e-3
        for name, values in _kept(rows, columns, measured, faces, to_border).items():
            kept.setdefault(name, []).append(values)
    every = {name: np.concatenate(parts) for name, parts in kept.items()}
    if numbers.n_living:
        numbers.density = DensityMap(cell, tuple(lower.tolist()), grid.reshape(tuple(shape)))
        numbers.quantities = _quantities(every)
    if catalog.made_from.get("segments"):
        numbers.segments = _segments(every, numbers, segments)
    return numbers


def _count_places(numbers: Numbers, rows: pa.RecordBatch) -> None:
    regions, sides = (rows.column(name).cast("string").to_pylist() for name in ("region", "side"))
    numbers.by_place.update(zip(regions, sides, strict=True))


def _numeric(rows: pa.RecordBatch) -> dict[str, npt.NDArray[Any]]:
    names = ("x_nm", "y_nm", "z_nm", "n_voxels", "edge_faces", "volume_um3", "radius_um")
    columns = {name: rows.column(name).to_numpy() for name in names}
    for name in ("sphericity", "score", "nearest_um"):
        columns[name] = rows.column(name).fill_null(float("nan")).to_numpy()
    return columns


def _kept(
    rows: pa.RecordBatch,
    columns: dict[str, npt.NDArray[Any]],
    measured: npt.NDArray[np.bool_],
    faces: npt.NDArray[np.uint8],
    to_border_um: npt.NDArray[np.float64],
) -> dict[str, npt.NDArray[Any]]:
    names = ("volume_um3", "radius_um", "sphericity", "score", "nearest_um")
    return {
        **{name: columns[name].astype(np.float32) for name in names},
        "whole": measured & (faces == 0),
        "measured": measured,
        # What lies behind the border is unknown: beyond that distance the nearest soma may be another one.
        "sure": columns["nearest_um"] <= to_border_um,
        "segment": rows.column("segment_id").fill_null(0).to_numpy(),
        "soma": rows.column("soma_id").to_numpy(),
    }


def _quantities(every: dict[str, npt.NDArray[Any]]) -> list[Quantity]:
    whole = "whole somas only: those cut by the border of the volume are larger than what is seen of them"
    chosen = [
        ("volume_um3", "Volume", "volume", "µm³", "whole", whole),
        ("radius_um", "Radius of the ball of that volume", "radius", "µm", "whole", whole),
        (
            "nearest_um",
            "Distance to the nearest other soma, centre to centre",
            "distance",
            "µm",
            "sure",
            "only somas that are nearer to another one than to the border of the volume, behind which others may be",
        ),
        ("sphericity", "Sphericity (1 is a ball)", "sphericity", "", "whole", whole),
        ("score", "Score: mean probability of the interior", "score", "", "measured", "somas with a mask"),
    ]
    found = []
    for name, title, axis, unit, mask, note in chosen:
        values = every[name]
        known = np.isfinite(values)
        counted = values[known & every[mask]]
        if known.any():
            found.append(Quantity(name, title, axis, unit, counted, int(known.sum()) - len(counted), note))
    return found


def _segments(every: dict[str, npt.NDArray[Any]], numbers: Numbers, objects: Objects | None) -> SegmentCounts:
    if not every:
        return SegmentCounts(np.empty(0, np.uint64), np.empty(0, np.int64), [], 0)
    inside = every["segment"] > 0
    order = np.lexsort((every["soma"][inside], every["segment"][inside]))
    ids, first, counts = np.unique(every["segment"][inside][order], return_index=True, return_counts=True)
    somas = every["soma"][inside][order]
    few = [somas[low : low + min(n, 3)].tolist() for low, n in zip(first, counts, strict=True)]
    known: dict[str, int] = {}
    volumes = next((q.values for q in numbers.quantities if q.name == "volume_um3"), np.empty(0))
    if objects is not None:
        known = _known_segments(objects, ids, float(np.median(volumes)) if len(volumes) else None)
    return SegmentCounts(ids, counts.astype(np.int64), few, int((~inside).sum()), **known)


def _known_segments(
    objects: Objects, with_soma: npt.NDArray[np.uint64], median_um3: float | None
) -> dict[str, int]:
    """Count what the stage ``statistics`` has written about the segments, part by part."""
    import pyarrow.parquet as pq

    keys = [key for key in objects.list("statistics/") if key.endswith(".parquet")]
    if not keys:
        return {}
    found = {"n_segments": 0, "n_large": 0, "n_large_without": 0}
    for key in keys:
        table = pq.read_table(io.BytesIO(objects.get(key)), columns=["id", "volume_um3"])
        ids, volumes = table["id"].to_numpy(), table["volume_um3"].to_numpy()
        found["n_segments"] += len(ids)
        if median_um3 is not None:
            large = ids[volumes >= median_um3]
            found["n_large"] += len(large)
            found["n_large_without"] += int((~np.isin(large, with_soma)).sum())
    return found if median_um3 is not None else {"n_segments": found["n_segments"]}


def _mask(values: npt.NDArray[np.bool_]) -> pa.Array:
    import pyarrow as pa

    return pa.array(values)

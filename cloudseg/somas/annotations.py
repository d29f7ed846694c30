"""Annotations of a catalogue's version, for Neuroglancer: every soma as a point, and as an ellipsoid.

::

    somas/v3/annotations/points/info          and by_id/, by_segment/, by_soma/, spatial0/, spatial1/, ...
    somas/v3/annotations/ellipsoids/info      the same
    somas/v3/annotations/ranges.json          smallest and largest value of each number

Rejected and merged somas are left out. Which level of the spatial index a soma is in follows from its id, and how
shards are cut from the table alone, so any number of parts writes the same bytes. The ``info`` comes last: what has
one is whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt

from cloudseg.errors import ConflictError, NotFoundError
from cloudseg.ops.annotations import (
    Level,
    cells_of,
    grouped,
    levels_of,
    rank,
    single,
)
from cloudseg.ops.shard_files import Sharding, build_shard, hashed_sharding
from cloudseg.somas.annotation_rows import (
    NUMBERS,
    RELATIONSHIPS,
    SHAPES,
    Ids,
    Rows,
    Shape,
    labels_of,
    property_types,
    read_rows,
    record_dtype_of,
)
from cloudseg.somas.schema import BY_NAME
from cloudseg.somas.store import Catalog
from cloudseg.specs import FrozenModel, canonical_json
from cloudseg.volumes.objects import Objects

LIMIT = 5_000
SHARD_BYTES = 32 << 20

# Corners on whole nm and edges in steps of this let cells be halved ten times and stay whole: readers round them.
_STEP_NM = 1024


class Ranks(FrozenModel):
    """Which somas are in a level: those whose rank lies between, the upper end included."""

    first: NonNegativeInt
    last: NonNegativeInt


class PlannedSet(FrozenModel):
    """One folder of annotations, worked out."""

    shape: Shape
    info: dict[str, Any]
    levels: tuple[Ranks, ...]


class AnnotationPlan(FrozenModel):
    """What the parts of the work share: everything that needs all somas at once.

    Attributes
    ----------
    version
        Of the catalogue.
    sets
        Points and ellipsoids.
    n_somas
        Those that are shown.
    ranges
        Smallest and largest value of each property of type float32 that is known of any soma.
    """

    version: int = Field(gt=0)
    n_somas: NonNegativeInt
    ranges: dict[str, tuple[float, float]]
    sets: tuple[PlannedSet, ...]


def annotations_key(version: int, shape: Shape) -> str:
    """Return the folder of a version's annotations, in that of the catalogue."""
    return f"v{version}/annotations/{shape}"


def write_annotations(objects: Objects, catalog: Catalog, *, limit: int = LIMIT) -> AnnotationPlan:
    """Write the annotations of a version, all in one.

    Parameters
    ----------
    objects
        The catalogue's folder.
    catalog
        The version.
    limit
        Most annotations in a cell of the spatial index.
    """
    plan = plan_annotations(objects, catalog, limit=limit)
    write_part(objects, catalog, plan)
    publish_annotations(objects, plan)
    return plan


def plan_annotations(
    objects: Objects, catalog: Catalog, *, limit: int = LIMIT, shard_bytes: int = SHARD_BYTES
) -> AnnotationPlan:
    """Work out levels and shards from all somas; about 200 bytes of each are in memory.

    Parameters
    ----------
    objects, catalog
        See :func:`write_annotations`.
    limit
        Most annotations in a cell.
    shard_bytes
        How large a shard may be, before compression.
    """
    found, ranges = [], dict[str, tuple[float, float]]()
    for rows in read_rows(objects, catalog):
        found.append((rows.ids, rows.segments, rows.anchors, rows.centres, rows.radii))
        _widen(ranges, rows.properties)
    empty = (np.zeros(0, np.uint64), np.zeros(0, np.uint64), *(np.zeros((0, 3)),) * 3)
    ids, segments, anchors, centres, radii = (
        np.concatenate(each) for each in zip(empty, *found, strict=True)
    )
    boxes = {
        "points": np.stack([anchors, anchors], axis=1),
        "ellipsoids": np.stack([centres - radii, centres + radii], axis=1),
    }
    sets = []
    for shape in SHAPES:
        lower, upper = _covering(catalog, boxes[shape])
        levels = levels_of(ids, boxes[shape], lower=lower, upper=upper, limit=limit)
        info = _info(catalog, shape, lower, upper)
        width = record_dtype_of(shape).itemsize
        for name, entry in zip(RELATIONSHIPS, info["relationships"], strict=True):
            n_keys = len(np.unique(segments[segments != 0])) if name == "segment" else len(ids)
            size = n_keys * 8 + len(ids) * (width + 8)
            entry["sharding"] = hashed_sharding(n_keys, size, target_bytes=shard_bytes).document
        size = len(ids) * (width + 12 * len(RELATIONSHIPS))
        info["by_id"]["sharding"] = hashed_sharding(len(ids), size, target_bytes=shard_bytes).document
        ranks = rank(ids)
        for number, level in enumerate(levels):
            mine = _in_level(ranks, level.from_rank, level.to_rank)
            _, cells = cells_of(boxes[shape][mine], grid=level.grid, lower=lower, upper=upper)
            sharding = _cell_sharding(cells, level, record_bytes=width + 8, target_bytes=shard_bytes)
            info["spatial"].append(
                {
                    "key": f"spatial{number}",
                    "grid_shape": list(level.grid),
                    "chunk_size": [int(s) // n for s, n in zip(upper - lower, level.grid, strict=True)],
                    "limit": max(1, level.most),
                    "sharding": sharding.document,
                }
            )
        between = tuple(Ranks(first=level.from_rank, last=level.to_rank) for level in levels)
        sets.append(PlannedSet(shape=shape, info=info, levels=between))
    return AnnotationPlan(version=catalog.version, n_somas=len(ids), ranges=ranges, sets=tuple(sets))


def write_part(
    objects: Objects, catalog: Catalog, plan: AnnotationPlan, *, part: int = 0, n_parts: int = 1
) -> int:
    """Write the shards of one part of the work: every ``n_parts``-th one. Its share of the table is in memory.

    Parameters
    ----------
    objects, catalog
        See :func:`write_annotations`.
    plan
        What :func:`plan_annotations` returned.
    part, n_parts
        Which part of how many.

    Returns
    -------
    The number of shards that were written; those that would be empty are left out.
    """
    mine = [index for number, index in enumerate(_indices(plan)) if number % n_parts == part]
    if not mine or not plan.n_somas:
        return 0
    kept = []
    for batch in read_rows(objects, catalog):
        wanted = np.zeros(len(batch.ids), np.bool_)
        for index in mine:
            wanted |= index.wanted(batch)
        kept.append(batch.take(wanted))
    rows = Rows.joined(kept)
    kept.clear()
    written = 0
    for index in mine:
        chosen = rows.take(index.wanted(rows))
        if not len(chosen.ids):
            continue
        keys, values = index.entries(chosen)
        folder = f"{annotations_key(plan.version, index.set.shape)}/{index.key}"
        data = build_shard(keys, values, index.sharding)
        objects.put(f"{folder}/{index.sharding.name(index.shard)}", data)
        written += 1
    return written


def publish_annotations(objects: Objects, plan: AnnotationPlan) -> None:
    """Put the ``info`` documents, after all parts: from then on viewers find the annotations.

    Raises
    ------
    ConflictError
        If other annotations of this version are there: a version never changes.
    """
    objects.put(_ranges_key(plan.version), canonical_json(plan.ranges).encode())
    for each in plan.sets:
        key = f"{annotations_key(plan.version, each.shape)}/info"
        data = json.dumps(each.info, separators=(",", ":"), sort_keys=True).encode()
        if not objects.put_if_absent(key, data) and objects.get(key) != data:
            raise ConflictError(
                f"{objects.uri}/{key} exists and says something else: versions never change; write the next version, "
                f"or delete {objects.uri}/v{plan.version}/annotations to have them made anew"
            )


def has_annotations(objects: Objects, version: int, shape: Shape = "points") -> bool:
    """Whether the annotations of a version are there, and whole."""
    try:
        return bool(objects.get(f"{annotations_key(version, shape)}/info"))
    except NotFoundError:
        return False


def read_ranges(objects: Objects, version: int) -> dict[str, tuple[float, float]]:
    """Return smallest and largest value of each number of a version's annotations.

    Raises
    ------
    NotFoundError
        If it has no annotations.
    """
    found: dict[str, list[float]] = json.loads(objects.get(_ranges_key(version)))
    return {name: (low, high) for name, (low, high) in found.items()}


def _ranges_key(version: int) -> str:
    return f"v{version}/annotations/ranges.json"


def _widen(ranges: dict[str, tuple[float, float]], properties: npt.NDArray[Any]) -> None:
    for name in NUMBERS:
        values = properties[name][np.isfinite(properties[name])]
        if len(values):
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = min(low, float(values.min())), max(high, float(values.max()))


@dataclass(frozen=True, slots=True)
class _Index:
    """One shard of one index of one set."""

    set: PlannedSet
    key: str
    sharding: Sharding
    shard: int
    level: int = -1

    def wanted(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return which somas have something in this shard."""
        if self.level >= 0:
            found = np.zeros(len(rows.ids), np.bool_)
            at, _ = self._cells(rows)
            found[at] = True
            return found
        keys = rows.keys(self.key)
        wanted: npt.NDArray[np.bool_] = (keys != 0) & (self.sharding.shards(keys) == self.shard)
        return wanted

    def entries(self, rows: Rows) -> tuple[Ids, list[bytes]]:
        """Return the keys of this shard and their values, of somas that are wanted in it."""
        if self.key == "by_id":
            related = [rows.keys(key) for key in RELATIONSHIPS.values()]
            return rows.ids, single(rows.records(self.set.shape), related)
        if self.level >= 0:
            at, keys = self._cells(rows)
            rows = rows.take(at)
        else:
            keys = rows.keys(self.key)
        found = list(grouped(rows.records(self.set.shape), rows.ids, keys))
        return np.array([key for key, _ in found], np.uint64), [value for _, value in found]

    def _cells(self, rows: Rows) -> tuple[npt.NDArray[np.int64], Ids]:
        """Return the somas of this level and their cells, of this shard."""
        info, ranks = self.set.info, self.set.levels[self.level]
        grid = tuple(info["spatial"][self.level]["grid_shape"])
        lower, upper = np.asarray(info["lower_bound"], float), np.asarray(info["upper_bound"], float)
        mine = np.flatnonzero(_in_level(rank(rows.ids), ranks.first, ranks.last))
        at, cells = cells_of(rows.boxes(self.set.shape)[mine], grid=grid, lower=lower, upper=upper)
        here = self.sharding.shards(cells) == self.shard
        return mine[at[here]], cells[here]


def _info(
    catalog: Catalog, shape: Shape, lower: npt.NDArray[np.float64], upper: npt.NDArray[np.float64]
) -> dict[str, Any]:
    properties: list[dict[str, Any]] = []
    labels = labels_of(catalog)
    for name, kind in property_types().items():
        column = BY_NAME[name]
        text = ", ".join(part for part in (column.description, column.unit) if part)
        entry: dict[str, Any] = {"id": name, "type": kind, "description": text}
        if name in labels:
            entry |= {"enum_values": list(range(len(labels[name]))), "enum_labels": list(labels[name])}
        properties.append(entry)
    return {
        "@type": "neuroglancer_annotations_v1",
        "dimensions": {axis: [1e-9, "m"] for axis in "xyz"},
        "lower_bound": [int(v) for v in lower],
        "upper_bound": [int(v) for v in upper],
        # In capitals: cloud-volume reads no other form, the viewer takes both.
        "annotation_type": "POINT" if shape == "points" else "ELLIPSOID",
        "properties": properties,
        "relationships": [{"id": name, "key": key} for name, key in RELATIONSHIPS.items()],
        "by_id": {"key": "by_id"},
        "spatial": [],
    }


def _covering(
    catalog: Catalog, boxes: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return corners, on whole steps, between which all annotations and the volume lie."""
    low, high = (np.asarray(corner, np.float64) for corner in catalog.bounds_nm)
    if len(boxes):
        low, high = np.minimum(low, boxes[:, 0].min(axis=0)), np.maximum(high, boxes[:, 1].max(axis=0))
    # One more on either side: what is stored is rounded to 32 bits.
    lower = np.floor(low) - 1
    steps = np.ceil((high + 1 - lower) / _STEP_NM)
    return lower, lower + np.maximum(1, steps) * _STEP_NM


def _in_level(ranks: Ids, first: int, last: int) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (ranks >= np.uint64(first)) & (ranks <= np.uint64(last))
    return found


def _cell_sharding(cells: Ids, level: Level, *, record_bytes: int, target_bytes: int) -> Sharding:
    """Return the sharding by place with the fewest shards of which none is too large, if cells are not."""
    bits = sum((n - 1).bit_length() for n in level.grid)
    ordered = np.sort(cells)
    for shard_bits in range(bits + 1):
        counts = np.unique(ordered >> np.uint64(bits - shard_bits), return_counts=True)[1]
        if int(counts.max(initial=0)) * record_bytes <= target_bytes:
            break
    in_shard = bits - shard_bits
    minishard_bits = max(0, in_shard - 9)
    return Sharding("identity", in_shard - minishard_bits, minishard_bits, shard_bits, compressed=True)


def _indices(plan: AnnotationPlan) -> Iterator[_Index]:
    """Yield every shard there can be, always in the same order."""
    for each in plan.sets:
        named = [each.info["by_id"], *each.info["relationships"]]
        for entry in named:
            sharding = _sharding(entry["sharding"])
            for shard in range(sharding.n_shards):
                yield _Index(each, entry["key"], sharding, shard)
        for level, entry in enumerate(each.info["spatial"]):
            sharding = _sharding(entry["sharding"])
            for shard in range(sharding.n_shards):
                yield _Index(each, entry["key"], sharding, shard, level)


def _sharding(document: Mapping[str, Any]) -> Sharding:
    return Sharding(
        document["hash"],
        document["preshift_bits"],
        document["minishard_bits"],
        document["shard_bits"],
        document["data_encoding"] == "gzip",
    )

"""Annotations of a catalogue's version, for Neuroglancer: every soma as a point, and as an ellipsoid.

::

    somas/v3/annotations/points/info          and by_id/, by_segment/, by_soma/, spatial0/, spatial1/, ...
    somas/v3/annotations/ellipsoids/info      the same

Rejected and merged somas are left out. Which level of the spatial index a soma is in follows from its id, and how
shards are cut from the table alone, so any number of parts writes the same bytes. The ``info`` comes last: what has
one is whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt

from cloudseg.errors import ConflictError, NotFoundError
from cloudseg.ops.annotations import (
    Level,
    cells_of,
    ellipsoid_radii,
    grouped,
    levels_of,
    rank,
    record_dtype,
    single,
)
from cloudseg.ops.shard_files import Sharding, build_shard, hashed_sharding
from cloudseg.somas.requests import TOMBSTONES
from cloudseg.somas.schema import BY_NAME
from cloudseg.somas.store import Catalog, iter_batches
from cloudseg.specs import FrozenModel
from cloudseg.volumes.objects import Objects

Shape = Literal["points", "ellipsoids"]
SHAPES: tuple[Shape, ...] = ("points", "ellipsoids")

RELATIONSHIPS = {"segment": "by_segment", "soma": "by_soma"}
"""What an annotation relates to, and the folder of the index: its neuron, and its own mask."""

NUMBERS = ("volume_um3", "radius_um", "sphericity", "score", "nearest_um", "segment_fraction")
"""Properties of type float32; NaN where nothing is known."""

SIDES = ("left", "right", "center")
KINDS = ("neuron", "glia", "other")
STATUSES = ("auto", "verified", "manual")

LIMIT = 5_000
SHARD_BYTES = 32 << 20

# Corners on whole nm and edges in steps of this let cells be halved ten times and stay whole: readers round them.
_STEP_NM = 1024
# A soma that was added by hand has no size; it still must be seen.
_UNKNOWN_RADIUS_NM = 500.0

_PLACES = [*(f"{p}{a}_nm" for p in ("anchor_", "") for a in "xyz")]
_AXES = ["axis_major_um", "axis_mid_um", "axis_minor_um"]
_DIRECTION = [f"axis_dir_{axis}" for axis in "xyz"]
_TEXTS = ("region", "side", "kind", "status")
_COLUMNS = [
    *("soma_id", "segment_id", *_PLACES, *_AXES, *_DIRECTION, *NUMBERS, "n_segments", "edge_faces", *_TEXTS)
]

Ids = npt.NDArray[np.uint64]


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
    """

    version: int = Field(gt=0)
    n_somas: NonNegativeInt
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
    found = [
        (rows.ids, rows.segments, rows.anchors, rows.centres, rows.radii) for rows in _rows(objects, catalog)
    ]
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
        width = _dtype(shape).itemsize
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
        ranges = tuple(Ranks(first=level.from_rank, last=level.to_rank) for level in levels)
        sets.append(PlannedSet(shape=shape, info=info, levels=ranges))
    return AnnotationPlan(version=catalog.version, n_somas=len(ids), sets=tuple(sets))


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
    for batch in _rows(objects, catalog):
        wanted = np.zeros(len(batch.ids), np.bool_)
        for index in mine:
            wanted |= index.wanted(batch)
        kept.append(batch.take(wanted))
    rows = _Rows.joined(kept)
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


@dataclass(frozen=True, slots=True)
class _Index:
    """One shard of one index of one set."""

    set: PlannedSet
    key: str
    sharding: Sharding
    shard: int
    level: int = -1

    def wanted(self, rows: _Rows) -> npt.NDArray[np.bool_]:
        """Return which somas have something in this shard."""
        if self.level >= 0:
            found = np.zeros(len(rows.ids), np.bool_)
            at, _ = self._cells(rows)
            found[at] = True
            return found
        keys = rows.keys(self.key)
        wanted: npt.NDArray[np.bool_] = (keys != 0) & (self.sharding.shards(keys) == self.shard)
        return wanted

    def entries(self, rows: _Rows) -> tuple[Ids, list[bytes]]:
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

    def _cells(self, rows: _Rows) -> tuple[npt.NDArray[np.int64], Ids]:
        """Return the somas of this level and their cells, of this shard."""
        info, ranks = self.set.info, self.set.levels[self.level]
        grid = tuple(info["spatial"][self.level]["grid_shape"])
        lower, upper = np.asarray(info["lower_bound"], float), np.asarray(info["upper_bound"], float)
        mine = np.flatnonzero(_in_level(rank(rows.ids), ranks.first, ranks.last))
        at, cells = cells_of(rows.boxes(self.set.shape)[mine], grid=grid, lower=lower, upper=upper)
        here = self.sharding.shards(cells) == self.shard
        return mine[at[here]], cells[here]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Somas that are shown; lengths in nm."""

    ids: Ids
    segments: Ids
    anchors: npt.NDArray[np.float64]
    centres: npt.NDArray[np.float64]
    radii: npt.NDArray[np.float64]
    properties: npt.NDArray[Any]

    def take(self, wanted: npt.NDArray[Any]) -> _Rows:
        """Return some of the somas."""
        return _Rows(*(getattr(self, name)[wanted] for name in self.__slots__))

    @classmethod
    def joined(cls, parts: list[_Rows]) -> _Rows:
        """Return all somas of several."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))

    def keys(self, index: str) -> Ids:
        """Return what each soma is listed under in an index by number; 0 for nothing."""
        return self.segments if index == RELATIONSHIPS["segment"] else self.ids

    def boxes(self, shape: Shape) -> npt.NDArray[np.float64]:
        """Return lowest and highest point of each annotation, as :func:`plan_annotations` takes them."""
        if shape == "points":
            return np.stack([self.anchors, self.anchors], axis=1)
        return np.stack([self.centres - self.radii, self.centres + self.radii], axis=1)

    def records(self, shape: Shape) -> npt.NDArray[Any]:
        """Return the records as they are stored."""
        found = np.zeros(len(self.ids), _dtype(shape))
        geometry = self.anchors if shape == "points" else np.concatenate([self.centres, self.radii], axis=1)
        found["geometry"] = geometry
        for name in self.properties.dtype.names or ():
            found[name] = self.properties[name]
        return found


def _rows(objects: Objects, catalog: Catalog) -> Iterator[_Rows]:
    """Yield the somas that are shown, a row group at a time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in iter_batches(objects, catalog, columns=_COLUMNS):
        table = pa.Table.from_batches([batch])
        dead = pc.is_in(table["status"].cast(pa.string()), value_set=pa.array(TOMBSTONES))
        table = table.filter(pc.invert(dead))
        values = {name: _floats(table, name) for name in (*_PLACES, *_AXES, *_DIRECTION, *NUMBERS)}
        properties = np.zeros(table.num_rows, list(_types().items()))
        for name in NUMBERS:
            properties[name] = values[name]
        for name in ("n_segments", "edge_faces"):
            properties[name] = table[name].fill_null(0).to_numpy()
        for name, labels in _labels(catalog).items():
            numbers = {label: number for number, label in enumerate(labels) if number}
            properties[name] = [numbers.get(text, 0) for text in table[name].to_pylist()]
        stacked = {
            name: np.stack([values[column] for column in columns], axis=1)
            for name, columns in (
                ("anchors", _PLACES[:3]),
                ("centres", _PLACES[3:]),
                ("axes", _AXES),
                ("direction", _DIRECTION),
            )
        }
        radii = ellipsoid_radii(stacked["axes"], stacked["direction"])
        ball = values["radius_um"][:, None]
        radii = np.where(np.isfinite(radii) & (radii > 0), radii, ball) * 1000
        yield _Rows(
            ids=table["soma_id"].to_numpy(),
            segments=table["segment_id"].fill_null(0).to_numpy(),
            anchors=stacked["anchors"],
            centres=stacked["centres"],
            radii=np.where(radii > 0, radii, _UNKNOWN_RADIUS_NM),
            properties=properties,
        )


def _floats(table: Any, name: str) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = table[name].fill_null(float("nan")).to_numpy().astype(np.float64)
    return found


def _labels(catalog: Catalog) -> Mapping[str, tuple[str, ...]]:
    """Return the words of each property that stands for one, by number; 0 is: not known, or none of them."""
    found = {"region": catalog.regions[:65535], "side": SIDES, "kind": KINDS, "status": STATUSES}
    return {name: ("unknown", *words) for name, words in found.items()}


def _types() -> dict[str, str]:
    two = {"n_segments": "uint16", "region": "uint16"}
    one = dict.fromkeys(("side", "kind", "status", "edge_faces"), "uint8")
    return dict.fromkeys(NUMBERS, "float32") | two | one


def _dtype(shape: Shape) -> np.dtype[Any]:
    return record_dtype(_types(), n_coordinates=3 if shape == "points" else 6)


def _info(
    catalog: Catalog, shape: Shape, lower: npt.NDArray[np.float64], upper: npt.NDArray[np.float64]
) -> dict[str, Any]:
    properties: list[dict[str, Any]] = []
    labels = _labels(catalog)
    for name, kind in _types().items():
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

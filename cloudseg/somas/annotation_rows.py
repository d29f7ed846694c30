"""The somas of a version as records of annotations: what is drawn of each, and which numbers and words go with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cloudseg.ops.annotations import ellipsoid_radii, record_dtype
from cloudseg.somas.requests import TOMBSTONES
from cloudseg.somas.store import Catalog, iter_batches
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


@dataclass(frozen=True, slots=True)
class Rows:
    """Somas that are shown; lengths in nm."""

    ids: Ids
    segments: Ids
    anchors: npt.NDArray[np.float64]
    centres: npt.NDArray[np.float64]
    radii: npt.NDArray[np.float64]
    properties: npt.NDArray[Any]

    def take(self, wanted: npt.NDArray[Any]) -> Rows:
        """Return some of the somas."""
        return Rows(*(getattr(self, name)[wanted] for name in self.__slots__))

    @classmethod
    def joined(cls, parts: list[Rows]) -> Rows:
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
        found = np.zeros(len(self.ids), record_dtype_of(shape))
        geometry = self.anchors if shape == "points" else np.concatenate([self.centres, self.radii], axis=1)
        found["geometry"] = geometry
        for name in self.properties.dtype.names or ():
            found[name] = self.properties[name]
        return found


def read_rows(objects: Objects, catalog: Catalog) -> Iterator[Rows]:
    """Yield the somas that are shown, a row group at a time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in iter_batches(objects, catalog, columns=_COLUMNS):
        table = pa.Table.from_batches([batch])
        dead = pc.is_in(table["status"].cast(pa.string()), value_set=pa.array(TOMBSTONES))
        table = table.filter(pc.invert(dead))
        values = {name: _floats(table, name) for name in (*_PLACES, *_AXES, *_DIRECTION, *NUMBERS)}
        properties = np.zeros(table.num_rows, list(property_types().items()))
        for name in NUMBERS:
            properties[name] = values[name]
        for name in ("n_segments", "edge_faces"):
            properties[name] = table[name].fill_null(0).to_numpy()
        for name, labels in labels_of(catalog).items():
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
        yield Rows(
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


def labels_of(catalog: Catalog) -> Mapping[str, tuple[str, ...]]:
    """Return the words of each property that stands for one, by number; 0 is: not known, or none of them."""
    found = {"region": catalog.regions[:65535], "side": SIDES, "kind": KINDS, "status": STATUSES}
    return {name: ("unknown", *words) for name, words in found.items()}


def property_types() -> dict[str, str]:
    """Return the type of each property, in the order in which they are stored."""
    two = {"n_segments": "uint16", "region": "uint16"}
    one = dict.fromkeys(("side", "kind", "status", "edge_faces"), "uint8")
    return dict.fromkeys(NUMBERS, "float32") | two | one


def record_dtype_of(shape: Shape) -> np.dtype[Any]:
    """Return the layout of a record."""
    return record_dtype(property_types(), n_coordinates=3 if shape == "points" else 6)

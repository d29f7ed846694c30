"""The soma record: its columns, their types, units and meaning, version 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from cloudseg.errors import QueryError

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
"""Rises when a column changes its meaning; new nullable columns do not raise it."""

Type = Literal["uint64", "uint32", "uint16", "uint8", "float64", "float32", "string"]
Kind = Literal["id", "integer", "number", "text"]


# JSON writes these as text: they use all 64 bits, and a number in JSON keeps 53.
_IDS = frozenset({"soma_id", "segment_id", "superseded_by", "morton"})


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the soma table.

    Attributes
    ----------
    name
        With its unit at the end where it has one.
    type
        As stored. ``string`` is stored as a dictionary.
    unit
        ``nm``, ``um``, ``um2``, ``um3``, or empty.
    required
        Whether every row has a value.
    description
        One sentence.
    """

    name: str
    type: Type
    unit: str
    required: bool
    description: str

    @property
    def kind(self) -> Kind:
        """How values are compared and written: an ``id`` is never a float."""
        if self.type == "string":
            return "text"
        if self.name in _IDS:
            return "id"
        return "number" if self.type.startswith("float") else "integer"


def _xyz(
    prefix: str, suffix: str, type_: Type, unit: str, description: str, *, required: bool
) -> list[Column]:
    return [
        Column(f"{prefix}{axis}{suffix}", type_, unit, required, f"{description}, {axis}") for axis in "xyz"
    ]


COLUMNS: tuple[Column, ...] = (
    Column("soma_id", "uint64", "", True, "label in the soma segmentation; the same in every version, never 0"),
    *_xyz("", "_nm", "float64", "nm", "centroid", required=True),
    *_xyz("anchor_", "_nm", "float64", "nm", "deepest voxel, always inside the soma", required=True),
    *_xyz("bbox_min_", "_nm", "float64", "nm", "lower corner of the bounding box", required=True),
    *_xyz("bbox_max_", "_nm", "float64", "nm", "upper corner of the half-open bounding box", required=True),
    Column("n_voxels", "uint64", "", True, "number of voxels, of the size that the catalogue names"),
    Column("volume_um3", "float64", "um3", True, "volume"),
    Column("radius_um", "float32", "um", True, "radius of the ball of this volume"),
    Column("surface_um2", "float32", "um2", False, "area of the surface, from the mesh"),
    Column("sphericity", "float32", "", False, "area of the ball of this volume over the surface; 1 for a ball"),
    Column("axis_major_um", "float32", "um", False, "longest half axis of the ellipsoid of the same moments"),
    Column("axis_mid_um", "float32", "um", False, "middle half axis of that ellipsoid"),
    Column("axis_minor_um", "float32", "um", False, "shortest half axis of that ellipsoid"),
    *_xyz("axis_dir_", "", "float32", "", "unit vector along the longest half axis", required=False),
    Column("score", "float32", "", False, "mean probability of the interior, 0 to 1"),
    Column("boundary_score", "float32", "", False, "mean probability of the boundary on the surface, 0 to 1"),
    Column(
        "edge_faces",
        "uint8",
        "",
        True,
        "faces of the volume that the soma touches and is cut by: bits 1, 2, 4, 8, 16, 32 for -x, +x, -y, +y, -z, +z",
    ),
    Column("n_blocks", "uint16", "", False, "number of blocks that hold a part of it"),
    Column("n_merges", "uint16", "", False, "number of joins over faces of blocks"),
    Column("segment_id", "uint64", "", False, "neuron segment that it overlaps most; null where there is none"),
    Column("segment_fraction", "float32", "", False, "part of its voxels in that segment, 0 to 1"),
    Column("n_segments", "uint16", "", False, "number of segments that it overlaps"),
    Column("region", "string", "", False, "region of the atlas in which the anchor lies"),
    Column("side", "string", "", False, "left, right or center"),
    Column("kind", "string", "", False, "neuron, glia or other"),
    Column("kind_score", "float32", "", False, "confidence of the kind, 0 to 1"),
    Column("nearest_um", "float32", "um", False, "distance to the nearest other centroid"),
    Column("density_per_mm3", "float32", "per mm3", False, "local density of somas"),
    Column("status", "string", "", True, "auto, verified, manual; or a tombstone's: rejected, merged"),
    Column("superseded_by", "uint64", "", False, "soma that takes its place, of a tombstone"),
    Column("morton", "uint64", "", True, "sort key: Morton code of the centroid in the bounds of the catalogue"),
)  # fmt: skip

NAMES: tuple[str, ...] = tuple(column.name for column in COLUMNS)
BY_NAME: dict[str, Column] = {column.name: column for column in COLUMNS}


def column(name: object, *, where: str) -> Column:
    """Return the column called ``name``.

    Parameters
    ----------
    name
        What somebody wrote.
    where
        In which part of the request; it opens the error message.

    Raises
    ------
    QueryError
        If there is none; close names are given.
    """
    if isinstance(name, str) and name in BY_NAME:
        return BY_NAME[name]
    raise QueryError(f"{where}: there is no column {shortened(name)}; {suggestion(str(name), NAMES)}")


def columns_named(names: Iterable[object] | None, *, where: str = "columns") -> list[str]:
    """Return ``names`` checked and in the order given; all columns for None."""
    if names is None:
        return list(NAMES)
    if isinstance(names, str):
        raise QueryError(
            f"{where}: expected a list of column names, got the text {names!r}; write [{names!r}]"
        )
    found = [column(name, where=where).name for name in names]
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise QueryError(f"{where}: {twice!r} is named twice; name each column once")
    return found


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return close names of ``known``, or all of them, as the end of an error message."""
    known = list(known)
    close = difflib.get_close_matches(name[:80].lower(), known, n=3, cutoff=0.6)
    close += [other for other in known if name and other.startswith(name.lower()) and other not in close][:3]
    return f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(known)}"


def shortened(value: object) -> str:
    """Return what somebody wrote, for an error message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, a list inside itself
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


@lru_cache(maxsize=1)
def arrow_schema() -> pa.Schema:
    """Return the schema of the Parquet files."""
    import pyarrow as pa

    def field(each: Column) -> pa.Field:
        type_ = (
            pa.dictionary(pa.int32(), pa.string()) if each.type == "string" else pa.type_for_alias(each.type)
        )
        notes = {"description": each.description, "unit": each.unit}
        return pa.field(each.name, type_, nullable=not each.required, metadata=notes)

    return pa.schema(
        [field(each) for each in COLUMNS], metadata={"cloudseg_somas_schema": str(SCHEMA_VERSION)}
    )


def plain_type(name: str) -> pa.DataType:
    """Return the Arrow type in which a column leaves a query: texts are no dictionaries."""
    import pyarrow as pa

    each = BY_NAME[name]
    return pa.string() if each.type == "string" else pa.type_for_alias(each.type)

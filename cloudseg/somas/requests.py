"""Questions to a soma catalogue, as they travel: typed, closed, checked before anything is read."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from cloudseg.errors import QueryError
from cloudseg.somas.filters import Condition, parse_where, where_schema
from cloudseg.somas.schema import column, columns_named
from cloudseg.somas.store import Catalog
from cloudseg.specs import FrozenModel, explain

Units = Literal["nm", "um", "voxel"]
Predicate = Literal["centroid", "intersects"]
Point = tuple[float, float, float]

MAX_PAGE_ROWS = 100_000
MAX_POINTS = 10_000
MAX_NEIGHBOURS = 10_000
MAX_BINS = 10_000
MAX_POSITION_NM = 1e12

TOMBSTONES = ("rejected", "merged")
"""Values of ``status`` of somas that are none any more."""


class Asked(FrozenModel):
    """Base of every question: unknown keys are refused."""

    version: int | None = Field(
        default=None, gt=0, description="A version of the catalogue; the latest if absent."
    )

    @classmethod
    def of(cls, data: object) -> Self:
        """Validate ``data``; a failure is a :class:`~cloudseg.errors.QueryError` that names each key."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise QueryError(explain(error)) from error


class Selection(Asked):
    """Which somas are meant."""

    where: dict[str, Any] = Field(
        default_factory=dict,
        json_schema_extra=where_schema(),
        description='Conditions by column: {"volume_um3": {">=": 50}, "side": "left", "soma_id": ["17"]}. '
        "Operators: == != < <= > >= in not_in is_null.",
    )
    bbox: tuple[Point, Point] | None = Field(
        default=None, description="Half-open box [lower, upper), x y z, in `units`."
    )
    predicate: Predicate = Field(
        default="centroid",
        description="Whether the centroid lies in the box, or the soma's own box overlaps it.",
    )
    units: Units = Field(
        default="nm", description="Unit of boxes, points and positions, going in and coming out."
    )
    tombstones: bool = Field(
        default=False,
        description="Whether rejected and merged somas count; they do if `where` asks for status.",
    )


class Query(Selection):
    """Rows."""

    columns: tuple[str, ...] | None = Field(default=None, description="Names of columns; all if absent.")
    order: str = Field(
        default="soma_id", description="A column; with '-' in front, descending. Ties go by soma_id."
    )
    limit: int | None = Field(default=None, ge=0, description="At most so many rows, over all pages.")
    page_rows: int | None = Field(
        default=None, gt=0, le=MAX_PAGE_ROWS, description=f"Rows in an answer, at most {MAX_PAGE_ROWS}."
    )
    cursor: str | None = Field(default=None, max_length=4000, description="`next` of the page before.")


class Count(Selection):
    """Numbers of somas, by groups."""

    by: tuple[str, ...] = Field(default=(), max_length=4, description="Columns to group by.")


class Aggregate(Selection):
    """Statistics of a column, by groups."""

    column: str
    by: tuple[str, ...] = Field(default=(), max_length=4, description="Columns to group by.")


class Histogram(Selection):
    """A histogram of a column."""

    column: str
    bins: int = Field(default=50, gt=0, le=MAX_BINS)
    range: tuple[float, float] | None = Field(default=None, description="Ends; those of the data if absent.")


class Nearest(Selection):
    """The nearest somas of points."""

    points: tuple[Point, ...] = Field(max_length=MAX_POINTS)
    k: int = Field(default=1, gt=0, le=MAX_NEIGHBOURS)
    max_distance_um: float | None = Field(default=None, ge=0)
    columns: tuple[str, ...] | None = None


class BySegment(Asked):
    """The somas of segments: each segment that was asked for appears."""

    segment_ids: list[Any] = Field(description="Ids, as text.")
    columns: tuple[str, ...] | None = None
    units: Units = "nm"
    tombstones: bool = False


class SegmentsWith(Selection):
    """Segments by how many somas they have."""

    n_somas: str | int = Field(default=">1", description="A number, or a comparison: '>1', '==0', '>=2'.")
    among: list[Any] | None = Field(
        default=None, description="Only these segments; needed to find those without a soma."
    )


def conditions(asked: Selection, *, from_json: bool) -> tuple[Condition, ...]:
    """Return the conditions of a selection, tombstones excluded unless they are meant."""
    found = parse_where(asked.where, from_json=from_json)
    if asked.tombstones or "status" in asked.where:
        return found
    return (*found, Condition(column("status", where="where"), "not_in", TOMBSTONES))


def box_nm(asked: Selection, catalog: Catalog) -> tuple[Point, Point] | None:
    """Return the box of a selection in nm.

    Raises
    ------
    QueryError
        If it is upside down.
    """
    if asked.bbox is None:
        return None
    lower, upper = (to_nm(corner, asked.units, catalog) for corner in asked.bbox)
    for axis, low, high in zip("xyz", *asked.bbox, strict=True):
        if low > high:
            raise QueryError(
                f"bbox: the box is upside down along {axis}: {low} is above {high} {asked.units}; "
                "write [lower, upper], each x, y, z"
            )
    return lower, upper


def to_nm(point: Point, units: Units, catalog: Catalog) -> Point:
    """Return a position in nm."""
    x, y, z = (value * scale for value, scale in zip(point, scales_nm(units, catalog), strict=True))
    if not all(math.isfinite(value) for value in (x, y, z)):
        raise QueryError(
            f"position {point} {units} is too far away for a float; give a position in the volume"
        )
    return x, y, z


def scales_nm(units: Units, catalog: Catalog) -> Point:
    """Return nm for one unit, along x, y, z."""
    if units == "voxel":
        return catalog.voxel_size_nm
    return (1.0, 1.0, 1.0) if units == "nm" else (1000.0, 1000.0, 1000.0)


def ordering(order: str) -> tuple[str, bool]:
    """Return the column that ``order`` names, and whether it descends."""
    name = order.removeprefix("-")
    return column(name, where="order").name, name != order


def wanted_columns(names: tuple[str, ...] | None) -> list[str]:
    """Return checked names of columns; all for None.

    Raises
    ------
    QueryError
        If there are none, or one is unknown or named twice.
    """
    found = columns_named(names)
    if not found:
        raise QueryError("columns: none is named; leave it out for all")
    return found


def group_columns(names: tuple[str, ...]) -> list[str]:
    """Return checked names to group by."""
    return columns_named(names, where="by")


def numeric_column(name: str) -> str:
    """Return the checked name of a column of numbers.

    Raises
    ------
    QueryError
        If it holds texts or ids.
    """
    each = column(name, where="column")
    if each.kind not in ("number", "integer"):
        raise QueryError(
            f"column: {name} holds {each.kind}s, of which there are no statistics; name one of numbers"
        )
    return each.name

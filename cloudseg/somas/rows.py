"""Rows of the soma table before they are stored: complete, typed, finite, with their sort key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.ops.morton import morton_codes
from cloudseg.somas.schema import COLUMNS, NAMES, Column, arrow_schema, suggestion

if TYPE_CHECKING:
    import pyarrow as pa

XYZ_NM = ("x_nm", "y_nm", "z_nm")


def checked(
    table: pa.Table, *, lower: tuple[float, float, float], upper: tuple[float, float, float]
) -> pa.Table:
    """Return ``table`` with exactly the columns of the schema, ``morton`` computed, nulls where columns lack.

    Raises
    ------
    SpecError
        If a column is unknown, missing or of another type; a required value is null; a number is NaN or infinite; an
        id is 0.
    """
    import pyarrow as pa

    for name in table.column_names:
        if name not in NAMES:
            raise SpecError(f"soma rows have the unknown column {name!r}; {suggestion(name, NAMES)}")
    missing = [
        each.name
        for each in COLUMNS
        if each.required and each.name != "morton" and each.name not in table.column_names
    ]
    if missing:
        raise SpecError(f"soma rows lack the columns {', '.join(missing)}; every soma has them")
    if "morton" in table.column_names:
        table = table.drop_columns(["morton"])
    points = np.stack([_typed(table, name) for name in XYZ_NM], axis=1)
    code = pa.array(morton_codes(points, lower=lower, upper=upper))
    fields = []
    for each in COLUMNS:
        type_ = arrow_schema().field(each.name).type
        if each.name == "morton":
            fields.append(pa.chunked_array([code]))
        elif each.name in table.column_names:
            fields.append(_column(table, each, type_))
        else:
            fields.append(pa.chunked_array([pa.nulls(table.num_rows, type_)]))
    return pa.Table.from_arrays(fields, schema=arrow_schema())


def sorted_rows(table: pa.Table) -> pa.Table:
    """Return the rows by (Morton code, soma id)."""
    order = np.lexsort((table["soma_id"].to_numpy(), table["morton"].to_numpy()))
    return table.take(order)


def _typed(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    values = _column(
        table, next(each for each in COLUMNS if each.name == name), arrow_schema().field(name).type
    )
    found: npt.NDArray[np.float64] = values.to_numpy()
    return found


def _column(table: pa.Table, each: Column, type_: pa.DataType) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    values = table[each.name]
    # A cast would round ids silently on their way through floats.
    if each.kind in ("id", "integer") and not (
        pa.types.is_integer(values.type) or pa.types.is_null(values.type)
    ):
        raise SpecError(
            f"column {each.name!r} must hold whole numbers of type {each.type}, got {values.type}"
        )
    try:
        values = values.cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SpecError(
            f"column {each.name!r} must be of type {each.type}, got {values.type}: {error}"
        ) from error
    if each.required and values.null_count:
        raise SpecError(f"column {each.name!r} must have a value in every row, {values.null_count} are null")
    if each.kind == "number" and not pc.all(pc.is_finite(values), min_count=0).as_py():
        raise SpecError(
            f"column {each.name!r} holds NaN or an infinite number; write null where nothing is known"
        )
    if each.name == "soma_id" and (values.to_numpy() == 0).any():
        raise SpecError("soma_id 0 is the background; give each soma an id above 0")
    return values

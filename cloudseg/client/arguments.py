"""What users write, made ready to be sent: lists of names, boxes, positions, conditions; and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def facts(table: pa.Table) -> dict[str, Any]:
    """Return what an answer says about itself."""
    from cloudseg.somas.tables import facts_of

    return facts_of(table)


def conditions(where: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return conditions checked, as JSON values: mistakes show here, and ids travel as text."""
    from cloudseg.somas.filters import parse_where, to_json

    return to_json(parse_where(where))


def names(names: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return names as a tuple; one name is a list of one."""
    if names is None:
        return None
    return (names,) if isinstance(names, str) else tuple(names)


def corners(box: Any) -> Any:
    """Return a box as lists of floats."""
    return [[float(value) for value in corner] for corner in box] if box is not None else None


def selecting(how: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that select; refuse others by name."""
    from cloudseg.errors import QueryError
    from cloudseg.somas.schema import suggestion

    known = ("bbox", "units", "predicate", "tombstones")
    for name in how:
        if name not in known:
            raise QueryError(f"there is no argument {name!r}; {suggestion(name, known)}")
    return {**how, "bbox": corners(how.get("bbox"))}


def present(**values: Any) -> dict[str, Any]:
    """Return the arguments that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def positions(points: Any) -> list[list[float]]:
    """Return positions as a list, a single one as a list of one."""
    import numpy as np

    from cloudseg.errors import QueryError

    try:
        array = np.asarray(points, np.float64)
    except (TypeError, ValueError) as error:
        raise QueryError(f"points: expected positions x, y, z, got something else: {error}") from error
    if array.shape == (3,):
        array = array[None]
    if array.size == 0:
        return []
    if array.ndim != 2 or array.shape[1] != 3:
        raise QueryError(f"points: expected one position x, y, z or a list of them, got shape {array.shape}")
    rows: list[list[float]] = array.tolist()
    return rows


def stacked(tables: list[tuple[int, pa.Table]], facts: dict[str, Any]) -> pd.DataFrame:
    """Return the answers for parts of the points as one table."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from cloudseg.client.frames import to_frame

    shifted = [
        table.set_column(0, "query_index", pc.add(table["query_index"], pa.scalar(start, pa.int64())))
        for start, table in tables
    ]
    return to_frame(pa.concat_tables([each.replace_schema_metadata(None) for each in shifted]), facts)

"""Answers as Arrow tables: what they say about themselves, their names by unit, their order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cloudseg.somas.schema import BY_NAME, plain_type

if TYPE_CHECKING:
    import pyarrow as pa

METADATA = b"cloudseg"
"""Key of an answer's facts, JSON, in the metadata of its Arrow schema."""

NEXT = b"next"
"""Key of a batch's metadata in a stream: the cursor of what follows the batch."""


def schema_of(names: Sequence[str], units: str) -> pa.Schema:
    """Return the schema in which columns leave a query."""
    import pyarrow as pa

    return pa.schema([(renamed(name, units), plain_type(name)) for name in names])


def with_facts(table: pa.Table, facts: Mapping[str, Any]) -> pa.Table:
    """Return an answer that says something about itself."""
    return table.replace_schema_metadata({METADATA: json.dumps(facts).encode()})


def facts_of(answer: pa.Table) -> dict[str, Any]:
    """Return what an answer says about itself: dataset, version, units, and more by kind."""
    found: dict[str, Any] = json.loads((answer.schema.metadata or {}).get(METADATA, b"{}"))
    return found


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Return all rows as one batch, also where there are none."""
    import pyarrow as pa

    batches = table.combine_chunks().to_batches()
    assert len(batches) <= 1
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def renamed(name: str, units: str) -> str:
    """Return the name of a column in an answer: lengths have their unit at the end."""
    if units == "nm" or name not in BY_NAME or not name.endswith("_nm"):
        return name
    return name.removesuffix("nm") + ("um" if units == "um" else "vx")


def replaced(table: pa.Table, name: str, values: Any, old: pa.ChunkedArray) -> pa.Table:
    """Return the table with other floats in a column, null where ``old`` is."""
    import pyarrow as pa

    mask = np.asarray(old.is_null()) if old.null_count else None
    new = pa.array(values, pa.float64(), mask=mask)
    return table.set_column(table.column_names.index(name), name, new)


def sorted_by(table: pa.Table, by: Sequence[str]) -> pa.Table:
    """Return the rows in the order of these columns, nulls last."""
    if not by:
        return table
    order = [(name, "ascending") for name in by]
    return table.sort_by(order)

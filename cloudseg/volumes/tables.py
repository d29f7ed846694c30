"""Columns of numbers as Parquet objects: region graphs, name tables, partial sums."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cloudseg.errors import CorruptDataError
from cloudseg.volumes.objects import Objects

Column = npt.NDArray[Any]


def put_table(objects: Objects, key: str, columns: Mapping[str, Column]) -> int:
    """Store ``columns`` (one-dimensional, all of one length) under ``key``; return the number of bytes.

    The same columns give the same bytes.
    """
    sink = io.BytesIO()
    table = pa.table({name: pa.array(np.ascontiguousarray(column)) for name, column in columns.items()})
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    objects.put(key, data)
    return len(data)


def get_table(objects: Objects, key: str, *, columns: Iterable[str] | None = None) -> dict[str, Column]:
    """Return the columns that :func:`put_table` stored: the named ones, or all.

    Raises
    ------
    NotFoundError
        If there is no such object.
    CorruptDataError
        If the object is no Parquet file.
    """
    data = objects.get(key)
    try:
        table = pq.read_table(io.BytesIO(data), columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise CorruptDataError(
            f"{objects.uri}/{key} ({len(data)} bytes) is not a readable Parquet file: {error}; "
            "delete it with the receipts of its stage and run the stage again"
        ) from error
    return {name: table[name].to_numpy() for name in table.column_names}

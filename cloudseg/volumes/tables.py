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
    table = pa.table({name: _array(column) for name, column in columns.items()})
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
        table = pq.ParquetFile(io.BytesIO(data)).read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise CorruptDataError(
            f"{objects.uri}/{key} ({len(data)} bytes) is not a readable Parquet file: {error}; "
            "delete it with the receipts of its stage and run the stage again"
        ) from error
    return {name: _numbers(table[name]) for name in table.column_names}


def _array(column: Column) -> pa.Array:
    """Return a column for Arrow.

    ``pa.array`` would import pandas, where it is installed, into every worker: half a second, and 40 MB for good. So
    would ``to_numpy`` below, and ``pq.read_table``.
    """
    if column.dtype.kind not in "biuf":  # words: Arrow lays them out itself
        return pa.array(np.ascontiguousarray(column))
    if column.dtype == np.bool_:
        data = np.packbits(column, bitorder="little")
    else:
        data = np.ascontiguousarray(column)
    return pa.Array.from_buffers(pa.from_numpy_dtype(column.dtype), len(column), [None, pa.py_buffer(data)])


def _numbers(column: pa.ChunkedArray) -> Column:
    """Return a column of Arrow as numpy has it."""
    if not (
        pa.types.is_boolean(column.type)
        or pa.types.is_integer(column.type)
        or pa.types.is_floating(column.type)
    ):
        words: Column = column.to_numpy()
        return words
    parts: list[Column] = []
    for chunk in column.chunks:
        if pa.types.is_boolean(chunk.type):
            bits = np.frombuffer(chunk.buffers()[1], np.uint8)
            parts.append(
                np.unpackbits(bits, bitorder="little")[chunk.offset :][: len(chunk)].astype(np.bool_)
            )
        else:
            parts.append(np.from_dlpack(chunk))
    if not parts:
        return np.empty(0, column.type.to_pandas_dtype())
    joined: Column = np.concatenate(parts)
    return joined

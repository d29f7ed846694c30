"""The soma table as bytes for a page: whole columns, one after the other, in the order in which rows are stored.

::

    uint32    length of the header, little-endian
    header    JSON, padded with spaces so that what follows begins at a multiple of 8
    columns   each at its ``offset`` from there, little-endian, padded to a multiple of 8

A null is NaN in a column of numbers and 0 in one of ids, which are never 0. Whole numbers that may be null come as
float32, or float64 where they have more than 16 bits. A text is the position of its word in ``words``, whose first
entry is null. Nothing is lost: ids stay 64 bits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import QueryError
from cloudseg.somas.schema import BY_NAME, COLUMNS, Column
from cloudseg.somas.store import Catalog, iter_batches
from cloudseg.volumes.objects import Objects

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "cloudseg-columns/1"
MAX_ROWS = 500_000
"""Above, a browser's table and its scroll bar come to their ends."""

# Sort keys and corners of boxes are not looked at; a filter that names one fetches it.
_LATER = ("morton", "superseded_by", "n_voxels")
_LATER_PREFIXES = ("bbox_", "anchor_", "axis_dir_")
NAMES: tuple[str, ...] = tuple(
    each.name for each in COLUMNS if each.name not in _LATER and not each.name.startswith(_LATER_PREFIXES)
)
"""Columns that a page gets unless it names others."""


def read_table(objects: Objects, catalog: Catalog, names: Sequence[str]) -> pa.Table:
    """Return columns of a version, in stored order.

    Raises
    ------
    QueryError
        If the version has more rows than a page holds.
    """
    import pyarrow as pa

    if catalog.n_somas > MAX_ROWS:
        raise QueryError(
            f"version {catalog.version} of {catalog.dataset!r} has {catalog.n_somas} somas, and the page holds up to "
            f"{MAX_ROWS}; ask from Python instead: Somas(...).query(...)"
        )
    batches = list(iter_batches(objects, catalog, columns=list(names)))
    if not batches:
        from cloudseg.somas.schema import arrow_schema

        return pa.table({name: pa.array([], arrow_schema().field(name).type) for name in names})
    return pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches]).unify_dictionaries()


def to_bytes(table: pa.Table, catalog: Catalog) -> bytes:
    """Return a table as a page reads it; columns without any value are left out, named in ``empty``."""
    entries: list[dict[str, Any]] = []
    arrays: list[bytes] = []
    empty = []
    offset = 0
    for name in table.column_names:
        each = BY_NAME[name]
        if table.num_rows and table[name].null_count == table.num_rows:
            empty.append(name)
            continue
        values, words = _plain(table[name], each)
        data = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        data += b"\0" * (-len(data) % 8)
        entry = {"name": name, "type": values.dtype.name, "kind": each.kind, "unit": each.unit}
        entry |= {"description": each.description, "offset": offset}
        entries.append(entry if words is None else {**entry, "words": words})
        arrays.append(data)
        offset += len(data)
    header = {"format": FORMAT, "dataset": catalog.dataset, "version": catalog.version, "n": table.num_rows}
    text = json.dumps({**header, "columns": entries, "empty": empty}, separators=(",", ":")).encode()
    text += b" " * (-(4 + len(text)) % 8)
    return b"".join([len(text).to_bytes(4, "little"), text, *arrays])


def _plain(values: pa.ChunkedArray, each: Column) -> tuple[npt.NDArray[Any], list[str | None] | None]:
    """Return a column as numbers, and the words they stand for."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if each.kind == "text":
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        whole = pa.chunked_array(encoded.chunks, encoded.type).combine_chunks()
        if isinstance(whole, pa.ChunkedArray):  # as older versions answer for a single type
            whole = whole.unify_dictionaries().chunk(0) if whole.num_chunks else pa.array([], encoded.type)
        words = whole.dictionary.to_pylist()
        codes = pc.fill_null(whole.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
        kind = np.uint8 if len(words) < 256 else np.uint16 if len(words) < 65536 else np.uint32
        return codes.astype(kind), [None, *words]
    if each.kind == "id":
        return pc.fill_null(values, 0).to_numpy().astype(np.uint64), None
    if each.kind == "number":
        kind_of = np.float32 if each.type == "float32" else np.float64
        return values.to_numpy(zero_copy_only=False).astype(kind_of), None
    if each.required and each.type != "uint64":
        return values.to_numpy().astype(each.type), None
    wide = np.float64 if each.type in ("uint32", "uint64") else np.float32
    return values.to_numpy(zero_copy_only=False).astype(wide), None

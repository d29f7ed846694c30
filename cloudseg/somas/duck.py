"""DuckDB over the Parquet parts of a version: no server, no copy of the table but a cache of what lies in a bucket."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudseg.errors import ServerError, StorageError
from cloudseg.somas.filters import Value
from cloudseg.somas.schema import BY_NAME, Column, plain_type
from cloudseg.somas.sql import Bind, Box, Statement
from cloudseg.somas.store import Catalog, Part, part_bytes
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.objects import Objects

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

RESIDENT_ROWS = 1_000_000
"""Up to here the table is held in memory (250 bytes a row); above, parts are scanned where they lie."""

_MEMORY_LIMIT = "1GB"
_BATCH_ROWS = 16_384
_TYPES = {"string": "VARCHAR", "float32": "DOUBLE", "float64": "DOUBLE", "uint64": "UBIGINT"}


class DuckDialect:
    """DuckDB's SQL: unsigned integers as they are, zone maps instead of indices."""

    def type_of(self, column: Column) -> str:
        """Return the type in which a value of the column is compared."""
        return _TYPES.get(column.type, "BIGINT")

    def value(self, column: Column, value: Value) -> Value:  # noqa: ARG002  (the protocol's)
        """Return a value as the column stores it."""
        return value

    def centroid_in(self, bind: Bind, box: Box) -> str:  # noqa: ARG002  (the protocol's)
        """Return nothing: row groups are skipped by the plain comparisons."""
        return ""


class DuckEngine:
    """One version of a catalogue, asked by DuckDB.

    Parameters
    ----------
    objects
        The catalogue's folder.
    catalog
        The version.
    resident_rows
        Up to how many rows the table is held in memory.
    threads
        For a question; None lets each core work.
    """

    def __init__(
        self,
        objects: Objects,
        catalog: Catalog,
        *,
        resident_rows: int = RESIDENT_ROWS,
        threads: int | None = None,
    ) -> None:
        self._objects = objects
        self._catalog = catalog
        self._resident = catalog.n_somas <= resident_rows
        self._threads = threads
        self._opening = threading.Lock()
        self._opened: duckdb.DuckDBPyConnection | None = None
        self._paths: dict[str, Path] = {}

    @property
    def catalog(self) -> Catalog:
        """What the version is."""
        return self._catalog

    @property
    def dialect(self) -> DuckDialect:
        """Its kind of SQL."""
        return DuckDialect()

    @property
    def resident(self) -> bool:
        """Whether the whole table is in memory."""
        return self._resident

    @property
    def streams(self) -> bool:
        """Always."""
        return True

    def source(self, box: Box | None) -> str:
        """Return what to write after FROM: the table, or the parts that the box can touch."""
        if self._resident:
            return "somas"
        parts = [part for part in self._catalog.parts if box is None or _touches(part, box)]
        return self._scan(parts or self._catalog.parts[:1])

    def batches(self, statement: Statement) -> Iterator[pa.RecordBatch]:
        """Carry a statement out."""
        import duckdb

        cursor = self._connection.cursor()
        try:
            relation = cursor.sql(statement.text, params=statement.parameters)
            for batch in relation.to_arrow_reader(_BATCH_ROWS):
                yield _plain(batch)
        except duckdb.OutOfMemoryException as error:
            raise StorageError(
                f"the question needs more than {_MEMORY_LIMIT} of memory; ask for fewer columns, or less: {error}"
            ) from error
        except duckdb.Error as error:
            raise ServerError(f"the question could not be carried out: {error}") from error
        finally:
            cursor.close()

    def close(self) -> None:
        """Let go of memory."""
        with self._opening:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    @property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        with self._opening:
            if self._opened is None:
                self._opened = self._connect()
            return self._opened

    def _connect(self) -> duckdb.DuckDBPyConnection:
        import duckdb

        settings: dict[str, Any] = {
            "memory_limit": _MEMORY_LIMIT,
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "temp_directory": tempfile.gettempdir(),
        }
        if self._threads:
            settings["threads"] = str(self._threads)
        connection = duckdb.connect(":memory:", config=settings)
        connection.execute("SET parquet_metadata_cache = true")
        if self._resident:
            columns = ", ".join(f'CAST("{name}" AS VARCHAR) AS "{name}"' if each.kind == "text" else f'"{name}"'
                                for name, each in BY_NAME.items())  # fmt: skip
            if self._catalog.parts:
                # As stored, in Morton order: zone maps skip most of the table for a box.
                connection.execute(
                    f"CREATE TABLE somas AS SELECT {columns} FROM {self._scan(self._catalog.parts)}"
                )
            else:
                empty = ", ".join(f'"{name}" {_stored(each)}' for name, each in BY_NAME.items())
                connection.execute(f"CREATE TABLE somas ({empty})")
        return connection

    def _scan(self, parts: tuple[Part, ...] | list[Part]) -> str:
        names = ", ".join("'" + str(self._path(part)).replace("'", "''") + "'" for part in parts)
        return f"read_parquet([{names}])"

    def _path(self, part: Part) -> Path:
        """Return a local file with the part's bytes: its own, or one in the cache."""
        if part.key not in self._paths:
            self._paths[part.key] = _local_file(self._objects, part)
        return self._paths[part.key]


def _local_file(objects: Objects, part: Part) -> Path:
    address = Address.parse(objects.uri)
    if address.scheme == "file":
        path = Path(address.path) / part.key
        # Not hashed: a large part would take a second each time. A file of another length is surely another.
        if path.is_file() and path.stat().st_size == part.n_bytes and not re.search(r"[*?\[\]{}]", str(path)):
            return path
    path = cache_folder() / f"{part.sha256}.parquet"
    if not path.is_file():
        data = part_bytes(objects, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)  # noqa: PTH105  (both are names that mkstemp gave)
        except BaseException:
            with suppress(OSError):
                Path(temporary).unlink()
            raise
    return path


def cache_folder() -> Path:
    """Return where parts of buckets are kept: ``$CLOUDSEG_CACHE``, or the user's cache folder.

    A file there is named by the hash of its bytes and never goes out of date; the folder may be emptied at any time.
    """
    named = os.environ.get("CLOUDSEG_CACHE")
    if named:
        return Path(named) / "somas"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "cloudseg" / "somas"


def _touches(part: Part, box: Box) -> bool:
    sides = zip(part.lower_nm, part.upper_nm, *box, strict=True)
    return all(part_low < high and part_high >= low for part_low, part_high, low, high in sides)


@lru_cache(maxsize=1)
def _duck_types() -> dict[str, str]:
    return {"uint64": "UBIGINT", "uint32": "UINTEGER", "uint16": "USMALLINT", "uint8": "UTINYINT"} | {
        "float64": "DOUBLE",
        "float32": "FLOAT",
        "string": "VARCHAR",
    }


def _stored(column: Column) -> str:
    return _duck_types()[column.type]


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return texts as plain strings, whatever way they took."""
    import pyarrow as pa

    fields = []
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        wanted = plain_type(name) if name in BY_NAME else values.type
        fields.append(values if values.type == wanted else values.cast(wanted))
    return pa.RecordBatch.from_arrays(fields, names=batch.schema.names)

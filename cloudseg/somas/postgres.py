"""PostgreSQL as the database behind a server of many users: a cache of the bucket, which can be made anew at any time.

One table for each version, ``cloudseg.somas_<n>``, and ``cloudseg.catalogues``, which says what each holds. Needs the
extension ``cube``, which comes with PostgreSQL and which the owner of a database may create.

PostgreSQL has no unsigned integers: ids are stored less 2^63, which keeps their order. ``cloudseg.readable_<n>`` is a
view with the ids as everybody else writes them.
"""

from __future__ import annotations

import queue
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from cloudseg.errors import AuthError, NotFoundError, ServerError, TransientStorageError
from cloudseg.somas.filters import Value
from cloudseg.somas.schema import BY_NAME, COLUMNS, Column, plain_type
from cloudseg.somas.sql import Bind, Box, Statement
from cloudseg.somas.store import Catalog, iter_batches
from cloudseg.volumes.objects import Objects

if TYPE_CHECKING:
    import pyarrow as pa

_HALF = 1 << 63
_STORED = {
    "uint64": "bigint",
    "uint32": "bigint",
    "uint16": "integer",
    "uint8": "smallint",
    "float64": "double precision",
    "float32": "real",
    "string": "text",
}
_INDEXED = ("segment_id", "volume_um3", "region")
_CONNECTIONS = 16
# Two that load at once wait for one another: any number will do, as long as both take the same.
_LOCK = 0x636C6F7564736567


class PostgresDialect:
    """PostgreSQL's SQL: signed integers, and an index over space."""

    def type_of(self, column: Column) -> str:
        """Return the type in which a value of the column is compared."""
        if column.type == "string":
            return "text"
        return "double precision" if column.type.startswith("float") else "bigint"

    def value(self, column: Column, value: Value) -> Value:
        """Return a value as the column stores it."""
        return int(value) - _HALF if column.type == "uint64" else value

    def centroid_in(self, bind: Bind, box: Box) -> str:
        """Return the condition that the index over space answers."""
        lower, upper = (bind(list(corner), "double precision[]") for corner in box)
        return f"{_PLACE} <@ cube({lower}, {upper})"


_PLACE = 'cube(ARRAY["x_nm", "y_nm", "z_nm"])'


class Pool:
    """Connections to one database, each used by one thread at a time.

    Parameters
    ----------
    url
        ``postgresql://user@host:port/database``.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()
        # Connections that nobody closed complain; a pool that nobody holds any more closes its own.
        weakref.finalize(self, _close_all, self._idle)

    @property
    def address(self) -> str:
        """Where it is, without user and password."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """Lend a connection; after a failure it is not lent again.

        Raises
        ------
        TransientStorageError
            If the database cannot be reached.
        """
        try:
            found = self._idle.get_nowait()
        except queue.Empty:
            found = self._connect()
        try:
            yield found
        except BaseException:
            found.close()
            raise
        if self._idle.qsize() < _CONNECTIONS:
            self._idle.put(found)
        else:
            found.close()

    def close(self) -> None:
        """Close what is idle."""
        _close_all(self._idle)

    def _connect(self) -> Any:
        from adbc_driver_manager import Error
        from adbc_driver_postgresql import dbapi

        try:
            return dbapi.connect(self._url, autocommit=True)
        except Error as error:
            text = " ".join(str(error).split())[:300]
            if "authentication failed" in text or "no password" in text:
                raise AuthError(f"the database {self.address} refuses this user: {text}") from error
            raise TransientStorageError(
                f"cannot reach the database {self.address}: {text}; check that it runs and that the address is right"
            ) from error


def _close_all(idle: queue.LifoQueue[Any]) -> None:
    while not idle.empty():
        idle.get_nowait().close()


class PostgresEngine:
    """One version of a catalogue, asked by PostgreSQL.

    Parameters
    ----------
    pool
        The database.
    catalog
        The version, as the bucket describes it.

    Raises
    ------
    NotFoundError
        If the version was not loaded, or differs from the one in the bucket.
    """

    def __init__(self, pool: Pool, catalog: Catalog) -> None:
        self._pool = pool
        self._catalog = catalog
        number = _loaded(pool, catalog)
        if number is None:
            raise NotFoundError(
                f"version {catalog.version} of {catalog.dataset!r} is not in the database {pool.address}; load it "
                "with: cloudseg somas load CATALOGUE DATABASE"
            )
        self._source = f"cloudseg.somas_{number}"

    @property
    def catalog(self) -> Catalog:
        """What the version is."""
        return self._catalog

    @property
    def dialect(self) -> PostgresDialect:
        """Its kind of SQL."""
        return PostgresDialect()

    @property
    def resident(self) -> bool:
        """Never: reading all rows is not cheap."""
        return False

    @property
    def streams(self) -> bool:
        """Never: the driver holds an answer in memory before its first row."""
        return False

    def source(self, box: Box | None) -> str:  # noqa: ARG002  (the index knows)
        """Return what to write after FROM."""
        return self._source

    def batches(self, statement: Statement) -> Iterator[pa.RecordBatch]:
        """Carry a statement out. The answer is in memory before its first row."""
        from adbc_driver_manager import Error

        with self._pool.connection() as connection:
            try:
                with connection.cursor() as cursor:
                    cursor.execute(statement.text, statement.parameters or None)
                    for batch in cursor.fetch_record_batch():
                        yield _from_stored(batch)
            except Error as error:
                raise ServerError(f"the database could not carry the question out: {error}") from error

    def close(self) -> None:
        """Do nothing: the pool is for all versions."""


def engines(url: str) -> Callable[[Objects, Catalog], PostgresEngine]:
    """Return what opens versions in the database at ``url``."""
    pool = Pool(url)
    return lambda objects, catalog: PostgresEngine(pool, catalog)  # noqa: ARG005  (the rows are in the database)


def load(url: str, objects: Objects, catalog: Catalog) -> bool:
    """Copy a version into a database, in one transaction; return whether there was anything to do.

    Parameters
    ----------
    url
        ``postgresql://user@host:port/database``.
    objects, catalog
        The catalogue's folder, and the version.
    """
    from adbc_driver_manager import Error

    pool = Pool(url)
    try:
        with pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            cursor.execute("CREATE SCHEMA IF NOT EXISTS cloudseg")
            cursor.execute("CREATE EXTENSION IF NOT EXISTS cube")
            cursor.execute(
                "CREATE TABLE IF NOT EXISTS cloudseg.catalogues (number serial PRIMARY KEY, dataset text NOT NULL, "
                "version bigint NOT NULL, catalog text NOT NULL, UNIQUE (dataset, version))"
            )
            known = _known(cursor, catalog.dataset, catalog.version)
            if known is not None and known[1] == catalog.canonical_json():
                cursor.execute("COMMIT")
                return False
            if known is not None:  # of another bucket, or written anew under the same name
                _drop(cursor, known[0])
            number = _fill(connection, cursor, objects, catalog)
            cursor.execute("COMMIT")
            cursor.execute(f"ANALYZE cloudseg.somas_{number}")
        return True
    except Error as error:
        raise ServerError(f"the database {pool.address} refused: {error}") from error
    finally:
        pool.close()


def unload(url: str, dataset: str, version: int) -> bool:
    """Remove a version from a database; return whether it was there."""
    pool = Pool(url)
    try:
        with pool.connection() as connection, connection.cursor() as cursor:
            known = _known(cursor, dataset, version)
            if known is not None:
                _drop(cursor, known[0])
        return known is not None
    finally:
        pool.close()


def _fill(connection: Any, cursor: Any, objects: Objects, catalog: Catalog) -> int:
    row = _row(
        cursor,
        "INSERT INTO cloudseg.catalogues (dataset, version, catalog) VALUES ($1::text, $2::bigint, $3::text) "
        "RETURNING number",
        [catalog.dataset, catalog.version, catalog.canonical_json()],
    )
    assert row is not None
    number = int(row[0])
    table = f"somas_{number}"
    columns = ", ".join(
        f'"{each.name}" {_STORED[each.type]}{" NOT NULL" if each.required else ""}' for each in COLUMNS
    )
    cursor.execute(f"CREATE TABLE cloudseg.{table} ({columns})")
    for batch in iter_batches(objects, catalog):
        with connection.cursor() as copying:
            copying.adbc_ingest(table, _to_stored(batch), mode="append", db_schema_name="cloudseg")
    cursor.execute(f'ALTER TABLE cloudseg.{table} ADD PRIMARY KEY ("soma_id")')
    cursor.execute(f"CREATE INDEX ON cloudseg.{table} USING gist ({_PLACE})")
    for name in _INDEXED:
        cursor.execute(f'CREATE INDEX ON cloudseg.{table} ("{name}")')
    shown = ", ".join(
        f'"{each.name}"::numeric + {_HALF} AS "{each.name}"' if each.type == "uint64" else f'"{each.name}"'
        for each in COLUMNS
    )
    cursor.execute(f"CREATE VIEW cloudseg.readable_{number} AS SELECT {shown} FROM cloudseg.{table}")
    return number


def _drop(cursor: Any, number: int) -> None:
    cursor.execute(f"DROP VIEW IF EXISTS cloudseg.readable_{int(number)}")
    cursor.execute(f"DROP TABLE IF EXISTS cloudseg.somas_{int(number)}")
    cursor.execute(f"DELETE FROM cloudseg.catalogues WHERE number = {int(number)}")


def _loaded(pool: Pool, catalog: Catalog) -> int | None:
    with pool.connection() as connection, connection.cursor() as cursor:
        known = _known(cursor, catalog.dataset, catalog.version)
    return int(known[0]) if known is not None and known[1] == catalog.canonical_json() else None


def _known(cursor: Any, dataset: str, version: int) -> tuple[Any, ...] | None:
    """Return number and description of a version; None also where nothing was ever loaded."""
    found = _row(cursor, "SELECT to_regclass($1::text)::text", ["cloudseg.catalogues"])
    if found is None or found[0] is None:
        return None
    return _row(
        cursor,
        "SELECT number, catalog FROM cloudseg.catalogues WHERE dataset = $1::text AND version = $2::bigint",
        [dataset, version],
    )


def _row(cursor: Any, text: str, parameters: list[Any]) -> tuple[Any, ...] | None:
    cursor.execute(text, parameters)
    found: tuple[Any, ...] | None = cursor.fetchone()
    return found


def _to_stored(batch: pa.RecordBatch) -> pa.RecordBatch:
    import pyarrow as pa

    types = {
        "uint32": pa.int64(),
        "uint16": pa.int32(),
        "uint8": pa.int16(),
        "string": pa.string(),
    }
    fields = []
    for each in COLUMNS:
        values = batch.column(each.name)
        if each.type == "uint64":
            fields.append(_flipped(values, pa.int64()))
        else:
            fields.append(values.cast(types.get(each.type, values.type)))
    return pa.RecordBatch.from_arrays(fields, names=[each.name for each in COLUMNS])


def _from_stored(batch: pa.RecordBatch) -> pa.RecordBatch:
    import pyarrow as pa

    fields = []
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        each = BY_NAME.get(name)
        if each is None:
            fields.append(values)
        elif each.type == "uint64":
            fields.append(_flipped(values, pa.uint64()))
        else:
            fields.append(values.cast(plain_type(name)))
    return pa.RecordBatch.from_arrays(fields, names=batch.schema.names)


def _flipped(values: pa.Array, type_: pa.DataType) -> pa.Array:
    """Move between 0 .. 2^64 - 1 and -2^63 .. 2^63 - 1: both ways it is the top bit."""
    import pyarrow as pa

    plain = values.fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64) ^ np.uint64(_HALF)
    mask = np.asarray(values.is_null().to_numpy(zero_copy_only=False), bool)
    return pa.array(plain.view(np.uint64 if pa.types.is_uint64(type_) else np.int64), type_, mask=mask)

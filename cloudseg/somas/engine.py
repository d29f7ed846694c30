"""What answers SQL about one version of a catalogue: the seam between questions and databases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from cloudseg.somas.sql import Box, Dialect, Statement
from cloudseg.somas.store import Catalog

if TYPE_CHECKING:
    import pyarrow as pa


class Engine(Protocol):
    """A database that holds one version of a catalogue. Safe to use from several threads."""

    @property
    def catalog(self) -> Catalog:
        """What the version is."""
        ...

    @property
    def dialect(self) -> Dialect:
        """Its kind of SQL."""
        ...

    @property
    def resident(self) -> bool:
        """Whether the whole table is in memory, so that reading a few columns of all rows is cheap."""
        ...

    @property
    def streams(self) -> bool:
        """Whether the rows of an answer come as they are asked for; otherwise all are in memory first."""
        ...

    def source(self, box: Box | None) -> str:
        """Return what to write after FROM.

        Parameters
        ----------
        box
            In nm: rows whose centroid lies outside may be left out. None for all rows.
        """
        ...

    def batches(self, statement: Statement) -> Iterator[pa.RecordBatch]:
        """Carry a statement out; columns of the table come in :func:`~cloudseg.somas.schema.plain_type`."""
        ...

    def close(self) -> None:
        """Let go of memory, files and connections."""
        ...

"""What a client asks: a catalogue in a bucket, read here, or a server. Both give the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol

from cloudseg.errors import NotFoundError, QueryError, SpecError
from cloudseg.somas.opinions import Opinion

if TYPE_CHECKING:
    import pyarrow as pa

    from cloudseg.somas.requests import Asked, Query

Question = Literal["count", "aggregate", "histogram", "nearest", "by_segment", "segments_with"]


class Source(Protocol):
    """One version of a catalogue, wherever it lies."""

    @property
    def address(self) -> str:
        """Where it lies, without secrets."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What ``catalog.json`` says, without the files: dataset, version, voxel size, bounds, provenance."""
        ...

    def versions(self) -> tuple[int, ...]:
        """Published versions, rising."""
        ...

    def ask(self, question: Question, asked: Asked) -> pa.Table:
        """Return the answer to a question that fits one table."""
        ...

    def rows(self, asked: Query) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a query, all of them."""
        ...

    def opinions(self) -> list[Opinion]:
        """Return the reference rows."""
        ...

    def annotate(self, opinions: list[dict[str, Any]]) -> None:
        """Append reference rows."""
        ...

    def close(self) -> None:
        """Let go of connections and memory."""
        ...


class BucketSource:
    """A catalogue in a folder or bucket, asked by DuckDB in this process.

    Parameters
    ----------
    uri
        Its folder.
    dataset
        If given, the catalogue must be of this dataset.
    version
        None for the published one, at the time of the first question.
    """

    def __init__(self, uri: str, *, dataset: str | None, version: int | None) -> None:
        from cloudseg.somas.catalogue import Catalogue
        from cloudseg.somas.duck import DuckEngine
        from cloudseg.somas.store import read_catalog
        from cloudseg.volumes.objects import open_objects

        self._objects = open_objects(uri)
        catalog = read_catalog(self._objects, version)
        if dataset is not None and dataset != catalog.dataset:
            raise NotFoundError(
                f"the somas at {self._objects.uri} are of the dataset {catalog.dataset!r}, not {dataset!r}; "
                "leave `dataset` out, or give another address"
            )
        self._engine = DuckEngine(self._objects, catalog)
        self._catalogue = Catalogue(self._engine)

    @property
    def address(self) -> str:
        """Where it lies."""
        return self._objects.uri

    @property
    def facts(self) -> dict[str, Any]:
        """What ``catalog.json`` says, without the files."""
        return self._engine.catalog.model_dump(mode="json", exclude={"parts", "format"})

    def versions(self) -> tuple[int, ...]:
        """Published versions, rising."""
        from cloudseg.somas.store import read_latest

        return read_latest(self._objects).versions

    def ask(self, question: Question, asked: Asked) -> pa.Table:
        """Return the answer to a question that fits one table."""
        answer: pa.Table = getattr(self._catalogue, question)(asked)
        return answer

    def rows(self, asked: Query) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a query, all of them, without pages."""
        return self._catalogue.rows(asked)

    def opinions(self) -> list[Opinion]:
        """Return the reference rows."""
        from cloudseg.somas.opinions import read_opinions

        return read_opinions(self._objects)

    def annotate(self, opinions: list[dict[str, Any]]) -> None:
        """Append reference rows, with the time of this machine."""
        from datetime import UTC, datetime

        from cloudseg.somas.opinions import append_opinions

        now = datetime.now(UTC)
        rows = []
        for number, each in enumerate(opinions):
            try:
                rows.append(Opinion.load({"time": now, **each}, where=f"opinion {number}"))
            except SpecError as error:
                raise QueryError(str(error)) from error
        append_opinions(self._objects, rows)

    def close(self) -> None:
        """Let go of memory."""
        self._engine.close()

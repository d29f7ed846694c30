"""Questions about somas, from Python: the same over a bucket and over a server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from cloudseg.client.arguments import (
    conditions,
    corners,
    facts,
    names,
    positions,
    present,
    selecting,
    stacked,
)

if TYPE_CHECKING:
    import os

    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa

    from cloudseg.client.source import Source

Units = Literal["nm", "um", "voxel"]
Where = Mapping[str, Any]
Box = Sequence[Sequence[float]]


class Somas:
    """A soma catalogue: every question one call, every answer a pandas table.

    Positions are in nm unless ``units`` says ``um`` or ``voxel``; it governs boxes and points that go in and columns
    that come out, and the unit is in each column's name. Boxes are half-open, ``[[x0, y0, z0], [x1, y1, z1]]``.
    All rows come, whatever their number; ``limit`` is yours. An empty list of ids gives an empty table, None means
    no condition. Ids are whole numbers of 64 bits throughout. Rejected and merged somas do not count, unless
    ``tombstones=True`` or ``where`` asks for ``status``.

    ``where`` maps columns to a value, a list, or operators: ``{"volume_um3": {">=": 50, "<": 200}, "side": "left",
    "region": ["LO", "ME"], "segment_id": {"is_null": False}}``. Operators are ``== != < <= > >= in not_in is_null``;
    all must hold; a null matches none but ``is_null``.

    Parameters
    ----------
    address
        ``gs://``, ``s3://``, ``file://`` or a local path: the folder of a catalogue. ``http(s)://``: a server.
    dataset
        Which dataset of the server; not needed where there is one.
    token
        For a server: this, or ``$CLOUDSEG_TOKEN``, or the server's line in ``~/.config/cloudseg/tokens.json``. It is
        sent over https, or to this machine itself, and nowhere else.
    version
        A version of the catalogue; None for the one that is published now. It stays the same for the life of this
        object, whatever is published later.
    timeout
        Seconds that a server may be silent.

    Raises
    ------
    NotFoundError
        If there is no catalogue, dataset or version there; what there is is named.
    AuthError
        If the server wants a token, or a better one.

    Examples
    --------
    >>> s = Somas("gs://bucket/run/somas")  # doctest: +SKIP
    >>> s.count(by=["region", "side"])  # doctest: +SKIP
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        *,
        dataset: str | None = None,
        token: str | None = None,
        version: int | None = None,
        timeout: float = 60.0,
    ) -> None:
        from cloudseg.client.source import BucketSource

        text = str(address)
        self._source: Source
        if text.lower().startswith(("http://", "https://")):
            from cloudseg.client.remote import ServerSource

            self._source = ServerSource(
                text, dataset=dataset, token=token, version=version, timeout_s=timeout
            )
        else:
            self._source = BucketSource(text, dataset=dataset, version=version)

    def __repr__(self) -> str:
        return f"Somas({self._source.address!r}, dataset={self.dataset!r}, version={self.version})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of connections and memory; the object cannot be asked any more."""
        self._source.close()

    # -------------------------------------------------------------------------------------- what is there

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self._source.facts["dataset"])

    @property
    def version(self) -> int:
        """The version that every answer is of."""
        return int(self._source.facts["version"])

    def info(self) -> dict[str, Any]:
        """Return what the catalogue says of itself: dataset, version, voxel size, bounds, number, provenance."""
        return {**self._source.facts, "address": self._source.address}

    def versions(self) -> list[int]:
        """Return the published versions, rising."""
        return list(self._source.versions())

    def columns(self) -> pd.DataFrame:
        """Return the columns: name, type, unit, whether every soma has a value, and what it means."""
        import pandas as pd

        from cloudseg.somas.schema import COLUMNS

        return pd.DataFrame(
            [(c.name, c.type, c.unit, c.required, c.description) for c in COLUMNS],
            columns=["name", "type", "unit", "required", "description"],
        )

    # -------------------------------------------------------------------------------------- rows

    def get(
        self,
        ids: int | Sequence[int] | npt.NDArray[Any],
        *,
        columns: Sequence[str] | None = None,
        units: Units = "nm",
    ) -> pd.DataFrame:
        """Return the somas with these ids, by id; tombstones too. Ids that there are none of are not in the table."""
        from cloudseg.somas.filters import id_list

        wanted = [str(each) for each in id_list(ids, where="ids")]
        return self.query(where={"soma_id": wanted}, columns=columns, units=units, tombstones=True)

    def query(
        self,
        where: Where | None = None,
        *,
        bbox: Box | None = None,
        columns: Sequence[str] | None = None,
        units: Units = "nm",
        predicate: Literal["centroid", "intersects"] = "centroid",
        order: str = "soma_id",
        limit: int | None = None,
        tombstones: bool = False,
    ) -> pd.DataFrame:
        """Return somas.

        Parameters
        ----------
        where
            Conditions; see the class.
        bbox
            Half-open box.
        columns
            Which; all for None.
        units
            Of the box, and of positions in the answer.
        predicate
            Whether the ``centroid`` must lie in the box, or the soma's own box ``intersects`` it.
        order
            A column, ``-`` in front for descending; ties go by id, nulls come last.
        limit
            At most so many; ``attrs["truncated"]`` says whether there are more.
        tombstones
            Whether rejected and merged somas come too.

        Raises
        ------
        QueryError
            If a column, an operator or a value does not exist or fit; close names are given.
        """
        from cloudseg.client.frames import to_frame

        table = self.query_arrow(
            where,
            bbox=bbox,
            columns=columns,
            units=units,
            predicate=predicate,
            order=order,
            limit=limit,
            tombstones=tombstones,
        )
        return to_frame(table, facts(table))

    def query_arrow(self, where: Where | None = None, **how: Any) -> pa.Table:
        """Return the same as :meth:`query`, as an Arrow table; its facts are JSON in the schema's metadata."""
        import json

        import pyarrow as pa

        from cloudseg.somas.requests import Count
        from cloudseg.somas.tables import METADATA

        asked = self._query(where, how)
        batches = list(self._source.rows(asked))
        table = pa.Table.from_batches(batches, schema=batches[0].schema if batches else self._schema(asked))
        facts = self._about(asked)
        facts["total"] = table.num_rows
        if asked.limit is not None and table.num_rows == asked.limit:
            kept = {
                name: getattr(asked, name)
                for name in ("where", "bbox", "predicate", "units", "tombstones", "version")
            }
            facts["total"] = self._source.ask("count", Count.of(kept))["n"][0].as_py()
        facts["truncated"] = facts["total"] > table.num_rows
        return table.replace_schema_metadata({METADATA: json.dumps(facts).encode()})

    def query_batches(self, where: Where | None = None, **how: Any) -> Iterator[pa.RecordBatch]:
        """Yield the same rows as :meth:`query`, as Arrow batches, in bounded memory."""
        return self._source.rows(self._query(where, how))

    def nearest(
        self,
        points: Sequence[float] | Sequence[Sequence[float]] | npt.NDArray[Any],
        k: int = 1,
        *,
        max_distance_um: float | None = None,
        where: Where | None = None,
        columns: Sequence[str] | None = None,
        units: Units = "nm",
        tombstones: bool = False,
    ) -> pd.DataFrame:
        """Return the ``k`` somas whose centroids are nearest to each point, by distance, ties by id.

        ``query_index`` counts the points; ``distance_nm`` (``distance_um`` in um) is from the centroid.
        """
        from cloudseg.somas.requests import MAX_POINTS, Nearest

        rows = positions(points)

        def asked(start: int) -> Nearest:
            return Nearest.of(
                present(
                    points=rows[start : start + MAX_POINTS],
                    k=k,
                    max_distance_um=max_distance_um,
                    where=conditions(where),
                    columns=names(columns),
                    units=units,
                    tombstones=tombstones,
                    version=self.version,
                )
            )

        # A server takes so many at once.
        starts = range(0, max(1, len(rows)), MAX_POINTS)
        tables = [(start, self._source.ask("nearest", asked(start))) for start in starts]
        return stacked(tables, self._facts_of(asked(0)))

    def of_segments(
        self,
        segment_ids: int | Sequence[int] | npt.NDArray[Any],
        *,
        columns: Sequence[str] | None = None,
        units: Units = "nm",
        tombstones: bool = False,
    ) -> pd.DataFrame:
        """Return the somas of segments: every segment appears, in the order with nulls if it has no soma."""
        from cloudseg.client.frames import to_frame
        from cloudseg.somas.filters import id_list
        from cloudseg.somas.requests import BySegment

        asked = BySegment.of(
            present(
                segment_ids=[str(each) for each in id_list(segment_ids, where="segment_ids")],
                columns=names(columns),
                units=units,
                tombstones=tombstones,
                version=self.version,
            )
        )
        return to_frame(self._source.ask("by_segment", asked), self._facts_of(asked), complete=False)

    # -------------------------------------------------------------------------------------- numbers

    def count(self, where: Where | None = None, *, by: str | Sequence[str] | None = None, **how: Any) -> Any:
        """Return the number of somas, or a table by groups; takes the arguments of :meth:`query` that select."""
        from cloudseg.client.frames import to_frame
        from cloudseg.somas.requests import Count

        asked = Count.of(
            present(where=conditions(where), by=names(by) or (), version=self.version, **selecting(how))
        )
        table = self._source.ask("count", asked)
        return to_frame(table, self._facts_of(asked), complete=False) if asked.by else table["n"][0].as_py()

    def stats(
        self, column: str, where: Where | None = None, *, by: str | Sequence[str] | None = None, **how: Any
    ) -> pd.DataFrame:
        """Return number, mean, sample deviation, quantiles and extremes of a column, by groups if ``by`` is given."""
        from cloudseg.client.frames import to_frame
        from cloudseg.somas.requests import Aggregate

        asked = Aggregate.of(
            present(
                where=conditions(where),
                column=column,
                by=names(by) or (),
                version=self.version,
                **selecting(how),
            )
        )
        return to_frame(self._source.ask("aggregate", asked), self._facts_of(asked), complete=False)

    def histogram(
        self,
        column: str,
        where: Where | None = None,
        *,
        bins: int = 50,
        range: tuple[float, float] | None = None,  # noqa: A002  (numpy calls it so)
        **how: Any,
    ) -> pd.DataFrame:
        """Return ``low``, ``high`` and ``n`` of each bin; ``attrs`` says how many values are null, below or above."""
        from cloudseg.client.frames import to_frame
        from cloudseg.somas.requests import Histogram

        asked = Histogram.of(
            present(
                where=conditions(where),
                column=column,
                bins=bins,
                range=range,
                version=self.version,
                **selecting(how),
            )
        )
        table = self._source.ask("histogram", asked)
        return to_frame(table, {**self._facts_of(asked), **facts(table)})

    def segments_with(
        self,
        n_somas: str | int = ">1",
        where: Where | None = None,
        *,
        among: Sequence[int] | npt.NDArray[Any] | None = None,
        **how: Any,
    ) -> pd.DataFrame:
        """Return the segments with so many somas: ``">1"`` finds merge errors.

        ``"==0"`` needs ``among``, the segments to look at: a table of somas does not know the others.
        """
        from cloudseg.client.frames import to_frame
        from cloudseg.somas.filters import id_list
        from cloudseg.somas.requests import SegmentsWith

        asked = SegmentsWith.of(
            present(
                n_somas=n_somas,
                where=conditions(where),
                among=None if among is None else [str(each) for each in id_list(among, where="among")],
                version=self.version,
                **selecting(how),
            )
        )
        return to_frame(self._source.ask("segments_with", asked), self._facts_of(asked))

    # -------------------------------------------------------------------------------------- opinions, viewer

    def opinions(self) -> pd.DataFrame:
        """Return the reference rows: what people and programs said about somas, oldest first."""
        import pyarrow as pa

        from cloudseg.client.frames import to_frame
        from cloudseg.somas import opinions

        types = {"string": pa.string()}
        schema = pa.schema(
            [(c.name, types.get(c.type) or pa.type_for_alias(c.type)) for c in opinions.COLUMNS]
        )
        rows = [each.model_dump(mode="json") for each in self._source.opinions()]
        return to_frame(pa.Table.from_pylist(rows, schema=schema), self._facts_of(None))

    def annotate(self, opinions: Sequence[Mapping[str, Any]]) -> None:
        """Append reference rows, e.g. ``[{"soma_id": 17, "system": "status", "value": "rejected", "source": "ann"}]``.

        Nothing is changed or removed by that; the latest row of a soma and a system is the one in effect. A server
        wants a token with the scope ``edit``, and takes the source from it.
        """
        self._source.annotate([dict(each) for each in opinions])

    def neuroglancer(
        self, where: Where | None = None, *, base: str | None = None, limit: int = 500, **how: Any
    ) -> str:
        """Return a Neuroglancer link that shows these somas as points, and selects their segments.

        Parameters
        ----------
        where
            Conditions; see the class.
        base
            A link to add them to, as ``cloudseg link`` or ``serve`` prints it. None makes one of the points alone.
        limit
            At most so many; they are all in the link itself. The largest come first.
        """
        from cloudseg.client.viewer import link_with_somas

        wanted = ["soma_id", "x_nm", "y_nm", "z_nm", "volume_um3", "radius_um", "segment_id"]
        table = self.query_arrow(where, **{"order": "-volume_um3", **how, "columns": wanted, "limit": limit})
        return link_with_somas(table.to_pylist(), self._source.facts, base=base)

    # -------------------------------------------------------------------------------------- parts

    def _query(self, where: Where | None, how: Mapping[str, Any]) -> Any:
        from cloudseg.errors import QueryError
        from cloudseg.somas.requests import Query
        from cloudseg.somas.schema import suggestion

        known = ("bbox", "columns", "units", "predicate", "order", "limit", "tombstones")
        for name in how:
            if name not in known:
                raise QueryError(f"query has no argument {name!r}; {suggestion(name, known)}")
        given = {**how, "columns": names(how.get("columns")), "bbox": corners(how.get("bbox"))}
        return Query.of(present(where=conditions(where), version=self.version, **given))

    def _schema(self, asked: Any) -> pa.Schema:
        from cloudseg.somas.requests import wanted_columns
        from cloudseg.somas.tables import schema_of

        return schema_of(wanted_columns(asked.columns), asked.units)

    def _about(self, asked: Any) -> dict[str, Any]:
        return {**self._facts_of(asked), "source": self._source.address}

    def _facts_of(self, asked: Any) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "dataset": self.dataset,
            "version": self.version,
            "source": self._source.address,
        }
        if asked is not None:
            facts["units"] = getattr(asked, "units", "nm")
            facts["query"] = asked.model_dump(
                mode="json", exclude_defaults=True, exclude={"version"}, fallback=str
            )
        facts["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return facts

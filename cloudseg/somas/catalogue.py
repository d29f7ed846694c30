"""Questions to one version of a catalogue: the same answers whichever database carries them out."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import QueryError
from cloudseg.ops.nearest import PointIndex
from cloudseg.somas import sql
from cloudseg.somas.cursors import Cursor, question_of
from cloudseg.somas.engine import Engine
from cloudseg.somas.filters import Condition, id_list
from cloudseg.somas.requests import (
    MAX_PAGE_ROWS,
    MAX_POSITION_NM,
    Aggregate,
    BySegment,
    Count,
    Histogram,
    Nearest,
    Point,
    Query,
    SegmentsWith,
    Selection,
    box_nm,
    conditions,
    group_columns,
    numeric_column,
    ordering,
    scales_nm,
    to_nm,
    wanted_columns,
)
from cloudseg.somas.schema import BY_NAME, column, plain_type, shortened
from cloudseg.somas.store import Catalog
from cloudseg.somas.tables import one_batch, renamed, replaced, sorted_by, with_facts

if TYPE_CHECKING:
    import pyarrow as pa

_COMPARISON = re.compile(r"^\s*(==|!=|<=|>=|<|>|)\s*(\d{1,9})\s*$")
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_PLACE = ("soma_id", "x_nm", "y_nm", "z_nm")
# So many somas are looked at first, in a table that is not in memory.
_FIRST_LOOK = 64

STREAM_ROWS = 16_384
"""Rows of a piece of a stream."""


class Catalogue:
    """Answers questions about one version.

    Parameters
    ----------
    engine
        The database.
    from_json
        Whether questions come as JSON, where a bare number above 2^53 is no id.
    """

    def __init__(self, engine: Engine, *, from_json: bool = False) -> None:
        self._engine = engine
        self._catalog = engine.catalog
        self._from_json = from_json
        self._all_places: dict[bool, PointIndex] = {}

    @property
    def catalog(self) -> Catalog:
        """What the version is."""
        return self._catalog

    def query(self, asked: Query) -> pa.Table:
        """Return a page of rows; ``next`` of its facts is the cursor of the next one, or null."""
        names = wanted_columns(asked.columns)
        cursor = self._cursor(asked)
        sent = cursor.n_sent if cursor else 0
        n_page = asked.page_rows or MAX_PAGE_ROWS
        most = n_page if asked.limit is None else max(0, min(asked.limit - sent, n_page))
        statement, fetched = self._rows_behind(asked, cursor, most)
        table = self._table(statement, fetched)
        if cursor is not None:
            total = cursor.total
        else:  # a page with room left holds all there are: they need not be counted
            total = table.num_rows if table.num_rows < most else self._number(asked)
        sent += table.num_rows
        following = None
        if table.num_rows and sent < (total if asked.limit is None else min(asked.limit, total)):
            following = self._behind(asked, table, question_of(asked), sent, total).text()
        return self._answer(table.select(names), asked.units, total=total, next=following)

    def stream(self, asked: Query) -> tuple[dict[str, Any], Iterator[tuple[pa.RecordBatch, str | None]]]:
        """Return facts, and all rows from the cursor on, in bounded memory.

        With each batch comes the cursor of what follows it: whoever loses the rest asks again from there. None says
        that this batch was the last. Where nothing is found, an empty batch comes.
        """
        if asked.page_rows is not None:
            raise QueryError("page_rows: a stream has no pages; leave it out")
        names = wanted_columns(asked.columns)
        cursor = self._cursor(asked)
        total = cursor.total if cursor else self._number(asked)
        end = total if asked.limit is None else min(asked.limit, total)
        question = question_of(asked)

        def batches() -> Iterator[tuple[pa.RecordBatch, str | None]]:
            sent = cursor.n_sent if cursor else 0
            for table in self._tables(asked, cursor, end - sent):
                sent += table.num_rows
                following = None
                if table.num_rows and sent < end:
                    following = self._behind(asked, table, question, sent, total).text()
                yield one_batch(self._converted(table.select(names), asked.units)), following

        return self._about(asked.units, total=total), batches()

    def rows(self, asked: Query) -> Iterator[pa.RecordBatch]:
        """Yield all rows, without pages, in bounded memory."""
        import pyarrow as pa

        bind = sql.Bind()
        names = wanted_columns(asked.columns)
        source, parts = self._selected(asked, bind)
        statement = sql.select(
            names, source, _joined(parts), bind, order=ordering(asked.order), limit=asked.limit
        )
        for batch in self._engine.batches(statement):
            table = self._converted(pa.Table.from_batches([batch]), asked.units)
            yield from table.to_batches()

    def count(self, asked: Count) -> pa.Table:
        """Return ``n`` by groups, sorted by them, nulls last; one row without groups."""
        by = group_columns(asked.by)
        bind = sql.Bind()
        source, parts = self._selected(asked, bind)
        table = self._table(sql.count(by, source, _joined(parts), bind), [*by, "n"])
        return self._answer(sorted_by(table, by), asked.units)

    def aggregate(self, asked: Aggregate) -> pa.Table:
        """Return number, mean, standard deviation, quantiles and extremes, by groups."""
        by, name = group_columns(asked.by), numeric_column(asked.column)
        bind = sql.Bind()
        source, parts = self._selected(asked, bind)
        table = self._table(sql.aggregate(name, by, source, _joined(parts), bind), [*by, *sql.STATISTICS])
        if name.endswith("_nm") and asked.units != "nm":
            scale = scales_nm(asked.units, self._catalog)["xyz".index(name[-4])]
            for each in sql.STATISTICS[1:]:
                table = replaced(table, each, table[each].to_numpy() / scale, table[each])
        return self._answer(sorted_by(table, by), asked.units, column=renamed(name, asked.units))

    def histogram(self, asked: Histogram) -> pa.Table:
        """Return ``low``, ``high``, ``n`` of each bin: half-open, the last one closed, as numpy's."""
        import pyarrow as pa

        name = numeric_column(asked.column)
        scale = 1.0
        if name.endswith("_nm"):
            scale = scales_nm(asked.units, self._catalog)["xyz".index(name[-4])]
        low, high = asked.range or (None, None)
        if low is not None and high is not None and low > high:
            raise QueryError(f"range: it is upside down: {low} is above {high}; write [low, high]")
        if low is None or high is None:
            low, high = self._extremes(asked, name, scale)
        if low == high:
            low, high = low - 0.5, high + 0.5
        if not np.isfinite(high - low):
            raise QueryError(f"range: [{low}, {high}] is too wide for floats; give a narrower one")
        edges = np.linspace(low, high, asked.bins + 1)
        if not (edges[1:] > edges[:-1]).all():
            raise QueryError(
                f"range: [{low}, {high}] is too narrow for {asked.bins} bins of different edges; ask for fewer"
            )
        counts = np.zeros(asked.bins, np.int64)
        n_null = n_below = n_above = 0
        for values, n_nulls in self._values(asked, name):
            scaled = values / scale
            counts += np.histogram(scaled, edges)[0]
            n_null += n_nulls
            n_below += int((scaled < low).sum())
            n_above += int((scaled > high).sum())
        table = pa.table({"low": edges[:-1], "high": edges[1:], "n": counts})
        return self._answer(
            table,
            asked.units,
            column=renamed(name, asked.units),
            n_null=n_null,
            n_below=n_below,
            n_above=n_above,
        )

    def nearest(self, asked: Nearest) -> pa.Table:
        """Return the ``k`` nearest somas of each point: ``query_index``, ``distance_nm`` (or um), and their columns."""
        import pyarrow as pa

        names = wanted_columns(asked.columns)
        points = [to_nm(point, asked.units, self._catalog) for point in asked.points]
        for point, given in zip(points, asked.points, strict=True):
            if max(map(abs, point)) > MAX_POSITION_NM:
                raise QueryError(
                    f"points: {given} {asked.units} lies a kilometre away and more; give a position in the volume"
                )
        within = np.inf if asked.max_distance_um is None else asked.max_distance_um * 1000.0
        find = self._finder(asked)
        found = [find(point, asked.k, within) for point in points]
        ids = np.concatenate([*(each[0] for each in found), np.zeros(0, np.uint64)])
        distances = np.concatenate([*(each[1] for each in found), np.zeros(0)])
        index = np.repeat(np.arange(len(points)), [len(each[0]) for each in found])
        rows = self._rows_of("soma_id", np.unique(ids), list(dict.fromkeys([*names, "soma_id"])), ())
        known = rows["soma_id"].to_numpy()
        order = np.argsort(known)
        rows = rows.take(order[np.searchsorted(known, ids, sorter=order)]).select(names)
        if asked.units == "um":
            distances = distances / 1000.0
        unit = "um" if asked.units == "um" else "nm"  # voxels have no one length
        table = pa.table({"query_index": pa.array(index, pa.int64()), f"distance_{unit}": distances})
        for name in names:
            table = table.append_column(name, rows[name])
        return self._answer(table, asked.units)

    def by_segment(self, asked: BySegment) -> pa.Table:
        """Return the somas of each segment that was asked for; one row of nulls for a segment without any."""
        import pyarrow as pa

        names = [name for name in wanted_columns(asked.columns) if name != "segment_id"]
        wanted = np.array(
            id_list(asked.segment_ids, where="segment_ids", from_json=self._from_json), np.uint64
        )
        wanted = wanted[np.sort(np.unique(wanted, return_index=True)[1])]  # each once, in the order given
        fetched = list(dict.fromkeys(["segment_id", "soma_id", *names]))
        selection = Selection(tombstones=asked.tombstones)
        rows = self._rows_of("segment_id", wanted, fetched, conditions(selection, from_json=False))
        segments = rows["segment_id"].to_numpy().astype(np.uint64)
        rank = np.argsort(wanted)
        places = (
            rank[np.searchsorted(wanted, segments, sorter=rank)] if len(segments) else np.zeros(0, np.int64)
        )
        lacking = np.setdiff1d(np.arange(len(wanted)), places)
        position = np.concatenate([places, lacking])
        taken = pa.array(
            np.concatenate([np.arange(len(places)), np.zeros(len(lacking), np.int64)]),
            mask=np.arange(len(position)) >= len(places),
        )
        soma = rows["soma_id"].to_numpy()
        keys = np.concatenate([soma, np.zeros(len(lacking), np.uint64)])
        order = np.lexsort((keys, position))
        table = pa.table({"segment_id": wanted[position[order]]})
        for name in names:
            table = table.append_column(name, rows[name].combine_chunks().take(taken.take(order)))
        return self._answer(table, asked.units)

    def segments_with(self, asked: SegmentsWith) -> pa.Table:
        """Return ``segment_id`` and ``n_somas`` of the segments for which the comparison holds, by id."""
        import pyarrow as pa

        match = _COMPARISON.match(str(asked.n_somas))
        if not match or isinstance(asked.n_somas, bool):
            raise QueryError(
                f"n_somas: expected a number or a comparison, e.g. '>1', got {shortened(asked.n_somas)}"
            )
        compare, number = _OPERATORS[match[1] or "=="], int(match[2])
        if asked.among is None and compare(0, number):
            raise QueryError(
                f"n_somas: {asked.n_somas!r} also means segments without a soma, which a table of somas cannot know; "
                "name the segments in `among`"
            )
        among = (
            None if asked.among is None else id_list(asked.among, where="among", from_json=self._from_json)
        )
        bind = sql.Bind()
        segment = column("segment_id", where="")
        more = [Condition(segment, "is_null", False)]
        if among is not None:
            more.append(Condition(segment, "in", among))
        source, parts = self._selected(asked, bind, *more)
        table = self._table(sql.count(["segment_id"], source, _joined(parts), bind), ["segment_id", "n"])
        segments, counts = table["segment_id"].to_numpy(), table["n"].to_numpy()
        if among is not None:
            lacking = np.setdiff1d(np.array(among, np.uint64), segments)
            segments = np.concatenate([segments, lacking])
            counts = np.concatenate([counts, np.zeros(len(lacking), np.int64)])
        holds = compare(counts, number)
        segments, counts = segments[holds], counts[holds]
        order = np.argsort(segments)
        table = pa.table(
            {"segment_id": segments[order].astype(np.uint64), "n_somas": counts[order].astype(np.int64)}
        )
        return self._answer(table, asked.units)

    # -------------------------------------------------------------------------------------------- parts

    def _selected(self, asked: Selection, bind: sql.Bind, *more: Condition) -> tuple[str, list[str]]:
        """Return what to select from, and the conditions."""
        box = box_nm(asked, self._catalog)
        found = (*conditions(asked, from_json=self._from_json), *more)
        where = sql.where_clause(self._engine.dialect, bind, found, box, asked.predicate)
        source = self._engine.source(box if asked.predicate == "centroid" else None)
        return source, [where.removeprefix(" WHERE ")] if where else []

    def _cursor(self, asked: Query) -> Cursor | None:
        """Return the cursor of a question, checked."""
        if asked.cursor is None:
            return None
        cursor = Cursor.parse(asked.cursor)
        if cursor.question != question_of(asked) or cursor.version != self._catalog.version:
            raise QueryError(
                "cursor: it belongs to another question, or another version; repeat the question of the first page, "
                "with its cursor"
            )
        self._refuse_odd_value(cursor, ordering(asked.order)[0])
        return cursor

    def _behind(self, asked: Query, table: pa.Table, question: str, sent: int, total: int) -> Cursor:
        """Return the cursor behind a table's last row."""
        last = table.slice(table.num_rows - 1)
        soma_id, value = last["soma_id"][0].as_py(), last[ordering(asked.order)[0]][0].as_py()
        return Cursor(self._catalog.version, question, soma_id, value, sent, total)

    def _rows_behind(self, asked: Query, cursor: Cursor | None, most: int) -> tuple[sql.Statement, list[str]]:
        """Return what selects the rows behind a cursor, and the columns that it fetches."""
        order = ordering(asked.order)
        bind = sql.Bind()
        source, parts = self._selected(asked, bind)
        if cursor is not None:
            parts.append(sql.after(self._engine.dialect, bind, order, cursor.value, cursor.soma_id))
        fetched = list(dict.fromkeys([*wanted_columns(asked.columns), "soma_id", order[0]]))
        return sql.select(fetched, source, _joined(parts), bind, order=order, limit=most), fetched

    def _tables(self, asked: Query, cursor: Cursor | None, left: int) -> Iterator[pa.Table]:
        """Yield the ``left`` rows behind a cursor in pieces, in bounded memory; at least one piece."""
        import pyarrow as pa

        statement, fetched = self._rows_behind(asked, cursor, left)
        if left <= 0:
            yield self._table(statement, fetched)
        elif self._engine.streams:
            for batch in self._engine.batches(statement):
                for start in range(0, batch.num_rows, STREAM_ROWS):
                    yield pa.Table.from_batches([batch.slice(start, STREAM_ROWS)])
        else:
            table = None
            while left > 0 and (table is None or table.num_rows):
                statement, fetched = self._rows_behind(asked, cursor, min(left, STREAM_ROWS))
                table = self._table(statement, fetched)
                yield table
                left -= table.num_rows
                cursor = self._behind(asked, table, "", 0, 0) if table.num_rows else cursor

    def _number(self, asked: Selection) -> int:
        bind = sql.Bind()
        source, parts = self._selected(asked, bind)
        return int(self._table(sql.count([], source, _joined(parts), bind), ["n"])["n"][0].as_py())

    def _table(self, statement: sql.Statement, names: Sequence[str]) -> pa.Table:
        import pyarrow as pa

        types = {"n": pa.int64()} | {name: pa.float64() for name in sql.STATISTICS if name != "n"}
        schema = pa.schema([(name, plain_type(name) if name in BY_NAME else types[name]) for name in names])
        batches = [batch.cast(schema) for batch in self._engine.batches(statement)]
        return pa.Table.from_batches(batches, schema=schema)

    def _rows_of(
        self, name: str, values: npt.NDArray[np.uint64], names: list[str], more: tuple[Condition, ...]
    ) -> pa.Table:
        bind = sql.Bind()
        wanted = (Condition(column(name, where=""), "in", tuple(values.tolist())), *more)
        where = sql.where_clause(self._engine.dialect, bind, wanted, None, "centroid")
        return self._table(sql.select(names, self._engine.source(None), where, bind), names)

    def _values(self, asked: Selection, name: str) -> Iterator[tuple[npt.NDArray[np.float64], int]]:
        """Yield the values of a column in pieces, each with the number of nulls left out."""
        bind = sql.Bind()
        source, parts = self._selected(asked, bind)
        for batch in self._engine.batches(sql.select([name], source, _joined(parts), bind)):
            values = batch.column(0)
            yield values.drop_null().to_numpy(zero_copy_only=False).astype(np.float64), values.null_count

    def _extremes(self, asked: Selection, name: str, scale: float) -> tuple[float, float]:
        found = [(values.min(), values.max()) for values, _ in self._values(asked, name) if len(values)]
        if not found:
            return 0.0, 1.0  # as numpy says of nothing
        return float(min(low for low, _ in found)) / scale, float(max(high for _, high in found)) / scale

    def _finder(
        self, asked: Nearest
    ) -> Callable[[Point, int, float], tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64]]]:
        """Return what finds the nearest of a point among the selected somas."""
        if self._engine.resident:
            if asked.where or asked.bbox is not None:
                index = _index(self._places(asked))
            else:
                index = self._all_places.get(asked.tombstones) or _index(self._places(asked))
                self._all_places[asked.tombstones] = index  # two threads at once: both made the same
            return lambda point, k, within: index.nearest(point, k, within=within)
        return lambda point, k, within: self._nearest_by_boxes(asked, point, k, within)

    def _places(self, asked: Selection) -> pa.Table:
        bind = sql.Bind()
        source, parts = self._selected(asked, bind)
        return self._table(sql.select(_PLACE, source, _joined(parts), bind), _PLACE)

    def _nearest_by_boxes(
        self, asked: Nearest, point: Point, k: int, within: float
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64]]:
        """Look into growing boxes round the point until the ``k``-th found is nearer than the box's faces."""
        lower, upper = (np.asarray(corner) for corner in self._catalog.bounds_nm)
        at = np.asarray(point)
        # Centroids lie inside the bounds of the parts, whatever the catalogue says of the volume.
        for part in self._catalog.parts:
            lower, upper = np.minimum(lower, part.lower_nm), np.maximum(upper, part.upper_nm)
        furthest = float(np.maximum(np.abs(at - lower), np.abs(at - upper)).max()) + 1.0
        volume = float(np.prod(np.maximum(upper - lower, 1.0)))
        outside = float(np.maximum(np.maximum(lower - at, at - upper), 0.0).max())
        radius = outside + (volume * max(k, _FIRST_LOOK) / max(1, self._catalog.n_somas)) ** (1 / 3)
        while True:
            radius = min(radius, furthest, within)
            # A little wider, so that a soma at exactly this distance is inside the half-open box.
            reach = radius * (1 + 1e-9) + 1e-6
            bind = sql.Bind()
            own = box_nm(asked, self._catalog)
            near = _box_round(point, reach)
            found = conditions(asked, from_json=self._from_json)
            parts = [
                sql.where_clause(self._engine.dialect, bind, found, near, "centroid"),
            ]
            if own is not None:
                parts.append(sql.where_clause(self._engine.dialect, bind, (), own, asked.predicate))
            where = " AND ".join(part.removeprefix(" WHERE ") for part in parts)
            source = self._engine.source(near)
            table = self._table(sql.select(_PLACE, source, f" WHERE {where}", bind), _PLACE)
            if radius >= min(furthest, within):  # the box holds every soma that counts, in its corners too
                return _index(table).nearest(point, k, within=within)
            ids, distances = _index(table).nearest(point, k, within=radius)
            if len(ids) == k:
                return ids, distances
            radius *= 2 if len(ids) * 8 >= k else 4

    def _refuse_odd_value(self, cursor: Cursor, name: str) -> None:
        kind = BY_NAME[name].kind
        fits = {"text": str, "number": (int, float), "integer": int, "id": int}[kind]
        if cursor.value is not None and not isinstance(cursor.value, fits):  # type: ignore[arg-type]
            raise QueryError(
                f"cursor: its value is none of {name}; send `next` of the page before, unchanged"
            )

    def _converted(self, table: pa.Table, units: str) -> pa.Table:
        """Return lengths in ``units``, their columns renamed."""
        if units == "nm":
            return table
        scales = dict(zip("xyz", scales_nm(units, self._catalog), strict=True))  # type: ignore[arg-type]
        names = []
        for name in table.column_names:
            names.append(renamed(name, units))
            if name.endswith("_nm") and name in BY_NAME:
                values = table[name]
                table = replaced(table, name, values.to_numpy() / scales[name[-4]], values)
        return table.rename_columns(names)

    def _answer(self, table: pa.Table, units: str, **facts: Any) -> pa.Table:
        return with_facts(self._converted(table, units), self._about(units, **facts))

    def _about(self, units: str, **facts: Any) -> dict[str, Any]:
        return {"dataset": self._catalog.dataset, "version": self._catalog.version, "units": units, **facts}


def _joined(parts: list[str]) -> str:
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def _box_round(point: Point, reach: float) -> sql.Box:
    x, y, z = point
    return (x - reach, y - reach, z - reach), (x + reach, y + reach, z + reach)


def _index(places: pa.Table) -> PointIndex:
    points = np.stack([places[name].to_numpy() for name in _PLACE[1:]], axis=1)
    return PointIndex.of(places["soma_id"].to_numpy(), points)

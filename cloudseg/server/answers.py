"""Answers in the form that was asked for: Arrow stream, JSON, CSV or Parquet."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from cloudseg.server.access import RefusedError
from cloudseg.server.ranges import matches
from cloudseg.somas.tables import METADATA, NEXT, facts_of

if TYPE_CHECKING:
    import pyarrow as pa

Form = Literal["json", "arrow", "csv", "parquet"]

TYPES: dict[Form, str] = {
    "json": "application/json",
    "arrow": "application/vnd.apache.arrow.stream",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
}
# Texts are slow to write and to read: a page of them is shorter unless more is asked for.
PAGE_ROWS: dict[Form, int] = {"json": 10_000, "csv": 10_000, "arrow": 100_000, "parquet": 100_000}


def wanted_form(accept: str | None, form: Form | None, *, among: Sequence[Form] = tuple(TYPES)) -> Form:
    """Return the form that ``?format=`` or the Accept header asks for; the first of ``among`` if neither does.

    Raises
    ------
    RefusedError
        406 if the header takes none of ours.
    """
    if form is not None:
        return form
    weights: dict[str, float] = {}
    for item in (accept or "*/*").split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        weights[name] = float(quality) if quality.replace(".", "", 1).isdigit() else 0.0
    best: tuple[float, Form] | None = None
    for each in among:
        kind = TYPES[each]
        weight = weights.get(kind, weights.get(kind.partition("/")[0] + "/*", weights.get("*/*", 0.0)))
        if weight > 0 and (best is None or weight > best[0]):
            best = (weight, each)
    if best is None:
        raise RefusedError(
            406,
            f"answers come as {', '.join(TYPES[each] for each in among)}; the Accept header takes none of them",
        )
    return best[1]


def answer(table: pa.Table, form: Form) -> Response:
    """Return a table as an HTTP answer; its facts are in Arrow's metadata, in JSON, and in ``Cloudseg-Facts``."""
    import pyarrow as pa

    facts = facts_of(table)
    headers = {"Cloudseg-Facts": json.dumps(facts), "Vary": "Accept"}
    if form == "arrow":
        sink = io.BytesIO()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=16_384)
        return Response(sink.getvalue(), media_type=TYPES[form], headers=headers)
    if form == "parquet":
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        return Response(sink.getvalue(), media_type=TYPES[form], headers=headers)
    if form == "csv":
        import pyarrow.csv as pc

        sink = io.BytesIO()
        pc.write_csv(table.replace_schema_metadata(None), sink)
        return Response(sink.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)
    body = {**facts, "columns": table.column_names, "rows": _json_rows(table)}
    return Response(
        json.dumps(body, separators=(",", ":"), allow_nan=False), media_type=TYPES[form], headers=headers
    )


def arrow_stream(facts: dict[str, Any], batches: Iterator[tuple[pa.RecordBatch, str | None]]) -> Response:
    """Return rows as an Arrow stream that is written while it is sent.

    Parameters
    ----------
    facts
        For the schema's metadata and for ``Cloudseg-Facts``.
    batches
        At least one. The metadata of each names, as ``next``, the cursor of what follows it; the last has none. So a
        reader knows whether the stream was whole, and from where to go on if it was not.
    """
    # The first one now: what goes wrong before it is answered in words.
    first = next(batches)
    headers = {"Cloudseg-Facts": json.dumps(facts), "Vary": "Accept"}
    return StreamingResponse(
        _written(facts, chain([first], batches)), media_type=TYPES["arrow"], headers=headers
    )


def _written(facts: dict[str, Any], batches: Iterable[tuple[pa.RecordBatch, str | None]]) -> Iterator[bytes]:
    import pyarrow as pa

    sink = _Sink()
    writer = None
    for batch, following in batches:
        if writer is None:
            schema = batch.schema.with_metadata({METADATA: json.dumps(facts).encode()})
            writer = pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd"))
        writer.write_batch(batch, custom_metadata=None if following is None else {NEXT: following})
        yield sink.taken()
    assert writer is not None
    writer.close()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """A file from which what was written can be taken away."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._at += len(piece)
        return len(piece)

    def taken(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


def tagged(response: Response, request: Request, *, immutable: bool) -> Response:
    """Give an answer to a GET its entity tag, and turn it into a 304 where the client has it.

    Parameters
    ----------
    response, request
        The answer and what asked for it.
    immutable
        Whether the address names a version: then the answer never changes.
    """
    tag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
    response.headers["ETag"] = tag
    response.headers["Cache-Control"] = "private, max-age=31536000, immutable" if immutable else "no-cache"
    if matches(request.headers.get("if-none-match"), tag):
        kept = {name: response.headers[name] for name in ("ETag", "Cache-Control")}
        return Response(status_code=304, headers=kept)
    return response


def _json_rows(table: pa.Table) -> list[list[object]]:
    """Return rows; whole numbers of 64 bits that are ids as text, for JSON numbers lose their last digits."""
    import pyarrow as pa

    columns = []
    for name, values in zip(table.column_names, table.columns, strict=True):
        is_id = pa.types.is_uint64(values.type) and name != "n_voxels"
        listed = values.to_pylist()
        columns.append([None if v is None else str(v) for v in listed] if is_id else listed)
    return [list(row) for row in zip(*columns, strict=True)]

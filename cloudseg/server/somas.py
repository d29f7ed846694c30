"""The soma API, ``/v1``: questions to catalogues, reference rows, what Neuroglancer searches segments by."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import Field

from cloudseg.errors import NotFoundError, QueryError
from cloudseg.server.access import Access, Identity, Scope
from cloudseg.server.answers import PAGE_ROWS, TYPES, Form, answer, arrow_stream, tagged, wanted_form
from cloudseg.server.datasets import Datasets
from cloudseg.server.numbers import Numbers
from cloudseg.somas import requests
from cloudseg.somas.catalogue import Catalogue
from cloudseg.somas.cursors import Cursor
from cloudseg.somas.filters import id_list
from cloudseg.somas.opinions import Opinion, append_once, append_opinions, read_opinions
from cloudseg.somas.properties import segment_properties as properties
from cloudseg.somas.schema import COLUMNS
from cloudseg.specs import FrozenModel

if TYPE_CHECKING:
    import pyarrow as pa

audit = logging.getLogger("cloudseg.audit")

MAX_SEGMENT_PROPERTIES = 500_000
"""Above, a browser takes too long over the document."""

MAX_OPINIONS = 10_000

_DIGITS = re.compile(r"^\d{1,20}$")
FormQuery = Annotated[Form | None, Query(alias="format", description="Overrides the Accept header.")]
OnceHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[!-~]{1,100}$",
        description="Of one's own making; a request that is repeated with the same appends nothing more.",
    ),
]
VersionQuery = Annotated[int | None, Query(gt=0, lt=1 << 62, description="The published version if absent.")]


class NewOpinion(FrozenModel):
    """A reference row as it is sent: time and source are the server's to set."""

    soma_id: Any = Field(description="Id, as text.")
    system: str
    value: str
    score: float | None = None
    version: int | None = None
    target_id: Any = None
    x_nm: float | None = None
    y_nm: float | None = None
    z_nm: float | None = None
    source: str | None = Field(
        default=None, description="A program's name; the token's name stands before it."
    )


class NewOpinions(FrozenModel):
    """Rows that are appended together, or not at all."""

    rows: tuple[NewOpinion, ...] = Field(min_length=1, max_length=MAX_OPINIONS)


_PROBLEM = {
    "description": "What was wrong, in words.",
    "content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}},
}
PROBLEMS: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 401, 403, 404, 406, 413, 422, 429, 500, 503), _PROBLEM
)
_TABLE: dict[int | str, dict[str, Any]] = {
    200: {"description": "A table.", "content": {kind: {} for kind in TYPES.values()}}
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "An Arrow stream.", "content": {TYPES["arrow"]: {}}}
}


def soma_router(datasets: Datasets, access: Access, numbers: Numbers) -> APIRouter:
    """Return the routes below ``/v1``."""

    def may(scope: Scope) -> Callable[[Request], Awaitable[Identity]]:
        async def check(request: Request) -> Identity:  # a thread for so little would cost more than it
            peer = request.client.host if request.client else "unknown"
            return access.admit(request.headers.get("authorization"), peer=peer, scope=scope)

        return check

    reader = Depends(may("read"))
    editor = Depends(may("edit"))
    router = APIRouter(prefix="/v1/datasets", tags=["somas"], responses=PROBLEMS)

    def send(table: pa.Table, form: Form) -> Response:
        numbers.rows(table.num_rows)
        return answer(table, form)

    turns = asyncio.Semaphore(max(4, 2 * (os.cpu_count() or 1)))

    async def in_turn(work: Callable[[], Response]) -> Response:
        """Do work in a thread: a few at once, first come first, for more would only take time from one another."""
        async with turns:
            return await run_in_threadpool(work)

    def catalogue_for(dataset: str, body: requests.Query) -> Catalogue:
        version = body.version
        if version is None and body.cursor is not None:
            version = Cursor.parse(body.cursor).version  # paging stays with the version that it began with
        return datasets.catalogue(dataset, version)[2]

    @router.get("", dependencies=[reader])
    def all_datasets(request: Request) -> Response:
        """List the datasets, with the published version of each."""
        found = [
            {"dataset": each.name, "version": each.latest.version, "versions": list(each.latest.versions)}
            for each in datasets.all().values()
        ]
        return tagged(JSONResponse({"datasets": found}), request, immutable=False)

    @router.get("/{dataset}", dependencies=[reader])
    def one_dataset(dataset: str, request: Request, version: VersionQuery = None) -> Response:
        """Describe a version: voxel size, bounds, provenance, columns with their units; list the versions."""
        found, catalog, _ = datasets.catalogue(dataset, version)
        columns = [
            {
                "name": c.name,
                "type": c.type,
                "unit": c.unit,
                "required": c.required,
                "description": c.description,
            }
            for c in COLUMNS
        ]
        facts = catalog.model_dump(mode="json", exclude={"parts", "format"})
        body = {**facts, "versions": list(found.latest.versions), "columns": columns}
        return tagged(JSONResponse(body), request, immutable=False)

    @router.post("/{dataset}/somas:query", dependencies=[reader], responses=_TABLE)
    async def query(dataset: str, body: requests.Query, request: Request, form: FormQuery = None) -> Response:
        """Rows, a page at a time: send ``next`` of a page as ``cursor`` to get the one after it."""
        kind = wanted_form(request.headers.get("accept"), form)
        if body.page_rows is None:
            body = body.model_copy(update={"page_rows": PAGE_ROWS[kind]})
        asked = body
        return await in_turn(lambda: send(catalogue_for(dataset, asked).query(asked), kind))

    @router.post("/{dataset}/somas:stream", dependencies=[reader], responses=_STREAM)
    def stream(dataset: str, body: requests.Query, request: Request) -> Response:
        """All rows, from ``cursor`` on if it is given, as one Arrow stream, for tables larger than memory.

        The metadata of each batch names, as ``next``, the cursor of what follows; the last batch has none. A stream
        that ends before such a batch is broken: ask again with the last ``next`` as ``cursor``.
        """
        wanted_form(request.headers.get("accept"), None, among=("arrow",))
        facts, batches = catalogue_for(dataset, body).stream(body)

        def counted() -> Iterator[tuple[pa.RecordBatch, str | None]]:
            for batch, following in batches:
                numbers.rows(batch.num_rows)
                yield batch, following

        return arrow_stream(facts, counted())

    def add_question(name: str, model: type[requests.Asked], text: str) -> None:
        async def ask(dataset: str, body: Any, request: Request, form: FormQuery = None) -> Response:
            kind = wanted_form(request.headers.get("accept"), form)

            def answered() -> Response:
                _, _, catalogue = datasets.catalogue(dataset, body.version)
                return send(getattr(catalogue, name)(body), kind)

            return await in_turn(answered)

        ask.__annotations__["body"] = model
        ask.__doc__ = text
        router.add_api_route(
            f"/{{dataset}}/somas:{name}",
            ask,
            methods=["POST"],
            dependencies=[reader],
            responses=_TABLE,
            operation_id=name,
            response_class=Response,
        )

    add_question("count", requests.Count, "Number of somas, by groups.")
    add_question(
        "aggregate",
        requests.Aggregate,
        "Number, mean, deviation, quantiles, extremes of a column, by groups.",
    )
    add_question(
        "histogram", requests.Histogram, "Histogram of a column: bins half-open, the last one closed."
    )
    add_question("nearest", requests.Nearest, "The k nearest somas of each point.")
    add_question(
        "by_segment", requests.BySegment, "The somas of segments; a segment without one has a row of nulls."
    )
    add_question("segments_with", requests.SegmentsWith, "Segments with so many somas.")

    @router.get("/{dataset}/somas/{soma_id}", dependencies=[reader], responses=_TABLE)
    def soma(
        dataset: str, soma_id: str, request: Request, version: VersionQuery = None, form: FormQuery = None
    ) -> Response:
        """One soma."""
        kind = wanted_form(request.headers.get("accept"), form)
        if not _DIGITS.match(soma_id):
            raise QueryError(f"soma_id: expected a whole number, got {soma_id[:40]!r}")
        wanted = id_list(soma_id, where="soma_id")
        _, catalog, catalogue = datasets.catalogue(dataset, version)
        table = catalogue.query(requests.Query(where={"soma_id": [str(wanted[0])]}, tombstones=True))
        if not table.num_rows:
            raise NotFoundError(f"there is no soma {soma_id} in version {catalog.version} of {dataset!r}")
        return tagged(send(table, kind), request, immutable=version is not None)

    @router.get("/{dataset}/segment_properties/info", dependencies=[reader])
    def segment_properties(
        dataset: str,
        request: Request,
        where: Annotated[str, Query(max_length=8000, description="Conditions, as JSON.")] = "{}",
        version: VersionQuery = None,
    ) -> Response:
        """What Neuroglancer searches and sorts the soma segmentation by; ``where`` chooses the somas."""
        try:
            conditions = json.loads(where)
        except (ValueError, RecursionError) as error:
            raise QueryError(f"where: expected JSON, got {where[:80]!r}: {error}") from error
        _, _, catalogue = datasets.catalogue(dataset, version)
        asked = requests.Selection.of({"where": conditions})
        number = catalogue.count(requests.Count.of({"where": conditions}))["n"][0].as_py()
        if number > MAX_SEGMENT_PROPERTIES:
            raise QueryError(
                f"where: {number} somas are more than a viewer takes ({MAX_SEGMENT_PROPERTIES}); narrow the conditions"
            )
        document = properties(catalogue, asked)
        return tagged(JSONResponse(document), request, immutable=version is not None)

    @router.get("/{dataset}/annotations", dependencies=[reader])
    def opinions(dataset: str, request: Request) -> Response:
        """Reference rows, oldest first."""
        rows = [_written(each) for each in read_opinions(datasets.named(dataset).objects)]
        return tagged(JSONResponse({"rows": rows}), request, immutable=False)

    @router.post("/{dataset}/annotations", status_code=200)
    def annotate(
        dataset: str, body: NewOpinions, request: Request, once: OnceHeader = None, who: Identity = editor
    ) -> Response:
        """Append reference rows; nothing is changed by that. Wants a token with the scope ``edit``."""
        found = datasets.named(dataset)
        now = datetime.now(UTC)
        rows = []
        for number, each in enumerate(body.rows):
            source = who.name if each.source is None else f"{who.name}/{each.source}"
            for name in ("soma_id", "target_id"):
                if getattr(each, name) is not None:
                    id_list(getattr(each, name), where=f"rows.{number}.{name}", from_json=True)
            try:
                rows.append(
                    Opinion.load({**each.model_dump(), "source": source, "time": now}, where=f"rows.{number}")
                )
            except ValueError as error:
                raise QueryError(str(error)) from error
        if once is None:
            key, is_new = append_opinions(found.objects, rows), True
        else:
            key, is_new = append_once(found.objects, rows, request=f"{who.name}\n{once}")
        audit.info(
            "%s",
            json.dumps(
                {
                    "time": now.isoformat(timespec="microseconds"),
                    "who": who.name,
                    "peer": request.client.host if request.client else None,
                    "request_id": request.scope.get("cloudseg_request_id"),
                    "dataset": dataset,
                    "appended": key,
                    "repeated": not is_new,
                    "rows": [[str(row.soma_id), row.system, row.value] for row in rows],
                }
            ),
        )
        return JSONResponse({"appended": len(rows), "key": key})

    return router


def _written(each: Opinion) -> dict[str, Any]:
    row = each.model_dump(mode="json")
    for name in ("soma_id", "target_id"):
        row[name] = None if row[name] is None else str(row[name])
    return row

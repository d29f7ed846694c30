"""A catalogue behind a server: questions go as JSON, answers come as Arrow streams, rows in pages."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from cloudseg.client.source import Question
from cloudseg.client.transport import Reply, Transport, refuse
from cloudseg.errors import NotFoundError, ServerError
from cloudseg.somas.opinions import Opinion

if TYPE_CHECKING:
    import pyarrow as pa

    from cloudseg.somas.requests import Asked, Query

ARROW = "application/vnd.apache.arrow.stream"
PAGE_ROWS = 50_000
"""Rows of a page: 2 to 15 MB on the way, a second or less for each."""


class ServerSource:
    """A catalogue that a ``cloudseg serve`` serves.

    Parameters
    ----------
    url
        The server.
    dataset
        Which dataset; None where there is one.
    token
        See :func:`~cloudseg.client.transport.find_token`.
    version
        None for the published one, at this time.
    timeout_s
        How long the server may be silent.
    """

    def __init__(
        self, url: str, *, dataset: str | None, token: str | None, version: int | None, timeout_s: float
    ) -> None:
        self._transport = Transport(url, token=token, timeout_s=timeout_s)
        if dataset is None:
            dataset = self._only_dataset()
        self._path = f"/v1/datasets/{quote(dataset, safe='')}"
        asked = self._path + ("" if version is None else f"?version={int(version)}")
        self._facts: dict[str, Any] = self._transport.get(asked)

    @property
    def address(self) -> str:
        """Where it lies."""
        return self._transport.base

    @property
    def facts(self) -> dict[str, Any]:
        """What ``catalog.json`` says, without the files."""
        return {name: value for name, value in self._facts.items() if name not in ("versions", "columns")}

    def versions(self) -> tuple[int, ...]:
        """Published versions, rising; asked anew each time."""
        return tuple(self._transport.get(self._path)["versions"])

    def ask(self, question: Question, asked: Asked) -> pa.Table:
        """Return the answer to a question that fits one table."""
        return self._arrow(f"{self._path}/somas:{question}", asked.model_dump(mode="json", exclude_none=True))

    def rows(self, asked: Query) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a query: a page, and if there are more, the others as a stream from there on."""
        from cloudseg.somas.tables import facts_of

        question = asked.model_dump(mode="json", exclude_none=True)
        page = self._arrow(f"{self._path}/somas:query", {"page_rows": PAGE_ROWS, **question})
        yield from page.replace_schema_metadata(None).to_batches()
        following = facts_of(page)["next"]
        if following is None:
            return

        def remaining() -> dict[str, Any]:
            return {**question, "cursor": following}

        path = f"{self._path}/somas:stream"
        for batch, behind in self._transport.stream(path, remaining, accept=ARROW, read=_read_batches):
            following = behind
            yield batch

    def opinions(self) -> list[Opinion]:
        """Return the reference rows."""
        return [
            Opinion.model_validate(row) for row in self._transport.get(f"{self._path}/annotations")["rows"]
        ]

    def annotate(self, opinions: list[dict[str, Any]]) -> None:
        """Append reference rows; the time, and who says so, are the server's to set."""
        rows = [
            {
                name: str(value) if name in ("soma_id", "target_id") and value is not None else value
                for name, value in each.items()
            }
            for each in opinions
        ]
        self._transport.post(
            f"{self._path}/annotations",
            {"rows": rows},
            accept="application/json",
            read=lambda reply: reply,
            # The same in each attempt: rows of which only the answer was lost are not appended again.
            headers={"Idempotency-Key": uuid.uuid4().hex},
        )

    def close(self) -> None:
        """Let go of connections."""
        self._transport.close()

    def _arrow(self, path: str, body: dict[str, Any]) -> pa.Table:
        table: pa.Table = self._transport.post(path, body, accept=ARROW, read=_read_table)
        return table

    def _only_dataset(self) -> str:
        names = [each["dataset"] for each in self._transport.get("/v1/datasets")["datasets"]]
        if len(names) != 1:
            there = f"there are: {', '.join(names)}" if names else "it has none"
            raise NotFoundError(
                f"{self._transport.base} does not serve one dataset, {there}; name it with `dataset`"
            )
        return str(names[0])


def _read_table(reply: Reply) -> pa.Table:
    import pyarrow as pa

    _expect_arrow(reply)
    try:
        with pa.ipc.open_stream(reply.data) as reader:
            return reader.read_all()
    except (pa.ArrowException, OSError) as error:
        refuse(f"the answer was not whole ({error})")


def _read_batches(reply: Reply) -> Iterator[tuple[pa.RecordBatch, str | None]]:
    """Yield the batches of a stream, each with the cursor of what follows."""
    import pyarrow as pa
    import urllib3

    from cloudseg.somas.tables import NEXT

    _expect_arrow(reply)
    following: str | None = ""
    try:
        with pa.ipc.open_stream(reply.file) as reader:
            while following is not None:
                # A stream that breaks off between two batches looks like one that ended.
                batch, metadata = reader.read_next_batch_with_custom_metadata()
                following = metadata[NEXT].decode() if metadata and NEXT in metadata else None
                yield batch.replace_schema_metadata(None), following
    except (pa.ArrowException, OSError, urllib3.exceptions.HTTPError, StopIteration) as error:
        refuse(f"the stream was not whole ({error or 'rows are missing at its end'})")


def _expect_arrow(reply: Reply) -> None:
    if not reply.headers.get("content-type", "").startswith(ARROW):
        raise ServerError(
            f"expected an Arrow stream, got {reply.headers.get('content-type', 'no type')}: is this the address of a "
            "cloudseg server?"
        )

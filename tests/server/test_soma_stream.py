"""Long answers over real HTTP: whole, in bounded pieces, gone on with where they broke off, never short in silence."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request

import pyarrow as pa
import pytest
from made_catalogues import write

from cloudseg import QueryError, Somas, TransientStorageError
from cloudseg.server.access import Access, TokenEntry, TokenFile
from cloudseg.server.app import create_app, running
from cloudseg.server.datasets import Datasets
from cloudseg.testing.front import Fault, front
from cloudseg.testing.somas import soma_table

PATH = "/v1/datasets/made-up/somas:stream"
COLUMNS = ["x_nm", "region"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("stream"))
    write(folder, soma_table(900, seed=5))
    return folder


@pytest.fixture
def url(folder, monkeypatch):
    monkeypatch.setattr("cloudseg.client.remote.PAGE_ROWS", 100)
    monkeypatch.setattr("cloudseg.somas.catalogue.STREAM_ROWS", 70)
    with running(create_app([], datasets=Datasets([folder]))) as found:
        yield found


def streamed(url, asked, **headers):
    """Return an answer's bytes."""
    request = urllib.request.Request(
        url + PATH, json.dumps(asked).encode(), {"Content-Type": "application/json", **headers}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.read()


def pieces(data):
    """Return the rows of each batch, what its metadata says comes next, and the facts."""
    found = []
    with pa.ipc.open_stream(data) as reader:
        facts = json.loads(reader.schema.metadata[b"cloudseg"])
        while True:
            try:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                return found, facts
            found.append((batch.to_pylist(), metadata[b"next"].decode() if metadata else None))


@pytest.mark.parametrize("order", ["soma_id", "-region", "sphericity"])
def test_one_can_go_on_behind_every_batch(url, folder, order):
    asked = {"order": order, "columns": COLUMNS, "units": "um", "where": {"volume_um3": {">": 50}}}
    expected = Somas(folder).query_arrow(asked["where"], order=order, columns=COLUMNS, units="um").to_pylist()
    found, facts = pieces(streamed(url, asked))
    assert facts == {"dataset": "made-up", "version": 1, "units": "um", "total": len(expected)}
    assert [row for rows, _ in found for row in rows] == expected
    assert len(found) > 5
    assert max(len(rows) for rows, _ in found) <= 70
    assert [following is None for _, following in found] == [False] * (len(found) - 1) + [True]
    sent = 0
    for rows, following in found[:-1]:
        sent += len(rows)
        rest, _ = pieces(streamed(url, asked | {"cursor": following}))
        assert [row for more, _ in rest for row in more] == expected[sent:]


@pytest.mark.parametrize("limit", [0, 1, 70, 250])
def test_a_limit_holds_over_all_batches(url, folder, limit):
    expected = Somas(folder).query_arrow(columns=COLUMNS, limit=limit).to_pylist()
    found, facts = pieces(streamed(url, {"columns": COLUMNS, "limit": limit}))
    assert [row for rows, _ in found for row in rows] == expected
    assert found[-1][1] is None
    assert facts["total"] == Somas(folder).count()


def test_nothing_found_is_a_whole_stream(url):
    found, facts = pieces(streamed(url, {"where": {"soma_id": []}, "columns": COLUMNS}))
    assert (found, facts["total"]) == ([([], None)], 0)


def test_a_stream_that_breaks_off_is_gone_on_with(url, folder):
    expected = Somas(folder).query_arrow(order="-volume_um3").to_pylist()
    with front(url) as between:
        somas = Somas(between.url)
        waits = []
        somas._source._transport.sleep = waits.append
        for fault, n_waits in (
            (Fault("somas:stream", cut="before", times=1), 1),
            (Fault("somas:stream", cut="mid", times=2), 2),
            (Fault("somas:stream", shorten=0.5, times=3), 3),
            (Fault("somas:stream", shorten=0.9, times=1), 1),
            (Fault("somas:stream", status=503, times=2), 2),
        ):
            between.faults = [fault]
            waits.clear()
            assert somas.query_arrow(order="-volume_um3").to_pylist() == expected
            assert len(waits) == n_waits


def test_a_stream_that_ends_between_two_batches_is_noticed(url, folder):
    """Nothing in the format tells such a stream from a whole one, but the cursor of its last batch does."""
    data = streamed(url, {"order": "region"})
    ends = []
    file = pa.BufferReader(data)
    with pa.ipc.open_stream(file) as reader:
        for _ in range(3):
            reader.read_next_batch()
            ends.append(file.tell())
    assert [len(pieces(data[:end])[0]) for end in ends] == [1, 2, 3], "cut there, it reads like a whole one"
    expected = Somas(folder).query_arrow(order="region").to_pylist()
    with front(url) as between:
        somas = Somas(between.url)
        somas._source._transport.sleep = lambda seconds: None
        somas._source._transport.jitter = lambda: 0.0
        for end in ends:
            between.faults = [Fault("somas:stream", shorten=(end + 0.5) / len(data), times=1)]
            n_faults = between.n_faults
            assert somas.query_arrow(order="region").to_pylist() == expected
            assert between.n_faults == n_faults + 1


def test_a_stream_that_never_comes_is_an_error_not_a_short_answer(url):
    with front(url) as between:
        somas = Somas(between.url)
        somas._source._transport.sleep = lambda seconds: None
        between.faults = [Fault("somas:stream", shorten=0.01)]
        batches = somas.query_batches()
        assert next(batches).num_rows == 100
        with pytest.raises(
            TransientStorageError, match="somas:stream broke off 6 times in a row: the stream was not"
        ):
            list(batches)


def test_a_reader_that_leaves_does_no_harm(url):
    somas = Somas(url)
    for _ in range(12):
        batches = somas.query_batches()
        next(batches)
        next(batches)
        batches.close()
    assert somas.count() > 700


@pytest.mark.parametrize(
    ("asked", "headers", "status", "expected"),
    [
        ({"page_rows": 5}, {}, 422, "page_rows: a stream has no pages; leave it out"),
        ({"cursor": "x"}, {}, 422, "cursor: this is none that a page came with"),
        ({"columns": ["volum_um3"]}, {}, 422, "did you mean volume_um3"),
        ({"version": 9}, {}, 404, "published versions: 1"),
        ({}, {"Accept": "text/csv"}, 406, "answers come as application/vnd.apache.arrow.stream; the Accept"),
    ],
)
def test_what_is_wrong_is_said_before_the_stream_begins(url, asked, headers, status, expected):
    with pytest.raises(urllib.error.HTTPError) as error:
        streamed(url, asked, **headers)
    assert error.value.code == status
    assert expected in json.loads(error.value.read())["error"]["message"]


def test_an_edit_whose_answer_was_lost_is_made_once(tmp_path):
    write(str(tmp_path), soma_table(5))
    digest = hashlib.sha256(b"editor").hexdigest()
    entry = TokenEntry(name="ben", sha256=digest, scopes=("read", "edit"))
    access = Access(TokenFile(secret="a secret of sixteen", tokens=(entry,)))
    rows = [{"soma_id": 1, "system": "status", "value": "rejected"}]
    app = create_app([], datasets=Datasets([str(tmp_path)]), access=access)
    with running(app) as url, front(url) as between:
        somas = Somas(between.url, token="editor")
        somas._source._transport.sleep = lambda seconds: None
        between.faults = [Fault("POST .*annotations", cut="after", times=2)]
        somas.annotate(rows)
        assert sum("POST" in line for line in between.requests) == 3, "it was sent thrice"
        assert len(somas.opinions()) == 1
        somas.annotate(rows)
        assert len(somas.opinions()) == 2, "said again on purpose, it counts again"

        def send(value, key):
            return somas._source._transport.post(
                "/v1/datasets/made-up/annotations",
                {"rows": [{"soma_id": "2", "system": "status", "value": value}]},
                accept="application/json",
                read=lambda reply: json.loads(reply.data),
                headers={"Idempotency-Key": key},
            )

        assert send("verified", "one") == send("verified", "one")
        with pytest.raises(
            QueryError, match="Idempotency-Key: this key came with other rows before, so these were"
        ):
            send("rejected", "one")
        with pytest.raises(QueryError, match="Idempotency-Key: String should match pattern"):
            send("rejected", "x" * 101)
        assert somas.opinions()["value"].tolist() == ["rejected", "rejected", "verified"]

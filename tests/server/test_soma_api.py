"""The soma API over real HTTP: forms, tags, tokens, rates, origins, sizes, edits; nothing crashes, nothing leaks."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import stat
import urllib.error
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from made_catalogues import write

from cloudseg import (
    AuthError,
    NotFoundError,
    QueryError,
    ServerError,
    Somas,
    SpecError,
    TransientStorageError,
)
from cloudseg.cli.token import token as token_command
from cloudseg.client.transport import Transport, find_token, token_file
from cloudseg.server.access import Access, RefusedError, TokenEntry, TokenFile, read_tokens
from cloudseg.server.app import create_app, running
from cloudseg.server.datasets import Datasets
from cloudseg.somas.store import read_catalog
from cloudseg.testing.front import Fault, front
from cloudseg.testing.somas import soma_table
from cloudseg.volumes import open_objects
from cloudseg_viewer.links import Mount

READER, EDITOR, OLD = "cs_reader-secret", "cs_editor-secret", "cs_old-secret"


def entry(name, token, **more):
    return TokenEntry(name=name, sha256=hashlib.sha256(token.encode()).hexdigest(), **more)


TOKENS = TokenFile(
    secret="a secret of sixteen",
    tokens=(
        entry("ann", READER),
        entry("ben", EDITOR, scopes=("read", "edit")),
        entry("cat", OLD, expires=datetime(2020, 1, 1, tzinfo=UTC)),
    ),
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    uri = f"file://{tmp_path_factory.mktemp('api')}/run"
    write(f"{uri}/somas", soma_table(300, seed=5))
    return uri


@contextmanager
def served(uri, mounts=(), **how):
    with running(create_app(mounts, datasets=Datasets([uri]), **how)) as url:
        yield url


@pytest.fixture(scope="module")
def url(uri):
    with served(uri) as found:
        yield found


def ask(url, path, body=None, *, method=None, token=None, **headers):
    """Return status, headers and body."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, method=method)
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    if data is not None and "Content_Type" not in headers:
        request.add_header("Content-Type", "application/json")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def message(answer):
    return json.loads(answer[2])["error"]["message"]


HOME = "/v1/datasets/made-up"


def test_what_there_is(url):
    status, headers, body = ask(url, "/v1/datasets")
    assert (status, json.loads(body)) == (
        200,
        {"datasets": [{"dataset": "made-up", "version": 1, "versions": [1]}]},
    )
    facts = json.loads(ask(url, HOME)[2])
    assert facts["n_somas"] == 300
    assert {
        "name": "volume_um3",
        "type": "float64",
        "unit": "um3",
        "required": True,
        "description": "volume",
    } in facts["columns"]
    assert ask(url, HOME, If_None_Match=ask(url, HOME)[1]["ETag"])[0] == 304
    assert headers["X-Request-Id"]
    assert json.loads(ask(url, "/readyz")[2]) == {"status": "ok", "datasets": 1}
    assert json.loads(ask(url, "/version")[2]).keys() == {"cloudseg"}
    assert "no dataset 'fafb'; there are: made-up" in message(ask(url, "/v1/datasets/fafb"))
    assert "no version 9 of 'made-up'; published versions: 1" in message(ask(url, HOME + "?version=9"))


def test_the_same_rows_in_four_forms(url):
    asked = {"columns": ["soma_id", "x_nm", "region", "segment_id"], "order": "-volume_um3", "limit": 20}
    kind = "application/vnd.apache.arrow."
    arrow = pa.ipc.open_stream(ask(url, HOME + "/somas:query", asked, Accept=kind + "stream")[2]).read_all()
    rows = arrow.to_pylist()
    assert len(rows) == 20
    parquet = pq.read_table(io.BytesIO(ask(url, HOME + "/somas:query?format=parquet", asked)[2]))
    assert parquet.to_pylist() == rows
    found = json.loads(ask(url, HOME + "/somas:query", asked)[2])
    assert found["columns"] == asked["columns"]
    as_text = [
        [None if v is None else str(v) if k.endswith("_id") else v for k, v in row.items()] for row in rows
    ]
    assert found["rows"] == as_text
    assert (found["dataset"], found["version"], found["units"], found["next"]) == ("made-up", 1, "nm", None)
    _, headers, body = ask(url, HOME + "/somas:query", asked, Accept="text/csv")
    assert headers["Content-Type"].startswith("text/csv")
    assert json.loads(headers["Cloudseg-Facts"])["total"] == found["total"]
    read = list(csv.DictReader(io.StringIO(body.decode())))
    assert [row["soma_id"] for row in read] == [str(row["soma_id"]) for row in rows]
    assert ask(url, HOME + "/somas:query", asked, Accept="image/png")[0] == 406
    assert ask(url, HOME + "/somas:query", asked, Accept="image/png, text/*;q=0.5")[1][
        "Content-Type"
    ].startswith("text/csv")


def test_one_soma_by_its_address(url):
    some = json.loads(
        ask(url, HOME + "/somas:query", {"where": {"soma_id": {">": str(2**63)}}, "limit": 1})[2]
    )
    (row,) = some["rows"]
    path = f"{HOME}/somas/{row[0]}"
    _, headers, body = ask(url, path + "?version=1")
    assert json.loads(body)["rows"] == [row]
    assert "immutable" in headers["Cache-Control"]
    assert ask(url, path)[1]["Cache-Control"] == "no-cache"
    assert ask(url, path + "?version=1", If_None_Match=headers["ETag"])[0] == 304
    assert "no soma 123456 in version 1" in message(ask(url, HOME + "/somas/123456"))
    assert "expected a whole number, got 'x'" in message(ask(url, HOME + "/somas/x"))
    assert "an id is a whole number" in message(ask(url, f"{HOME}/somas/{2**64}"))


def test_paging_stays_with_the_version_it_began_with(tmp_path):
    write(str(tmp_path), soma_table(40, seed=1))
    with served(str(tmp_path)) as url:
        asked = {"page_rows": 7, "columns": ["soma_id"], "order": "-region", "tombstones": True}
        whole = (
            Somas(tmp_path, version=1)
            .query(columns=["soma_id"], order="-region", tombstones=True)["soma_id"]
            .tolist()
        )
        found, cursor = [], None
        while True:
            page = json.loads(
                ask(url, HOME + "/somas:query", asked | ({"cursor": cursor} if cursor else {}))[2]
            )
            assert page["version"] == 1
            found += [int(row[0]) for row in page["rows"]]
            cursor = page["next"]
            if cursor is None:
                break
            if len(found) == 7:
                client = Somas(url)
                write(str(tmp_path), soma_table(60, seed=2), version=2)
                Datasets([str(tmp_path)])
        assert found == whole
        assert client.version == 1
        assert client.count(tombstones=True) == 40
        first = json.loads(ask(url, HOME + "/somas:query", asked)[2])
        other = asked | {"order": "soma_id", "cursor": first["next"]}
        assert "cursor: it belongs to another question" in message(ask(url, HOME + "/somas:query", other))
        for odd in ("x", "é", "bnVsbA", "W10", first["next"][:-4], "WzEsImEiLCIxIixOYU4sMSwxXQ"):
            answer = ask(url, HOME + "/somas:query", asked | {"cursor": odd})
            assert answer[0] == 422
            assert message(answer).startswith("cursor: ")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"where": {"volum_um3": 1}}, "no column 'volum_um3'; did you mean volume_um3"),
        ({"where": {"soma_id": 2**53 + 1}}, 'ids above 2^53 lose digits in many JSON programs; write the id as text'),
        ({"where": {"soma_id": [9007199254740993]}}, "lose digits"),
        ({"where": {"region": "' OR 1=1; DROP TABLE somas; --"}}, None),
        ({"where": 3}, "where: Input should be a valid dictionary (got 3)"),
        ({"wher": {}}, "wher: Extra inputs are not permitted"),
        ({"bbox": [[0, 0, 9], [1, 1, 1]]}, "bbox: the box is upside down along z"),
        ({"page_rows": 100_001}, "page_rows: Input should be less than or equal to 100000"),
        ({"order": "volume_um3; --"}, "order: there is no column 'volume_um3; --'"),
        ({"columns": ['soma_id" FROM somas; --']}, "columns: there is no column"),
        ({"version": 10**30}, "no version"),
        (b"{", "JSON decode error"),
        (b'{"bbox": [[NaN, 0, 0], [1, 1, 1]]}', "finite"),
        (b'{"where": {"volume_um3": {">": 1e999}}}', "expected a finite number"),
        (b'{"where": {"region": "\\ud800"}}', "valid Unicode"),
        (b'{"where": {"edge_faces": ' + b"9" * 5000 + b"}}", ""),
        (b'{"where": {"region": ' + b"[" * 5000 + b"]" * 5000 + b"}}", ""),
        (b"\xff\xfe", ""),
        (b"[]", "valid dictionary"),
    ],
)  # fmt: skip
def test_bad_questions_are_answered_in_words(url, body, expected):
    answer = ask(url, HOME + "/somas:query", body)
    if expected is None:
        assert (answer[0], json.loads(answer[2])["rows"]) == (200, [])
        return
    assert answer[0] in (400, 404, 422)
    assert expected in message(answer)
    assert json.loads(answer[2])["error"]["request_id"] == answer[1]["X-Request-Id"]


def test_a_body_has_a_bound(url, monkeypatch):
    monkeypatch.setattr("cloudseg.server.edge.MAX_BODY_BYTES", 1000)
    answer = ask(url, HOME + "/somas:query", {"where": {"soma_id": [str(i) for i in range(1000)]}})
    assert answer[0] == 413
    assert "larger than 1000 bytes; ask in several parts" in message(answer)


def test_tokens_say_who_may_do_what(uri, caplog, tmp_path):
    mounts = [Mount("run-1", uri)]
    with (
        served(uri, mounts, access=Access(TOKENS), links={"root": "/secret-link"}) as url,
        caplog.at_level(logging.DEBUG),
    ):
        assert "this server wants a token" in message(ask(url, "/v1/datasets"))
        assert ask(url, "/v1/datasets")[1]["WWW-Authenticate"] == "Bearer"
        assert "the token is not known here" in message(ask(url, "/v1/datasets", token="cs_reader-secreT"))
        assert "the token of 'cat' expired on 2020-01-01" in message(ask(url, "/v1/datasets", token=OLD))
        assert "not of the form 'Bearer TOKEN'" in message(
            ask(url, "/v1/datasets", Authorization="Basic eDp5")
        )
        assert ask(url, "/v1/datasets", token=READER)[0] == 200
        rows = {"rows": [{"soma_id": "1", "system": "status", "value": "rejected"}]}
        assert "'ann' has no scope 'edit', only read" in message(
            ask(url, HOME + "/annotations", rows, token=READER)
        )
        # What lies below the roots has a name that only a link tells.
        assert ask(url, "/data/run-1/somas/latest.json")[0] == 404
        assert b"run-1" not in ask(url, "/data/nothing/info")[2].replace(b"nothing", b"")
        assert ask(url, f"/data/{Access(TOKENS).capability('run-1')}/somas/latest.json")[0] == 200
        assert json.loads(ask(url, "/healthz")[2])["mounts"] == {}
        assert b"secret-link" not in ask(url, "/")[2]
        with pytest.raises(AuthError, match="this server wants a token"):
            Somas(url)
        client = Somas(url, token=READER)
        assert client.count() > 200
        for each in (READER, EDITOR, OLD):
            assert each not in repr(client) + repr(client._source.__dict__) + caplog.text
        # How much is asked is said to those who may ask; what can be asked, and that it is alive, to all.
        assert ask(url, "/metrics")[0] == 401
        assert ask(url, "/metrics", token="x")[0] == 401
        page = ask(url, "/metrics", token=READER)
        assert page[0] == 200
        assert "reader-secret" not in page[2].decode()
        assert [ask(url, path)[0] for path in ("/openapi.json", "/healthz", "/readyz", "/version")] == [
            200
        ] * 4


def test_edits_are_appended_and_written_down(tmp_path, caplog):
    write(str(tmp_path), soma_table(5))
    with served(str(tmp_path), access=Access(TOKENS)) as url, caplog.at_level(logging.INFO, "cloudseg.audit"):
        editor = Somas(url, token=EDITOR)
        editor.annotate([{"soma_id": 2**64 - 1, "system": "status", "value": "rejected", "source": "page"}])
        found = editor.opinions()
        assert found[["soma_id", "system", "value", "source"]].to_numpy().tolist() == [
            [2**64 - 1, "status", "rejected", "ben/page"]
        ]
        line = json.loads(caplog.records[-1].getMessage())
        assert (line["who"], line["dataset"], line["rows"]) == (
            "ben",
            "made-up",
            [[str(2**64 - 1), "status", "rejected"]],
        )
        assert Somas(tmp_path).opinions().equals(found)
        for row, expected in (
            ({"soma_id": 2**60, "system": "status", "value": "x"}, "lose digits"),
            ({"soma_id": "1", "system": "STATUS", "value": "x"}, "rows.0: system"),
            ({"soma_id": "0", "system": "status", "value": "x"}, "rows.0: soma_id"),
            (
                {"soma_id": "1", "system": "status", "value": "x", "time": "2020-01-01"},
                "rows.0.time: Extra inputs",
            ),
        ):
            answer = ask(url, HOME + "/annotations", {"rows": [row]}, token=EDITOR)
            assert answer[0] == 422
            assert expected in message(answer)
    with served(str(tmp_path)) as url:
        assert "this server takes no edits: start it with --tokens" in message(
            ask(url, HOME + "/annotations", {"rows": [row]})
        )


def test_a_rate_is_kept_and_the_client_waits(uri):
    now = [0.0]
    access = Access(rate_per_s=2, clock=lambda: now[0])
    for _ in range(4):
        access.admit(None, peer="a", scope="read")
    with pytest.raises(RefusedError) as refused:
        access.admit(None, peer="a", scope="read")
    assert (refused.value.status, refused.value.retry_after_s) == (429, 0.5)
    access.admit(None, peer="b", scope="read")
    now[0] += 0.5
    access.admit(None, peer="a", scope="read")
    now[0] = 0.0
    with served(uri, access=Access(rate_per_s=2, clock=lambda: now[0])) as url:
        client = Somas(url)  # lists the datasets, describes one: two of the four
        client._source._transport.sleep = lambda seconds: now.__setitem__(0, now[0] + seconds)
        assert client.count() == client.count() > 0
        slow = ask(url, "/v1/datasets")
        assert (slow[0], slow[1]["Retry-After"]) == (429, "1")
        assert "more than 2 requests a second; wait 0.50 s" in message(slow)
        assert [client.count() for _ in range(4)] == [client.count()] * 4
        assert now[0] >= 2.5


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [((), "https://lab.org", None), (("https://lab.org",), "https://lab.org", "https://lab.org"),
     (("https://lab.org",), "https://evil.org", None), (("*",), "https://any.org", "https://any.org")],
)  # fmt: skip
def test_pages_elsewhere_may_ask_if_their_origin_is_listed(uri, origins, origin, allowed):
    with served(uri, origins=origins) as url:
        for method in ("OPTIONS", "GET"):
            _, headers, _ = ask(
                url, "/v1/datasets", method=method, Origin=origin, Access_Control_Request_Method="POST"
            )
            assert headers["Access-Control-Allow-Origin"] == allowed
        assert ask(url, "/healthz", Origin=origin)[1]["Access-Control-Allow-Origin"] == "*"


def test_numbers_for_prometheus(url):
    ask(url, HOME + "/somas:count", {})
    page = ask(url, "/metrics")[2].decode()
    assert (
        'cloudseg_http_requests_total{method="POST",route="/v1/datasets/{dataset}/somas:count",status="200"}'
        in page
    )
    assert 'le="+Inf"' in page
    assert "cloudseg_rows_sent_total" in page


def test_neuroglancer_finds_somas_by_size_and_tag(url):
    where = urllib.request.quote(json.dumps({"volume_um3": {">=": 90}}))
    info = json.loads(ask(url, f"{HOME}/segment_properties/info?version=1&where={where}")[2])
    expected = Somas(url).query({"volume_um3": {">=": 90}})
    assert info["inline"]["ids"] == [str(i) for i in expected["soma_id"]]
    properties = {each["id"]: each for each in info["inline"]["properties"]}
    assert properties["volume_um3"]["values"] == pytest.approx(expected["volume_um3"].tolist(), rel=1e-6)
    assert properties["sphericity"]["values"].count("NaN") == expected["sphericity"].isna().sum() > 0
    assert "it's;_DROP" in properties["tags"]["tags"]
    assert "where: expected JSON" in message(ask(url, HOME + "/segment_properties/info?where=x"))


def test_an_unready_catalogue_is_said(tmp_path):
    objects = write(str(tmp_path), soma_table(5))
    objects.put(read_catalog(objects).parts[0].key, b"PAR1 no more")
    with served(str(tmp_path)) as url:
        assert ask(url, "/readyz")[0] == 503
        answer = ask(url, HOME + "/somas:count", {})
        assert (answer[0], message(answer)) == (500, "the server failed; its log says why")
        with pytest.raises(ServerError, match="failed with 500.*request id [0-9a-f]{16}"):
            Somas(url).count()


def test_a_catalogue_may_be_published_later(tmp_path, monkeypatch):
    monkeypatch.setattr("cloudseg.server.datasets._LOOK_S", 0.0)
    with served(str(tmp_path)) as url:
        with pytest.raises(NotFoundError, match="does not serve one dataset, it has none"):
            Somas(url)
        write(f"{tmp_path}/somas", soma_table(5))
        assert Somas(url).count(tombstones=True) == 5


# ---------------------------------------------------------------------------------- the client's transport


def test_failures_on_the_way_are_tried_again(url):
    with front(url) as between:
        waits = []
        client = Somas(between.url)
        client._source._transport.sleep = waits.append
        expected = client.query_arrow().to_pylist()
        for fault in (
            Fault("somas:query", status=503, times=2),
            Fault("somas:query", cut="before", times=1),
            Fault("somas:query", cut="mid", times=1),
            Fault("somas:query", shorten=0.5, times=2),
        ):
            between.faults = [fault]
            assert client.query_arrow().to_pylist() == expected
        assert len(waits) == 6
        assert all(0 <= wait <= 8 for wait in waits)
        between.faults = [Fault("somas:count", status=502)]
        with pytest.raises(TransientStorageError, match="somas:count answered 502 each time"):
            client.count()
        assert len(waits) == 11


def test_no_server_is_an_error_after_some_tries(monkeypatch):
    transport = Transport("http://127.0.0.1:9", sleep=lambda s: None)
    with pytest.raises(
        TransientStorageError, match="cannot reach http://127.0.0.1:9/v1/x: .*; check the address"
    ):
        transport.get("/v1/x")


def test_another_kind_of_server_is_noticed(tmp_path):
    with running(create_app([])) as url, pytest.raises(NotFoundError, match="it has none"):
        Somas(url)
    with pytest.raises(SpecError, match="a server is written https://host"):
        Transport("https://user:secret@host/")
    with pytest.raises(SpecError, match="timeout: expected seconds above 0"):
        Transport("https://host", timeout_s=0)


def test_a_token_is_found_kept_and_never_sent_in_the_clear(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("CLOUDSEG_TOKEN", raising=False)
    assert find_token("https://a", None) is None
    token_file().parent.mkdir()
    token_file().write_text('{"https://a": "from-file"}')
    token_file().chmod(0o644)
    with pytest.raises(AuthError, match="others can read the tokens in .*chmod 600"):
        find_token("https://a", None)
    token_file().chmod(0o600)
    assert find_token("https://a", None) == "from-file"
    assert find_token("https://b", None) is None
    monkeypatch.setenv("CLOUDSEG_TOKEN", "from-environment")
    assert find_token("https://a", None) == "from-environment"
    assert find_token("https://a", "given") == "given"
    with pytest.raises(
        AuthError, match="was not sent to http://example.org: over plain http anybody"
    ) as error:
        Transport("http://example.org", token="hidden-token")
    assert "hidden-token" not in str(error.value)
    assert Transport("http://127.0.0.1:1", token="x").token == "x"
    with pytest.raises(AuthError, match="characters that no token has"):
        Transport("https://a", token="a\nb")


def test_tokens_are_made_by_a_command(tmp_path):
    path = tmp_path / "tokens.json"
    made = CliRunner().invoke(token_command, [str(path), "dora", "--edit", "--days", "3"])
    value = made.stdout.strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert value not in path.read_text()
    access = Access(read_tokens(path))
    assert access.admit(f"Bearer {value}", peer="x", scope="edit").name == "dora"
    access.now = lambda: datetime.now(UTC) + timedelta(days=4)
    with pytest.raises(RefusedError, match="expired"):
        access.admit(f"Bearer {value}", peer="x", scope="read")
    with pytest.raises(SpecError, match="has a token of 'dora' already"):
        CliRunner().invoke(token_command, [str(path), "dora"], catch_exceptions=False)
    with pytest.raises(
        NotFoundError, match="cannot read the tokens in .*; make the first with: cloudseg token"
    ):
        read_tokens(tmp_path / "none")
    path.write_text("{}")
    with pytest.raises(SpecError, match="missing key 'secret'"):
        read_tokens(path)


def test_a_query_error_crosses_the_wire(url):
    with pytest.raises(QueryError, match="`next` of the page before"):
        Somas(url)._source._transport.post(
            HOME + "/somas:query", {"cursor": "x"}, accept="application/json", read=lambda reply: reply
        )


def test_the_objects_of_a_root_are_where_the_server_looks(uri):
    assert open_objects(uri).exists("somas/latest.json")

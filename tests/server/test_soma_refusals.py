"""SQL in any field is a value or a mistake in words, never a statement."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from urllib.parse import quote

import pytest
from made_catalogues import write

from cloudseg import Somas
from cloudseg.server.app import create_app, running
from cloudseg.server.datasets import Datasets
from cloudseg.testing.somas import soma_table

SQL = "1; DROP TABLE somas; --"
QUOTED = "x' OR '1'='1' UNION SELECT * FROM duckdb_settings() --"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("refusals"))
    write(folder, soma_table(60, seed=5))
    with running(create_app([], datasets=Datasets([folder]))) as found:
        yield found


def ask(url, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["message"]


@pytest.mark.parametrize("text", [SQL, QUOTED])
@pytest.mark.parametrize(
    ("question", "body", "expected"),
    [
        ("query", lambda s: {"where": {s: 1}}, "where: there is no column"),
        ("query", lambda s: {"where": {"volume_um3": {s: 1}}}, "where.volume_um3: there is no operator"),
        ("query", lambda s: {"where": {"volume_um3": s}}, "where.volume_um3.==: volume_um3 is a number, got"),
        ("query", lambda s: {"where": {"soma_id": [s]}}, "where.soma_id.in: expected a whole number, got"),
        ("query", lambda s: {"where": {"region": s}}, None),
        ("query", lambda s: {"where": {"region": {"not_in": [s]}}}, None),
        ("query", lambda s: {"columns": [s]}, "columns: there is no column"),
        ("query", lambda s: {"order": s}, "order: there is no column"),
        ("query", lambda s: {"order": f"-{s}"}, "order: there is no column"),
        ("query", lambda s: {"units": s}, "units: Input should be 'nm', 'um' or 'voxel'"),
        ("query", lambda s: {"predicate": s}, "predicate: Input should be 'centroid' or 'intersects'"),
        ("query", lambda s: {"bbox": [[s, 0, 0], [1, 1, 1]]}, "bbox.0.0: Input should be a valid number"),
        ("query", lambda s: {"limit": s}, "limit: Input should be a valid integer"),
        ("query", lambda s: {"version": s}, "version: Input should be a valid integer"),
        ("query", lambda s: {"cursor": s}, "cursor: this is none that a page came with"),
        ("stream", lambda s: {"order": s}, "order: there is no column"),
        ("count", lambda s: {"by": [s]}, "by: there is no column"),
        ("aggregate", lambda s: {"column": s}, "column: there is no column"),
        ("histogram", lambda s: {"column": s}, "column: there is no column"),
        ("nearest", lambda s: {"points": [[s, 0, 0]]}, "points.0.0: Input should be a valid number"),
        ("by_segment", lambda s: {"segment_ids": [s]}, "segment_ids: expected a whole number, got"),
        ("segments_with", lambda s: {"n_somas": s}, "n_somas: expected a number or a comparison"),
        ("segments_with", lambda s: {"among": [s]}, "among: expected a whole number, got"),
    ],
)  # fmt: skip
def test_in_a_question(url, question, body, expected, text):
    status, said = ask(url, f"/v1/datasets/made-up/somas:{question}", body(text))
    if expected is None:
        assert status == 200
        assert (len(said["rows"]) == 0) is ("not_in" not in json.dumps(body("")))
    else:
        assert (status, said[: len(expected)]) == (422, expected)
    assert Somas(url).count(tombstones=True) == 60


@pytest.mark.parametrize(
    ("path", "status", "expected"),
    [
        ("/v1/datasets/{}", 404, "there is no dataset"),
        ("/v1/datasets/made-up/somas/{}", 422, "soma_id: expected a whole number, got"),
        ("/v1/datasets/made-up?version={}", 422, "version: Input should be a valid integer"),
        ("/v1/datasets/made-up/somas/1?format={}", 422, "format: Input should be 'json', 'arrow'"),
        ("/v1/datasets/made-up/segment_properties/info?where={}", 422, "where: expected JSON, got"),
    ],
)
def test_in_an_address(url, path, status, expected):
    answer = ask(url, path.format(quote(SQL, safe="")))
    assert (answer[0], answer[1][: len(expected)]) == (status, expected)
    assert Somas(url).count(tombstones=True) == 60

"""Whatever is sent to the soma API, it answers in words: no crash, no leak, no escape."""

from __future__ import annotations

import copy
import http.client
import json
import os
from urllib.parse import urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_catalogues import write

from cloudseg.server.app import create_app, running
from cloudseg.server.datasets import Datasets
from cloudseg.somas.schema import NAMES
from cloudseg.testing.somas import soma_table

SEARCH = os.environ.get("HYPOTHESIS_PROFILE") == "search"
MANY = settings(
    max_examples=1000 if SEARCH else 40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
HOME = "/v1/datasets/made-up"

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["'; DROP TABLE somas; --", "$1", '"', "\0", "%s", "../../x", "left", "1", ">1", "-volume_um3"]
    )
)
names = st.sampled_from(NAMES) | st.text(max_size=6)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
operators = st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "not_in", "is_null", "like"])
values = scalars | st.lists(scalars, max_size=3)
wheres = st.dictionaries(names, values | st.dictionaries(operators, values, max_size=2), max_size=2)
corners = st.lists(st.floats(-1e7, 1e7) | st.floats(), min_size=3, max_size=3)
FIELDS = {
    "where": wheres | anything,
    "bbox": st.lists(corners, min_size=2, max_size=2) | anything,
    "predicate": st.sampled_from(["centroid", "intersects"]) | scalars,
    "units": st.sampled_from(["nm", "um", "voxel"]) | scalars,
    "columns": st.lists(names, max_size=4) | anything,
    "order": names | scalars,
    "limit": st.integers(-1, 2**64) | scalars,
    "page_rows": st.integers(-1, 200_000),
    "cursor": st.text(max_size=20),
    "by": st.lists(names, max_size=3),
    "column": names,
    "bins": st.integers(-1, 20_000),
    "range": st.lists(st.floats(), min_size=2, max_size=2),
    "points": st.lists(corners, max_size=3) | anything,
    "k": st.integers(-1, 2**40),
    "max_distance_um": st.floats(),
    "segment_ids": st.lists(scalars, max_size=4),
    "among": st.lists(scalars, max_size=4),
    "n_somas": scalars,
    "version": st.integers(-1, 2) | scalars,
    "tombstones": scalars,
}
SELECTION = ("where", "bbox", "predicate", "units", "version", "tombstones")
ROWS = ("columns", "order", "limit", "page_rows", "cursor")
# A question that makes sense, and the fields that it knows, one or two of which are changed.
QUESTIONS = {
    "query": ({"order": "-region", "page_rows": 5}, (*SELECTION, *ROWS)),
    "stream": ({"order": "-region"}, (*SELECTION, *ROWS)),
    "count": ({"by": ["side"]}, (*SELECTION, "by")),
    "aggregate": ({"column": "radius_um"}, (*SELECTION, "column", "by")),
    "histogram": ({"column": "radius_um"}, (*SELECTION, "column", "bins", "range")),
    "nearest": ({"points": [[1, 2, 3]]}, (*SELECTION, "points", "k", "max_distance_um", "columns")),
    "by_segment": ({"segment_ids": ["1"]}, ("segment_ids", "columns", "units", "version", "tombstones")),
    "segments_with": ({}, (*SELECTION, "n_somas", "among")),
}


@st.composite
def questions(draw):
    name = draw(st.sampled_from(sorted(QUESTIONS)))
    body, known = QUESTIONS[name]
    changed = draw(st.lists(st.sampled_from(known), max_size=2, unique=True))
    return name, body | {field: draw(FIELDS[field]) for field in changed}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    write(str(folder), soma_table(80))
    return folder


@pytest.fixture(scope="module")
def app(folder):
    return create_app([], datasets=Datasets([str(folder)]))


@pytest.fixture(scope="module")
def connection(app):
    with running(app) as url:
        found = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        yield found
        found.close()


def answered(connection, method, path, body=None):
    connection.close()  # one that was idle for some seconds the server closes, which is no answer to this request
    connection.request(method, path, body=body, headers={"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read()


seen: dict[int, int] = {}


@MANY
@given(question=questions())
def test_any_question_has_an_answer(connection, question):
    name, body = question
    status, data = answered(connection, "POST", f"{HOME}/somas:{name}", json.dumps(body))
    seen[status] = seen.get(status, 0) + 1
    assert status in (200, 400, 404, 422), (status, data)
    if status != 200:
        words = json.loads(data)["error"]["message"]
        assert words
        assert "Traceback" not in words
        assert "read_parquet" not in words
        assert not any(word in words.lower() for word in ("duckdb", "binder error", "parser error"))


def test_the_questions_come_through(connection):
    print("answers by status:", seen)  # `pytest -rP` shows it
    assert seen.get(200, 0) > 3, seen
    assert seen.get(422, 0) > 3, seen


@MANY
@given(data=st.binary(max_size=60))
def test_any_bytes_have_an_answer(connection, data):
    status, body = answered(connection, "POST", f"{HOME}/somas:query", data)
    assert status in (200, 400, 422), (status, body)


steps = st.sampled_from(
    ["..", "%2e%2e", "somas", "v1", "latest.json", "%00", "//", "made-up", "etc", "%5c", "annotations", "a:b"]
)


@MANY
@given(path=st.lists(steps, max_size=6))
def test_no_path_leads_out(connection, path):
    status, body = answered(connection, "GET", "/v1/datasets/" + "/".join(path))
    assert status in (200, 307, 404, 405, 422), (status, body)
    assert b"cloudseg-somas/1" not in body


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of schemathesis' own, on what it cannot generate
def test_the_description_is_kept(app):
    """What ``/openapi.json`` says comes true: no failure, no undocumented status, no body of another shape."""
    with running(app) as url:
        document = copy.deepcopy(app._app.openapi())
        for operations in document["paths"].values():
            for operation in operations.values():
                for parameter in operation.get("parameters", ()):
                    if parameter["name"] == "dataset":  # a random one does not exist, and nothing is tested
                        parameter["schema"] = {"type": "string", "enum": ["made-up"]}
        schema = schemathesis.openapi.from_dict(document)
        schema.config.update(base_url=url)
        checks = [
            schemathesis.checks.not_a_server_error,
            schemathesis.specs.openapi.checks.status_code_conformance,
        ]
        n_called = 0
        for found in schema.get_all_operations():
            operation = found.ok()

            @settings(MANY, max_examples=100 if SEARCH else 25)
            @given(case=operation.as_strategy())
            def call(case):
                nonlocal n_called
                n_called += 1
                case.validate_response(case.call(), checks=checks)

            if operation.path.startswith("/v1"):
                call()
        print("calls:", n_called)
        assert n_called > 100

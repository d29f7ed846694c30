"""What the soma page asks for: columns and points as bytes, its own files, and how far runs are."""

from __future__ import annotations

import gzip
import json
import struct
import urllib.error
import urllib.request

import numpy as np
import pytest

from cloudseg.geometry import Box
from cloudseg.server import columns
from cloudseg.server.access import Access, TokenFile
from cloudseg.server.app import create_app, running
from cloudseg.server.columns import to_bytes
from cloudseg.server.datasets import Datasets
from cloudseg.server.page import HERE, page_folder, state_for
from cloudseg.server.points import Points
from cloudseg.server.progress import progress_of
from cloudseg.somas.schema import NAMES
from cloudseg.somas.store import publish, read_catalog, write_version
from cloudseg.somas.thumbnails import publish_thumbnails, read_thumbnail, write_shards
from cloudseg.testing.books import BEGAN, TRACEBACK, write_books
from cloudseg.testing.somas import SPEC, soma_table
from cloudseg.volumes import VolumeInfo, create_volume, open_objects
from cloudseg_viewer.links import mount_name

N = 700


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    objects = open_objects(tmp_path_factory.mktemp("page") / "run" / "somas")
    write_version(objects, soma_table(N, seed=4), SPEC, version=1)
    publish(objects, 1)
    return objects


@pytest.fixture(scope="module")
def table(objects):
    return columns.read_table(objects, read_catalog(objects), list(NAMES))


@pytest.fixture(scope="module")
def base(objects):
    with running(create_app([], datasets=Datasets([objects.uri]))) as base:
        yield base


def get(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def parsed(data):
    """Read the bytes as their description says, without the code that wrote them."""
    (length,) = struct.unpack_from("<I", data)
    header = json.loads(data[4 : 4 + length])
    start = 4 + length
    assert start % 8 == 0
    found = {}
    for each in header["columns"]:
        assert each["offset"] % 8 == 0
        values = np.frombuffer(
            data, np.dtype(each["type"]).newbyteorder("<"), header["n"], start + each["offset"]
        )
        if "words" in each:
            found[each["name"]] = [each["words"][code] for code in values]
        elif each["kind"] == "id":
            found[each["name"]] = [int(v) or None for v in values]
        else:
            found[each["name"]] = [None if v != v else v for v in values.tolist()]
    return header, found


def test_every_column_arrives_as_it_is_stored(table, objects):
    header, found = parsed(to_bytes(table, read_catalog(objects)))
    assert (header["n"], header["version"], header["dataset"]) == (N, 1, "made-up")
    assert set(found) | set(header["empty"]) == set(NAMES)
    for name in header["empty"]:
        assert table[name].null_count == N
    for name, values in found.items():
        assert values == table[name].to_pylist(), name
    assert max(found["soma_id"]) > 2**63, "ids of all 64 bits are among them"


def test_a_catalogue_without_somas_is_a_page_without_rows(tmp_path):
    objects = open_objects(tmp_path)
    catalog = write_version(objects, soma_table(1).slice(0, 0), SPEC, version=1).catalog
    table = columns.read_table(objects, catalog, list(NAMES))
    assert parsed(to_bytes(table, catalog))[0]["n"] == 0
    points = Points.of(table)
    assert points.get("all/0_0_0") == bytes(8)
    assert points.info()["lower_bound"] < points.info()["upper_bound"]


def test_more_somas_than_a_page_holds_are_refused_with_a_way_out(objects, monkeypatch):
    monkeypatch.setattr(columns, "MAX_ROWS", N - 1)
    with running(create_app([], datasets=Datasets([objects.uri]))) as base:
        status, _, body = get(f"{base}/v1/datasets/made-up/columns")
    assert status == 422
    assert (
        f"has {N} somas, and the page holds up to {N - 1}; ask from Python"
        in json.loads(body)["error"]["message"]
    )


def test_columns_are_sent_once_for_a_version(base):
    url = f"{base}/v1/datasets/made-up/columns?version=1"
    status, headers, body = get(url)
    assert status == 200
    assert "immutable" in headers["cache-control"]
    assert get(url, **{"If-None-Match": headers["etag"]})[0] == 304
    _, zipped, small = get(url, **{"Accept-Encoding": "gzip"})
    assert zipped["content-encoding"] == "gzip"
    assert gzip.decompress(small) == body
    assert parsed(body)[0]["columns"][0]["name"] == "soma_id"
    _, _, one = get(f"{url}&names=bbox_min_x_nm,superseded_by")
    assert [each["name"] for each in parsed(one)[0]["columns"]] == ["bbox_min_x_nm"]
    status, _, body = get(f"{url}&names=bbox_mn_x_nm")
    assert status == 422
    assert b"did you mean bbox_min_x_nm" in body


def test_points_lie_in_the_order_of_the_columns(table):
    points = Points.of(table)
    data = points.get("all/0_0_0")
    (number,) = struct.unpack_from("<Q", data)
    assert number == N
    ids = np.frombuffer(data, "<u8", N, 8 + 32 * N)
    assert ids.tolist() == table["soma_id"].to_pylist()
    info = points.info()
    lower, upper = np.array(info["lower_bound"]), np.array(info["upper_bound"])
    for row in range(0, N, 97):
        record = data[8 + 32 * row : 8 + 32 * (row + 1)]
        x, y, z, volume, radius, score, _ = struct.unpack_from("<7f", record)
        at = np.array([x, y, z])
        assert at == pytest.approx([table[f"{a}_nm"][row].as_py() for a in "xyz"], rel=1e-6)
        assert ((lower <= at) & (at < upper)).all()
        assert volume == np.float32(table["volume_um3"][row].as_py())
        assert (radius, score) == (table["radius_um"][row].as_py(), table["score"][row].as_py())
        assert record[28] == (table["status"][row].as_py() not in ("rejected", "merged"))
        one = points.get(f"by_id/{ids[row]}")
        segment = table["segment_id"][row].as_py()
        assert one == record + struct.pack("<I", 0 if segment is None else 1) + (
            b"" if segment is None else struct.pack("<Q", segment)
        )
        if segment is not None:
            (n,) = struct.unpack_from("<Q", points.get(f"by_segment/{segment}"))
            assert n == table["segment_id"].to_pylist().count(segment)
    assert points.get("by_segment/0") == bytes(8)


@pytest.mark.parametrize(
    "key",
    ["by_id/1000000000", "by_id/", "by_id/1e3", "by_id/99999999999999999999", "all/0_0_1", "../info", ""],
)
def test_points_that_are_not_there_are_404(base, key):
    page = json.loads(get(f"{base}/v1/datasets/made-up/page")[2])
    address = page["points"].replace(HERE, base)
    assert get(f"{address}/info")[0] == 200
    assert get(f"{address}/{key}")[0] == 404


def test_thumbnails_are_sent_where_the_pipeline_drew_them(base, objects, tmp_path):
    url = f"{base}/v1/datasets/made-up"
    assert json.loads(get(f"{url}/page")[2])["thumbnails"] is False
    status, _, body = get(f"{url}/thumbnails/1")
    assert status == 404
    assert b"add the stage soma_thumbnails" in body

    mine = open_objects(tmp_path / "somas")
    table = soma_table(5, seed=2)
    catalog = write_version(mine, table, SPEC, version=1).catalog
    publish(mine, 1)
    layout = {"bounds": Box.of_shape((32, 16, 12)), "voxel_size_nm": (25_000.0,) * 3}
    image = create_volume(tmp_path / "image", VolumeInfo(**layout, chunk_shape=(32, 16, 12)))
    masks = VolumeInfo(**layout, chunk_shape=(32, 16, 12), dtype="uint64", layer="segmentation")
    for volume in (image, masks := create_volume(tmp_path / "masks", masks)):
        volume.write(volume.info.bounds, np.full((32, 16, 12), 7, volume.info.dtype, order="F"))
    write_shards(mine, catalog, [image], [masks])
    publish_thumbnails(mine, 1)
    with running(create_app([], datasets=Datasets([mine.uri]))) as other:
        assert json.loads(get(f"{other}/v1/datasets/made-up/page")[2])["thumbnails"] is True
        for soma in table["soma_id"].to_pylist():
            address = f"{other}/v1/datasets/made-up/thumbnails/{soma}?version=1"
            status, headers, body = get(address)
            assert (status, headers["content-type"]) == (200, "image/png")
            assert body.startswith(b"\x89PNG")
            assert body == read_thumbnail(mine, soma, version=1)
            assert get(address, **{"If-None-Match": headers["etag"]})[0] == 304
        assert get(f"{other}/v1/datasets/made-up/thumbnails/9999")[0] == 404
        assert get(f"{other}/v1/datasets/made-up/thumbnails/x")[0] == 422


def test_with_tokens_points_have_a_name_that_cannot_be_guessed(objects):
    access = Access(TokenFile(secret="a secret of sixteen", tokens=()))
    with running(create_app([], datasets=Datasets([objects.uri]), access=access)) as base:
        assert get(f"{base}/points/points-made-up/1/info")[0] == 404
        assert get(f"{base}/points/{access.capability('points-made-up')}/1/info")[0] == 200
        for path in ("page", "columns"):
            assert get(f"{base}/v1/datasets/made-up/{path}")[0] == 401
        assert get(f"{base}/v1/runs")[0] == 401
        assert b"made-up" not in get(f"{base}/")[2]


def test_the_files_of_the_page_are_served_and_no_others(base):
    names = sorted(path.name for path in page_folder().iterdir())
    assert {"index.html", "main.js", "page.css", "progress.html"} <= set(names)
    for name in ["", *names]:
        status, headers, body = get(f"{base}/page/{name}")
        assert status == 200
        assert body
        assert (
            "script-src" in headers["content-security-policy"]
            or "default-src 'self'" in headers["content-security-policy"]
        )
        assert get(f"{base}/page/{name}", **{"If-None-Match": headers["etag"]})[0] == 304
    assert headers["content-type"].startswith("application/javascript")
    for name in ("none.js", "..%2f__init__.py", "%2e%2e/roots.py", ".hidden.js"):
        assert get(f"{base}/page/{name}")[0] == 404


def test_the_view_of_a_catalogue_is_that_of_its_root():
    link = "http://x/v/0/#!" + json.dumps(
        {"layers": [{"source": "http://127.0.0.1:1/data/run-1/seg/|precomputed:"}]}
    )
    links = {"file:///a/run": link, "file:///a": "http://x/v/0/#!{}"}
    assert state_for("file:///a/run/somas", links) == {
        "layers": [{"source": HERE + "/data/run-1/seg/|precomputed:"}]
    }
    assert state_for("file:///a/running/somas", links) == {}
    assert state_for("file:///b/somas", links) is None


@pytest.fixture
def run_objects(tmp_path):
    objects = open_objects(tmp_path / "run")
    write_books(objects)
    return objects


def test_progress_adds_up_what_the_books_say(run_objects):
    found = progress_of(run_objects, now=lambda: BEGAN)
    first, second, third = found["steps"]
    assert (first["n_done"], first["n_tasks"], first["eta_s"]) == (4, 4, 0)
    assert first["voxels_per_s"] == 4 * 5e6 / 40
    assert (second["n_done"], second["n_dead"], second["n_failed_attempts"]) == (1, 1, 1)
    assert second["eta_s"] == 20
    assert second["dead"][0]["traceback"] == TRACEBACK
    assert (third["n_done"], third["eta_s"], third["started"]) == (0, None, None)
    assert found["cost"]["core_hours"] == pytest.approx(50 / 3600)
    assert found["cost"]["dollars"] == pytest.approx(50 / 3600 * found["cost"]["dollars_per_core_hour"])
    assert (found["complete"], found["n_dead"], found["at"]) == (False, 1, "2026-01-01T00:00:00+00:00")


def test_runs_are_listed_and_a_root_without_one_is_left_out(run_objects, tmp_path):
    (tmp_path / "empty").mkdir()
    roots = [run_objects.uri, str(tmp_path / "empty")]
    with running(create_app([], runs=roots)) as base:
        listed = json.loads(get(f"{base}/v1/runs")[2])["runs"]
        assert listed == [{"run": mount_name(run_objects.uri), "root": run_objects.uri}]
        assert json.loads(get(f"{base}/v1/runs/{listed[0]['run']}")[2])["n_dead"] == 1
        assert get(f"{base}/v1/runs/{mount_name(roots[1])}")[0] == 404
        status, _, body = get(f"{base}/v1/runs/none")
        assert status == 404
        assert b"/v1/runs lists those that there are" in body

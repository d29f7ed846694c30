"""The gateway over real sockets: what a viewer needs, and what nobody may have."""

from __future__ import annotations

import gzip
import http.client
import json
import resource
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

from cloudseg.errors import NotFoundError, SpecError, StorageError
from cloudseg.geometry import Box
from cloudseg.server.app import base_url, create_app, listen, running
from cloudseg.server.gateway import Asked, open_folder
from cloudseg.volumes import VolumeInfo, create_volume, open_volume
from cloudseg_viewer.links import Mount

BYTES = bytes(range(256)) * 40  # 10240
# Above the size from which files are streamed.
BIG = np.random.default_rng(0).integers(0, 256, 9 << 20, dtype=np.uint8).tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with everything that can go wrong in it, and a secret beside it."""
    top = tmp_path_factory.mktemp("gateway")
    (top / "secret").write_bytes(b"secret")
    folder = top / "data"
    (folder / "vol").mkdir(parents=True)
    (folder / "info").write_text('{"hello": 1}')
    (folder / "vol" / "chunk").write_bytes(BYTES)
    (folder / "vol" / "0-64_0-64").write_bytes(b"raw")
    (folder / "vol" / "big.shard").write_bytes(BIG)
    (folder / "vol" / "empty").write_bytes(b"")
    (folder / "vol" / "packed.gz").write_bytes(gzip.compress(BYTES, mtime=0))
    (folder / "vol" / "brotli.br").write_bytes(b"not really brotli")
    (folder / "vol" / "twin").write_bytes(b"old")
    (folder / "vol" / "twin.gz").write_bytes(gzip.compress(b"new"))
    (folder / "vol" / "torn.gz").write_bytes(gzip.compress(BYTES)[:50])
    (folder / "name with % and ü").write_bytes(b"odd")
    (folder / "page.html").write_text("<script>alert(1)</script>")
    (folder / "out").symlink_to(top / "secret")
    (folder / "outdir").symlink_to(top)
    (folder / "inner").symlink_to(folder / "info")
    return folder


@pytest.fixture(scope="module")
def base(folder):
    with running(create_app([Mount("d", f"file://{folder}")])) as url:
        yield url


@pytest.fixture(scope="module")
def relayed(base):
    """The same folder once more, through a second gateway that reads the first over HTTP, as it would a bucket."""
    with running(create_app([Mount("d", base + "/data/d")])) as url:
        yield url


def ask(base: str, path: str, *, method: str = "GET", **headers: str):
    """Send exactly ``path``: clients of a higher level would tidy it up first."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=20)
    try:
        connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    return response.status, {k.lower(): v for k, v in response.getheaders()}, body


@pytest.fixture(params=["disk", "bucket"])
def either(request):
    """The folder from disk, and from behind HTTP."""
    return request.getfixturevalue({"disk": "base", "bucket": "relayed"}[request.param])


def test_a_whole_object_comes_with_type_size_tag_and_leave_to_read_it(either):
    status, headers, body = ask(either, "/data/d/vol/chunk")
    assert (status, body) == (200, BYTES)
    assert headers["content-length"] == str(len(BYTES))
    assert headers["content-type"] == "application/octet-stream"
    assert headers["accept-ranges"] == "bytes"
    assert headers["access-control-allow-origin"] == "*"
    assert headers["access-control-expose-headers"] == "*"
    assert headers["etag"].startswith('"')


def test_an_info_is_json_and_is_asked_for_again_each_time(either):
    status, headers, body = ask(either, "/data/d/info")
    assert (status, json.loads(body)) == (200, {"hello": 1})
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("asked", "expected", "content_range"),
    [
        ("bytes=0-0", BYTES[:1], "bytes 0-0/"),
        ("bytes=100-199", BYTES[100:200], "bytes 100-199/"),
        ("bytes=10000-", BYTES[10000:], "bytes 10000-10239/10240"),
        ("bytes=10000-99999", BYTES[10000:], "bytes 10000-10239/10240"),
        ("bytes=-16", BYTES[-16:], "bytes 10224-10239/10240"),
        ("bytes=-99999", BYTES, "bytes 0-10239/10240"),
    ],
)
def test_a_range_is_answered_with_just_those_bytes(either, asked, expected, content_range):
    status, headers, body = ask(either, "/data/d/vol/chunk", Range=asked)
    assert (status, body) == (206, expected)
    assert headers["content-range"].startswith(content_range)
    assert headers["content-length"] == str(len(expected))


@pytest.mark.parametrize(
    "asked", ["bytes=10240-", "bytes=10240-10300", f"bytes={2**64}-", f"bytes={'9' * 5000}-", "bytes=-0"]
)
def test_a_range_behind_the_end_is_416_with_leave_to_read_the_error(either, asked):
    status, headers, body = ask(either, "/data/d/vol/chunk", Range=asked)
    assert (status, body) == (416, b"")
    assert headers["content-range"].startswith("bytes */")
    assert headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=9-2", "lines=1-2"])
def test_a_range_that_is_malformed_or_manifold_is_ignored(either, asked):
    status, _, body = ask(either, "/data/d/vol/chunk", Range=asked)
    assert (status, body) == (200, BYTES)


def test_an_empty_object_is_empty_and_has_no_ranges(either):
    assert ask(either, "/data/d/vol/empty")[::2] == (200, b"")
    assert ask(either, "/data/d/vol/empty", Range="bytes=0-10")[0] == 416


def test_a_large_object_is_streamed_whole_and_in_part(either):
    status, headers, body = ask(either, "/data/d/vol/big.shard")
    assert status == 200
    assert headers["content-length"] == str(len(BIG))
    assert body == BIG
    status, _, body = ask(either, "/data/d/vol/big.shard", Range="bytes=1000-8000000")
    assert (status, body == BIG[1000:8000001]) == (206, True)


def test_head_says_what_get_would_and_sends_nothing(either):
    for path in ("/data/d/vol/chunk", "/data/d/vol/big.shard", "/data/d/info"):
        status, headers, body = ask(either, path, method="HEAD")
        got = ask(either, path)
        assert (status, body) == (200, b"")
        for name in ("content-length", "content-type", "etag"):
            assert headers[name] == got[1][name]
    assert ask(either, "/data/d/nothing", method="HEAD")[0] == 404


def test_a_known_tag_costs_no_bytes_until_the_object_changes(base, folder):
    target = folder / "vol" / "changing"
    target.write_bytes(b"first")
    _, headers, _ = ask(base, "/data/d/vol/changing")
    tag = headers["etag"]
    status, headers, body = ask(base, "/data/d/vol/changing", If_None_Match=tag)
    assert (status, body, headers["etag"]) == (304, b"", tag)
    target.write_bytes(b"second")
    status, headers, body = ask(base, "/data/d/vol/changing", If_None_Match=tag)
    assert (status, body) == (200, b"second")
    assert headers["etag"] != tag


def test_a_known_tag_costs_no_bytes_from_a_bucket_either(relayed):
    tag = ask(relayed, "/data/d/vol/chunk")[1]["etag"]
    assert ask(relayed, "/data/d/vol/chunk", If_None_Match=tag)[::2] == (304, b"")
    assert ask(relayed, "/data/d/vol/chunk", If_None_Match='"0011"')[::2] == (200, BYTES)
    assert ask(relayed, "/data/d/vol/chunk", If_None_Match="*")[0] == 304


def test_a_part_of_an_older_object_is_not_mixed_with_a_newer_one(either):
    tag = ask(either, "/data/d/vol/chunk")[1]["etag"]
    assert ask(either, "/data/d/vol/chunk", Range="bytes=5-9", If_Range=tag)[::2] == (206, BYTES[5:10])
    assert ask(either, "/data/d/vol/chunk", Range="bytes=5-9", If_Range='"older"')[::2] == (200, BYTES)


def test_a_chunk_stored_as_gz_is_sent_as_it_lies_with_its_coding(base, folder):
    status, headers, body = ask(base, "/data/d/vol/packed", Accept_Encoding="gzip, br")
    assert (status, headers["content-encoding"], headers["vary"]) == (200, "gzip", "Accept-Encoding")
    assert body == (folder / "vol" / "packed.gz").read_bytes()
    assert headers["content-length"] == str(len(body))


def test_a_client_that_takes_no_coding_gets_the_bytes_themselves(base):
    status, headers, body = ask(base, "/data/d/vol/packed", Accept_Encoding="identity")
    assert (status, body) == (200, BYTES)
    assert "content-encoding" not in headers
    coded = ask(base, "/data/d/vol/packed", Accept_Encoding="gzip")[1]
    assert headers["etag"] != coded["etag"], "two representations must not share a tag"
    assert ask(base, "/data/d/vol/packed", Accept_Encoding="identity", Range="bytes=3-5")[2] == BYTES[3:6]


def test_a_range_of_a_gz_chunk_is_a_range_of_the_stored_bytes(base, folder):
    stored = (folder / "vol" / "packed.gz").read_bytes()
    status, headers, body = ask(base, "/data/d/vol/packed", Accept_Encoding="gzip", Range="bytes=0-9")
    assert (status, body, headers["content-range"]) == (206, stored[:10], f"bytes 0-9/{len(stored)}")


def test_a_part_of_what_a_bucket_stores_compressed_is_the_whole(relayed):
    status, headers, body = ask(relayed, "/data/d/vol/packed", Range="bytes=7-90")
    assert (status, body) == (200, BYTES)
    assert "content-range" not in headers


def test_a_coding_that_the_client_does_not_take_is_an_error_that_says_so(base):
    status, _, body = ask(base, "/data/d/vol/brotli", Accept_Encoding="gzip")
    assert status == 500
    assert b"stored as br" in body
    assert ask(base, "/data/d/vol/brotli", Accept_Encoding="br")[1]["content-encoding"] == "br"


def test_a_torn_gzip_file_is_an_error_not_half_a_chunk(base):
    status, _, body = ask(base, "/data/d/vol/torn", Accept_Encoding="identity")
    assert status == 500
    assert b"no whole gzip file" in body


def test_a_stale_twin_is_an_error_not_a_guess(base):
    status, headers, body = ask(base, "/data/d/vol/twin", Accept_Encoding="gzip")
    assert status == 500
    assert b"twin and twin.gz: one of them is out of date" in body
    assert headers["access-control-allow-origin"] == "*"


def test_a_missing_chunk_is_404_with_leave_to_read_the_error(either):
    for path in (
        "/data/d/vol/64-128_0-64",
        "/data/d/nowhere/at/all",
        "/data/d/vol",
        "/data/d/vol/",
        "/data/d/",
    ):
        status, headers, _ = ask(either, path)
        assert status == 404, path
        assert headers["access-control-allow-origin"] == "*"


def test_an_unknown_mount_names_the_ones_there_are(base):
    status, _, body = ask(base, "/data/other/info")
    assert status == 404
    assert b"nothing is mounted as 'other'; there are: d" in body


@pytest.mark.parametrize(
    "path",
    [
        "/data/d/../secret",
        "/data/d/%2e%2e/secret",
        "/data/d/%2E%2E%2Fsecret",
        "/data/d/vol/..%2f..%2fsecret",
        "/data/d/vol/../../secret",
        "/data/d/%252e%252e/secret",
        "/data/d/..%5csecret",
        "/data/d//etc/passwd",
        "/data/d/%2fetc%2fpasswd",
        "/data/d/./../secret",
        "/data/d/info%00",
        "/data/d/out",
        "/data/d/outdir/secret",
        "/data/d/outdir/data/info/../../secret",
        "/data/../secret",
        "/data/%2e%2e/secret",
        "/../secret",
        "/data/d/" + "x" * 5000,
    ],
)
def test_nothing_outside_the_folder_can_be_reached(either, path):
    status, _, body = ask(either, path)
    assert status == 404, (path, body)
    assert b"secret" not in body.replace(path.encode(), b"").replace(b"secret'", b"")


def test_a_link_that_stays_inside_is_followed(base):
    assert json.loads(ask(base, "/data/d/inner")[2]) == {"hello": 1}


def test_odd_names_are_found(either):
    assert ask(either, "/data/d/" + quote("name with % and ü"))[::2] == (200, b"odd")


def test_stored_pages_are_data_and_do_not_run(either):
    _, headers, _ = ask(either, "/data/d/page.html")
    assert headers["content-type"] == "application/octet-stream"
    assert headers["x-content-type-options"] == "nosniff"


def test_a_preflight_allows_reading_and_nothing_else(base):
    status, headers, _ = ask(
        base,
        "/data/d/info",
        method="OPTIONS",
        Origin="https://elsewhere.example",
        Access_Control_Request_Method="GET",
        Access_Control_Request_Headers="authorization,range",
    )
    assert status == 204
    assert headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS"
    assert headers["access-control-allow-headers"] == "authorization,range"
    for method in ("PUT", "POST", "DELETE", "PATCH"):
        status, headers, _ = ask(base, "/data/d/info", method=method)
        assert status == 405
        assert headers["access-control-allow-origin"] == "*"


def test_many_requests_on_one_connection_are_answered_in_order(base):
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=20)
    for first in range(0, 200, 7):
        connection.request("GET", "/data/d/vol/chunk", headers={"Range": f"bytes={first}-{first + 9}"})
        assert connection.getresponse().read() == BYTES[first : first + 10]
    connection.close()


def test_a_volume_reads_the_same_through_the_gateway(base, folder):
    info = VolumeInfo(bounds=Box((5, 6, 7), (75, 60, 40)), voxel_size_nm=(8, 8, 8), chunk_shape=(32, 32, 32))
    data = np.asfortranarray(np.random.default_rng(1).integers(0, 256, info.shape, dtype=np.uint8))
    create_volume(folder / "em", info).write(info.bounds, data)
    np.testing.assert_array_equal(open_volume(f"{base}/data/d/em").read(info.bounds), data)


def test_health_names_the_mounts(base, folder):
    status, headers, body = ask(base, "/healthz")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body) == {"status": "ok", "mounts": {"d": f"file://{folder}"}}


def test_a_file_that_cannot_be_opened_is_an_error_that_says_so(folder):
    local = open_folder(f"file://{folder}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (folder / "info").open() as file:
        # Room for no file more than are open now.
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno(), hard))
        try:
            with pytest.raises(StorageError, match=r"cannot read .*chunk: Too many open files"):
                local.answer("vol/chunk", Asked())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_folder_that_does_not_exist_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(NotFoundError, match=r"no folder at .*nowhere: check the name"):
        create_app([Mount("d", f"file://{tmp_path}/nowhere")])


def test_memory_cannot_be_served():
    with pytest.raises(SpecError, match="memory of another process"):
        open_folder("memory://x")


def test_a_port_that_is_taken_is_refused_with_a_way_out():
    taken = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with pytest.raises(SpecError, match=rf"cannot listen on 127.0.0.1:{port} .*give another --port"):
        listen("127.0.0.1", port)
    taken.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_base_url_is_one_that_a_browser_here_can_open(host):
    sock = listen(host, 0)
    assert base_url(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
    sock.close()

"""Whatever path and headers are sent to the gateway: no crash, no leak, nothing from outside the mounted folder."""

from __future__ import annotations

import gzip
import http.client
import os
import re
import socket
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudseg.server.app import create_app, running
from cloudseg_viewer.links import Mount

MANY = settings(
    max_examples=4000 if os.environ.get("HYPOTHESIS_PROFILE") == "search" else 60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
HIDDEN = b"d41d8cd98f00b204-not-yours"
BYTES = bytes(range(256)) * 40
INSIDE = (b'{"hello": 1}', BYTES, gzip.compress(BYTES, mtime=0), b"odd", b"")


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A folder that is served, and beside it, above it and behind links what must stay where it is."""
    top = tmp_path_factory.mktemp("fuzz")
    folder = top / "data"
    (folder / "vol").mkdir(parents=True)
    (folder / "info").write_bytes(INSIDE[0])
    (folder / "vol" / "chunk").write_bytes(BYTES)
    (folder / "vol" / "packed.gz").write_bytes(INSIDE[2])
    (folder / "vol" / "empty").write_bytes(b"")
    (folder / "a%2e%2eb").write_bytes(b"odd")
    (top / "data-2").mkdir()
    for place in (top / "hidden", top / "hidden.gz", top / "data-2" / "hidden"):
        place.write_bytes(HIDDEN)
    (folder / "out").symlink_to(top / "hidden")
    (folder / "outdir").symlink_to(top)
    return top


@pytest.fixture(scope="module", params=["disk", "bucket"])
def server(request, top):
    """The folder from disk, and through a second gateway that reads the first, as it would a bucket."""
    with running(create_app([Mount("d", f"file://{top}/data")])) as near:
        if request.param == "disk":
            yield near
            return
        with running(create_app([Mount("d", f"{near}/data/d")])) as far:
            yield far


STEPS = [
    "..",
    ".",
    "info",
    "vol",
    "chunk",
    "packed",
    "packed.gz",
    "empty",
    "out",
    "outdir",
    "hidden",
    "data-2",
    "%2e%2e",
    "%2E.",
    "..%2f..",
    "%252e%252e",
    "..%5c",
    "..\\",
    "%00",
    "info%00",
    "a%252e%252eb",
    "%c0%ae%c0%ae",
    "~",
    "*",
    "info?x",
    "#",
    "%",
    "%zz",
    ";",
    "info/",
    "C:",
    "file:",
    "%2fetc%2fpasswd",
    "ÿ",
]
VALUES = [
    "bytes=0-",
    "bytes=-5",
    "bytes=5-1",
    "bytes=0-0,4-",
    "bytes=99999999999999999999-",
    "bytes=-99999999999999999999",
    "bytes=7-90",
    "gzip",
    "gzip;q=0",
    "*",
    "br,zstd;q=x",
    '"x"',
    "W/",
    '""',
    "é",
]

noise = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=8)
steps = st.sampled_from([*STEPS, "", "x" * 300, "x" * 300 + ".js"]) | noise
paths = st.sampled_from(["info", "vol/chunk", "vol/packed", "vol/empty", "a%252e%252eb"]).map(
    "/data/d/".__add__
) | st.tuples(
    st.sampled_from(
        ["/data/d/", "/data/d/", "/data/d/", "/data/", "/data/d/../", "/v/0/", "/page/", "/", "//data/d/"]
    ),
    st.lists(steps, max_size=6).map("/".join),
).map("".join)
values = st.sampled_from([*VALUES, "", '"' + "f" * 64 + '"']) | noise
headers = st.dictionaries(
    st.sampled_from(["Range", "If-None-Match", "If-Range", "Accept-Encoding", "Origin", "Authorization"]),
    values,
    max_size=3,
)
seen: dict[int, int] = {}


def sent(base, method, path, headers):
    """Send exactly these bytes; return status, headers and body."""
    host = urlsplit(base).netloc
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    name, _, port = host.partition(":")
    with socket.create_connection((name, int(port)), timeout=30) as sock:
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        response = http.client.HTTPResponse(sock, method=method)
        response.begin()
        return response.status, response.headers, response.read()


@MANY
@given(
    method=st.sampled_from(["GET"] * 6 + ["HEAD", "OPTIONS", "POST"]),
    path=paths,
    headers=headers,
)
def test_nothing_gets_out_and_nothing_breaks(server, method, path, headers):
    status, answered, body = sent(server, method, path, headers)
    seen[status] = seen.get(status, 0) + 1
    assert status in (200, 204, 206, 304, 307, 400, 404, 405, 416), (status, body)
    text = body + str(answered).encode()
    assert HIDDEN not in text
    assert b"Traceback" not in text
    assert b"root:" not in text
    if status in (200, 206) and method == "GET" and re.match(r"^/data/d/", path):
        assert any(body in each for each in INSIDE), body[:80]
    if status >= 400:
        assert len(body) < 2000 or method == "HEAD"


@pytest.mark.parametrize("path", ["/v/0/", "/page/", "/data/d/"])
def test_a_name_longer_than_any_file_has_is_not_found(server, path):
    status, _, body = sent(server, "GET", f"{path}{'x' * 300}.js", {})
    assert status == 404
    assert len(body) < 600


def test_some_of_it_was_there(server):
    print("answers by status:", seen)  # `pytest -rP` shows it
    assert sum(seen.get(status, 0) for status in (200, 206)) >= 3, seen
    assert seen.get(404, 0) > 10, seen

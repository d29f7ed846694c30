"""The gateway before real buckets' interfaces: parts, tags and absence, with the storage's own words translated."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import pytest

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.server.app import create_app, running
from cloudseg.volumes import open_objects
from cloudseg.volumes.parts import Parts
from cloudseg_viewer.links import Mount

BYTES = bytes(range(250)) * 4


@pytest.fixture
def gs(gcs):
    """A folder in a GCS bucket."""
    assert gcs is not None
    return "gs://vol/gateway"


@pytest.fixture
def s3(aws):
    """A folder in an S3 bucket."""
    assert aws is not None
    return "s3://vol/gateway"


@pytest.fixture(params=["gs", "s3", "file"])
def folder(request, tmp_path):
    """A folder with two objects on each kind of storage."""
    uri = f"file://{tmp_path}" if request.param == "file" else request.getfixturevalue(request.param)
    objects = open_objects(uri)
    objects.put("vol/chunk", BYTES)
    objects.put("vol/empty", b"")
    return uri


@pytest.mark.parametrize(
    ("first", "stop", "expected", "start"),
    [
        (None, None, BYTES, 0),
        (0, 1, BYTES[:1], 0),
        (990, 2000, BYTES[990:], 990),
        (990, None, BYTES[990:], 990),
        (-10, None, BYTES[-10:], 990),
        (-5000, None, BYTES, 0),
        (0, 0, b"", 0),
    ],
)
def test_a_part_is_what_slicing_gives(folder, first, stop, expected, start):
    part = Parts(folder).read("vol/chunk", first=first, stop=stop)
    assert (part.data, part.start) == (expected, start)
    assert part.version
    assert part.size_bytes in (None, len(BYTES))
    if stop is None:
        assert part.size_bytes == len(BYTES)


def test_a_part_behind_the_end_is_no_part(folder):
    for first, stop in ((1000, None), (1000, 1010), (5000, 5001)):
        with pytest.raises(EOFError, match=f"byte {first} lies behind the end of .*vol/chunk"):
            Parts(folder).read("vol/chunk", first=first, stop=stop)
    with pytest.raises(EOFError, match="byte 0 lies behind the end"):
        Parts(folder).read("vol/empty", first=0, stop=10)
    assert Parts(folder).read("vol/empty").data == b""


def test_a_known_version_is_not_sent_again_until_it_changes(folder):
    parts = Parts(folder)
    objects = open_objects(folder)
    objects.put("vol/changing", b"one")
    known = parts.read("vol/changing").version
    assert parts.read("vol/changing", known_version=known).data is None
    assert parts.read("vol/changing", first=-2, known_version=known).data is None
    objects.put("vol/changing", b"two two")
    assert parts.read("vol/changing", known_version=known).data == b"two two"


def test_what_is_not_there_is_not_found(folder):
    with pytest.raises(NotFoundError, match="no object 'vol/absent' in"):
        Parts(folder).read("vol/absent")
    with pytest.raises(SpecError, match="is no key of an object"):
        Parts(folder).read("../vol/chunk")


def test_http_before_a_bucket(folder):
    with running(create_app([Mount("d", folder)])) as base:
        connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=20)

        def get(path, **headers):
            connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response.status, response.getheader("ETag"), response.read()

        status, tag, body = get("/data/d/vol/chunk")
        assert (status, body) == (200, BYTES)
        assert get("/data/d/vol/chunk", If_None_Match=tag)[::2] == (304, b"")
        assert get("/data/d/vol/chunk", Range="bytes=10-19")[::2] == (206, BYTES[10:20])
        assert get("/data/d/vol/chunk", Range="bytes=1000-")[::2] == (416, b"")
        assert get("/data/d/vol/absent")[0] == 404
        connection.close()

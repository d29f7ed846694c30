"""The back-ends of the contract suites: every place where a volume can live."""

from __future__ import annotations

import itertools

import pytest

from cloudseg.testing.emulators import environment, front, web_server
from cloudseg.volumes import clear_memory

BACKENDS = ("memory", "file", "gs", "s3")
_numbers = itertools.count()


@pytest.fixture
def web(tmp_path):
    """A web server that serves ``tmp_path``."""
    with web_server(tmp_path) as url:
        yield url


@pytest.fixture
def new_uri(request, tmp_path):
    """A function from a scheme to an address at which nothing lies."""

    def make(scheme: str) -> str:
        name = f"v{next(_numbers)}"
        match scheme:
            case "memory":
                return f"memory://{name}"
            case "file":
                return f"file://{tmp_path}/{name}"
            case "gs":
                request.getfixturevalue("gcs")
                return f"gs://vol/{name}"
            case "s3":
                request.getfixturevalue("aws")
                return f"s3://vol/{name}"
        raise AssertionError(scheme)

    yield make
    clear_memory()


@pytest.fixture(params=BACKENDS)
def uri(request, new_uri):
    """An address at which nothing lies, on each back-end that can be written."""
    return new_uri(request.param)


@pytest.fixture(scope="session")
def s3_front(aws):
    """A front before the S3 stand-in."""
    with front(aws) as before:
        yield before


@pytest.fixture(params=["gs", "s3"])
def bucket(request, new_uri):
    """An address at which nothing lies in a bucket, and the front before it."""
    uri = new_uri(request.param)
    if request.param == "gs":
        before = request.getfixturevalue("gcs")
        yield uri, before
    else:
        before = request.getfixturevalue("s3_front")
        with environment(AWS_ENDPOINT_URL=before.url):
            yield uri, before
    before.faults.clear()

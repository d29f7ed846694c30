"""How URIs are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudseg.errors import SpecError
from cloudseg.volumes import open_objects, open_volume, set_threads
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.kvstore import context


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        ("memory://a/b/", "memory://a/b"),
        ("file:///a//b/../c/", "file:///a/c"),
        ("/a/b", "file:///a/b"),
        (Path("/a/b%20c"), "file:///a/b%20c"),
        ("precomputed://gs://bucket/a/b/", "gs://bucket/a/b"),
        ("gs://bucket", "gs://bucket"),
        ("gs://bucket/a|neuroglancer-precomputed:", "gs://bucket/a"),
        ("S3://bucket//a", "s3://bucket/a"),
        ("https://host:8080/a%20b/?token=1", "https://host:8080/a%20b?token=1"),
    ],
)
def test_each_address_has_one_spelling(given, uri):
    address = Address.parse(given)
    assert address.uri == uri
    assert Address.parse(uri) == address


def test_a_relative_path_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Address.parse("a/b").uri == f"file://{tmp_path}/a/b"
    assert Address.parse("file://a/b").uri == f"file://{tmp_path}/a/b"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "names no folder"),
        ("file://", "names no folder"),
        ("gs://", "names no bucket: write gs://bucket/folder"),
        ("s3:///a", "names no bucket: write s3://bucket/folder"),
        ("http:///a", "names no server"),
        ("memory://", "has no name: write memory://name"),
        ("gs://b/../c", "has '.' or '..' in its path"),
        ("ftp://a/b", "has the unknown scheme 'ftp'; there are memory://"),
    ],
)
def test_an_address_that_means_nothing_is_refused(given, message):
    with pytest.raises(SpecError, match=message):
        open_objects(given)
    with pytest.raises(SpecError, match=message):
        open_volume(given)


def test_threads_are_bounded_for_this_process_and_its_children(monkeypatch):
    monkeypatch.delenv("CLOUDSEG_THREADS", raising=False)
    free = context()
    set_threads(1)
    one = context()
    assert one is not free
    assert one is context()
    limits = one.spec.to_json()
    assert limits["data_copy_concurrency"] == limits["file_io_concurrency"] == {"limit": 1}
    set_threads(None)
    assert context() is free
    with pytest.raises(SpecError, match="must be at least 1, got 0"):
        set_threads(0)
    monkeypatch.setenv("CLOUDSEG_THREADS", "many")
    with pytest.raises(SpecError, match="CLOUDSEG_THREADS must be a whole number, got 'many'"):
        context()

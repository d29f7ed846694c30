"""What every folder of objects keeps, wherever it lives."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudseg.errors import NotFoundError, SpecError, StorageError, TransientStorageError
from cloudseg.volumes import create_volume, open_objects, read_info, update_info
from cloudseg.volumes.protocol import VolumeInfo


def test_an_object_is_stored_replaced_listed_and_removed(uri):
    objects = open_objects(uri)
    assert list(objects.list()) == []
    assert not objects.exists("a/b.json")
    objects.put("a/b.json", b"first")
    objects.put("a/b.json", b"second")
    objects.put("a/c", b"")
    objects.put("ab", bytes(range(256)))
    assert objects.get("a/b.json") == b"second"
    assert objects.get("a/c") == b""
    assert objects.get("ab") == bytes(range(256))
    assert objects.exists("a/c")
    assert list(objects.list()) == ["a/b.json", "a/c", "ab"]
    assert list(objects.list("a/")) == ["a/b.json", "a/c"]
    assert list(objects.list("a")) == ["a/b.json", "a/c", "ab"]
    assert list(objects.list("a/b")) == ["a/b.json"]
    assert list(objects.list("x")) == []
    objects.delete("a/b.json")
    objects.delete("a/b.json")
    assert list(objects.list()) == ["a/c", "ab"]
    with pytest.raises(NotFoundError, match=r"there is no 'a/b.json' in "):
        objects.get("a/b.json")


def test_a_folder_inside_a_folder_shows_the_same_objects(uri):
    open_objects(uri).put("runs/1/receipt", b"x")
    assert list(open_objects(f"{uri}/runs").list()) == ["1/receipt"]
    assert open_objects(f"{uri}/runs/1/").get("receipt") == b"x"
    assert open_objects(f"{uri}/runs/").uri == f"{uri}/runs"


def test_only_the_first_of_many_creates_an_object(uri):
    objects = open_objects(uri)
    for key in ("one", "two"):
        with ThreadPoolExecutor(8) as pool:
            claims = [pool.submit(open_objects(uri).put_if_absent, key, str(n).encode()) for n in range(8)]
        won = [claim.result() for claim in claims]
        assert won.count(True) == 1
        assert objects.get(key) == str(won.index(True)).encode()
    objects.delete("one")
    assert objects.put_if_absent("one", b"again")


def test_a_change_is_stored_only_over_the_version_that_was_read(uri):
    objects = open_objects(uri)
    assert objects.get_versioned("n")[0] is None
    assert objects.put_if_unchanged("n", b"0", version=objects.get_versioned("n")[1])

    def add_one(_):
        mine, tries = open_objects(uri), 0
        while True:
            data, version = mine.get_versioned("n")
            tries += 1
            if mine.put_if_unchanged("n", str(int(data) + 1).encode(), version=version):
                return tries

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add_one, range(12)))
    assert objects.get("n") == b"12"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/./b", ".."])
def test_a_key_that_leaves_the_folder_is_refused(uri, key):
    objects = open_objects(uri)
    for use in (objects.get, objects.delete, objects.exists, lambda k: objects.put(k, b"")):
        with pytest.raises(SpecError, match="is no key of an object in"):
            use(key)


def test_a_key_that_looks_like_a_lock_is_refused(uri):
    with pytest.raises(SpecError, match=r"names that end in .__lock are reserved"):
        open_objects(uri).put("a.__lock", b"")


_RACER = """
import sys, time
from cloudseg.volumes import open_objects
objects, me = open_objects(sys.argv[1]), sys.argv[2]
objects.put("ready/" + me, b"")
while not objects.exists("go"):
    time.sleep(0.001)
print(sum(objects.put_if_absent(f"claim/{n}", me.encode()) for n in range(100)))
"""


def test_racing_processes_share_local_claims_without_loss_or_double(new_uri):
    uri = new_uri("file")
    objects = open_objects(uri)
    command = [sys.executable, "-c", _RACER, uri]
    racers = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in range(3)]
    while len(list(objects.list("ready/"))) < len(racers):
        assert all(racer.poll() in (None, 0) for racer in racers)
    objects.put("go", b"")
    claimed = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    owners = [objects.get(key).decode() for key in objects.list("claim/")]
    assert sum(claimed) == len(owners) == 100
    assert [owners.count(str(n)) for n in range(3)] == claimed
    assert sum(n > 0 for n in claimed) > 1, "the racers did not meet: make the race longer"


def _set_key(arguments):
    uri, n = arguments
    update_info(uri, **{f"key{n}": n})


def test_racing_processes_lose_no_key_of_an_info_file(new_uri):
    uri = new_uri("file")
    create_volume(uri, VolumeInfo(bounds="0,0,0:8,8,8", voxel_size_nm=(1, 1, 1)))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(_set_key, [(uri, n) for n in range(30)], chunksize=1)
    info = read_info(uri)
    assert {n for n in range(30) if info.get(f"key{n}") == n} == set(range(30))


def test_a_web_folder_can_be_read_and_neither_listed_nor_written(web, tmp_path):
    (tmp_path / "a b").write_bytes(b"x")
    objects = open_objects(web)
    assert objects.get("a b") == b"x"
    assert not objects.exists("nothing")
    with pytest.raises(SpecError, match="a web server cannot list what it has"):
        list(objects.list())
    for write in (objects.put, objects.put_if_absent):
        with pytest.raises(SpecError, match="is a web address, which is read-only"):
            write("b", b"")


def test_a_bucket_that_does_not_exist_is_named(gcs, aws):
    for uri in ("gs://no-such-bucket/a", "s3://no-such-bucket/a"):
        with pytest.raises(NotFoundError, match="cannot write .*no-such-bucket/a/k: .*does the bucket exist"):
            open_objects(uri).put("k", b"")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1/a", "gs://vol/a", "s3://vol/a"])
def test_an_unreachable_server_is_one_clear_sentence(monkeypatch, gcs, aws, uri):
    monkeypatch.setenv("CLOUDSEG_STORAGE_RETRIES", "0")
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(TransientStorageError, match=r"cannot reach .*/a/k to read it: .*; check the network"):
        open_objects(uri).get("k")


def test_a_server_that_stumbles_is_asked_again(monkeypatch, gcs):
    from cloudseg.testing.emulators import Fault

    monkeypatch.setenv("CLOUDSEG_STORAGE_RETRIES", "2")
    objects = open_objects("gs://vol/stumble")
    objects.put("k", b"x")
    gcs.faults[:] = [Fault("GET .*stumble/k", status=503, times=1)]
    assert objects.get("k") == b"x"
    gcs.faults[:] = [Fault("GET .*stumble/k", status=503)]
    monkeypatch.setenv("CLOUDSEG_STORAGE_RETRIES", "0")
    with pytest.raises(TransientStorageError, match="a second try may work"):
        open_objects("gs://vol/stumble").get("k")
    gcs.faults[:] = [Fault("GET .*stumble/k", status=403)]
    with pytest.raises(
        StorageError, match="refused to let us read: .*; check that this account may do so"
    ) as caught:
        open_objects("gs://vol/stumble").get("k")
    assert not isinstance(caught.value, TransientStorageError)
    gcs.faults.clear()


def test_a_folder_in_the_way_of_an_object_is_an_error(tmp_path):
    objects = open_objects(tmp_path)
    objects.put("a/b", b"x")
    with pytest.raises(StorageError, match="cannot write file://.*/a/b/c: .*Not a directory"):
        objects.put("a/b/c", b"x")

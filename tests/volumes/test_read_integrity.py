"""What a bucket sends is what was stored, or it is read again, or it is an error: never wrong voxels."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import numpy as np
import pytest
import tensorstore as ts
from cloudvolume import CloudVolume

from cloudseg.errors import (
    CorruptDataError,
    MissingChunkError,
    StorageError,
    TransientStorageError,
    VolumeFormatError,
)
from cloudseg.geometry import Box
from cloudseg.testing.emulators import Fault, front
from cloudseg.volumes import VolumeInfo, create_volume, open_objects, open_volume, read_info, sharding_for
from cloudseg.volumes import checked as checked_module
from cloudseg.volumes import checked_chunks as chunks_module
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.by_id import stored_ids
from cloudseg.volumes.digests import stored_digest
from cloudseg.volumes.kvstore import kvstore_spec, open_kvstore, renew_context, translated
from cloudseg.volumes.parts import Parts
from cloudseg.volumes.skeletons import read_skeletons
from cloudseg.volumes.tables import get_table, put_table

pytestmark = pytest.mark.faults

BOUNDS = Box((0, 0, 0), (32, 32, 32))
KEY = "8_8_8"
LABELS = {"dtype": "uint64", "layer": "segmentation"}
KINDS = {
    "raw": {},
    "gzip": {},  # as CloudVolume writes it: raw, with Content-Encoding gzip
    "png": {"encoding": "png"},
    "jpeg": {"encoding": "jpeg"},
    "compressed_segmentation": LABELS,
    "sharded raw": {},
    "sharded jpeg": {"encoding": "jpeg"},
    "sharded compressed_segmentation": LABELS,
    "sharded without checksums": {},  # as others write it
}
WRONG = {"short": {"shorten": 0.5}, "flipped": {"flip": 16}, "empty": {"shorten": 0.0}}
FAILING = {
    "429": {"status": 429},
    "500": {"status": 500},
    "503": {"status": 503},
    "cut before": {"cut": "before"},
    "cut mid": {"cut": "mid"},
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setenv("CLOUDSEG_STORAGE_RETRIES", "2")
    monkeypatch.setattr(checked_module, "FIRST_PAUSE_S", 0.01)


def voxels(info: VolumeInfo) -> np.ndarray:
    x, y, z = np.meshgrid(*map(np.arange, info.shape), indexing="ij")
    return (1 + x + 2 * y + z).astype(info.dtype)


def write(uri: str, kind: str) -> np.ndarray:
    """Store a volume; return what reads of it must give."""
    info = VolumeInfo(bounds=BOUNDS, voxel_size_nm=(8, 8, 8), chunk_shape=(16, 16, 16), **KINDS[kind])
    if kind.startswith("sharded"):
        info = info.model_copy(update={"sharding": sharding_for(info, target_bytes=1 << 20)})
        if kind == "sharded without checksums":
            sharding = info.sharding.model_copy(
                update={"data_encoding": "raw", "minishard_index_encoding": "raw"}
            )
            info = info.model_copy(update={"sharding": sharding})
    volume = create_volume(uri, info)
    if kind == "gzip":
        CloudVolume(uri, compress="gzip", progress=False, parallel=1)[:, :, :] = voxels(info)
    else:
        volume.write(BOUNDS, voxels(info))
    # Not the voxels themselves: JPEG changes them a little.
    return volume.read(BOUNDS)


@pytest.mark.timeout(400)  # each fault of a shard is met by a pause of a second
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_bytes_are_read_again_and_never_given_out(bucket, kind):
    uri, front = bucket
    expected = write(uri, kind)
    np.testing.assert_allclose(expected.astype(float), voxels(open_volume(uri).info), atol=8)
    # tensorstore asks for a shard as a whole if all of it is wanted, and else for index, index and data.
    one_chunk = Box((16, 0, 0), (32, 16, 16))
    for box in (BOUNDS, one_chunk):
        renew_context()
        front.faults.clear()
        n_before = len(front.requests)
        open_volume(uri).read(box)
        n_requests = sum(f"{KEY}/" in line for line in front.requests[n_before:] if line.startswith("GET"))
        # tensorstore, which reads the shards, waits a second before it asks again: one failure has to do for it.
        failing = {"503": FAILING["503"]} if kind.startswith("sharded") else FAILING
        for name, fault in {**WRONG, **failing}.items():
            for skipped in {0, n_requests - 1}:
                renew_context()
                front.faults[:] = [
                    Fault(f"GET .*{KEY}/", times=skipped),
                    Fault(f"GET .*{KEY}/", times=1, **fault),
                ]
                got = open_volume(uri).read(box)
                np.testing.assert_array_equal(got, expected[box.slices_in(BOUNDS)], err_msg=name)
                assert front.faults[1].times == 0, f"nothing was {name}"


def test_a_damaged_index_of_a_shard_is_damage_although_the_error_has_no_code():
    text = "Error reading chunk 1 in minishard 0 in gs://b/v/0.shard: Error decoding existing minishard index"
    with pytest.raises(CorruptDataError, match="minishard index"), translated("gs://b/v", "read"):
        raise ValueError(text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", ["error", "zero"])
def test_what_stays_wrong_is_an_error_that_names_the_object(bucket, kind, missing):
    uri, front = bucket
    write(uri, kind)
    for fault in WRONG.values():
        renew_context()
        front.faults[:] = [Fault(f"GET .*{KEY}/", **fault)]
        with pytest.raises(StorageError) as caught:
            open_volume(uri).read(BOUNDS, missing=missing)
        assert uri in str(caught.value)
        if not kind.startswith("sharded"):
            assert isinstance(caught.value, CorruptDataError)
            assert f"{uri}/{KEY}/0-16_0-16_0-16 arrived damaged each time it was read" in str(caught.value)


@pytest.mark.parametrize("kind", ["raw", "sharded raw"])
def test_what_never_arrives_is_a_transient_error_that_names_the_volume(bucket, kind, monkeypatch):
    monkeypatch.setenv("CLOUDSEG_STORAGE_RETRIES", "1")
    uri, front = bucket
    write(uri, kind)
    for fault in (FAILING["503"], FAILING["cut mid"]):
        renew_context()
        front.faults[:] = [Fault(f"GET .*{KEY}/", **fault)]
        with pytest.raises(TransientStorageError, match=uri):
            open_volume(uri).read(BOUNDS)


def test_the_data_in_a_shard_are_checked_wherever_they_are_hurt(bucket):
    """At rest: each byte of the index, and a sample of the others, gives an error or does not matter."""
    uri, _ = bucket
    expected = write(uri, "sharded raw")
    store = open_kvstore(Address.parse(uri))
    (name,) = [key.decode() for key in store.list().result() if b"shard" in key]
    good = store.read(name).result().value
    for place in [*range(16), *range(16, len(good), len(good) // 16)]:
        bad = bytearray(good)
        bad[place] ^= 0x40
        store.write(name, bytes(bad)).result()
        renew_context()
        try:
            got = open_volume(uri).read(BOUNDS)
        except StorageError:
            continue
        np.testing.assert_array_equal(got, expected)


def test_tensorstore_alone_gives_out_what_arrives_damaged(bucket):
    """Why all this: if this fails, the engine checks for itself by now, and ours can go."""
    uri, front = bucket
    expected = write(uri, "raw")
    front.faults[:] = [Fault(f"GET .*{KEY}/", flip=16, times=1)]
    spec = {"driver": "neuroglancer_precomputed", "kvstore": kvstore_spec(Address.parse(uri))}
    got = ts.open(spec).result().read(order="F").result()[..., 0]
    assert (got != expected).sum() == 16


@pytest.mark.parametrize("fault", [*WRONG, "cut mid", "503"])
def test_small_objects_are_checked_too(bucket, fault):
    uri, front = bucket
    objects = open_objects(uri)
    document = {"n": list(range(50))}
    objects.put("a.json", json.dumps(document).encode())
    columns = {"id": np.arange(100, dtype=np.uint64), "size": np.full(100, 7.5)}
    put_table(objects, "a.parquet", columns)
    create_volume(uri, VolumeInfo(bounds=BOUNDS, voxel_size_nm=(8, 8, 8)))
    for key in (r"a\.json", r"a\.parquet", "info"):
        wrong = {**WRONG, **FAILING}[fault]
        front.faults[:] = [Fault(f"GET .*{key}", times=2, **wrong)]
        assert json.loads(objects.get("a.json")) == document
        np.testing.assert_array_equal(get_table(objects, "a.parquet")["id"], columns["id"])
        assert read_info(uri)["data_type"] == "uint8"
        assert front.faults[0].times == 0
        front.faults[:] = [Fault(f"GET .*{key}", **wrong)]
        with pytest.raises(StorageError, match=f"{uri}/{key}"):
            objects.get(key.replace("\\", ""))


def test_without_a_digest_two_readings_must_agree(bucket):
    uri, front = bucket
    expected = write(uri, "raw")
    stripped = "hash|etag|checksum|stored-content-length"
    front.faults[:] = [Fault(f"GET .*{KEY}/", without=stripped)]
    n_before = len(front.requests)
    np.testing.assert_array_equal(open_volume(uri).read(BOUNDS), expected)
    assert sum(KEY in line for line in front.requests[n_before:]) == 2 * 8
    front.faults.insert(0, Fault(f"GET .*{KEY}/", without=stripped, flip=16, times=3))
    np.testing.assert_array_equal(open_volume(uri).read(BOUNDS), expected)
    front.faults[:] = [Fault(f"GET .*{KEY}/", without=stripped, flip=16)]
    with pytest.raises(
        CorruptDataError, match="was different each time it was read, and its storage keeps no"
    ):
        open_volume(uri).read(BOUNDS)


def test_a_slow_answer_is_good_and_a_silent_one_is_asked_for_again(bucket, monkeypatch):
    from cloudseg.volumes import bucket_client

    uri, front = bucket
    expected = write(uri, "raw")
    front.faults[:] = [Fault(f"GET .*{KEY}/", delay_s=0.2, times=3)]
    np.testing.assert_array_equal(open_volume(uri).read(BOUNDS), expected)
    assert front.faults[0].times == 0
    monkeypatch.setattr(bucket_client, "_SILENCE_S", 1.5)
    front.faults[:] = [Fault(f"GET .*{KEY}/", delay_s=6, times=1)]
    np.testing.assert_array_equal(open_volume(uri).read(BOUNDS), expected)
    assert front.faults[0].times == 0


def test_a_box_of_many_windows_is_read_like_one(bucket, monkeypatch):
    uri, _ = bucket
    expected = write(uri, "compressed_segmentation")
    monkeypatch.setattr(chunks_module, "_WINDOW_BYTES", 2 * 16**3 * 8)
    part = Box((3, 5, 7), (30, 32, 20))
    np.testing.assert_array_equal(open_volume(uri).read(part), expected[part.slices_in(BOUNDS)])


def test_the_version_of_an_object_is_the_one_that_tensorstore_gives(bucket):
    uri, _ = bucket
    objects = open_objects(uri)
    objects.put("k", b"1")
    data, version = objects.get_versioned("k")
    read = open_kvstore(Address.parse(uri)).read("k").result()
    assert (data, version) == (bytes(read.value), bytes(read.stamp.generation))


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_passed_on_whole_is_checked_and_the_end_of_a_part_is_read_twice(bucket, fault):
    uri, front = bucket
    data = np.random.default_rng(0).bytes(1000)
    open_objects(uri).put("k", data)
    parts = Parts(uri)
    front.faults[:] = [Fault("GET .*/k", times=2, **WRONG[fault])]
    assert parts.read("k").data == data
    front.faults[:] = [Fault("GET .*/k", **WRONG[fault])]
    with pytest.raises(CorruptDataError, match="k arrived damaged|bytes, but .* arrived"):
        parts.read("k")
    front.faults[:] = [Fault("GET .*/k", times=1, **WRONG[fault])]
    tail = parts.read("k", first=900, stop=2000)
    assert (tail.data, tail.size_bytes) == (data[900:], 1000)
    if fault == "short":  # as if the object ended there
        front.faults[:] = [Fault("GET .*/k", times=1, **WRONG[fault])]
        middle = parts.read("k", first=100, stop=300)
        assert middle.data == data[100:300]
    front.faults[:] = [Fault("GET .*/k", flip=16)]
    with pytest.raises(CorruptDataError, match="bytes 900 to the end of .*/k were different each time"):
        parts.read("k", first=900, stop=2000)


def test_a_web_server_that_hangs_up_early_is_asked_again_or_named(web, tmp_path):
    expected = write(f"file://{tmp_path}/v", "raw")
    with front(web) as before:
        uri = f"{before.url}/v"
        before.faults[:] = [Fault(f"GET .*{KEY}/", times=1, cut="mid")]
        np.testing.assert_array_equal(open_volume(uri).read(BOUNDS), expected)
        assert before.faults[0].times == 0
        renew_context()
        before.faults[:] = [Fault(f"GET .*{KEY}/", shorten=0.5)]
        with pytest.raises(StorageError, match="/v"):
            open_volume(uri).read(BOUNDS)
        before.faults[:] = [Fault("GET .*info", shorten=0.5)]
        with pytest.raises(VolumeFormatError, match="info"):
            open_volume(uri)


def skeleton_folder(uri: str, sharding: dict | None) -> dict[int, np.ndarray]:
    """Store skeletons of one edge each; return their nodes."""
    nodes = {i: np.full((2, 3), 10.0 * i + np.arange(2)[:, None]) for i in range(1, 6)}
    objects = open_objects(uri)
    info = {"@type": "neuroglancer_skeletons", "vertex_attributes": []}
    objects.put("info", json.dumps(info | ({"sharding": sharding} if sharding else {})).encode())
    address = Address.parse(uri)
    spec = kvstore_spec(address)
    if sharding:
        spec = {"driver": "neuroglancer_uint64_sharded", "metadata": sharding, "base": spec}
    store = ts.KvStore.open(spec).result()
    for i, place in nodes.items():
        body = (
            np.array([2, 1], "<u4").tobytes()
            + place.astype("<f4").tobytes()
            + np.array([0, 1], "<u4").tobytes()
        )
        store.write(i.to_bytes(8, "big") if sharding else str(i), body).result()
    return nodes


@pytest.mark.parametrize("envelope", [None, "gzip", "raw"])
@pytest.mark.parametrize("fault", WRONG)
def test_skeletons_that_arrive_damaged_are_read_again(bucket, envelope, fault):
    uri, front = bucket
    sharding = envelope and {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": 0,
        "hash": "identity",
        "minishard_bits": 0,
        "shard_bits": 1,
        "minishard_index_encoding": envelope,
        "data_encoding": envelope,
    }
    nodes = skeleton_folder(uri, sharding)
    expected = np.concatenate([nodes[i] for i in sorted(nodes)])
    read_skeletons(uri)
    n_before = len(front.requests)
    np.testing.assert_array_equal(read_skeletons(uri).nodes_nm, expected)
    asked = [line for line in front.requests[n_before:] if line.startswith("GET") and "info" not in line]
    data = r"\.shard" if envelope else r"/[1-5](\?|$)"
    n_data = sum(bool(re.search(data, line)) for line in asked)
    assert n_data
    for skipped in {0, n_data - 1}:
        front.faults[:] = [
            Fault(f"GET .*{data}", times=skipped),
            Fault(f"GET .*{data}", times=1, **WRONG[fault]),
        ]
        np.testing.assert_array_equal(read_skeletons(uri).nodes_nm, expected)
        assert front.faults[1].times == 0


def test_whether_a_skeleton_exists_is_read_from_a_checked_description(bucket):
    uri, front = bucket
    skeleton_folder(uri, None)
    front.faults[:] = [Fault("GET .*info", times=2, flip=16)]
    assert stored_ids(uri, [1, 5, 6]) == {1, 5}
    assert front.faults[0].times == 0


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"x-goog-hash": "crc32c=mnG7TA==,md5=XUFAKrxLKna5cZ2REBfFkg=="}, "crc32c"),
        ({"x-goog-hash": "md5=XUFAKrxLKna5cZ2REBfFkg==, crc32c=mnG7TA=="}, "crc32c"),
        ({"etag": '"5d41402abc4b2a76b9719d911017c592"'}, "md5"),
        ({"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(b"hello").digest()).decode()}, "sha256"),
        ({"x-amz-checksum-sha1": base64.b64encode(hashlib.sha1(b"hello").digest()).decode()}, "sha1"),
        ({"x-amz-checksum-crc32": "NhCmhg=="}, "crc32"),
    ],
)
def test_every_digest_knows_its_bytes(headers, name):
    digest = stored_digest(headers)
    assert digest.name == name
    assert digest.fits(b"hello")
    assert not digest.fits(b"hellO")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"etag": '"5d41402abc4b2a76b9719d911017c592-3"'},  # uploaded in parts
        {"etag": '"5d41402abc4b2a76b9719d911017c592"', "x-amz-server-side-encryption": "aws:kms"},
        {"etag": '"5d41402abc4b2a76b9719d911017c592"', "x-goog-generation": "1"},
        {"x-amz-checksum-crc32": "NhCmhg==", "x-amz-checksum-type": "COMPOSITE"},
        {"x-amz-checksum-crc32": "NhCmhg==-2"},
    ],
)
def test_what_only_looks_like_a_digest_is_none(headers):
    assert stored_digest(headers) is None


def test_a_black_corner_of_a_chunk_is_not_taken_for_an_empty_answer(bucket):
    uri, _ = bucket
    info = VolumeInfo(bounds=BOUNDS, voxel_size_nm=(8, 8, 8), chunk_shape=(16, 16, 16))
    info = info.model_copy(update={"sharding": sharding_for(info, target_bytes=1 << 20)})
    data = np.full(BOUNDS.shape, 7, np.uint8)
    data[:8] = 0
    create_volume(uri, info).write(BOUNDS, data)
    for corner in (Box((0, 0, 0), (8, 32, 32)), Box((0, 0, 0), (16, 16, 16))):
        got = open_volume(uri).read(corner)
        np.testing.assert_array_equal(got, data[corner.slices_in(BOUNDS)])


def test_a_chunk_that_is_denied_once_is_looked_for_once_more(bucket):
    uri, front = bucket
    expected = write(uri, "raw")
    front.faults[:] = [Fault(f"GET .*{KEY}/0-16_", status=404, times=1)]
    np.testing.assert_array_equal(open_volume(uri).read(BOUNDS), expected)
    assert front.faults[0].times == 0
    front.faults[:] = [Fault(f"GET .*{KEY}/0-16_0-16_0-16", status=404, times=2)]
    with pytest.raises(MissingChunkError, match=f"there is no {KEY}/0-16_0-16_0-16"):
        open_volume(uri).read(BOUNDS)
    assert front.faults[0].times == 0

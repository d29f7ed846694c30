"""What the engines under us get wrong, or let us get wrong: each story once, and ours right."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorstore as ts
from cloudvolume import CloudVolume

from cloudseg.errors import AlignmentError, CorruptDataError, MissingChunkError, StorageError
from cloudseg.geometry import Box, tile
from cloudseg.volumes import VolumeInfo, create_volume, open_volume, read_info, sharding_for

BOUNDS = Box((0, 0, 0), (40, 40, 40))
KEY = "8_8_8"


def info_of(*, dtype="uint8", bounds=BOUNDS, target_chunks=0, **changes) -> VolumeInfo:
    fields = {
        "bounds": bounds,
        "voxel_size_nm": (8, 8, 8),
        "chunk_shape": (16, 16, 16),
        "dtype": dtype,
        **changes,
    }
    info = VolumeInfo(**fields)
    if target_chunks:
        sharding = sharding_for(info, target_bytes=target_chunks * 16**3 * info.numpy_dtype.itemsize)
        info = info.model_copy(update={"sharding": sharding})
    return info


def with_black_margins(info: VolumeInfo) -> np.ndarray:
    rng = np.random.default_rng(1)
    data = rng.integers(1, 200, info.shape).astype(info.dtype)
    data[:18], data[:, :17], data[..., 30:] = 0, 0, 0
    return data


def by_tensorstore(path, mip=0) -> np.ndarray:
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "scale_index": mip,
    }
    return ts.open(spec).result().read(order="F").result()[..., 0]


def by_cloud_volume(uri: str) -> np.ndarray:
    # fill_missing=False: a chunk that is not there raises.
    volume = CloudVolume(uri, fill_missing=False, progress=False, bounded=True)
    return np.asarray(volume[volume.bounds])[..., 0]


@pytest.mark.parametrize(
    ("dtype", "encoding", "layer"),
    [
        ("uint8", "raw", "image"),
        ("uint8", "png", "image"),
        ("uint64", "raw", "segmentation"),
        ("uint64", "compressed_segmentation", "segmentation"),
    ],
)
@pytest.mark.parametrize("target_chunks", [0, 4])
def test_black_margins_and_ragged_edges_read_back_by_every_library(
    tmp_path, dtype, encoding, layer, target_chunks
):
    """CloudVolume reuses the bytes of one black chunk for black chunks of other shapes: unreadable shards."""
    info = info_of(
        dtype=dtype,
        encoding=encoding,
        layer=layer,
        target_chunks=target_chunks,
        bounds=Box((0, 0, 0), (40, 37, 45)),
    )
    data = with_black_margins(info)
    volume = create_volume(tmp_path / "v", info)
    for cell in tile(info.bounds, info.write_grid):
        volume.write(cell, data[cell.slices_in(info.bounds)])
    np.testing.assert_array_equal(open_volume(tmp_path / "v").read(info.bounds), data)
    np.testing.assert_array_equal(by_tensorstore(tmp_path / "v"), data)
    if encoding != "png":  # which CloudVolume reads with a codec of another package only
        np.testing.assert_array_equal(by_cloud_volume(f"file://{tmp_path}/v"), data)


def test_a_jpeg_volume_reads_the_same_everywhere(tmp_path):
    info = info_of(encoding="jpeg", target_chunks=4)
    x, y, z = np.meshgrid(*map(np.arange, info.shape), indexing="ij")
    smooth = (x + 2 * y + z).astype(np.uint8)
    create_volume(tmp_path / "v", info).write(info.bounds, smooth)
    got = open_volume(tmp_path / "v").read(info.bounds)
    assert np.abs(got.astype(int) - smooth).max() <= 8
    np.testing.assert_array_equal(by_tensorstore(tmp_path / "v"), got)
    # Another decoder may round differently.
    assert np.abs(by_cloud_volume(f"file://{tmp_path}/v").astype(int) - got).max() <= 2


def test_part_of_a_shard_is_refused_and_the_rest_of_it_kept(tmp_path):
    """CloudVolume accepts the part and loses the other chunks of the shard."""
    info = info_of(dtype="uint64", layer="segmentation", target_chunks=4)
    data = with_black_margins(info)
    volume = create_volume(tmp_path / "v", info)
    volume.write(info.bounds, data)
    one_chunk = Box((0, 0, 0), (16, 16, 16))
    with pytest.raises(AlignmentError, match="does not cover whole chunks"):
        volume.write(one_chunk, np.ones(one_chunk.shape, np.uint64))
    np.testing.assert_array_equal(open_volume(tmp_path / "v").read(info.bounds), data)


def test_a_shard_is_replaced_whole_even_if_the_old_one_is_broken(tmp_path):
    info = info_of(target_chunks=4)
    volume = create_volume(tmp_path / "v", info)
    data = with_black_margins(info)
    volume.write(info.bounds, data)
    shards = sorted((tmp_path / "v" / KEY).iterdir())
    assert len(shards) > 2
    shards[0].write_bytes(shards[0].read_bytes()[:20])
    volume.write(info.bounds, data)
    np.testing.assert_array_equal(by_tensorstore(tmp_path / "v"), data)


def test_the_same_voxels_give_the_same_bytes(tmp_path):
    for target_chunks in (0, 4):
        info = info_of(dtype="uint64", layer="segmentation", target_chunks=target_chunks)
        data = with_black_margins(info)
        for name in ("a", "b"):
            create_volume(tmp_path / f"{name}{target_chunks}", info).write(info.bounds, data)
        first = {f.name: f.read_bytes() for f in (tmp_path / f"a{target_chunks}" / KEY).iterdir()}
        second = {f.name: f.read_bytes() for f in (tmp_path / f"b{target_chunks}" / KEY).iterdir()}
        assert first == second
        assert first


@pytest.mark.parametrize("missing", ["error", "zero"])
@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation", "png"])
@pytest.mark.parametrize("target_chunks", [0, 4])
def test_a_cut_file_is_an_error_and_never_zeros(tmp_path, encoding, target_chunks, missing):
    """A full disk leaves files of 0 bytes; CloudVolume can read a cut gzip file of constant data as black."""
    dtype, layer = ("uint8", "image") if encoding == "png" else ("uint64", "segmentation")
    info = info_of(dtype=dtype, layer=layer, encoding=encoding, target_chunks=target_chunks)
    volume = create_volume(tmp_path / "v", info)
    volume.write(info.bounds, with_black_margins(info))
    victims = sorted((tmp_path / "v" / KEY).iterdir(), key=lambda file: file.stat().st_size)
    for victim in (victims[0], victims[-1]):
        whole = victim.read_bytes()
        # The last bytes of a PNG follow its pixels: without them it is as good.
        end = 13 if encoding == "png" and not target_chunks else 1
        for keep in (0, 1, len(whole) // 2, len(whole) - end):
            victim.write_bytes(whole[:keep])
            with pytest.raises(CorruptDataError, match="is damaged: .*write it again"):
                open_volume(tmp_path / "v").read(info.bounds, missing=missing)
        victim.write_bytes(whole)
    np.testing.assert_array_equal(open_volume(tmp_path / "v").read(info.bounds), with_black_margins(info))


@pytest.mark.parametrize("compress", ["gzip", "br", "zstd", "xz", "bz2"])
@pytest.mark.parametrize("layer", ["image", "segmentation"])
def test_a_local_volume_of_compressed_files_is_read_and_not_taken_for_zeros(tmp_path, compress, layer):
    """tensorstore finds no .gz files and gives zeros without an error."""
    info = info_of(dtype="uint64" if layer == "segmentation" else "uint8", layer=layer)
    create_volume(tmp_path / "v", info)
    data = with_black_margins(info)
    CloudVolume(f"file://{tmp_path}/v", compress=compress, progress=False)[:, :, :] = data
    names = {file.suffix for file in (tmp_path / "v" / KEY).iterdir()}
    assert names == {{"gzip": ".gz"}.get(compress, f".{compress}")}
    volume = open_volume(tmp_path / "v")
    np.testing.assert_array_equal(volume.read(info.bounds), data)
    part = Box((3, 4, 5), (30, 20, 31))
    np.testing.assert_array_equal(volume.read(part), data[part.slices_in(info.bounds)])
    with pytest.raises(CorruptDataError, match="compressed files of these chunks lie there already"):
        volume.write(info.bounds, data)


def test_in_a_volume_of_compressed_files_an_absent_or_broken_chunk_is_still_an_error(tmp_path):
    info = info_of()
    create_volume(tmp_path / "v", info)
    data = np.full(info.shape, 3, np.uint8)
    CloudVolume(f"file://{tmp_path}/v", compress="gzip", progress=False)[:, :, :] = data
    first = tmp_path / "v" / KEY / "0-16_0-16_0-16.gz"
    whole = first.read_bytes()
    for broken in (b"", whole[:-9], whole[: len(whole) // 2], b"nonsense"):
        first.write_bytes(broken)
        with pytest.raises(CorruptDataError, match=r"0-16_0-16_0-16.gz .*write the chunk again"):
            open_volume(tmp_path / "v").read(info.bounds, missing="zero")
    first.write_bytes(gzip.compress(b"too short"))
    with pytest.raises(CorruptDataError, match="Expected chunk length to be 4096, but received 9"):
        open_volume(tmp_path / "v").read(info.bounds, missing="zero")
    first.unlink()
    with pytest.raises(MissingChunkError, match="was never written"):
        open_volume(tmp_path / "v").read(info.bounds)
    expected = data.copy()
    expected[:16, :16, :16] = 0
    np.testing.assert_array_equal(open_volume(tmp_path / "v").read(info.bounds, missing="zero"), expected)
    # A chunk that has been decompressed by hand is as good.
    (tmp_path / "v" / KEY / "0-16_0-16_0-16").write_bytes(gzip.decompress(whole))
    np.testing.assert_array_equal(open_volume(tmp_path / "v").read(info.bounds), data)


def test_a_chunk_that_lies_there_twice_is_an_error_and_never_a_stale_pick(tmp_path):
    """CloudVolume picks one of the twins by a search order that changes as the process runs."""
    info = info_of()
    volume = create_volume(tmp_path / "v", info)
    volume.write(info.bounds, np.full(info.shape, 7, np.uint8))
    CloudVolume(f"file://{tmp_path}/v", compress="gzip", progress=False)[:16, :16, :16] = np.full(
        (16,) * 3, 3, np.uint8
    )
    with pytest.raises(
        CorruptDataError, match=r"0-16_0-16_0-16 lies in .* more than once: 0-16_0-16_0-16, 0-16_0-16_0"
    ):
        volume.read(Box((0, 0, 0), (1, 1, 1)))
    with pytest.raises(CorruptDataError, match="one of them is stale"):
        volume.write(info.bounds, np.full(info.shape, 7, np.uint8))
    assert (volume.read(Box((16, 0, 0), (40, 40, 40))) == 7).all()


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_compressed_objects_of_a_bucket_are_read(new_uri, scheme):
    uri = new_uri(scheme)
    info = info_of(dtype="uint64", layer="segmentation")
    create_volume(uri, info)
    data = with_black_margins(info)
    CloudVolume(uri, compress="gzip", progress=False, parallel=1)[:, :, :] = data
    np.testing.assert_array_equal(open_volume(uri).read(info.bounds), data)


def test_a_short_answer_of_a_bucket_is_an_error(new_uri, gcs, monkeypatch):
    monkeypatch.setenv("CLOUDSEG_STORAGE_RETRIES", "1")
    from cloudseg.testing.emulators import Fault

    uri = new_uri("gs")
    info = info_of()
    volume = create_volume(uri, info)
    volume.write(info.bounds, with_black_margins(info))
    gcs.faults[:] = [Fault(rf"GET .*{KEY}/16-32", shorten=0.5)]
    try:
        with pytest.raises(CorruptDataError, match="arrived damaged each time it was read"):
            open_volume(uri).read(info.bounds)
    finally:
        gcs.faults.clear()


_NEIGHBOUR = """
import sys, numpy as np
from cloudseg.geometry import Box
from cloudseg.volumes import open_volume
volume, me = open_volume(sys.argv[1]), int(sys.argv[2])
for again in range(5):
    for x in range(0, 40, 8):
        if x // 8 % 2 == me:
            box = Box((x, 0, 0), (min(x + 8, 40), 40, 40))
            volume.write(box, np.full(box.shape, x + 1, np.uint64))
"""


def test_processes_that_write_neighbouring_chunks_lose_nothing(tmp_path):
    """With unaligned writes, CloudVolume lost data in 18 of 20 runs of such a race; here nobody shares a file."""
    info = info_of(dtype="uint64", layer="segmentation", chunk_shape=(8, 40, 40))
    create_volume(tmp_path / "v", info)
    command = [sys.executable, "-c", _NEIGHBOUR, str(tmp_path / "v")]
    writers = [subprocess.Popen([*command, str(n)]) for n in range(2)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    expected = np.broadcast_to((np.arange(40) // 8 * 8 + 1).astype(np.uint64)[:, None, None], info.shape)
    np.testing.assert_array_equal(open_volume(tmp_path / "v").read(info.bounds), expected)


def test_a_reader_beside_a_writer_sees_a_chunk_before_or_after_and_never_between(tmp_path):
    """CloudVolume writes local files in place: readers meet empty ones."""
    info = info_of(bounds=Box((0, 0, 0), (64, 64, 64)), chunk_shape=(64, 64, 64))
    volume = create_volume(tmp_path / "v", info)
    volume.write(info.bounds, np.zeros(info.shape, np.uint8))
    stop = threading.Event()
    seen: list[set[int]] = []

    def read():
        mine = open_volume(tmp_path / "v")
        while not stop.is_set():
            seen.append(set(np.unique(mine.read(info.bounds)).tolist()))

    reader = threading.Thread(target=read)
    reader.start()
    for value in range(1, 30):
        volume.write(info.bounds, np.full(info.shape, value, np.uint8))
    stop.set()
    reader.join()
    assert len(seen) > 3
    assert all(len(values) == 1 for values in seen)


def test_nothing_but_chunks_and_info_is_left_in_the_folder(tmp_path):
    info = info_of()
    create_volume(tmp_path / "v", info).write(info.bounds, with_black_margins(info))
    create_volume(tmp_path / "v", info)
    files = [
        file.relative_to(tmp_path / "v").as_posix() for file in (tmp_path / "v").rglob("*") if file.is_file()
    ]
    assert "info" in files
    assert len(files) == 1 + 3**3
    assert all("." not in name for name in files)
    assert read_info(tmp_path / "v")["scales"][0]["key"] == KEY


_FILL_DISK = """
import sys, numpy as np
from cloudseg.volumes import create_volume, open_objects, VolumeInfo
info = VolumeInfo(bounds="0,0,0:64,64,64", voxel_size_nm=(8, 8, 8), chunk_shape=(32, 32, 32))
volume = create_volume(sys.argv[1], info)
try:
    volume.write(info.bounds, np.ones(info.shape, np.uint8))
except Exception as error:
    print(type(error).__name__, error)
for file in sorted(__import__("pathlib").Path(sys.argv[1]).rglob("*")):
    if file.is_file() and not file.name.endswith(".__lock"):
        print(file.name, file.stat().st_size)
"""


@pytest.mark.faults
def test_a_full_disk_is_one_clear_sentence_and_leaves_no_cut_chunk(tmp_path):
    """In a file system of 128 KiB of our own, which needs a user namespace."""
    script = tmp_path / "fill.py"
    script.write_text(_FILL_DISK)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=128k none {disk} && exec {sys.executable} {script} {disk}/v"
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no user namespaces here: {probe.stderr.strip()}")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, *files = done.stdout.splitlines()
    assert first.startswith("StorageError no space left while trying to write file://")
    assert "free some and start again" in first
    assert all(line.split() == ["info", line.split()[1]] or line.endswith(" 32768") for line in files), files


def test_a_read_only_or_unusable_place_is_refused_with_its_name(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file://.*/file/v/info"):
        create_volume(tmp_path / "file" / "v", info_of())


def test_a_volume_made_anew_at_the_same_place_is_not_read_from_a_cache(tmp_path):
    for chunk, target_chunks, value in ((16, 0, 1), (8, 0, 2), (16, 4, 3), (16, 2, 4)):
        info = info_of(target_chunks=target_chunks, chunk_shape=(chunk,) * 3)
        volume = create_volume(tmp_path / "v", info)
        with pytest.raises(MissingChunkError):
            volume.read(info.bounds)
        volume.write(info.bounds, np.full(info.shape, value, np.uint8))
        assert (open_volume(tmp_path / "v").read(info.bounds) == value).all()
        shutil.rmtree(tmp_path / "v")

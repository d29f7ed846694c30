"""Ingest keeps voxels, builds the pyramid, goes on where it stopped, and refuses before it writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorstore as ts
import tifffile
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudseg.cli.main import cli
from cloudseg.errors import ConflictError, CorruptDataError, MissingChunkError, SpecError, StorageError
from cloudseg.geometry import Box
from cloudseg.ops.downsample import downsample_mean, downsample_mode
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume, scales
from cloudseg.volumes.ingest import MARKER, IngestOptions, ingest, plan_ingest
from cloudseg.volumes.sources.base import ArraySource

DATA = Path(os.environ.get("CLOUDSEG_DATA", Path(__file__).parents[2] / "../shared/data"))
EIGHT = (8.0, 8.0, 8.0)


@pytest.fixture(autouse=True)
def _fresh_memory():
    clear_memory()


def source_of(array: np.ndarray, *, axes: str | None = None, **more) -> ArraySource:
    return ArraySource(array, axes=axes or "cxyz"[4 - array.ndim :], uri="array", fingerprint="1", **more)


def noise(shape, dtype="uint8", seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def everything(uri: str, mip: int = 0) -> np.ndarray:
    volume = open_volume(uri, mip=mip)
    return volume.read(volume.info.bounds)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, ["ingest", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_images_keep_their_depth_and_get_a_pyramid_of_means(dtype):
    image = noise((37, 30, 21), dtype)
    options = IngestOptions(voxel_size_nm=(4, 4, 8), chunk_shape=(16, 16, 16))
    result = ingest(source_of(image), "memory://v", options)
    assert [info.shape for info in result.infos] == [(37, 30, 21), (19, 15, 21), (10, 8, 11)]
    assert [info.voxel_size_nm for info in scales("memory://v")] == [(4, 4, 8), (8, 8, 8), (16, 16, 16)]
    np.testing.assert_array_equal(everything("memory://v"), image)
    first = downsample_mean(image, (2, 2, 1))
    np.testing.assert_array_equal(everything("memory://v", 1), first)
    np.testing.assert_array_equal(everything("memory://v", 2), downsample_mean(first, (2, 2, 2)))


def test_floats_stay_float32_and_half_floats_widen():
    image = np.random.default_rng(0).random((9, 9, 9)).astype(np.float16)
    result = ingest(source_of(image), "memory://v", IngestOptions(voxel_size_nm=EIGHT))
    assert result.infos[0].dtype == "float32"
    assert result.notes == ("float16 is stored as float32, without loss",)
    np.testing.assert_array_equal(everything("memory://v"), image.astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int64", "bool", "uint64"])
def test_labels_become_uint64_with_a_pyramid_of_modes(dtype):
    labels = (noise((20, 20, 20)) % 2 if dtype == "bool" else noise((20, 20, 20)) % 5).astype(dtype)
    options = IngestOptions(voxel_size_nm=EIGHT, layer="segmentation", chunk_shape=(16, 16, 16))
    result = ingest(source_of(labels), "memory://v", options)
    assert (result.infos[0].dtype, result.infos[0].encoding) == ("uint64", "compressed_segmentation")
    np.testing.assert_array_equal(everything("memory://v"), labels)
    np.testing.assert_array_equal(
        everything("memory://v", 1), downsample_mode(labels.astype(np.uint64), (2, 2, 2))
    )


@settings(deadline=None, max_examples=15)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    at=st.tuples(*[st.integers(-7, 7)] * 3),
    chunk=st.tuples(*[st.sampled_from([4, 8, 16])] * 3),
    budget=st.sampled_from([1, 5_000, 1 << 20]),
    layer=st.sampled_from(["image", "segmentation"]),
)
def test_the_result_does_not_depend_on_the_block(shape, at, chunk, budget, layer):
    data = (noise(shape) % 4).astype(np.uint8)
    options = IngestOptions(voxel_size_nm=EIGHT, chunk_shape=chunk, offset=at, layer=layer, n_mips=3)
    results = {}
    for name, n_bytes in (("whole", 1 << 30), ("blocks", budget)):
        clear_memory()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cloudseg.volumes.ingest.BLOCK_BYTES", n_bytes)
            infos = ingest(source_of(data), f"memory://{name}", options).infos
        results[name] = [everything(f"memory://{name}", mip) for mip in range(len(infos))]
    for a, b in zip(results["whole"], results["blocks"], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(results["whole"][0], data)


def test_a_box_keeps_its_place_or_moves_to_the_offset():
    image = noise((30, 20, 10))
    box = Box((4, 5, 6), (20, 15, 9))
    ingest(source_of(image), "memory://a", IngestOptions(voxel_size_nm=EIGHT, box=box))
    assert open_volume("memory://a").info.bounds == box
    np.testing.assert_array_equal(everything("memory://a"), image[4:20, 5:15, 6:9])
    ingest(source_of(image), "memory://b", IngestOptions(voxel_size_nm=EIGHT, box=box, offset=(100, -3, 0)))
    assert open_volume("memory://b").info.bounds == Box((100, -3, 0), (116, 7, 3))
    np.testing.assert_array_equal(everything("memory://b"), image[4:20, 5:15, 6:9])


def test_channels_travel_together():
    image = noise((3, 12, 10, 8))
    ingest(source_of(image), "memory://v", IngestOptions(voxel_size_nm=EIGHT, chunk_shape=(8, 8, 8)))
    np.testing.assert_array_equal(everything("memory://v"), image)
    np.testing.assert_array_equal(everything("memory://v", 1), downsample_mean(image, (2, 2, 2)))


def test_sharded_and_png_volumes_are_written_too(tmp_path):
    image = noise((70, 40, 33))
    options = IngestOptions(voxel_size_nm=EIGHT, chunk_shape=(16, 16, 16), sharded=True, encoding="png")
    ingest(source_of(image), str(tmp_path / "v"), options)
    np.testing.assert_array_equal(everything(str(tmp_path / "v")), image)
    assert scales(str(tmp_path / "v"))[0].sharding is not None


def test_tensorstore_reads_what_was_ingested(tmp_path):
    image = noise((40, 30, 20), "uint16")
    ingest(
        source_of(image), str(tmp_path / "v"), IngestOptions(voxel_size_nm=EIGHT, chunk_shape=(16, 16, 16))
    )
    for mip, expected in enumerate([image, downsample_mean(image, (2, 2, 2))]):
        kvstore = {"driver": "file", "path": f"{tmp_path}/v/"}
        spec = {"driver": "neuroglancer_precomputed", "kvstore": kvstore, "scale_index": mip}
        np.testing.assert_array_equal(ts.open(spec).result().read().result()[..., 0], expected)


class Breaking(ArraySource):
    """A source whose reads fail after some blocks, as a disk or a network does."""

    def __init__(self, array: np.ndarray, n_good: int) -> None:
        super().__init__(array, axes="xyz", uri="array", fingerprint="1")
        self.n_reads, self.n_good = 0, n_good

    def read(self, box):
        self.n_reads += 1
        if self.n_reads > self.n_good:
            raise CorruptDataError(f"array cannot be read at {box}")
        return super().read(box)


@pytest.mark.parametrize("uri", ["memory://v", "{tmp}/v"])
def test_a_stopped_ingest_goes_on_and_a_finished_one_does_nothing(tmp_path, monkeypatch, uri):
    uri = uri.format(tmp=tmp_path)
    monkeypatch.setattr("cloudseg.volumes.ingest.BLOCK_BYTES", 1)
    monkeypatch.setattr("cloudseg.volumes.ingest._MARKER_EVERY_S", 0)
    image = noise((30, 30, 30))
    options = IngestOptions(voxel_size_nm=EIGHT, chunk_shape=(16, 16, 16))
    with pytest.raises(CorruptDataError):
        ingest(Breaking(image, 5), uri, options)
    with pytest.raises(MissingChunkError):  # unfinished is never mistaken for black
        everything(uri)
    again = Breaking(image, 99)
    result = ingest(again, uri, options)
    assert again.n_reads <= 8 - 3  # eight blocks; at least those before the one read ahead were kept
    assert 0 < result.n_blocks_written < result.n_blocks
    np.testing.assert_array_equal(everything(uri), image)
    np.testing.assert_array_equal(everything(uri, 1), downsample_mean(image, (2, 2, 2)))
    third = Breaking(image, 0)
    assert ingest(third, uri, options).n_blocks_written == 0
    assert third.n_reads == 0


def test_another_source_or_other_properties_are_a_conflict():
    image = noise((20, 20, 20))
    options = IngestOptions(voxel_size_nm=EIGHT)
    ingest(source_of(image), "memory://v", options)
    changed = ArraySource(image, axes="xyz", uri="array", fingerprint="2")
    with pytest.raises(
        ConflictError, match=r'holds a copy of something else \(fingerprint was "1", is "2"\)'
    ):
        ingest(changed, "memory://v", options)
    with pytest.raises(
        ConflictError, match=r"voxel_size_nm of scale 0 is \[8.0, 8.0, 8.0\] there, \[8.0, 8.0, 4.0\]"
    ):
        ingest(source_of(image), "memory://v", IngestOptions(voxel_size_nm=(8, 8, 4)))
    with pytest.raises(ConflictError, match="options was"):
        ingest(source_of(image), "memory://v", IngestOptions(voxel_size_nm=EIGHT, offset=(0, 0, 0)))
    np.testing.assert_array_equal(everything("memory://v"), image)


def test_a_volume_of_another_origin_is_not_written_into():
    info = VolumeInfo(bounds=Box.of_shape((20, 20, 20)), voxel_size_nm=EIGHT)
    create_volume("memory://v", info)
    with pytest.raises(ConflictError, match="a volume at memory://v that was not ingested from a file"):
        ingest(source_of(noise((20, 20, 20))), "memory://v", IngestOptions(voxel_size_nm=EIGHT))


def refused(array: np.ndarray, match: str, **options) -> None:
    """Expect a refusal that leaves nothing behind."""
    with pytest.raises(SpecError, match=match):
        ingest(source_of(array), "memory://v", IngestOptions(**{"voxel_size_nm": EIGHT, **options}))
    assert list(open_objects("memory://v").list()) == []


def test_bad_input_is_refused_before_anything_is_written():
    image = noise((8, 8, 8))
    refused(image, "array does not say how large its voxels are", voxel_size_nm=None)
    refused(image.astype(float), "array holds float64, .* add --dtype float32 to accept rounding")
    refused(
        image.astype(float), "array holds float64, and a segmentation holds integer ids", layer="segmentation"
    )
    refused(image.astype(complex), "array holds complex128, not numbers that a volume can hold")
    refused(image, r"box 0,0,0:9,8,8 is not inside the source array, which is 0,0,0:8,8,8", box="0,0,0:9,8,8")
    refused(image, r"box 2,2,2:2,5,5 is not inside", box="2,2,2:2,5,5")
    refused(np.stack([image, image]), "array has 2 channels: a segmentation has one", layer="segmentation")
    refused(image, "encoding compressed_segmentation holds", encoding="compressed_segmentation")
    refused(image, "a segmentation is stored as uint64", layer="segmentation", dtype="uint8")
    refused(image.astype(np.float32), "floats are not stored as uint8", dtype="uint8")
    refused(image.astype(np.uint64), "float32 cannot hold every such number", dtype="float32")


def test_values_that_do_not_fit_are_found_before_anything_is_written():
    image = noise((8, 8, 8)).astype(np.int16)
    image[7, 7, 7] = -3
    refused(image, r"values from -3 to \d+ at .* and uint16 holds 0 to 65535")
    refused(image.astype(np.int64), "values from -3 .* uint64 holds 0", layer="segmentation")
    refused(
        np.full((4, 4, 4), 300, np.uint16), "values from 300 to 300 .* uint8 holds 0 to 255", dtype="uint8"
    )
    refused(np.full((4, 4, 4), 1e300), "values from 1e\\+300 .* float32", dtype="float32")


def test_values_that_fit_are_converted_and_said():
    image = (noise((8, 8, 8)) // 2).astype(np.int16)
    result = ingest(source_of(image), "memory://a", IngestOptions(voxel_size_nm=EIGHT))
    assert result.notes == ("int16 is stored as uint16: all values are 0 or more",)
    np.testing.assert_array_equal(everything("memory://a"), image)
    result = ingest(source_of(image), "memory://b", IngestOptions(voxel_size_nm=EIGHT, dtype="uint8"))
    assert result.notes == ("int16 is stored as uint8",)
    np.testing.assert_array_equal(everything("memory://b"), image)
    with_nan = np.array([[[0.1, np.nan, np.inf]]])
    ingest(source_of(with_nan), "memory://c", IngestOptions(voxel_size_nm=EIGHT, dtype="float32"))
    np.testing.assert_array_equal(everything("memory://c"), with_nan.astype(np.float32))


def test_a_disk_that_is_too_small_is_seen_before_anything_is_written(tmp_path):
    class Huge:
        shape, dtype = (2**21, 2**21, 2**10), np.dtype(np.uint8)

    source = ArraySource(Huge(), axes="xyz", uri="huge", fingerprint="1")
    options = IngestOptions(voxel_size_nm=EIGHT, chunk_shape=(4096, 4096, 1024), n_mips=0)
    with pytest.raises(StorageError, match=r"no space: file://.* needs about 4194304.00 GiB"):
        ingest(source, str(tmp_path / "v"), options)
    assert list(tmp_path.iterdir()) == []


def test_blocks_are_bounded_and_follow_sections():
    from cloudseg.volumes.ingest import _block_shape

    class Big:
        shape, dtype = (10_000, 20_000, 5_000), np.dtype(np.uint8)

    options = IngestOptions(voxel_size_nm=EIGHT)
    for natural in ((1, 1, 1), (10_000, 20_000, 1), (10_000, 64, 1), (512, 512, 64)):
        source = ArraySource(Big(), axes="xyz", uri="big", fingerprint="1", natural_shape=natural)
        infos, _ = plan_ingest(source, options)
        for mip in range(len(infos)):
            block = _block_shape(source, infos, mip)
            assert np.prod(block) <= 64 << 20
            assert all(b % g == 0 for b, g in zip(block, infos[mip].write_grid, strict=True))
    source = ArraySource(Big(), axes="xyz", uri="big", fingerprint="1", natural_shape=(10_000, 64, 1))
    assert _block_shape(source, infos, 0)[0] >= 10_000  # whole strips


def test_the_example_lines_work_on_real_data(tmp_path):
    folder = DATA / "fib25"
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder} (CLOUDSEG_DATA)")
    line = (folder / "sample2_image.npz", f"file://{tmp_path}/image", "--voxel-size", "8,8,8", "--box")
    result = run(*line, "0,0,0:250,100,64")
    assert result.exit_code == 0, result.output
    assert f"file://{tmp_path}/image" in result.stdout
    assert "scale 0: 250 x 100 x 64 voxels of 8 x 8 x 8 nm, uint8, raw, from 0,0,0" in result.stdout
    image = np.load(folder / "sample2_image.npz")["image"][:, :100, :64]
    np.testing.assert_array_equal(everything(f"{tmp_path}/image"), image)
    truth = (folder / "sample2_labels_z000_160.npz", f"file://{tmp_path}/truth", "--layer", "segmentation")
    assert run(*truth, "--voxel-size", "8,8,8", "--box", "0,0,0:100,100,64").exit_code == 0
    labels = np.load(folder / "sample2_labels_z000_160.npz")["labels"][:100, :100, :64]
    np.testing.assert_array_equal(everything(f"{tmp_path}/truth"), labels)
    assert "nothing to do" in run(*line, "0,0,0:250,100,64").stdout


def test_the_command_reads_axes_datasets_and_voxel_sizes(tmp_path):
    image = noise((12, 10, 8))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = image.T
        file["labels"] = image.T // 64
        file["raw"].attrs["resolution"] = (40.0, 4.0, 4.0)
    assert run(tmp_path / "a.h5", tmp_path / "raw", "--dataset", "raw").exit_code == 0
    np.testing.assert_array_equal(everything(str(tmp_path / "raw")), image)
    assert scales(str(tmp_path / "raw"))[0].voxel_size_nm == (4, 4, 40)
    line = (tmp_path / "a.h5", tmp_path / "labels", "--dataset", "labels", "--layer", "segmentation")
    result = run(*line, "--axes", "XYZ", "--voxel-size", "40,4,4", "--mips", "0", "--chunk", "8,8,8")
    assert result.exit_code == 0
    np.testing.assert_array_equal(everything(str(tmp_path / "labels")), image.T // 64)
    assert len(scales(str(tmp_path / "labels"))) == 1


def test_the_command_explains_malformed_options(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise((4, 5, 6)), photometric="minisblack")
    line = (tmp_path / "a.tif", tmp_path / "v")
    for options, match in (
        ((), r"a\.tif does not say how large its voxels are: .* e\.g\. --voxel-size 8,8,8"),
        (("--voxel-size", "8,8"), "--voxel-size is written X,Y,Z with three numbers, e.g. 8,8,8; got '8,8'"),
        (("--voxel-size", "8,8,0"), "--voxel-size must be above 0"),
        (("--chunk", "64,64,a"), "--chunk is written X,Y,Z with three whole numbers"),
        (("--chunk", "64,64,0"), r"ingest: chunk_shape.2: .* greater than 0 \(got 0\)"),
        (("--box", "1,2:3"), "a box is written x0,y0,z0:x1,y1,z1"),
        (("--axes", "z,y,x"), "--axes is a word of the letters x, y, z, c, t"),
        (("--dataset", "5"), "image series 0 to 0, there is no '5'"),
    ):
        with pytest.raises(SpecError, match=match):
            run(*line, *options)
    assert not (tmp_path / "v").exists()


def test_the_marker_says_where_the_voxels_came_from(tmp_path):
    np.save(tmp_path / "a.npy", noise((6, 6, 6)))
    run(tmp_path / "a.npy", tmp_path / "v", "--voxel-size", "8,8,8")
    marker = json.loads((tmp_path / "v" / MARKER).read_text())
    assert marker["format"] == "cloudseg-ingest/1"
    assert marker["source"] == str(tmp_path / "a.npy")
    assert marker["complete"] is True

"""What is exported is what was stored, and ingest reads it back."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import tensorstore as ts
import tifffile
from click.testing import CliRunner

from cloudseg.cli.main import cli
from cloudseg.errors import ConflictError, MissingChunkError, NotFoundError, SpecError, StorageError
from cloudseg.geometry import Box
from cloudseg.volumes import MemoryVolume, VolumeInfo, clear_memory, create_volume
from cloudseg.volumes.export import FORMATS, export
from cloudseg.volumes.sources import open_source

BOUNDS = Box((3, -4, 5), (43, 26, 37))
BOX = Box((7, -2, 6), (40, 25, 30))
SIZE = (4.0, 5.0, 40.0)


def volume(dtype: str = "uint16", n_channels: int = 1) -> tuple[MemoryVolume, np.ndarray]:
    info = VolumeInfo(
        bounds=BOUNDS, voxel_size_nm=SIZE, chunk_shape=(16, 16, 16), dtype=dtype, n_channels=n_channels
    )
    shape = BOUNDS.shape if n_channels == 1 else (n_channels, *BOUNDS.shape)
    rng = np.random.default_rng(0)
    if dtype == "float32":
        data = rng.random(shape).astype(np.float32)
    else:
        data = rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    stored = MemoryVolume(info, uri="memory://v")
    stored.write(BOUNDS, np.asfortranarray(data))
    return stored, data[(..., *BOX.slices_in(BOUNDS))]


@pytest.mark.parametrize("slab_bytes", [1, 40_000, 1 << 20])
@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_comes_back_through_ingest(tmp_path, monkeypatch, ending, slab_bytes):
    monkeypatch.setattr("cloudseg.volumes.export._SLAB_BYTES", slab_bytes)
    for dtype in ("uint8", "uint64", "float32"):
        stored, expected = volume(dtype)
        path = tmp_path / f"{dtype}{ending}"
        seen = []
        assert export(stored, path, box=BOX, progress=lambda *report: seen.append(report)) == path  # noqa: B023
        assert seen[-1] == ("writing", BOX.n_voxels, BOX.n_voxels)
        with open_source(str(path)) as source:
            assert source.dtype == dtype
            np.testing.assert_array_equal(source.read(Box.of_shape(source.shape)), expected)
            if "np" not in ending and not (dtype == "uint64" and ending.startswith(".tif")):
                assert source.voxel_size_nm == pytest.approx(SIZE, rel=1e-6)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_other_readers_find_the_axes_they_expect(tmp_path):
    stored, expected = volume()
    for ending in FORMATS:
        export(stored, tmp_path / f"v{ending}", box=BOX)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npz")["data"], expected)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "v.tif"), expected.T)
    with h5py.File(tmp_path / "v.h5") as file:
        np.testing.assert_array_equal(file["data"][:], expected.T)
        assert tuple(file["data"].attrs["resolution"]) == SIZE[::-1]
    image = nib.load(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), expected)
    assert image.header.get_xyzt_units()[0] == "micron"
    np.testing.assert_allclose(image.affine[:3, 3], [0.028, -0.01, 0.24])
    kvstore = {"driver": "file", "path": f"{tmp_path}/v.zarr/0/"}
    array = ts.open({"driver": "zarr3", "kvstore": kvstore}).result()
    np.testing.assert_array_equal(array.read().result(), expected.T)


@pytest.mark.parametrize("ending", [".npy", ".h5", ".zarr"])
def test_channels_are_kept(tmp_path, ending):
    stored, expected = volume("uint8", n_channels=3)
    export(stored, tmp_path / f"v{ending}", box=BOX)
    with open_source(str(tmp_path / f"v{ending}")) as source:
        np.testing.assert_array_equal(source.read(Box.of_shape(source.shape)), expected)


@pytest.mark.parametrize("ending", [".npz", ".tif", ".nii"])
def test_channels_that_a_format_cannot_hold_are_refused(tmp_path, ending):
    stored, _ = volume("uint8", n_channels=3)
    with pytest.raises(SpecError, match="has 3 channels"):
        export(stored, tmp_path / f"v{ending}")
    assert list(tmp_path.iterdir()) == []


def test_bad_requests_leave_nothing_behind(tmp_path, monkeypatch):
    stored, _ = volume()
    with pytest.raises(SpecError, match=r"v\.png has no ending that cloudseg writes; choose one of \.npy"):
        export(stored, tmp_path / "v.png")
    with pytest.raises(
        SpecError, match=r"box 0,0,0:5,5,5 is not inside the volume memory://v, which is 3,-4,5"
    ):
        export(stored, tmp_path / "v.npy", box=Box((0, 0, 0), (5, 5, 5)))
    with pytest.raises(NotFoundError, match=r"there is no folder .*/missing to write v\.npy to"):
        export(stored, tmp_path / "missing" / "v.npy")
    hole = MemoryVolume(stored.info, uri="memory://hole")
    for ending in FORMATS:
        with pytest.raises(MissingChunkError, match="never written"):
            export(hole, tmp_path / f"v{ending}")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(StorageError, match=r"no space: .*v\.npy needs about 0\.00 GiB"):
        export(stored, tmp_path / "v.npy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".npy", ".zarr"])
def test_what_exists_is_kept_unless_told_otherwise(tmp_path, ending):
    stored, expected = volume()
    path = tmp_path / f"v{ending}"
    export(stored, path)
    with pytest.raises(ConflictError, match="exists: choose another name, or add --overwrite"):
        export(stored, path, box=BOX)
    export(stored, path, box=BOX, overwrite=True)
    with open_source(str(path)) as source:
        np.testing.assert_array_equal(source.read(Box.of_shape(source.shape)), expected)


def test_the_command_exports_a_box_of_a_scale(tmp_path):
    clear_memory()
    fine = VolumeInfo(bounds=Box.of_shape((8, 8, 8)), voxel_size_nm=(8, 8, 8), chunk_shape=(8, 8, 8))
    coarse = VolumeInfo(bounds=Box.of_shape((4, 4, 4)), voxel_size_nm=(16, 16, 16), chunk_shape=(8, 8, 8))
    create_volume("memory://v", fine)
    data = np.asfortranarray(np.arange(64, dtype=np.uint8).reshape(4, 4, 4))
    create_volume("memory://v", coarse, mip=1).write(coarse.bounds, data)
    path: Path = tmp_path / "v.npy"
    line = ["export", "memory://v", str(path)]
    result = CliRunner().invoke(cli, [*line, "--mip", "1", "--box", "1,1,1:4,3,4"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(path)
    np.testing.assert_array_equal(np.load(path), data[1:4, 1:3, 1:4])
    assert CliRunner().invoke(cli, [*line, "--overwrite", "--missing", "zero"]).exit_code == 0
    assert not np.load(path).any()

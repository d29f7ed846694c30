"""Every format gives back the voxels that were put in, in x, y, z, and refuses what it cannot mean."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import tensorstore as ts
import tifffile

from cloudseg.errors import CorruptDataError, NotFoundError, SpecError, StorageError, VolumeFormatError
from cloudseg.geometry import Box
from cloudseg.volumes import VolumeInfo, create_volume
from cloudseg.volumes.sources import local, open_source

SHAPE = (23, 17, 11)
BOXES = [
    Box((0, 0, 0), SHAPE),
    Box((3, 5, 2), (20, 9, 3)),
    Box((22, 16, 10), SHAPE),
    Box((0, 0, 4), (23, 17, 9)),
]


@pytest.fixture
def volume() -> np.ndarray:
    """Values that tell each voxel's place."""
    x, y, z = np.indices(SHAPE)
    return (x + 100 * y + 2000 * z).astype(np.uint16)


def check(uri: Path | str, volume: np.ndarray, **options: str) -> None:
    with open_source(str(uri), **options) as source:
        assert source.shape == volume.shape[-3:]
        assert source.dtype == volume.dtype
        for box in BOXES:
            data = source.read(box)
            np.testing.assert_array_equal(data, volume[(..., *box.slices_in(BOXES[0]))])
            assert data.dtype.isnative
            if data.ndim == 3:
                assert data.flags.f_contiguous


def voxel_size(uri: Path | str, **options: str) -> tuple[float, float, float] | None:
    with open_source(str(uri), **options) as source:
        return source.voxel_size_nm


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_xyz(tmp_path, volume, order):
    np.save(tmp_path / "a.npy", np.asarray(volume, order=order))
    check(tmp_path / "a.npy", volume)
    np.save(tmp_path / "b.npy", volume.T.astype(">u2"))
    check(tmp_path / "b.npy", volume, axes="zyx")


@pytest.mark.parametrize("in_memory_bytes", [0, 1 << 20])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_is_xyz_in_memory_and_from_a_temporary_file(
    tmp_path, volume, monkeypatch, in_memory_bytes, order
):
    monkeypatch.setattr("cloudseg.volumes.sources.arrays.IN_MEMORY_BYTES", in_memory_bytes)
    np.savez_compressed(tmp_path / "a.npz", image=np.asarray(volume, order=order), z=np.arange(3))
    check(tmp_path / "a.npz", volume)


def test_an_npz_with_two_volumes_needs_a_name(tmp_path, volume):
    np.savez(tmp_path / "a.npz", image=volume, labels=volume + 1)
    check(tmp_path / "a.npz", volume + 1, dataset="labels")
    with pytest.raises(SpecError, match=r"several arrays .* image \(23, 17, 11\) uint16, labels"):
        open_source(str(tmp_path / "a.npz"))
    with pytest.raises(SpecError, match="no array named 'truth'; it has: image"):
        open_source(str(tmp_path / "a.npz"), dataset="truth")


def test_channels_stay_in_front(tmp_path, volume):
    both = np.stack([volume, volume + 7])
    np.save(tmp_path / "a.npy", both)
    check(tmp_path / "a.npy", both)
    np.save(tmp_path / "b.npy", both.transpose(3, 2, 1, 0))
    check(tmp_path / "b.npy", both, axes="zyxc")


TIFF_WAYS = {
    "contiguous": {},
    "zlib strips": {"compression": "zlib", "rowsperstrip": 4},
    "lzw with predictor": {"compression": "lzw", "predictor": True, "rowsperstrip": 5},
    "tiles": {"tile": (16, 16), "compression": "zlib"},
    "plain tiles": {"tile": (16, 16)},
    "big endian strips": {"byteorder": ">", "compression": "zlib"},
    "bigtiff": {"bigtiff": True},
}


@pytest.mark.parametrize("way", TIFF_WAYS)
def test_a_tiff_stack_is_zyx_however_it_is_packed(tmp_path, volume, way):
    options = dict(TIFF_WAYS[way])
    writer = {key: options.pop(key) for key in ("byteorder", "bigtiff") if key in options}
    with tifffile.TiffWriter(tmp_path / "a.tif", **writer) as file:
        file.write(volume.T, photometric="minisblack", **options)
    check(tmp_path / "a.tif", volume)


def test_an_imagej_stack_tells_its_voxel_size(tmp_path, volume):
    tifffile.imwrite(
        tmp_path / "a.tif",
        volume.T,
        imagej=True,
        resolution=(1 / 0.004, 1 / 0.005),
        metadata={"axes": "ZYX", "spacing": 0.03, "unit": "um"},
    )
    check(tmp_path / "a.tif", volume)
    assert voxel_size(tmp_path / "a.tif") == pytest.approx((4, 5, 30), rel=1e-4)


def test_an_ome_tiff_tells_axes_and_voxel_size(tmp_path, volume):
    both = np.stack([volume, volume + 9])
    meta = {"axes": "CZYX", "PhysicalSizeX": 6.0, "PhysicalSizeY": 7.0, "PhysicalSizeZ": 0.03}
    meta |= {"PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm", "PhysicalSizeZUnit": "µm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", both.transpose(0, 3, 2, 1), metadata=meta, ome=True)
    check(tmp_path / "a.ome.tif", both)
    assert voxel_size(tmp_path / "a.ome.tif") == pytest.approx((6, 7, 30))


def test_an_rgb_stack_has_three_channels(tmp_path, volume):
    rgb = np.stack([volume % 251, volume % 127, volume % 63]).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", rgb.transpose(3, 2, 1, 0), photometric="rgb", compression="zlib")
    check(tmp_path / "a.tif", rgb)


def test_a_folder_of_sections_is_read_in_natural_order(tmp_path, volume):
    for z in range(SHAPE[2]):
        tifffile.imwrite(tmp_path / f"s{z}.tif", volume[:, :, z].T, compression="zlib" if z % 2 else None)
    (tmp_path / "notes.txt").write_text("not a section")
    check(tmp_path, volume)


def test_sections_of_several_sizes_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "s1.tif", np.zeros((5, 6), np.uint8))
    tifffile.imwrite(tmp_path / "s2.tif", np.zeros((5, 7), np.uint8))
    with pytest.raises(SpecError, match=r"s2.tif is \(5, 7\) uint8, but s1.tif is \(5, 6\) uint8"):
        open_source(str(tmp_path))


def test_a_folder_of_stacks_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "s1.tif", np.zeros((3, 5, 6), np.uint8), photometric="minisblack")
    with pytest.raises(SpecError, match=r"s1.tif holds 3 pages"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_that_is_cut_short_is_refused_before_it_is_read(tmp_path, compression):
    path = tmp_path / "a.tif"
    noise = np.random.default_rng(0).integers(0, 255, (9, 64, 64), np.uint8)
    tifffile.imwrite(path, noise, photometric="minisblack", compression=compression)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        end = max(page.dataoffsets[0] + page.databytecounts[0] for page in file.pages)
    assert len(data) >= end
    path.write_bytes(data[: end - 3000])
    with pytest.raises(VolumeFormatError, match=r"a.tif (is cut short|cannot be read)"):
        open_source(str(path))


def test_a_damaged_strip_is_an_error_never_zeros(tmp_path, volume):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, volume.T, photometric="minisblack", compression="zlib", rowsperstrip=99)
    with tifffile.TiffFile(path) as file:
        page = file.pages[4]
        offset, size = page.dataoffsets[0], page.databytecounts[0]
    data = bytearray(path.read_bytes())
    data[offset + 2 : offset + size] = b"\xff" * (size - 2)
    path.write_bytes(data)
    with open_source(str(path)) as source:
        np.testing.assert_array_equal(source.read(Box((0, 0, 0), (23, 17, 4))), volume[:, :, :4])
        with pytest.raises(CorruptDataError, match=r"a.tif cannot be read at 0,0,4:23,17,5"):
            source.read(Box((0, 0, 4), (23, 17, 5)))


def test_several_series_need_a_number(tmp_path, volume):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(volume.T, photometric="minisblack")
        file.write(volume.T[:, :5], photometric="minisblack")
    check(tmp_path / "a.tif", volume, dataset="0")
    with pytest.raises(SpecError, match=r"holds 2 image series: choose one .* 1: \(11, 5, 23\) uint16"):
        open_source(str(tmp_path / "a.tif"))
    with pytest.raises(SpecError, match="image series 0 to 1, there is no '2'"):
        open_source(str(tmp_path / "a.tif"), dataset="2")


@pytest.mark.parametrize("chunks", [None, (4, 8, 8)])
def test_hdf5_is_zyx_and_tells_its_voxel_size(tmp_path, volume, chunks):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("volumes/raw", data=volume.T, chunks=chunks)
        data.attrs["resolution"] = (40.0, 4.0, 5.0)
        file.create_dataset("table", data=np.zeros((3, 2)))
    check(tmp_path / "a.h5", volume)
    check(tmp_path / "a.h5", volume, dataset="/volumes/raw")
    assert voxel_size(tmp_path / "a.h5") == (5, 4, 40)
    assert voxel_size(tmp_path / "a.h5", axes="xyz") == (40, 4, 5)


def test_hdf5_attributes_of_other_tools_are_understood(tmp_path, volume):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("raw", data=volume)
        data.attrs["element_size_um"] = (0.004, 0.005, 0.03)
        data.attrs["axistags"] = json.dumps({"axes": [{"key": "x"}, {"key": "y"}, {"key": "z"}]})
    check(tmp_path / "a.h5", volume)
    assert voxel_size(tmp_path / "a.h5") == pytest.approx((4, 5, 30))


def test_hdf5_refuses_what_is_ambiguous_or_broken(tmp_path, volume):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["labels"] = volume, volume
    with pytest.raises(
        SpecError, match="several arrays that could be meant: name one with --dataset; it has: labels"
    ):
        open_source(str(tmp_path / "a.h5"))
    (tmp_path / "b.h5").write_bytes(b"no HDF5")
    with pytest.raises(VolumeFormatError, match=r"b.h5 cannot be read as an HDF5 file"):
        open_source(str(tmp_path / "b.h5"))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["plane"] = volume[0]
    with pytest.raises(SpecError, match="no array with 3 axes"):
        open_source(str(tmp_path / "c.h5"))


def write_zarr(folder: Path, data: np.ndarray, driver: str) -> None:
    store = ts.open(
        {"driver": driver, "kvstore": {"driver": "file", "path": f"{folder}/"}},
        create=True,
        dtype=data.dtype.name,
        shape=data.shape,
    ).result()
    store.write(data).result()


def ome(version: str, unit: str | None = "nanometer") -> dict:
    axes = [{"name": n, "type": "space", **({"unit": unit} if unit else {})} for n in "zyx"]
    levels = [
        {
            "path": f"s{i}",
            "coordinateTransformations": [{"type": "scale", "scale": [30.0, 2.0 * 2**i, 3.0 * 2**i]}],
        }
        for i in range(2)
    ]
    whole = [{"type": "scale", "scale": [1.0, 2.0, 2.0]}]
    return {"version": version, "axes": axes, "datasets": levels, "coordinateTransformations": whole}


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_ome_zarr_gives_its_finest_level_and_voxel_size(tmp_path, volume, driver):
    write_zarr(tmp_path / "s0", volume.T, driver)
    write_zarr(tmp_path / "s1", volume.T + 5, driver)
    if driver == "zarr":
        (tmp_path / ".zgroup").write_text('{"zarr_format": 2}')
        (tmp_path / ".zattrs").write_text(json.dumps({"multiscales": [ome("0.4")]}))
    else:
        attributes = {"ome": {"version": "0.5", "multiscales": [ome("0.5")]}}
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (tmp_path / "zarr.json").write_text(json.dumps(group))
    check(tmp_path, volume)
    assert voxel_size(tmp_path) == (6, 4, 30)
    check(tmp_path, volume + 5, dataset="s1")
    assert voxel_size(tmp_path, dataset="s1") == (12, 8, 30)
    check(f"file://{tmp_path}/s0", volume)
    with pytest.raises(NotFoundError, match=r"no Zarr or N5 array at .*/s9; .* has: s0, s1"):
        open_source(str(tmp_path), dataset="s9")


def test_ome_zarr_without_units_has_no_voxel_size(tmp_path, volume):
    write_zarr(tmp_path / "s0", volume.T, "zarr")
    (tmp_path / ".zattrs").write_text(json.dumps({"multiscales": [ome("0.4", unit=None)]}))
    check(tmp_path, volume)
    assert voxel_size(tmp_path) is None


def test_five_dimensional_ome_zarr_loses_its_time_axis(tmp_path, volume):
    write_zarr(tmp_path / "0", np.stack([volume, volume + 1]).transpose(0, 3, 2, 1)[np.newaxis], "zarr")
    axes = [{"name": n} for n in "tczyx"]
    (tmp_path / ".zattrs").write_text(
        json.dumps({"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]})
    )
    check(tmp_path, np.stack([volume, volume + 1]))


def test_a_group_without_ome_metadata_needs_a_name(tmp_path, volume):
    write_zarr(tmp_path / "raw", volume.T, "zarr")
    (tmp_path / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(SpecError, match="is a group: name the array with --dataset; it has: raw"):
        open_source(str(tmp_path))
    check(tmp_path, volume, dataset="raw")


def test_n5_is_xyz_and_tells_its_pixel_resolution(tmp_path, volume):
    write_zarr(tmp_path / "raw", volume, "n5")
    check(tmp_path / "raw", volume)
    attributes = json.loads((tmp_path / "raw/attributes.json").read_text())
    attributes["pixelResolution"] = {"dimensions": [0.004, 0.005, 0.04], "unit": "um"}
    (tmp_path / "raw/attributes.json").write_text(json.dumps(attributes))
    assert voxel_size(tmp_path / "raw") == pytest.approx((4, 5, 40))


def test_malformed_zarr_metadata_are_refused(tmp_path):
    (tmp_path / ".zattrs").write_text("{not json")
    with pytest.raises(VolumeFormatError, match=r"\.zattrs is not JSON"):
        open_source(str(tmp_path))
    (tmp_path / ".zattrs").write_text(json.dumps({"multiscales": [{"axes": []}]}))
    with pytest.raises(VolumeFormatError, match="name no datasets"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_is_xyz_and_tells_its_voxel_size(tmp_path, volume, name, kind):
    image = kind(volume, np.diag([0.004, 0.005, 0.03, 1]))
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / name)
    check(tmp_path / name, volume)
    assert voxel_size(tmp_path / name) == pytest.approx((4000, 5000, 30000))


def test_nifti_units_and_directions_are_told(tmp_path, volume):
    image = nib.Nifti1Image(volume, np.diag([-4, 4, 30, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    with open_source(str(tmp_path / "a.nii")) as source:
        assert source.voxel_size_nm == (4000, 4000, 30000)
        assert source.notes == ("the file's axes run LAS, not RAS; voxels keep the file's order",)


def test_nifti_with_a_scale_or_cut_short_is_refused(tmp_path, volume):
    image = nib.Nifti1Image(volume, np.eye(4))
    image.header.set_slope_inter(2, 1)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(SpecError, match=r"stores values with a scale \(slope 2.0, intercept 1.0\)"):
        open_source(str(tmp_path / "a.nii"))
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "b.nii")
    data = (tmp_path / "b.nii").read_bytes()
    (tmp_path / "b.nii").write_bytes(data[:-100])
    with pytest.raises(VolumeFormatError, match=r"b.nii is cut short"):
        open_source(str(tmp_path / "b.nii"))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(data)[:-100])
    with pytest.raises(VolumeFormatError, match=r"b.nii.gz cannot be read as a NIfTI file"):
        open_source(str(tmp_path / "b.nii.gz"))


def test_a_precomputed_volume_is_a_source_too(volume):
    info = VolumeInfo(bounds=Box.of_shape(SHAPE, at=(5, 6, 7)), voxel_size_nm=(4, 4, 40), dtype="uint16")
    create_volume("memory://source", info).write(info.bounds, np.asfortranarray(volume))
    check("memory://source", volume)
    with open_source("memory://source") as source:
        assert source.offset == (5, 6, 7)
        assert source.voxel_size_nm == (4, 4, 40)
    with pytest.raises(SpecError, match="--axes zyx makes no sense for memory://source"):
        open_source("memory://source", axes="zyx")


def test_what_is_not_there_or_not_known_is_said(tmp_path):
    with pytest.raises(
        NotFoundError, match=r"there is no .*/missing/a.npy; the nearest folder that exists is"
    ):
        open_source(str(tmp_path / "missing" / "a.npy"))
    (tmp_path / "a.xyz").write_text("?")
    with pytest.raises(SpecError, match=r"a.xyz has no ending that cloudseg knows; it reads TIFF"):
        open_source(str(tmp_path / "a.xyz"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpecError, match="neither a Zarr or N5 array, nor a Precomputed volume"):
        open_source(str(tmp_path / "folder"))


def test_files_that_are_not_what_their_name_says_are_refused(tmp_path):
    for name, match in (
        ("a.npy", "as an NPY file"),
        ("a.npz", "as an NPZ file"),
        ("a.tif", "as a TIFF file"),
        ("a.nii", "as a NIfTI file"),
    ):
        (tmp_path / name).write_bytes(b"something else entirely")
        with pytest.raises(VolumeFormatError, match=match):
            open_source(str(tmp_path / name))


def test_a_damaged_npz_is_refused_when_opened(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", image=noise)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(VolumeFormatError, match=r"a.npz cannot be read as an NPZ file"):
        open_source(str(tmp_path / "a.npz"))


def test_python_objects_are_never_unpickled(tmp_path):
    objects = np.array([[[{"a": 1}]]], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    with pytest.raises(VolumeFormatError, match="cannot be read as an NPY file"):
        open_source(str(tmp_path / "a.npy"))
    np.savez(tmp_path / "a.npz", image=objects)
    with pytest.raises(VolumeFormatError, match="holds Python objects"):
        open_source(str(tmp_path / "a.npz"))


def test_axes_that_do_not_fit_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), np.uint8))
    np.save(tmp_path / "b.npy", np.zeros((2, 3, 4, 5), np.uint8))
    np.save(tmp_path / "c.npy", np.zeros((2, 3, 4, 5, 6), np.uint8))
    np.save(tmp_path / "d.npy", np.zeros((2, 0, 4), np.uint8))
    with pytest.raises(SpecError, match=r"3 axes of lengths \(2, 3, 4\), but its axes are given as 'zy'"):
        open_source(str(tmp_path / "a.npy"), axes="zy")
    with pytest.raises(SpecError, match=r"axes 'zzx' of .* use each of x, y, z once"):
        open_source(str(tmp_path / "a.npy"), axes="zzx")
    with pytest.raises(SpecError, match="has 2 time points"):
        open_source(str(tmp_path / "b.npy"), axes="tzyx")
    with pytest.raises(SpecError, match="has 5 axes"):
        open_source(str(tmp_path / "c.npy"))
    with pytest.raises(SpecError, match="holds no voxel"):
        open_source(str(tmp_path / "d.npy"))


def test_unpacking_asks_for_room_first(tmp_path, monkeypatch):
    monkeypatch.setattr(local.tempfile, "gettempdir", lambda: str(tmp_path))
    with pytest.raises(StorageError, match=r"unpacking big.npz needs 1073741824.0 GiB .* point TMPDIR"):
        local.unpack(io.BytesIO(b""), n_bytes=2**60, uri="big.npz")

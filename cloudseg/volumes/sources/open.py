"""Which reader a file or a folder needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.infofile import read_info
from cloudseg.volumes.sources.arrays import open_npy, open_npz
from cloudseg.volumes.sources.base import Source
from cloudseg.volumes.sources.chunked import is_chunked, open_chunked
from cloudseg.volumes.sources.hdf5 import open_hdf5
from cloudseg.volumes.sources.local import existing
from cloudseg.volumes.sources.nifti import open_nifti
from cloudseg.volumes.sources.precomputed import VolumeSource
from cloudseg.volumes.sources.tiff import SUFFIXES, open_tiff, open_tiff_folder

FORMATS = (
    "TIFF (.tif, .tiff, or a folder of sections), HDF5 (.h5, .hdf5, .hdf), NumPy (.npy, .npz), "
    "NIfTI (.nii, .nii.gz), OME-Zarr, Zarr and N5 folders, Precomputed volumes"
)


def open_source(uri: str, *, dataset: str | None = None, axes: str | None = None) -> Source:
    """Open a file or a folder as a volume; only its header is read.

    Parameters
    ----------
    uri
        A local path, or the address of a Zarr, N5 or Precomputed folder in a bucket.
    dataset
        The array inside: a dataset of an HDF5 file, an array of an NPZ file, a path in a Zarr group, the number of
        a TIFF image series, the mip of a Precomputed volume. Not needed where there is only one.
    axes
        One letter for each axis of the array in the file's own order, where the format's default does not fit.

    Raises
    ------
    NotFoundError
        If nothing lies there.
    VolumeFormatError
        If it cannot be read as what it seems to be.
    SpecError
        If the format is unknown, or what to read is ambiguous.
    """
    address = Address.parse(uri)
    if address.scheme != "file":
        return _open_folder(address, dataset=dataset, axes=axes)
    path = existing(Path(address.path))
    name = path.name.lower()
    if path.is_dir():
        if any(p.suffix.lower() in SUFFIXES for p in path.iterdir()) and not (path / "info").exists():
            _refuse(dataset, "--dataset", uri, "a folder of TIFF sections holds one volume")
            return open_tiff_folder(path, axes=axes)
        return _open_folder(address, dataset=dataset, axes=axes)
    if name.endswith((".nii", ".nii.gz")):
        _refuse(dataset, "--dataset", uri, "a NIfTI file holds one volume")
        return open_nifti(path, axes=axes)
    if name.endswith(".npy"):
        _refuse(dataset, "--dataset", uri, "an NPY file holds one array")
        return open_npy(path, axes=axes)
    named: dict[tuple[str, ...], Callable[..., Source]] = {
        SUFFIXES: open_tiff,
        (".h5", ".hdf5", ".hdf"): open_hdf5,
        (".npz",): open_npz,
    }
    for suffixes, reader in named.items():
        if name.endswith(suffixes):
            return reader(path, dataset=dataset, axes=axes)
    raise SpecError(f"{path} has no ending that cloudseg knows; it reads {FORMATS}")


def _open_folder(address: Address, *, dataset: str | None, axes: str | None) -> Source:
    if address.scheme != "memory" and is_chunked(address):
        return open_chunked(address, dataset=dataset, axes=axes)
    try:
        read_info(address.uri)
    except NotFoundError as error:
        raise SpecError(
            f"{address} is neither a Zarr or N5 array, nor a Precomputed volume, nor a folder of TIFF sections; "
            f"cloudseg reads {FORMATS}"
        ) from error
    _refuse(axes, "--axes", address.uri, "a Precomputed volume is always x, y, z")
    if dataset is not None and not dataset.isdigit():
        raise SpecError(
            f"--dataset of the Precomputed volume {address} is the number of a scale, got {dataset!r}"
        )
    return VolumeSource.open(address.uri, mip=int(dataset or 0))


def _refuse(value: str | None, option: str, uri: str, why: str) -> None:
    if value is not None:
        raise SpecError(f"{option} {value} makes no sense for {uri}: {why}; leave it out")

"""HDF5 datasets. Axes are z, y, x (c first if there are four) unless the dataset says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cloudseg.errors import MissingExtraError, SpecError, VolumeFormatError
from cloudseg.volumes.sources.base import ArraySource, VoxelSize, choose_dataset, in_xyz
from cloudseg.volumes.sources.local import file_fingerprint

if TYPE_CHECKING:
    import h5py

_AXES = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}

# Who writes which: CREMI files "resolution", funlib "voxel_size", ilastik and PlantSeg "element_size_um".
_SIZE_ATTRIBUTES = {"resolution": 1.0, "voxel_size": 1.0, "element_size_um": 1e3}


def open_hdf5(path: Path, *, dataset: str | None = None, axes: str | None = None) -> ArraySource:
    """Open one dataset of an HDF5 file.

    The voxel size is read from the attribute ``resolution`` or ``voxel_size`` (nm) or ``element_size_um``, in the
    order of the dataset's axes; the axes from the attribute ``axes`` or ilastik's ``axistags``.

    Raises
    ------
    VolumeFormatError
        If the file is no HDF5 file, or damaged.
    SpecError
        If the dataset is not named and several could be meant.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError.of("h5py", extra="ingest") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise VolumeFormatError(f"{path} cannot be read as an HDF5 file: {error}") from error
    try:
        found: dict[str, tuple[tuple[int, ...], Any]] = {}

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and item.shape is not None and item.dtype.kind in "uifb":
                found[name] = (item.shape, item.dtype)

        file.visititems(visit)
        name = choose_dataset(found, dataset, uri=str(path))
        data: h5py.Dataset = file[name]
        uri = f"{path}[{name}]"
        order = axes or _stated_axes(data) or _AXES.get(data.ndim)
        if order is None:
            raise SpecError(f"{uri} has {data.ndim} axes of lengths {data.shape}: name them with --axes")
        return ArraySource(
            data,
            axes=order,
            uri=uri,
            fingerprint=file_fingerprint(path),
            voxel_size_nm=_voxel_size(data, order),
            natural_shape=data.chunks,
            on_close=file.close,
        )
    except BaseException:
        file.close()
        raise


def _stated_axes(data: h5py.Dataset) -> str | None:
    stated = data.attrs.get("axes")
    if isinstance(stated, (str, bytes)):
        text = stated.decode() if isinstance(stated, bytes) else stated
    elif "axistags" in data.attrs:
        try:
            text = "".join(tag["key"] for tag in json.loads(data.attrs["axistags"])["axes"])
        except (ValueError, KeyError, TypeError):
            return None
    else:
        return None
    text = text.lower()
    return text if len(text) == data.ndim and set(text) <= set("xyzct") else None


def _voxel_size(data: h5py.Dataset, axes: str) -> VoxelSize | None:
    for name, nm in _SIZE_ATTRIBUTES.items():
        if name not in data.attrs:
            continue
        values = np.atleast_1d(np.asarray(data.attrs[name]))
        spatial = [letter for letter in axes if letter in "xyz"]
        if values.dtype.kind in "uif" and values.size in (len(spatial), len(axes)):
            letters = spatial if values.size == len(spatial) else list(axes)
            size = in_xyz(dict(zip(letters, (float(v) * nm for v in values), strict=True)))
            if size is not None:
                return size
    return None

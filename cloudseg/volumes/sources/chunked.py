"""OME-Zarr, plain Zarr (versions 2 and 3) and N5 arrays, local or in a bucket, through tensorstore."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from cloudseg.errors import NotFoundError, SpecError, VolumeFormatError
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.kvstore import context, kvstore_spec, open_kvstore, translated
from cloudseg.volumes.sources.base import ArraySource, VoxelSize, in_xyz, nm_per

_ZARR_AXES = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}
_N5_AXES = {2: "xy", 3: "xyz", 4: "xyzc", 5: "xyzct"}
_METADATA = {"zarr3": "zarr.json", "zarr": ".zarray", "n5": "attributes.json"}
_MARKERS = ("zarr.json", ".zarray", ".zgroup", ".zattrs", "attributes.json")


def is_chunked(address: Address) -> bool:
    """Whether a Zarr or N5 array or group lies at the address."""
    return any(_json(address, name) is not None for name in _MARKERS)


def open_chunked(address: Address, *, dataset: str | None = None, axes: str | None = None) -> ArraySource:
    """Open an array, or the finest level of an OME-Zarr group.

    Axes and voxel size come from OME metadata (0.1 to 0.5), or from N5's ``pixelResolution``/``resolution``; else
    Zarr axes are z, y, x and N5 axes x, y, z.

    Parameters
    ----------
    address
        The array or the group.
    dataset
        Path of the array inside the group, e.g. ``1`` for the second level.
    axes
        One letter for each axis of the array.

    Raises
    ------
    NotFoundError
        If nothing lies there.
    VolumeFormatError
        If metadata are malformed.
    SpecError
        If the group does not say which array is meant.
    """
    driver = _driver(address)
    if driver is not None and dataset is None:
        return _open(address, driver, axes=axes, order=None, size=None)
    multiscale = _multiscale(address)
    if dataset is None:
        if multiscale is None:
            inside = _arrays_inside(address)
            listing = f"; it has: {', '.join(inside)}" if inside else ""
            raise SpecError(f"{address} is a group: name the array with --dataset{listing}")
        dataset = _levels(multiscale, uri=address.uri)[0]
    inner = dataclasses.replace(address, path=f"{address.path}/{dataset.strip('/')}")
    driver = _driver(inner)
    if driver is None:
        inside = _arrays_inside(address)
        listing = f"; {address} has: {', '.join(inside)}" if inside else ""
        raise NotFoundError(f"there is no Zarr or N5 array at {inner}{listing}")
    order = size = None
    if multiscale is not None and dataset.strip("/") in _levels(multiscale, uri=address.uri):
        order, size = _ome(multiscale, dataset.strip("/"), uri=address.uri)
    return _open(inner, driver, axes=axes, order=order, size=size)


class _Chunks:
    """A tensorstore array that is read when sliced."""

    def __init__(self, store: ts.TensorStore, uri: str) -> None:
        self._store = store
        self._uri = uri
        self.shape = tuple(int(n) for n in store.shape)
        self.dtype = np.dtype(store.dtype.numpy_dtype)

    def __getitem__(self, slices: tuple[slice, ...], /) -> Any:
        with translated(self._uri, "read"):
            return self._store[slices].read().result()


def _open(
    address: Address,
    driver: str,
    *,
    axes: str | None,
    order: str | None,
    size: VoxelSize | None,
) -> ArraySource:
    try:
        store = ts.open(
            {"driver": driver, "kvstore": kvstore_spec(address)}, read=True, open=True, context=context()
        ).result()
    except (ValueError, OSError, IndexError, RuntimeError) as error:
        raise VolumeFormatError(f"the {driver} array at {address} cannot be opened: {error}") from error
    metadata = _json(address, _METADATA[driver]) or {}
    attributes = (
        metadata.get("attributes", {}) if driver == "zarr3" else _json(address, ".zattrs") or metadata
    )
    n = len(store.shape)
    if order is None:
        order = _stated_axes(attributes, metadata, n)
    given = axes or order or (_N5_AXES if driver == "n5" else _ZARR_AXES).get(n)
    if given is None:
        raise SpecError(f"{address} has {n} axes of lengths {tuple(store.shape)}: name them with --axes")
    if size is None:
        size = _stated_size(attributes, given)
    chunks = store.chunk_layout.read_chunk.shape
    return ArraySource(
        _Chunks(store, address.uri),
        axes=given,
        uri=address.uri,
        fingerprint=hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest(),
        voxel_size_nm=size if axes is None or axes == order else _stated_size(attributes, given),
        natural_shape=tuple(int(c or 1) for c in chunks) if chunks is not None else None,
    )


def _driver(address: Address) -> str | None:
    found = _json(address, "zarr.json")
    if found is not None:
        return "zarr3" if found.get("node_type") == "array" else None
    if _json(address, ".zarray") is not None:
        return "zarr"
    found = _json(address, "attributes.json")
    return "n5" if found is not None and "dimensions" in found and "dataType" in found else None


def _json(address: Address, name: str) -> dict[str, Any] | None:
    with translated(f"{address.uri}/{name}", "read"):
        found = open_kvstore(address).read(name).result()
    if found.state != "value":
        return None
    try:
        value = json.loads(bytes(found.value))
    except ValueError as error:
        raise VolumeFormatError(f"{address.uri}/{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise VolumeFormatError(f"{address.uri}/{name} must hold a JSON object, got {type(value).__name__}")
    return value


def _multiscale(address: Address) -> dict[str, Any] | None:
    group = _json(address, "zarr.json")
    if group is not None:
        attributes = group.get("attributes", {})
        attributes = attributes.get("ome", attributes)
    else:
        attributes = _json(address, ".zattrs") or {}
    found = attributes.get("multiscales")
    if not found:
        return None
    if not isinstance(found, list) or not isinstance(found[0], dict):
        raise VolumeFormatError(f"the 'multiscales' metadata of {address} must be a list of objects")
    return found[0]


def _levels(multiscale: Mapping[str, Any], *, uri: str) -> list[str]:
    try:
        levels = [str(level["path"]).strip("/") for level in multiscale["datasets"]]
    except (KeyError, TypeError) as error:
        raise VolumeFormatError(f"the 'multiscales' metadata of {uri} name no datasets") from error
    if not levels:
        raise VolumeFormatError(f"the 'multiscales' metadata of {uri} name no datasets")
    return levels


def _ome(multiscale: Mapping[str, Any], level: str, *, uri: str) -> tuple[str | None, VoxelSize | None]:
    """Return the axes and the voxel size of one level."""
    axes = multiscale.get("axes")
    if not axes:
        return None, None  # version 0.1 and 0.2: always t, c, z, y, x, and no sizes
    names = [a["name"] if isinstance(a, dict) else str(a) for a in axes]
    units = [a.get("unit") if isinstance(a, dict) else None for a in axes]
    order = "".join(names)
    factors = [1.0] * len(names)
    here = next(d for d in multiscale["datasets"] if str(d["path"]).strip("/") == level)
    for transform in (
        *here.get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ):
        if transform.get("type") == "scale":
            scale = transform.get("scale", [])
            if len(scale) != len(names):
                raise VolumeFormatError(
                    f"the scale {scale} of {uri}/{level} must have one number for each of {order}"
                )
            factors = [f * float(s) for f, s in zip(factors, scale, strict=True)]
    sizes = {n: f * (nm_per(u) or 0.0) for n, f, u in zip(names, factors, units, strict=True)}
    return order, in_xyz(sizes)


def _stated_axes(attributes: Mapping[str, Any], metadata: Mapping[str, Any], n_axes: int) -> str | None:
    """Axis names of a plain array: zarr 3 ``dimension_names``, xarray's ``_ARRAY_DIMENSIONS``, ``axes``."""
    stated = metadata.get("dimension_names") or attributes.get("_ARRAY_DIMENSIONS") or attributes.get("axes")
    if not isinstance(stated, (list, str)) or len(stated) != n_axes:
        return None
    text = "".join(str(name) for name in stated).lower()
    return text if len(text) == n_axes and len(set(text)) == n_axes and set(text) <= set("xyzct") else None


def _stated_size(attributes: Mapping[str, Any], axes: str) -> VoxelSize | None:
    """Voxel size of a plain array: N5's ``pixelResolution``, or ``resolution``/``voxel_size`` in nm."""
    values, nm = attributes.get("resolution", attributes.get("voxel_size")), 1.0
    nested = attributes.get("pixelResolution")
    if isinstance(nested, dict):
        values, nm = nested.get("dimensions"), nm_per(nested.get("unit")) or 0.0
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) for v in values):
        return None
    spatial = [letter for letter in axes if letter in "xyz"]
    letters = spatial if len(values) == len(spatial) else list(axes)
    if len(values) != len(letters):
        return None
    return in_xyz({letter: float(v) * nm for letter, v in zip(letters, values, strict=True)})


def _arrays_inside(address: Address) -> list[str]:
    """Name the arrays one or two folders down; only for local folders, where looking costs nothing."""
    if address.scheme != "file":
        return []
    root = Path(address.path)
    found: list[str] = []
    for pattern in ("*", "*/*"):
        folders = (p for p in sorted(root.glob(pattern)) if p.is_dir())
        found += [str(p.relative_to(root)) for p in folders if _driver(Address.parse(str(p))) is not None]
        if len(found) > 20:
            return found[:20]
    return found

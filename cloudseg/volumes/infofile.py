"""The ``info`` file of a Precomputed volume: reading it, extending it, and never losing another writer's key."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import Any, get_args

from pydantic import ValidationError

from cloudseg.errors import ConflictError, NotFoundError, SpecError, TransientStorageError, VolumeFormatError
from cloudseg.geometry import Box
from cloudseg.specs import explain
from cloudseg.volumes.objects import open_objects
from cloudseg.volumes.protocol import DType, Encoding, VolumeInfo

InfoFile = dict[str, Any]
"""The JSON document as it is stored."""

_LAYER_KEYS = ("@type", "type", "data_type", "num_channels", "scales")
# Racing writers of one info are few (a pipeline's creators); each loses at most once to each other.
_ATTEMPTS = 50
# What neighbouring tools choose for EM: visually clean at about a sixth of the size.
_JPEG_QUALITY = 90
_SEGMENTATION_BLOCK = (8, 8, 8)


def read_info(uri: str | os.PathLike[str]) -> InfoFile:
    """Return the ``info`` document at ``uri``, whatever keys it has.

    Raises
    ------
    NotFoundError
        If there is none.
    VolumeFormatError
        If it is no JSON object.
    """
    objects = open_objects(uri)
    data, _ = objects.get_versioned("info")
    if data is None:
        raise NotFoundError(
            f"there is no volume at {objects.uri}: it has no info file; check the address, or make the volume first"
        )
    return _parse(data, where=f"{objects.uri}/info")


def update_info(uri: str | os.PathLike[str], **keys: Any) -> InfoFile:
    """Set top-level keys of an ``info`` document in one atomic step, keeping all others; return the result.

    Parameters
    ----------
    uri
        An existing volume.
    keys
        Such as ``mesh="mesh"``, ``skeletons="skeletons"``; None removes a key.

    Raises
    ------
    SpecError
        If a key is one that says what the voxels are (``scales``, ``data_type``, ...): those are fixed at
        creation.
    NotFoundError, VolumeFormatError
        If there is no info, or it is no JSON object.
    """
    fixed = sorted(set(keys) & set(_LAYER_KEYS))
    if fixed:
        raise SpecError(
            f"the keys {fixed} of an info file say what the voxels are and are fixed; use create_volume"
        )

    def merge(info: InfoFile | None) -> InfoFile:
        if info is None:
            raise NotFoundError(f"there is no volume at {open_objects(uri).uri} whose info could be updated")
        merged = {**info, **keys}
        return {key: value for key, value in merged.items() if value is not None}

    return change_info(uri, merge)


def change_info(uri: str | os.PathLike[str], change: Callable[[InfoFile | None], InfoFile]) -> InfoFile:
    """Apply ``change`` to the info document (None if there is none) and store the result, unless nothing changed.

    The store is conditional on the document being the one that was read; if another writer was faster,
    ``change`` is applied again to what that writer left.
    """
    objects = open_objects(uri)
    for _ in range(_ATTEMPTS):
        data, version = objects.get_versioned("info")
        old = None if data is None else _parse(data, where=f"{objects.uri}/info")
        new = change(None if old is None else json.loads(json.dumps(old)))
        if new == old:
            return new
        text = json.dumps(new, indent=1, allow_nan=False)
        if objects.put_if_unchanged("info", text.encode(), version=version):
            return new
    raise TransientStorageError(
        f"{objects.uri}/info was changed by others {_ATTEMPTS} times in a row; try again"
    )


def scales_of(info: InfoFile, *, uri: str) -> list[VolumeInfo]:
    """Return what each scale of an info document is, finest first.

    Raises
    ------
    VolumeFormatError
        If a key is missing, malformed, or names something that cloudseg does not read; the message says
        which.
    """
    kind = info.get("@type", "neuroglancer_multiscale_volume")
    if kind != "neuroglancer_multiscale_volume" or not isinstance(info.get("scales"), list):
        raise VolumeFormatError(
            f"{uri}/info describes {kind!r}, not a volume of voxels: expected '@type' "
            "'neuroglancer_multiscale_volume' and a list of 'scales'"
        )
    if not info["scales"]:
        raise VolumeFormatError(f"{uri}/info has an empty list of scales: there is no voxel to read")
    return [_scale(info, mip, uri=uri) for mip in range(len(info["scales"]))]


def add_scale(document: InfoFile | None, info: VolumeInfo, *, mip: int, uri: str) -> InfoFile:
    """Return the info document with ``info`` as scale ``mip``; the same document if it is there already.

    Raises
    ------
    ConflictError
        If the document has another layer, or another scale ``mip``; each differing property is named.
    SpecError
        If a scale before ``mip`` is missing, or the scale is not coarser than the one before.
    """
    if document is None:
        document = {
            "@type": "neuroglancer_multiscale_volume",
            "type": info.layer,
            "data_type": info.dtype,
            "num_channels": info.n_channels,
            "scales": [],
        }
    existing = scales_of(document, uri=uri) if document.get("scales") else []
    if mip < len(existing):
        _refuse_difference(existing[mip], info, mip=mip, uri=uri)
        return document
    if mip > len(existing):
        raise SpecError(
            f"{uri} has {len(existing)} scales, so the next one is mip {len(existing)}, not {mip}"
        )
    if existing:
        _refuse_difference(existing[0], info, mip=mip, uri=uri, only=("layer", "dtype", "n_channels"))
        finer = existing[-1].voxel_size_nm
        if any(a < b for a, b in zip(info.voxel_size_nm, finer, strict=True)) or info.voxel_size_nm == finer:
            raise SpecError(
                f"scale {mip} of {uri} must be coarser than the one before: voxel size {info.voxel_size_nm} nm "
                f"is not above {finer} nm"
            )
    return {**document, "scales": [*document["scales"], _scale_entry(info)]}


def new_document(info: VolumeInfo) -> InfoFile:
    """Return the info document of a volume with the one scale ``info``."""
    return add_scale(None, info, mip=0, uri="new volume")


def _parse(data: bytes, *, where: str) -> InfoFile:
    try:
        info = json.loads(data)
    except ValueError as error:
        raise VolumeFormatError(f"{where} is not JSON ({error}): it begins with {data[:60]!r}") from error
    if not isinstance(info, dict):
        raise VolumeFormatError(f"{where} must hold a JSON object, got {type(info).__name__}")
    return info


def _scale(info: InfoFile, mip: int, *, uri: str) -> VolumeInfo:
    where = f"{uri}/info, scale {mip}"
    entry = info["scales"][mip]
    if not isinstance(entry, dict):
        raise VolumeFormatError(f"{where} must be a JSON object, got {type(entry).__name__}")
    try:
        chunk_sizes = entry["chunk_sizes"]
        offset = tuple(int(v) for v in entry.get("voxel_offset", (0, 0, 0)))
        size = tuple(int(v) for v in entry["size"])
        fields = {
            "bounds": Box.of_shape(size, at=offset),  # type: ignore[arg-type]  # Box checks the length
            "voxel_size_nm": entry["resolution"],
            "chunk_shape": chunk_sizes[0],
            "dtype": str(info["data_type"]).lower(),
            "n_channels": info.get("num_channels", 1),
            "layer": info["type"],
            "encoding": entry["encoding"],
            "sharding": _sharding(entry.get("sharding"), where=where),
        }
    except KeyError as error:
        raise VolumeFormatError(f"{where}: missing key {error}") from error
    except (TypeError, ValueError, IndexError) as error:
        raise VolumeFormatError(f"{where} is malformed: {error}") from error
    for key, allowed in (("dtype", get_args(DType)), ("encoding", get_args(Encoding))):
        if fields[key] not in allowed:
            raise VolumeFormatError(
                f"{where}: {key} {fields[key]!r} is not one that cloudseg reads ({', '.join(allowed)}); "
                "convert the volume with a tool that does, e.g. igneous image xfer"
            )
    try:
        return VolumeInfo.model_validate(fields)
    except ValidationError as error:
        raise VolumeFormatError(f"{where}: {explain(error)}") from error


def _sharding(entry: Any, *, where: str) -> dict[str, Any] | None:
    if entry is None:
        return None
    if not isinstance(entry, dict) or entry.get("@type") != "neuroglancer_uint64_sharded_v1":
        raise VolumeFormatError(
            f"{where}: sharding must have '@type' 'neuroglancer_uint64_sharded_v1', got {entry!r}"
        )
    # The format's own defaults are raw, other than those we write.
    return {
        "data_encoding": "raw",
        "minishard_index_encoding": "raw",
        **{k: v for k, v in entry.items() if k != "@type"},
    }


def _scale_entry(info: VolumeInfo) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "key": "_".join(str(_plain(v)) for v in info.voxel_size_nm),
        "size": list(info.shape),
        "voxel_offset": list(info.bounds.start),
        "resolution": [_plain(v) for v in info.voxel_size_nm],
        "chunk_sizes": [list(info.chunk_shape)],
        "encoding": info.encoding,
    }
    if info.encoding == "compressed_segmentation":
        entry["compressed_segmentation_block_size"] = list(_SEGMENTATION_BLOCK)
    if info.encoding == "jpeg":
        entry["jpeg_quality"] = _JPEG_QUALITY
    if info.sharding is not None:
        entry["sharding"] = {
            "@type": "neuroglancer_uint64_sharded_v1",
            **info.sharding.model_dump(mode="json"),
        }
    return entry


def _plain(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def _refuse_difference(
    have: VolumeInfo, want: VolumeInfo, *, mip: int, uri: str, only: tuple[str, ...] = ()
) -> None:
    parts = []
    for name in only or VolumeInfo.model_fields:
        a, b = getattr(have, name), getattr(want, name)
        if name == "voxel_size_nm" and all(
            math.isclose(p, q, rel_tol=1e-9) for p, q in zip(a, b, strict=True)
        ):
            continue
        if a != b:
            parts.append(f"{name} is {_shown(a)}, asked for {_shown(b)}")
    if parts:
        raise ConflictError(
            f"{uri} exists with other properties (scale {mip}): {'; '.join(parts)}; "
            "ask for the same, choose another address, or remove the old volume"
        )


def _shown(value: Any) -> str:
    return value.canonical_json() if hasattr(value, "canonical_json") else str(value)

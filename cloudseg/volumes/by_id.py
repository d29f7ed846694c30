"""Folders of meshes and skeletons, in which objects are stored by segment id."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

import tensorstore as ts

from cloudseg.errors import NotFoundError, VolumeFormatError
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.kvstore import context, kvstore_spec, open_kvstore, translated
from cloudseg.volumes.objects import open_objects

# How a segment's first file is named in a folder without shards, by the "@type" of its info.
_FILES = {
    "neuroglancer_multilod_draco": "{id}.index",
    "neuroglancer_legacy_mesh": "{id}:0",
    "neuroglancer_skeletons": "{id}",
}


def stored_ids(uri: str | os.PathLike[str], ids: Iterable[int]) -> frozenset[int]:
    """Return those of ``ids`` that have a mesh (or skeleton) in the Precomputed folder at ``uri``.

    Small segments have none, and a viewer that asks for one in vain never comes to rest.

    Parameters
    ----------
    uri
        A folder of meshes or skeletons, sharded or not.
    ids
        Segment ids; a few dozen: each costs a request or two.

    Raises
    ------
    NotFoundError
        If the folder has no ``info``.
    VolumeFormatError
        If its ``info`` is of a kind that cloudseg does not know.
    """
    address = Address.parse(uri)
    base = open_kvstore(address)
    try:
        data = open_objects(address.uri).get("info")
    except NotFoundError as error:
        raise NotFoundError(f"no meshes or skeletons at {address.uri}: it has no info file") from error
    info = _parse(data, uri=address.uri)
    with translated(address.uri, "read"):
        if "sharding" in info:
            shards = {
                "driver": "neuroglancer_uint64_sharded",
                "metadata": info["sharding"],
                "base": kvstore_spec(address),
            }
            store = ts.KvStore.open(shards, context=context()).result()
            names = {i: i.to_bytes(8, "big") for i in ids}
        else:
            store = base
            names = {i: _FILES[info["@type"]].format(id=i).encode() for i in ids}
        # All at once, and no bytes of the objects themselves.
        reads = {i: store.read(name, byte_range=slice(0, 0)) for i, name in names.items()}
        return frozenset(i for i, read in reads.items() if read.result().state == "value")


def _parse(data: bytes, *, uri: str) -> dict[str, Any]:
    try:
        info = json.loads(data)
    except ValueError as error:
        raise VolumeFormatError(
            f"{uri}/info is not JSON ({error}); write the meshes or skeletons again"
        ) from error
    if not isinstance(info, dict) or info.get("@type") not in _FILES:
        kind = info.get("@type") if isinstance(info, dict) else type(info).__name__
        raise VolumeFormatError(f"{uri}/info: '@type' must be one of {', '.join(_FILES)}, got {kind!r}")
    return info

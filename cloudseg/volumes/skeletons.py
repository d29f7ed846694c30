"""Skeletons in folders and files, read as plain arrays: Precomputed, SWC and NPZ."""

from __future__ import annotations

import operator
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from cloudseg.errors import SpecError, VolumeFormatError
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.checked import CheckedObjects
from cloudseg.volumes.checked_chunks import read_until_believed
from cloudseg.volumes.infofile import read_info
from cloudseg.volumes.kvstore import context, kvstore_spec, open_kvstore, translated, uncached_context
from cloudseg.volumes.sources.local import existing


@dataclass(frozen=True, slots=True, eq=False)
class Skeletons:
    """Many skeletons in one graph.

    Attributes
    ----------
    nodes_nm
        ``(n, 3)`` float64 positions x, y, z in nm.
    edges
        ``(m, 2)`` int64 indices into the nodes.
    skeleton_ids
        ``(n,)`` uint64, the skeleton of each node.
    """

    nodes_nm: npt.NDArray[np.float64]
    edges: npt.NDArray[np.int64]
    skeleton_ids: npt.NDArray[np.uint64]

    @classmethod
    def joined(
        cls, parts: Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[Any]]], *, uri: str
    ) -> Skeletons:
        """Put skeletons ``(id, nodes_nm, edges)`` together."""
        nodes, edges, ids, n_nodes = [], [], [], 0
        for skeleton_id, part_nodes, part_edges in parts:
            if part_edges.size and (part_edges.min() < 0 or part_edges.max() >= len(part_nodes)):
                raise VolumeFormatError(
                    f"skeleton {skeleton_id} of {uri} has an edge to a node that it does not have "
                    f"({len(part_nodes)} nodes, edges from {part_edges.min()} to {part_edges.max()})"
                )
            nodes.append(np.asarray(part_nodes, np.float64))
            edges.append(np.asarray(part_edges, np.int64) + n_nodes)
            ids.append(np.full(len(part_nodes), skeleton_id, np.uint64))
            n_nodes += len(part_nodes)
        if not n_nodes:
            raise SpecError(f"{uri} holds no skeletons")
        return cls(np.concatenate(nodes), np.concatenate(edges), np.concatenate(ids))


def read_skeletons(uri: str, *, nm_per_unit: float = 1.0) -> Skeletons:
    """Read all skeletons at ``uri``.

    Parameters
    ----------
    uri
        A Precomputed skeleton folder (sharded or not, local or in a bucket); a folder of ``.swc`` files or one of
        them (the first number in a file's name is the skeleton's id); an ``.npz`` file with ``nodes_nm``, ``edges``
        and ``skeleton_ids`` as in :class:`Skeletons`.
    nm_per_unit
        What coordinates of SWC and NPZ files are multiplied with: 1000 for micrometres.

    Raises
    ------
    NotFoundError
        If nothing lies there.
    VolumeFormatError
        If it is malformed.
    SpecError
        If it holds no skeletons.
    """
    address = Address.parse(uri)
    if address.scheme == "file":
        path = existing(Path(address.path))
        if path.suffix.lower() == ".npz":
            return _read_npz(path, nm_per_unit)
        if path.suffix.lower() == ".swc":
            return Skeletons.joined(_swc_files([path], nm_per_unit), uri=uri)
        files = sorted(path.glob("*.swc")) if path.is_dir() else []
        if files:
            return Skeletons.joined(_swc_files(files, nm_per_unit), uri=uri)
        if not (path / "info").exists():
            raise SpecError(
                f"{path} holds no skeletons: neither an info file, nor .swc files, nor is it an .npz file"
            )
    return Skeletons.joined(_precomputed(address), uri=address.uri)


def _precomputed(address: Address) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[Any]]]:
    """Read the format of https://github.com/google/neuroglancer, src/datasource/precomputed/skeletons.md."""
    info = read_info(address.uri)
    kind = info.get("@type")
    if kind != "neuroglancer_skeletons":
        raise VolumeFormatError(
            f"{address}/info must describe skeletons ('@type': 'neuroglancer_skeletons'), got '@type': {kind!r}; "
            "give the folder of the skeletons themselves"
        )
    transform = np.array(info.get("transform", np.eye(3, 4).ravel()), np.float64)
    if transform.shape != (12,):
        raise VolumeFormatError(f"'transform' in {address}/info must have 12 numbers, got {transform.size}")
    transform = transform.reshape(3, 4)
    stored = _sharded(address, info["sharding"]) if info.get("sharding") else _plain(address)
    for skeleton_id in sorted(stored):
        nodes, edges = _decode(stored.pop(skeleton_id), where=f"skeleton {skeleton_id} of {address}")
        yield skeleton_id, nodes @ transform[:, :3].T + transform[:, 3], edges


def _plain(address: Address) -> dict[int, bytes]:
    """Read the objects that are named by a skeleton's id; those of a bucket are checked."""
    with translated(address.uri, "list"):
        store = open_kvstore(address)
        keys = [key.decode() for key in store.list().result() if key.isdigit()]
    if address.scheme in ("gs", "s3"):
        found = {
            int(key): read.result().data
            for key, read in zip(keys, CheckedObjects(address).read_all(keys), strict=True)
        }
        # Removed since the listing: as if it had been removed before.
        return {skeleton_id: data for skeleton_id, data in found.items() if data is not None}
    with translated(address.uri, "read"):
        reads = {int(key): store.read(key) for key in keys}
        return {skeleton_id: bytes(read.result().value) for skeleton_id, read in reads.items()}


def _sharded(address: Address, sharding: dict[str, Any]) -> dict[int, bytes]:
    """Read the skeletons of shards; those of a bucket twice: an index that arrives empty looks like none."""
    spec = {
        "driver": "neuroglancer_uint64_sharded",
        "metadata": sharding,
        "base": kvstore_spec(address),
    }

    def read(own: ts.Context) -> dict[int, bytes]:
        with translated(address.uri, "read"):
            store = ts.KvStore.open(spec, context=own).result()
            reads = {int.from_bytes(key, "big"): store.read(key) for key in store.list().result()}
            return {skeleton_id: bytes(read.result().value) for skeleton_id, read in reads.items()}

    if address.scheme not in ("gs", "s3"):
        return read(context())
    return read_until_believed(
        lambda: read(uncached_context()),
        lambda: read(uncached_context()),
        proven=False,
        same=operator.eq,
        uri=address.uri,
    )


def _decode(data: bytes, *, where: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    if len(data) < 8:
        raise VolumeFormatError(f"{where} is cut short: {len(data)} bytes")
    n_nodes, n_edges = struct.unpack_from("<II", data)
    if len(data) < 8 + 12 * n_nodes + 8 * n_edges:
        raise VolumeFormatError(
            f"{where} is cut short: {len(data)} bytes for {n_nodes} nodes and {n_edges} edges"
        )
    nodes = np.frombuffer(data, "<f4", 3 * n_nodes, 8).reshape(-1, 3).astype(np.float64)
    edges = np.frombuffer(data, "<u4", 2 * n_edges, 8 + 12 * n_nodes).reshape(-1, 2).astype(np.int64)
    return nodes, edges


def _swc_files(
    files: list[Path], nm_per_unit: float
) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[Any]]]:
    """Columns: node, type, x, y, z, radius, parent (-1 at a root); ``#`` starts a comment."""
    for position, path in enumerate(files, start=1):
        try:
            rows = np.loadtxt(path, comments="#", ndmin=2, dtype=np.float64)
        except ValueError as error:
            raise VolumeFormatError(f"{path} cannot be read as an SWC file: {error}") from error
        if rows.shape[1] < 7 or not len(rows):
            raise VolumeFormatError(
                f"{path} must have rows of 7 numbers (node, type, x, y, z, radius, parent), got {rows.shape}"
            )
        names, parents = rows[:, 0].astype(np.int64), rows[:, 6].astype(np.int64)
        order = np.argsort(names, kind="stable")
        children = np.flatnonzero(parents >= 0)
        spots = np.searchsorted(names[order], parents[children]).clip(max=len(names) - 1)
        if np.unique(names).size != len(names) or not np.array_equal(names[order][spots], parents[children]):
            raise VolumeFormatError(f"{path} names a node twice, or a parent that it does not have")
        number = re.search(r"\d+", path.stem)
        yield (
            int(number[0]) if number else position,
            rows[:, 2:5] * nm_per_unit,
            np.stack([children, order[spots]], axis=1),
        )


def _read_npz(path: Path, nm_per_unit: float) -> Skeletons:
    wanted = ("nodes_nm", "edges", "skeleton_ids")
    try:
        with np.load(path, allow_pickle=False) as file:
            absent = [name for name in wanted if name not in file.files]
            if absent:
                raise VolumeFormatError(
                    f"{path} must hold the arrays {', '.join(wanted)}; it has no {', '.join(absent)}"
                )
            nodes, edges, ids = (file[name] for name in wanted)
    except (OSError, ValueError) as error:
        if isinstance(error, VolumeFormatError):
            raise
        raise VolumeFormatError(f"{path} cannot be read as an NPZ file of skeletons: {error}") from error
    if ids.dtype.kind not in "ui" or edges.dtype.kind not in "ui":
        raise VolumeFormatError(
            f"edges and skeleton_ids of {path} must be integers, got {edges.dtype} and {ids.dtype}"
        )
    return Skeletons(nodes.astype(np.float64) * nm_per_unit, edges.astype(np.int64), ids.astype(np.uint64))

"""Centre lines of labelled objects, for scoring: where a neuron is followed when no traced skeleton is at hand.

After TEASAR (Sato et al. 2000, https://doi.org/10.1109/PCCGA.2000.883951): from the point farthest from an arbitrary
one, the cheapest paths to the farthest places not yet covered, where the middle of the object is cheap.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import MissingExtraError, SpecError
from cloudseg.geometry import XYZ

Array = npt.NDArray[Any]
VoxelSize = tuple[float, float, float]

# Cost of a step at the rim of an object, relative to its very middle.
_RIM_COST = 1000.0


def centerlines(
    labels: Array,
    voxel_size_nm: VoxelSize,
    *,
    scale: float = 1.5,
    const_nm: float = 200.0,
    min_length_nm: float = 500.0,
) -> Iterator[tuple[int, npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
    """Yield ``(id, nodes_nm, edges)`` for each object (its 26-connected parts together), smallest id first.

    Parameters
    ----------
    labels
        ``(x, y, z)`` integer ids; 0 is background.
    voxel_size_nm
        Edge of a voxel.
    scale, const_nm
        A path covers what lies within ``scale`` times the distance to the rim plus ``const_nm`` of it (as a cube).
    min_length_nm
        Parts whose centre line is shorter are left out: they have no run to follow.

    Raises
    ------
    SpecError
        If the labels are not three-dimensional integers.
    MissingExtraError
        If scipy is not installed.
    """
    if labels.ndim != 3 or labels.dtype.kind not in "ui":
        raise SpecError(f"labels must be (x, y, z) integers, got {labels.dtype} {labels.shape}")
    try:
        from scipy import ndimage
    except ImportError as error:
        raise MissingExtraError.of("scipy", extra="tasks") from error
    ids, numbered = np.unique(labels, return_inverse=True)
    numbered = numbered.reshape(labels.shape)
    offset = 0 if ids[0] == 0 else 1  # find_objects leaves number 0 out
    for number, place in enumerate(ndimage.find_objects(numbered + offset), start=1):
        name = int(ids[number - offset])
        inside = np.pad(numbered[place] == number - offset, 1)
        low = np.array([s.start - 1 for s in place])
        parts, n_parts = ndimage.label(inside, np.ones((3, 3, 3)))
        nodes, edges, n_nodes = [], [], 0
        for part in range(1, n_parts + 1):
            found = _part(parts == part, voxel_size_nm, scale, const_nm)
            if found is None:
                continue
            voxels, pairs = found
            points = (voxels + low + 0.5) * np.array(voxel_size_nm)
            if np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1).sum() < min_length_nm:
                continue
            nodes.append(points)
            edges.append(pairs + n_nodes)
            n_nodes += len(points)
        if nodes:
            yield name, np.concatenate(nodes), np.concatenate(edges)


def _part(
    inside: npt.NDArray[np.bool_], voxel_size_nm: VoxelSize, scale: float, const_nm: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """Return the voxels and edges of the centre line of one connected part, or None for a single voxel."""
    from scipy import ndimage
    from scipy.sparse.csgraph import dijkstra

    voxels = np.argwhere(inside)
    if len(voxels) < 2:
        return None
    depth = ndimage.distance_transform_edt(inside, sampling=voxel_size_nm)
    first, second, lengths = _links(inside, voxel_size_nm)
    at = depth[tuple(voxels.T)]
    plain = _graph(first, second, lengths, len(voxels))
    root = int(np.argmax(dijkstra(plain, directed=False, indices=0)))
    far = dijkstra(plain, directed=False, indices=root)
    price = 1.0 + _RIM_COST * (1.0 - at / (at.max() * 1.01)) ** 4
    costly = _graph(first, second, lengths * (price[first] + price[second]) / 2, len(voxels))
    _, before = dijkstra(costly, directed=False, indices=root, return_predecessors=True)

    reach = np.maximum(1, ((scale * at + const_nm)[:, None] / np.array(voxel_size_nm)).astype(np.int64))
    covered = ~inside
    on_line = np.zeros(len(voxels), bool)
    on_line[root] = True
    links: list[tuple[int, int]] = []
    for target in np.argsort(-far, kind="stable"):
        if covered[tuple(voxels[target])]:
            continue
        path = [int(target)]
        while not on_line[path[-1]]:
            path.append(int(before[path[-1]]))
        on_line[path] = True
        links += itertools.pairwise(path)
        for node in path:
            a, b = np.maximum(voxels[node] - reach[node], 0), voxels[node] + reach[node] + 1
            covered[a[0] : b[0], a[1] : b[1], a[2] : b[2]] = True
    if not links:
        return None
    numbers = np.cumsum(on_line) - 1
    return voxels[on_line], numbers[np.array(links, np.int64)]


def _links(inside: npt.NDArray[np.bool_], voxel_size_nm: VoxelSize) -> tuple[Array, Array, Array]:
    """Return every pair of touching voxels (26 neighbours) once, with its length; ``inside`` has an empty rim."""
    numbers: Array = np.full(inside.shape, -1, np.int64)
    numbers[inside] = np.arange(int(inside.sum()))
    first, second, lengths = [], [], []
    for dx, dy, dz in itertools.product((-1, 0, 1), repeat=3):
        step = (dx, dy, dz)
        if step <= (0, 0, 0):
            continue
        a, b = numbers[_shifted(step, -1)], numbers[_shifted(step, 1)]
        both = (a >= 0) & (b >= 0)
        first.append(a[both])
        second.append(b[both])
        length = float(np.linalg.norm(np.array(step) * np.array(voxel_size_nm)))
        lengths.append(np.full(first[-1].size, length))
    return np.concatenate(first), np.concatenate(second), np.concatenate(lengths)


def _shifted(step: XYZ, side: int) -> tuple[slice, slice, slice]:
    """Return the slices whose voxels have a neighbour one ``step`` up (side -1), or those neighbours (side 1)."""
    x, y, z = (slice(max(0, d * side), min(0, d * side) or None) for d in step)
    return (x, y, z)


def _graph(first: Array, second: Array, weights: Array, n: int) -> Any:
    from scipy.sparse import csr_array

    return csr_array((weights, (first, second)), shape=(n, n))

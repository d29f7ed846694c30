"""Expected run length: how far one follows a neuron before the segmentation goes wrong.

Source: Januszewski et al. 2018 (https://doi.org/10.1038/s41592-018-0049-4). Edges of a skeleton that lie in
one segment add up to one run, whether or not they touch: the convention of the evaluations in use.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError

Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class RunLength:
    """How a segmentation follows a set of skeletons. Lengths in nm.

    Attributes
    ----------
    n_skeletons, n_edges, total_length_nm
        What was followed.
    erl_nm
        Expected length of the error-free run that a random point of the skeletons lies on.
    max_erl_nm, normalised_erl
        What a perfect segmentation would reach, and the ratio of the two (0 to 1).
    correct_fraction, split_fraction, merged_fraction, omitted_fraction
        Shares of the total length: edges inside one good segment; between two segments; inside a segment that
        holds several skeletons; with an end in the background. They add up to 1.
    n_splits, n_mergers, n_omitted_edges
        Edges that lead from one segment to another; segments that hold several skeletons; edges with an end
        in the background.
    n_merged_skeletons
        Skeletons that share a segment with another one.
    """

    n_skeletons: int
    n_edges: int
    total_length_nm: float
    erl_nm: float
    max_erl_nm: float
    normalised_erl: float
    correct_fraction: float
    split_fraction: float
    merged_fraction: float
    omitted_fraction: float
    n_splits: int
    n_mergers: int
    n_omitted_edges: int
    n_merged_skeletons: int

    def as_dict(self) -> dict[str, int | float]:
        """Return the figures under their names, ready for JSON."""
        return asdict(self)


def expected_run_length(
    nodes_nm: npt.NDArray[Any],
    edges: npt.NDArray[Any],
    skeleton_ids: npt.NDArray[Any],
    segment_ids: npt.NDArray[Any],
    *,
    merge_tolerance_nodes: int = 0,
) -> RunLength:
    """Score a segmentation by the skeletons that run through it.

    Parameters
    ----------
    nodes_nm
        ``(n, 3)`` positions x, y, z in nm.
    edges
        ``(m, 2)`` indices into the nodes; both ends belong to one skeleton.
    skeleton_ids
        ``(n,)`` the skeleton of each node.
    segment_ids
        ``(n,)`` the segment at each node; 0 is background.
    merge_tolerance_nodes
        A segment holds a skeleton when it covers more than this many of its nodes: skeletons of real truth
        graze a neighbour now and then.

    Raises
    ------
    SpecError
        If shapes do not fit, an edge points past the nodes or joins two skeletons, or no edge has a length.
    """
    nodes = np.asarray(nodes_nm, dtype=np.float64)
    edges = np.asarray(edges)
    _check(nodes, edges, skeleton_ids, segment_ids)
    _, skeletons = np.unique(skeleton_ids, return_inverse=True)
    segment_names, segments = np.unique(np.asarray(segment_ids).astype(np.uint64), return_inverse=True)
    background = segment_names == 0

    lengths = np.linalg.norm(nodes[edges[:, 0]] - nodes[edges[:, 1]], axis=1)
    total = float(lengths.sum())
    if not total > 0:
        raise SpecError(
            "the skeletons have no length inside the compared box: check their units (nm) and the box"
        )

    pairs, n_nodes = np.unique(np.stack([segments, skeletons]), axis=1, return_counts=True)
    held = pairs[:, (n_nodes > merge_tolerance_nodes) & ~background[pairs[0]]]
    is_merger = np.bincount(held[0], minlength=segment_names.size) > 1

    first, second = segments[edges[:, 0]], segments[edges[:, 1]]
    omitted = background[first] | background[second]
    split = ~omitted & (first != second)
    merged = ~omitted & ~split & is_merger[first]
    correct = ~omitted & ~split & ~merged

    edge_skeletons = skeletons[edges[:, 0]]
    n_skeletons = int(skeletons.max()) + 1
    whole = np.bincount(edge_skeletons, weights=lengths, minlength=n_skeletons)
    run_of, run_index = np.unique(first[correct] * n_skeletons + edge_skeletons[correct], return_inverse=True)
    runs = np.bincount(run_index, weights=lengths[correct], minlength=run_of.size)
    # Mean over skeletons weighted by length L_i of sum_s(L_is^2 / L_i): the L_i cancel.
    erl, best = float((runs**2).sum() / total), float((whole**2).sum() / total)
    return RunLength(
        n_skeletons=int(np.count_nonzero(whole)),
        n_edges=len(edges),
        total_length_nm=total,
        erl_nm=erl,
        max_erl_nm=best,
        normalised_erl=erl / best,
        correct_fraction=float(lengths[correct].sum() / total),
        split_fraction=float(lengths[split].sum() / total),
        merged_fraction=float(lengths[merged].sum() / total),
        omitted_fraction=float(lengths[omitted].sum() / total),
        n_splits=int(split.sum()),
        n_mergers=int(is_merger.sum()),
        n_omitted_edges=int(omitted.sum()),
        n_merged_skeletons=int(np.unique(held[1][is_merger[held[0]]]).size),
    )


def _check(
    nodes: npt.NDArray[Any],
    edges: npt.NDArray[Any],
    skeleton_ids: npt.NDArray[Any],
    segment_ids: npt.NDArray[Any],
) -> None:
    if nodes.ndim != 2 or nodes.shape[1] != 3:
        raise SpecError(f"nodes must have the shape (n, 3): x, y, z in nm; got {nodes.shape}")
    if not np.isfinite(nodes).all():
        raise SpecError("node positions must be finite numbers of nm, got NaN or infinity")
    for name, values in (("skeleton ids", skeleton_ids), ("segment ids", segment_ids)):
        if np.shape(values) != (len(nodes),):
            raise SpecError(
                f"{name} must be one for each of the {len(nodes)} nodes, got shape {np.shape(values)}"
            )
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "ui":
        raise SpecError(f"edges must be integers of the shape (m, 2), got {edges.dtype} {edges.shape}")
    if not len(edges):
        raise SpecError("the skeletons have no edge inside the compared box: run lengths need at least one")
    if edges.min() < 0 or edges.max() >= len(nodes):
        raise SpecError(f"edges must point at nodes 0..{len(nodes) - 1}, got {edges.min()}..{edges.max()}")
    ids = np.asarray(skeleton_ids)
    astray = np.flatnonzero(ids[edges[:, 0]] != ids[edges[:, 1]])
    if astray.size:
        a, b = edges[astray[0]]
        raise SpecError(
            f"edge {astray[0]} joins skeletons {ids[a]} and {ids[b]}: an edge stays within one skeleton"
        )

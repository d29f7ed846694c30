"""Partitions of a whole region graph: multicut and mutex linkage, by bioimage-cpp.

An edge that is likely a boundary repels, another attracts: its cost is ``log((1 - p) / p) + log((1 - beta) / beta)``
with ``p`` the mean boundary between the two segments (Beier et al. 2017, doi 10.1038/nmeth.4151). Both solvers look at
all edges, so a partition of a part says nothing about the whole: one machine solves it. The edges are sorted by ids
and the solvers take no random decisions, so the outcome does not depend on how the volume was cut into blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.ops.absorb import absorb_complete
from cloudseg.ops.edges import Edges

Counts = npt.NDArray[np.int64]
_CERTAIN = 1e-3


@dataclass(frozen=True, slots=True)
class CutRule:
    """How a graph is cut.

    Attributes
    ----------
    method
        ``multicut``: the partition of least cost that greedy joining (GAEC) and then Kernighan-Lin find (Keuper et al.
        2015, arXiv 1505.06973). ``mutex``: edges by decreasing certainty; one that attracts joins unless a surer one
        keeps apart (Wolf et al. 2018, arXiv 1904.12654).
    beta
        Above 0.5 more is cut, below less.
    weigh_contacts
        Whether an edge counts by the square root of its contact area; only ``multicut`` adds costs up.
    min_size_vx
        Smaller segments are then given to the neighbour they are best connected to.
    """

    method: Literal["multicut", "mutex"] = "multicut"
    beta: float = 0.5
    weigh_contacts: bool = True
    min_size_vx: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise SpecError(f"beta lies between 0 (nothing is cut) and 1 (everything is), got {self.beta}")


def partition(edges: Edges, *, n_voxels: Counts, rule: CutRule) -> npt.NDArray[np.int64]:
    """Return which segments become one.

    Parameters
    ----------
    edges
        Each pair of segments once, sorted; the mean is the affinity, 0..255.
    n_voxels
        ``(n,)``: size of each segment.
    rule
        Method and numbers.

    Returns
    -------
    ``(n,)``: the smallest segment of each one's group.
    """
    name = _named(_solve(edges, n=len(n_voxels), rule=rule)) if edges.n_edges else np.arange(len(n_voxels))
    if not rule.min_size_vx:
        return name
    sizes = np.bincount(name, weights=n_voxels, minlength=len(name)).astype(np.int64)
    left = edges.between(name).pooled()
    is_small = sizes < rule.min_size_vx
    left = left.take(is_small[left.u] | is_small[left.v])
    is_open = np.zeros(len(name), np.bool_)
    _, given = absorb_complete(left, is_open=is_open, n_voxels=sizes, min_size_vx=rule.min_size_vx)
    return given[name]


def costs(edges: Edges, *, beta: float) -> npt.NDArray[np.float64]:
    """Return what cutting each edge costs: positive where it attracts."""
    p = np.clip(1.0 - edges.mean / 255.0, _CERTAIN, 1.0 - _CERTAIN)
    cost: npt.NDArray[np.float64] = np.log((1.0 - p) / p) + np.log((1.0 - beta) / beta)
    return cost


def _solve(edges: Edges, *, n: int, rule: CutRule) -> npt.NDArray[np.uint64]:
    from bioimage_cpp.graph import undirected_graph
    from bioimage_cpp.graph.agglomeration import GaspClusterPolicy
    from bioimage_cpp.graph.multicut import GreedyAdditiveMulticut, KernighanLinMulticut, MulticutObjective

    graph = undirected_graph(n)
    graph.insert_edges(np.stack([edges.u, edges.v], axis=1).astype(np.uint64))
    cost = costs(edges, beta=rule.beta)
    if rule.method == "mutex":
        labels: npt.NDArray[np.uint64] = GaspClusterPolicy(linkage="mutex_watershed").optimize(graph, cost)
        return labels
    if rule.weigh_contacts:
        cost *= np.sqrt(edges.weight / edges.weight.max())
    objective = MulticutObjective(graph, cost)
    objective.labels = GreedyAdditiveMulticut().optimize(objective)
    labels = KernighanLinMulticut().optimize(objective)
    return labels


def _named(labels: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the smallest member of each one's group."""
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    return first[group].astype(np.int64)

"""Region graphs as tables in a bucket: what one task writes and others read again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from cloudseg.tasking.memory import give_back
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.tables import get_table

if TYPE_CHECKING:
    from cloudseg.ops.region_graph import RegionGraph

GRAPH_COLUMNS = ("u", "v", "total", "weight", "key_u", "key_v")


def graph_columns(graph: RegionGraph) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of a graph's table."""
    return {name: getattr(graph, name) for name in GRAPH_COLUMNS}


class StoredGraphs(Collection["RegionGraph"]):
    """Region graphs in tables, each read when it is its turn, so that only one is in memory.

    Attributes
    ----------
    n_edges
        Edges in the graphs that were gone through last.
    """

    def __init__(self, objects: Objects, keys: Sequence[str]) -> None:
        self._objects, self._keys = objects, keys
        self.n_edges = 0

    def __len__(self) -> int:
        """Return the number of graphs."""
        return len(self._keys)

    def __contains__(self, graph: object) -> bool:
        """Whether one of them is ``graph`` itself; never, as each is read anew."""
        return False

    def __iter__(self) -> Iterator[RegionGraph]:
        """Read one after the other."""
        from cloudseg.ops.region_graph import RegionGraph

        self.n_edges = 0
        for key in self._keys:
            table = get_table(self._objects, key)
            self.n_edges += len(table["u"])
            yield RegionGraph(*(table.pop(name) for name in GRAPH_COLUMNS))
            give_back()

"""The nearest of many points, exactly: points in space-filling order, blocks of them skipped by their bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError

Points = npt.NDArray[np.float64]
Ids = npt.NDArray[np.uint64]

_BLOCK = 512


@dataclass(frozen=True, slots=True)
class PointIndex:
    """Points with ids, in blocks of neighbours. Make one with :meth:`of`.

    Attributes
    ----------
    ids, points
        ``(n,)`` uint64 and ``(n, 3)`` float64.
    lower, upper
        ``(m, 3)``: bounds of each block.
    """

    ids: Ids
    points: Points
    lower: Points
    upper: Points

    @classmethod
    def of(cls, ids: Ids, points: Points) -> Self:
        """Index points; the better their order follows space (Morton), the faster it is.

        Parameters
        ----------
        ids
            ``(n,)`` uint64, each once.
        points
            ``(n, 3)`` float64, finite.
        """
        if points.shape != (len(ids), 3):
            raise SpecError(f"{len(ids)} ids need points of shape ({len(ids)}, 3), got {points.shape}")
        starts = np.arange(0, len(ids), _BLOCK)
        if not len(starts):
            none = np.zeros((0, 3))
            return cls(ids, points, none, none)
        return cls(
            ids,
            points,
            np.minimum.reduceat(points, starts, axis=0),
            np.maximum.reduceat(points, starts, axis=0),
        )

    def nearest(
        self, point: tuple[float, float, float], k: int, *, within: float = np.inf
    ) -> tuple[Ids, npt.NDArray[np.float64]]:
        """Return the ``k`` nearest: ids and distances, by distance, then by id; fewer if there are no more.

        Parameters
        ----------
        point
            From where.
        k
            How many.
        within
            Largest distance, inclusive.
        """
        at = np.asarray(point, np.float64)
        outside = np.maximum(np.maximum(self.lower - at, at - self.upper), 0.0)
        # A bound that rounding must never push above a real distance.
        bound = np.sqrt(_squared(outside)) * (1 - 1e-12)
        order = np.argsort(bound, kind="stable")
        ids, distances = np.zeros(0, np.uint64), np.zeros(0)
        taken, step = 0, max(4, 2 * k // _BLOCK)
        while taken < len(order):
            reach = min(within, distances[k - 1] if len(distances) >= k else np.inf)
            group = order[taken : taken + step]
            group = group[bound[group] <= reach]
            if not len(group):
                break
            rows = (group[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
            rows = rows[rows < len(self.ids)]
            found = np.sqrt(_squared(self.points[rows] - at))
            near = found <= reach
            ids, distances = _best(
                np.concatenate([ids, self.ids[rows[near]]]), np.concatenate([distances, found[near]]), k
            )
            taken, step = taken + step, step * 2
        return ids, distances


def _squared(differences: Points) -> npt.NDArray[np.float64]:
    squares = differences * differences
    total: npt.NDArray[np.float64] = squares[:, 0] + squares[:, 1] + squares[:, 2]
    return total


def _best(ids: Ids, distances: npt.NDArray[np.float64], k: int) -> tuple[Ids, npt.NDArray[np.float64]]:
    order = np.lexsort((ids, distances))[:k]
    return ids[order], distances[order]

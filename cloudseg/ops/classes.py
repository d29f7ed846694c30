"""Classes of objects by declared intervals of their properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ObjectClass:
    """A name, and a closed interval for each property that matters."""

    name: str
    intervals: Mapping[str, Interval]

    def excludes(self, other: ObjectClass) -> bool:
        """Whether no object can belong to both: some property's intervals do not meet."""
        return any(
            self.intervals[name][0] > other.intervals[name][1]
            or other.intervals[name][0] > self.intervals[name][1]
            for name in self.intervals.keys() & other.intervals.keys()
        )


def check_classes(classes: Sequence[ObjectClass], *, first_wins: bool) -> None:
    """Refuse names that come twice, intervals upside down, and overlapping classes where no order decides."""
    seen: set[str] = set()
    for one in classes:
        if one.name in seen:
            raise SpecError(f"two classes are called {one.name!r}; give each another name")
        seen.add(one.name)
        for name, (low, high) in one.intervals.items():
            if not low <= high:
                raise SpecError(f"class {one.name!r}: {name} must rise from low to high, got [{low}, {high}]")
    if first_wins:
        return
    for i, a in enumerate(classes):
        for b in classes[i + 1 :]:
            if not a.excludes(b):
                raise SpecError(
                    f"classes {a.name!r} and {b.name!r} overlap: an object may lie in all intervals of both; make the "
                    'intervals of one property disjoint, or write overlap = "first" to let the first class win'
                )


def classify(
    properties: Mapping[str, npt.NDArray[Any]], classes: Sequence[ObjectClass], *, first_wins: bool
) -> npt.NDArray[np.int64]:
    """Return the class of each object.

    Parameters
    ----------
    properties
        Name to ``(n,)`` values.
    classes
        In order.
    first_wins
        Whether the first class that fits is taken where several do; else they must exclude one another.

    Returns
    -------
    ``(n,)`` int64: place in ``classes`` plus 1; 0 for an object that fits none.
    """
    check_classes(classes, first_wins=first_wins)
    n = len(next(iter(properties.values())))
    found = np.zeros(n, np.int64)
    for place, one in reversed(list(enumerate(classes, 1))):
        fits = np.ones(n, np.bool_)
        for name, (low, high) in one.intervals.items():
            fits &= (properties[name] >= low) & (properties[name] <= high)
        found[fits] = place
    return found

"""Soma questions by definition: loops over rows, no database, no index."""

from __future__ import annotations

import math
import operator

import numpy as np

from cloudseg.somas.rows import checked, sorted_rows
from cloudseg.testing.somas import BOUNDS_NM

COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda value, values: value in values,
    "not_in": lambda value, values: value not in values,
}


def stored_rows(table):
    return sorted_rows(checked(table, lower=BOUNDS_NM[0], upper=BOUNDS_NM[1])).to_pylist()


def holds(row, where):
    for name, conditions in where.items():
        for op, value in conditions.items():
            if op == "is_null":
                if (row[name] is None) is not value:
                    return False
            elif row[name] is None or not COMPARE[op](row[name], value):
                return False
    return True


def in_box(row, box, predicate):
    if box is None:
        return True
    if predicate == "centroid":
        return all(low <= row[f"{a}_nm"] < high for a, low, high in zip("xyz", *box, strict=True))
    return all(
        max(low, row[f"bbox_min_{a}_nm"]) < min(high, row[f"bbox_max_{a}_nm"])
        for a, low, high in zip("xyz", *box, strict=True)
    )


def chosen(rows, where=None, bbox=None, predicate="centroid", tombstones=False):
    where = where or {}
    hidden = () if tombstones or "status" in where else ("rejected", "merged")
    return [r for r in rows if r["status"] not in hidden and holds(r, where) and in_box(r, bbox, predicate)]


def ordered(rows, order, limit):
    name, descending = order.removeprefix("-"), order.startswith("-")
    rows = sorted(rows, key=lambda r: r["soma_id"])
    some = [r for r in rows if r[name] is not None]
    none = [r for r in rows if r[name] is None]
    some.sort(key=lambda r: r[name].encode() if isinstance(r[name], str) else r[name], reverse=descending)
    if descending:  # reversing keeps equal ones in place, so ids still rise
        groups = {}
        for r in some:
            groups.setdefault(r[name], []).append(r)
        some = [r for group in groups.values() for r in sorted(group, key=lambda r: r["soma_id"])]
    return (some + none)[:limit]


def counted(rows, by):
    groups = {}
    for r in rows:
        key = tuple(r[name] for name in by)
        groups[key] = groups.get(key, 0) + 1
    return groups


def statistics(rows, name):
    values = np.array([r[name] for r in rows if r[name] is not None], np.float64)
    if not len(values):
        return [0] + [None] * 9
    quantiles = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return [len(values), float(values.mean()), std, float(values.min()), *quantiles, float(values.max())]


def neighbours(rows, point, k, within):
    def distance(r):
        d = [r[f"{a}_nm"] - p for a, p in zip("xyz", point, strict=True)]
        return math.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])

    found = sorted((distance(r), r["soma_id"]) for r in rows)
    return [(d, i) for d, i in found if d <= within][:k]

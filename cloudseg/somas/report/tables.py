"""The numbers of the report as tables, and all of it written into a folder."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from cloudseg.somas.report.numbers import FACES, Numbers
from cloudseg.somas.report.page import page
from cloudseg.somas.report.plots import bins_of
from cloudseg.volumes.objects import Objects

if TYPE_CHECKING:
    import pyarrow as pa

PAGE = "index.html"
_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def write_report(numbers: Numbers, objects: Objects) -> list[str]:
    """Write the page and its tables, each as CSV and as Parquet; return their names.

    Parameters
    ----------
    numbers
        From :func:`~cloudseg.somas.report.numbers.gather`.
    objects
        The folder of the report.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    names = []
    for name, table in tables(numbers).items():
        text, columns = io.BytesIO(), pa.BufferOutputStream()
        csv.write_csv(table, text)
        pq.write_table(table, columns, compression="zstd")
        objects.put(f"{name}.csv", text.getvalue())
        objects.put(f"{name}.parquet", columns.getvalue().to_pybytes())
        names += [f"{name}.csv", f"{name}.parquet"]
    objects.put(PAGE, page(numbers).encode())
    return [PAGE, *names]


def tables(numbers: Numbers) -> dict[str, pa.Table]:
    """Return the tables: ``counts``, ``border``, ``quantities``, ``distributions``, ``density``, ``segments``.

    Those of which nothing is known have no rows.
    """
    return {
        "counts": _counts(numbers),
        "border": _border(numbers),
        "quantities": _quantities(numbers),
        "distributions": _distributions(numbers),
        "density": _density(numbers),
        "segments": _segments(numbers),
    }


def _counts(numbers: Numbers) -> pa.Table:
    import pyarrow as pa

    places = sorted(numbers.by_place, key=lambda place: (place[0] or "", place[1] or ""))
    return pa.table(
        {
            "region": pa.array([region for region, _ in places], pa.string()),
            "side": pa.array([side for _, side in places], pa.string()),
            "n_somas": pa.array([numbers.by_place[place] for place in places], pa.int64()),
        }
    )


def _border(numbers: Numbers) -> pa.Table:
    import pyarrow as pa

    return pa.table({"face": list(FACES), "n_somas": pa.array(numbers.by_face, pa.int64())})


def _quantities(numbers: Numbers) -> pa.Table:
    import pyarrow as pa

    rows = []
    for each in numbers.quantities:
        values = np.asarray(each.values, np.float64)
        row = {
            "quantity": each.name,
            "unit": each.unit,
            "n": len(values),
            "n_left_out": each.n_left_out,
            "counted": each.note,
            "mean": float(values.mean()) if len(values) else None,
            "standard_deviation": float(values.std(ddof=1)) if len(values) > 1 else None,
        }
        for q in _PERCENTILES:
            row[f"percentile_{q}"] = float(np.percentile(values, q)) if len(values) else None
        rows.append(row)
    numeric = ["mean", "standard_deviation", *(f"percentile_{q}" for q in _PERCENTILES)]
    schema = pa.schema(
        [("quantity", pa.string()), ("unit", pa.string()), ("n", pa.int64()), ("n_left_out", pa.int64())]
        + [("counted", pa.string())]
        + [(name, pa.float64()) for name in numeric]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def _distributions(numbers: Numbers) -> pa.Table:
    import pyarrow as pa

    parts = []
    for each in numbers.quantities:
        bins = bins_of(each.values)
        n = len(bins.counts)
        parts.append(
            pa.table(
                {
                    "quantity": pa.array([each.name] * n, pa.string()),
                    "unit": pa.array([each.unit] * n, pa.string()),
                    "low": pa.array(bins.edges[:-1], pa.float64()),
                    "high": pa.array(bins.edges[1:], pa.float64()),
                    "n_somas": pa.array(bins.counts, pa.int64()),
                }
            )
        )
    kinds = {"quantity": pa.string(), "unit": pa.string(), "low": pa.float64(), "high": pa.float64()}
    empty = pa.table({**{k: pa.array([], t) for k, t in kinds.items()}, "n_somas": pa.array([], pa.int64())})
    return pa.concat_tables([empty, *parts])


def _density(numbers: Numbers) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, pa.Array] = {}
    counts = numbers.density.counts if numbers.density else np.zeros((0, 0, 0), np.int64)
    cell = numbers.density.cell_nm if numbers.density else 0.0
    lower = numbers.density.lower_nm if numbers.density else (0.0, 0.0, 0.0)
    at = np.nonzero(counts)
    for axis, name in enumerate("xyz"):
        columns[f"low_{name}_nm"] = pa.array(lower[axis] + at[axis] * cell, pa.float64())
    columns["cell_nm"] = pa.array(np.full(len(at[0]), cell), pa.float64())
    columns["n_somas"] = pa.array(counts[at], pa.int64())
    return pa.table(columns)


def _segments(numbers: Numbers) -> pa.Table:
    import pyarrow as pa

    found = numbers.segments
    return pa.table(
        {
            "segment_id": pa.array(found.ids if found else [], pa.uint64()),
            "n_somas": pa.array(found.n_somas if found else [], pa.int64()),
        }
    )

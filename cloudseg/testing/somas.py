"""Soma tables made up from a seed, for tests and benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from cloudseg.somas.store import CatalogSpec

BOUNDS_NM = ((0.0, 0.0, 0.0), (800_000.0, 400_000.0, 300_000.0))
REGIONS = ("MB_CA", "LO", "ME", "AL", "it's; DROP")

SPEC = CatalogSpec(
    dataset="made-up",
    voxel_size_nm=(16.0, 16.0, 40.0),
    bounds_nm=BOUNDS_NM,
    regions=REGIONS,
    made_from={"seed": 0},
)


def soma_table(n: int, *, seed: int = 0, large_ids: bool = True) -> pa.Table:
    """Return ``n`` somas in clusters.

    Parameters
    ----------
    n
        Number of rows.
    seed
        Of the generator.
    large_ids
        Whether some ids lie near 2^64, and some values tie. Nulls are always there.
    """
    rng = np.random.default_rng(seed)
    lower, upper = (np.asarray(corner) for corner in BOUNDS_NM)
    centres = rng.uniform(lower, upper, (max(1, n // 500), 3))
    points = centres[rng.integers(0, len(centres), n)] + rng.normal(0, 15_000, (n, 3))
    points = np.clip(points, lower, upper - 1)
    ids = rng.permutation(np.arange(1, n + 1, dtype=np.uint64))
    segments = rng.integers(1, max(2, n), n).astype(np.uint64)
    volume = rng.lognormal(4.5, 0.6, n)
    if large_ids:
        points[: n // 3] = np.round(points[: n // 3], -4)  # many at one place, many on the edges of boxes
        volume[: n // 2] = np.round(volume[: n // 2], -1)
        large = rng.random(n) < 0.3
        ids[large] = np.uint64(2**64 - 1) - ids[large]
        segments[large] = np.uint64(2**64 - 1) - segments[large]
    radius = (3 * volume / (4 * np.pi)) ** (1 / 3)
    half = np.repeat(radius[:, None] * 1000, 3, axis=1)
    some = rng.random(n)

    def nullable(values: Any, absent: Any, type_: pa.DataType) -> pa.Array:
        return pa.array(values, type_, mask=np.asarray(absent))

    columns: dict[str, Any] = {"soma_id": ids}
    for axis, name in enumerate("xyz"):
        columns[f"{name}_nm"] = points[:, axis]
        columns[f"anchor_{name}_nm"] = points[:, axis]
        columns[f"bbox_min_{name}_nm"] = points[:, axis] - half[:, axis]
        columns[f"bbox_max_{name}_nm"] = points[:, axis] + half[:, axis]
    columns |= {
        "n_voxels": np.maximum(1, volume * 1e9 / (16 * 16 * 40)).astype(np.uint64),
        "volume_um3": volume,
        "radius_um": radius.astype(np.float32),
        "sphericity": nullable(rng.uniform(0.5, 1, n), some < 0.2, pa.float32()),
        "score": pa.array(rng.random(n), pa.float32()),
        "edge_faces": rng.integers(0, 64, n).astype(np.uint8) * (some < 0.1),
        "n_blocks": rng.integers(1, 9, n).astype(np.uint16),
        "segment_id": nullable(segments, some < 0.15, pa.uint64()),
        "segment_fraction": nullable(rng.uniform(0, 1, n), some < 0.15, pa.float32()),
        "region": nullable(np.array(REGIONS)[rng.integers(0, len(REGIONS), n)], some > 0.9, pa.string()),
        "side": nullable(
            np.array(["left", "right", "center"])[rng.integers(0, 3, n)], some > 0.95, pa.string()
        ),
        "status": np.array(["auto", "verified", "rejected", "merged"])[np.digitize(some, [0.5, 0.9, 0.95])],
    }
    columns["edge_faces"] = columns["edge_faces"].astype(np.uint8)
    return pa.table(columns)

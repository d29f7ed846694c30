"""Made-up somas that lie in the volume of a root, in its own segments: for what shows both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cloudseg.somas.store import publish, write_version
from cloudseg.testing.somas import SPEC, soma_table
from cloudseg.volumes import open_objects, open_volume, scales


def write_catalogue(root: Path, n: int, *, seed: int = 1) -> pa.Table:
    """Write and publish ``n`` somas at ``<root>/somas``, in clusters and of the segments that are there.

    Parameters
    ----------
    root
        A folder with the layer ``segmentation``, small enough to be read whole.
    n
        Number of somas.
    seed
        Of the generator.

    Returns
    -------
    The rows that were written.
    """
    uri = f"file://{root}/segmentation"
    info = scales(uri)[0]
    labels = open_volume(uri).read(info.bounds)
    size = np.asarray(info.voxel_size_nm)
    lower = np.asarray(info.bounds.start) * size
    upper = np.asarray(info.bounds.stop) * size
    table = soma_table(n, seed=seed)
    rng = np.random.default_rng(seed)
    # Clusters, as in tissue, and some everywhere.
    centres = rng.uniform(lower, upper, (12, 3))
    at = centres[rng.integers(0, 12, n)] + rng.normal(0, 0.08, (n, 3)) * (upper - lower)
    at = np.where(rng.random((n, 1)) < 0.3, rng.uniform(lower, upper, (n, 3)), at)
    at = np.clip(at, lower + 1, upper - 1)
    x, y, z = ((at - lower) // size).astype(int).T
    segments = labels[x, y, z].astype(np.uint64)
    nearest = rng.gamma(3, 2, n).astype(np.float32)
    columns: dict[str, Any] = {name: table[name] for name in table.column_names}
    for axis, name in enumerate("xyz"):
        for prefix in ("", "anchor_", "bbox_min_", "bbox_max_"):
            columns[f"{prefix}{name}_nm"] = at[:, axis] + {"bbox_min_": -8.0, "bbox_max_": 8.0}.get(
                prefix, 0.0
            )
    columns["segment_id"] = pa.array(segments, pa.uint64(), mask=segments == 0)
    columns["nearest_um"] = pa.array(nearest, pa.float32(), mask=rng.random(n) < 0.02)
    table = pa.table(columns)
    spec = SPEC.model_copy(update={"voxel_size_nm": tuple(size), "bounds_nm": (tuple(lower), tuple(upper))})
    objects = open_objects(f"file://{root}/somas")
    write_version(objects, table, spec, version=1)
    publish(objects, 1)
    return table

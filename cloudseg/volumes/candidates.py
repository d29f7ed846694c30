"""The table of soma candidates: ``candidates.parquet`` in the folder of the stage that found them."""

from __future__ import annotations

import numpy as np

from cloudseg.ops.candidates import Candidates
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.tables import Column, get_table, put_table

KEY = "candidates.parquet"
Size = tuple[float, float, float]


def put_candidates(objects: Objects, key: str, candidates: Candidates, *, voxel_size_nm: Size) -> None:
    """Store ``candidates``; a voxel's centre lies half a voxel from its lower corner.

    Parameters
    ----------
    objects, key
        Where.
    candidates
        In voxels.
    voxel_size_nm
        Of these voxels.
    """
    columns: dict[str, Column] = {f"{axis}_vx": candidates.at[:, a] for a, axis in enumerate("xyz")}
    for a, axis in enumerate("xyz"):
        columns[f"{axis}_nm"] = (candidates.at[:, a] + 0.5) * voxel_size_nm[a]
    put_table(
        objects,
        key,
        columns
        | {
            "radius_nm": candidates.radius_nm,
            "score": candidates.score,
            "segment_id": candidates.segment,
        },
    )


def get_candidates(objects: Objects, key: str, *, voxel_size_nm: Size | None = None) -> Candidates:
    """Return what :func:`put_candidates` stored.

    Parameters
    ----------
    objects, key
        Where.
    voxel_size_nm
        Of the voxels that the result counts in; None: those that it was found in.
    """
    table = get_table(objects, key)
    if voxel_size_nm is None:
        at = np.stack([table[f"{axis}_vx"] for axis in "xyz"], axis=1)
    else:
        places = [table[f"{axis}_nm"] / size for axis, size in zip("xyz", voxel_size_nm, strict=True)]
        at = np.floor(np.stack(places, axis=1)).astype(np.int64)
    return Candidates(at, table["score"], table["radius_nm"], table["segment_id"])

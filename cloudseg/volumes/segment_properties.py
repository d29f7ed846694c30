"""Neuroglancer segment properties: the table that a viewer searches, sorts and colours segments by.

Written as the inline form of the Precomputed specification ("segment properties", ``neuroglancer_segment_properties``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.volumes.objects import Objects

KEY = "segment_properties"
"""Folder inside a segmentation, and the key of its ``info`` that names it."""

_TAG = re.compile(r"^[^\s#][^\s]*$")


def segment_properties_info(
    ids: npt.NDArray[np.uint64],
    *,
    labels: Sequence[str] | None = None,
    numbers: Mapping[str, tuple[npt.NDArray[Any], str]] | None = None,
    tags: Mapping[str, tuple[npt.NDArray[np.bool_], str]] | None = None,
) -> dict[str, Any]:
    """Return the ``info`` document, rows sorted by id.

    Parameters
    ----------
    ids
        ``(n,)`` uint64, each once, in any order; written as decimal strings, so no id passes through a float.
    labels
        The text shown beside each id.
    numbers
        Name to ``(values, description)``, ``(n,)`` each. Integers are kept exactly as long as they fit 32 bits
        (the format knows no wider ones); all else becomes float32.
    tags
        Name to ``(mask, description)``: which segments carry the tag. A tag holds no space and begins with no ``#``.

    Raises
    ------
    SpecError
        If lengths differ, an id comes twice, or a tag is malformed.
    """
    ids = np.asarray(ids, np.uint64)
    order = np.argsort(ids, kind="stable")
    n_different = len(np.unique(ids))
    if n_different != len(ids):
        raise SpecError(
            f"segment properties want each id once, got {len(ids)} ids of which {n_different} differ"
        )
    properties: list[dict[str, Any]] = []
    if labels is not None:
        _same_length(len(labels), ids, what="labels")
        properties.append({"id": "label", "type": "label", "values": [labels[i] for i in order]})
    if tags:
        names = sorted(tags)
        for name in names:
            _same_length(len(tags[name][0]), ids, what=f"tag {name!r}")
            if not _TAG.match(name):
                raise SpecError(
                    f"a tag must hold no space and begin with no '#', got {name!r}; write e.g. 'on_border'"
                )
        carried = np.stack([np.asarray(tags[name][0], bool)[order] for name in names], axis=1)
        properties.append(
            {
                "id": "tags",
                "type": "tags",
                "tags": names,
                "tag_descriptions": [tags[name][1] for name in names],
                "values": [np.flatnonzero(row).tolist() for row in carried],
            }
        )
    for name, (values, description) in (numbers or {}).items():
        _same_length(len(values), ids, what=f"number {name!r}")
        data_type, exact = _numbers(np.asarray(values)[order])
        properties.append(
            {
                "id": name,
                "type": "number",
                "description": description,
                "data_type": data_type,
                "values": exact,
            }
        )
    return {
        "@type": "neuroglancer_segment_properties",
        "inline": {"ids": [str(i) for i in ids[order].tolist()], "properties": properties},
    }


def write_segment_properties(objects: Objects, info: Mapping[str, Any]) -> None:
    """Store ``info`` as ``segment_properties/info`` of the segmentation that ``objects`` opens."""
    objects.put(f"{KEY}/info", json.dumps(info, separators=(",", ":")).encode())


def _same_length(n: int, ids: npt.NDArray[np.uint64], *, what: str) -> None:
    if n != len(ids):
        raise SpecError(f"{what} must have one value for each of the {len(ids)} segments, got {n}")


def _numbers(values: npt.NDArray[Any]) -> tuple[str, list[int] | list[float]]:
    if values.dtype.kind in "iu":
        low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
        for data_type in ("uint32", "int32"):
            limits = np.iinfo(data_type)
            if limits.min <= low and high <= limits.max:
                return data_type, values.tolist()
    # The shortest decimal that reads back as the same float32.
    return "float32", [float(str(v)) for v in values.astype(np.float32)]

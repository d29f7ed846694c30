"""Segment properties: what Neuroglancer searches, sorts and colours somas by, and neurons by their somas."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from cloudseg.somas.catalogue import Catalogue
from cloudseg.somas.requests import Query, Selection
from cloudseg.somas.schema import BY_NAME
from cloudseg.volumes.segment_properties import segment_properties_info

NUMBERS = ("volume_um3", "radius_um", "sphericity", "score", "nearest_um", "segment_fraction", "n_segments")
TAGS = ("region", "side", "kind", "status")


def segment_properties(
    catalogue: Catalogue, selection: Selection, *, largest: int | None = None
) -> dict[str, Any]:
    """Return the ``info`` document of the selected somas: label, numbers, tags.

    A number that is not known is the text ``"NaN"``: the viewer reads null as 0.

    Parameters
    ----------
    catalogue, selection
        Which somas.
    largest
        How many of them, those of the greatest volume; all for None.
    """
    import pyarrow as pa

    names = ["soma_id", "segment_id", *NUMBERS, *TAGS]
    asked = Query(
        **{**dict(selection), "columns": tuple(names), "order": "-volume_um3", "limit": largest},
    )
    batches = list(catalogue.rows(asked))
    if not batches:
        return segment_properties_info(np.zeros(0, np.uint64))
    table = pa.Table.from_batches(batches)
    labels = [f"soma {i}" for i in table["soma_id"].to_pylist()]
    numbers = {}
    for name in NUMBERS:
        if table[name].null_count < table.num_rows:
            text = ", ".join(part for part in (BY_NAME[name].description, BY_NAME[name].unit) if part)
            numbers[name] = (table[name].cast(pa.float32()).to_numpy(), text)
    tags: dict[str, tuple[Any, str]] = {}
    for name in TAGS:
        values = table[name].to_numpy(zero_copy_only=False)
        for value in sorted({value for value in values if value is not None}):
            tag = re.sub(r"\s+", "_", value.strip()).lstrip("#")
            if tag and tag not in tags:
                tags[tag] = (values == value, f"{name}: {value}")
    info = segment_properties_info(table["soma_id"].to_numpy(), labels=labels, numbers=numbers, tags=tags)
    for each in info["inline"]["properties"]:
        if each["type"] == "number":
            each["values"] = ["NaN" if value != value else value for value in each["values"]]
    return info


def properties_of_segments(catalogue: Catalogue, *, largest: int | None = None) -> dict[str, Any]:
    """Return the ``info`` document of the neurons that have somas: how many, how large, and tags to find them by.

    The names of its properties differ from those that ``statistics`` gives a segmentation, so that a viewer can show
    both at once.

    Parameters
    ----------
    catalogue
        The somas.
    largest
        How many segments, those with most soma volume; all for None.
    """
    rows = catalogue.rows(
        Query(columns=("segment_id", "volume_um3"), where={"segment_id": {"is_null": False}})
    )
    found = [(batch.column(0).to_numpy(), batch.column(1).to_numpy()) for batch in rows]
    segments = np.concatenate([np.zeros(0, np.uint64), *(each for each, _ in found)])
    volumes = np.concatenate([np.zeros(0), *(each for _, each in found)])
    ids, place = np.unique(segments, return_inverse=True)
    number = np.bincount(place, minlength=len(ids))
    total = np.bincount(place, weights=volumes, minlength=len(ids))
    kept = np.sort(np.lexsort((ids, -total))[:largest])
    several = number[kept] > 1
    return segment_properties_info(
        ids[kept],
        numbers={
            "n_somas": (number[kept], "number of somas"),
            "soma_volume_um3": (total[kept], "volume of its somas, um3"),
        },
        tags={
            "one_soma": (~several, "has one soma"),
            "several_somas": (several, "has more than one soma: perhaps a wrong merge"),
        },
    )

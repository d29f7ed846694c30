"""Segment properties of the soma segmentation: what Neuroglancer searches, sorts and colours somas by."""

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


def segment_properties(catalogue: Catalogue, selection: Selection) -> dict[str, Any]:
    """Return the ``info`` document of the selected somas: label, numbers, tags.

    A number that is not known is the text ``"NaN"``: the viewer reads null as 0.
    """
    import pyarrow as pa

    names = ["soma_id", "segment_id", *NUMBERS, *TAGS]
    asked = Query(**{**dict(selection), "columns": tuple(names)})
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

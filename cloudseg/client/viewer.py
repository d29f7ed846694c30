"""Neuroglancer links that show somas as points and select their segments."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from cloudseg.errors import SpecError

PUBLIC_CLIENT = "https://neuroglancer-demo.appspot.com/"
LAYER = "somas"

_NM = {axis: [1e-9, "m"] for axis in "xyz"}

Json = dict[str, Any]


def link_with_somas(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], *, base: str | None) -> str:
    """Return a link whose state holds a layer of points, one for each row.

    Parameters
    ----------
    rows
        ``soma_id``, ``x_nm``, ``y_nm``, ``z_nm``, ``volume_um3``, ``radius_um``, ``segment_id`` of each.
    facts
        What the catalogue says of itself.
    base
        A link whose state the layer is added to; in its layer ``segmentation`` the somas' segments are selected.

    Raises
    ------
    SpecError
        If ``base`` holds no Neuroglancer state.
    """
    client, state = (PUBLIC_CLIENT, _plain_state(facts)) if base is None else _split(base)
    layers = [layer for layer in state.get("layers", []) if layer.get("name") != LAYER]
    segments = list(dict.fromkeys(str(row["segment_id"]) for row in rows if row["segment_id"] is not None))
    linked = next((layer for layer in layers if layer.get("name") == "segmentation"), None)
    if linked is not None and segments:
        linked["segments"] = segments
    state["layers"] = [*layers, _layer(rows, linked=linked is not None)]
    if base is None and rows:
        state["position"] = [round(sum(row[f"{axis}_nm"] for row in rows) / len(rows), 1) for axis in "xyz"]
    state["selectedLayer"] = {"layer": LAYER, "visible": True}
    return client + "#!" + quote(json.dumps(state, separators=(",", ":")), safe="~@#$&()*!+=:;,.?/'")


def _layer(rows: Sequence[Mapping[str, Any]], *, linked: bool) -> Json:
    largest = max((row["volume_um3"] for row in rows), default=1.0)
    layer: Json = {
        "type": "annotation",
        "name": LAYER,
        # Its own dimensions: positions are nm, whatever the other layers count in.
        "source": {"url": "local://annotations", "transform": {"outputDimensions": _NM}},
        "tab": "annotations",
        "annotationProperties": [
            {"id": "volume_um3", "type": "float32", "description": "volume"},
            {"id": "radius_um", "type": "float32", "description": "radius of the ball of this volume"},
        ],
        "shader": (
            f"#uicontrol float min_volume slider(min=0, max={math.ceil(largest)}, default=0)\n"
            "void main() {\n  if (prop_volume_um3() < min_volume) discard;\n"
            "  setColor(defaultColor());\n  setPointMarkerSize(8.0);\n}\n"
        ),
        "annotations": [
            {
                "type": "point",
                "id": str(row["soma_id"]),
                "description": f"soma {row['soma_id']}",
                "point": [row["x_nm"], row["y_nm"], row["z_nm"]],
                "props": [round(row["volume_um3"], 3), round(row["radius_um"], 3)],
                "segments": [[] if row["segment_id"] is None else [str(row["segment_id"])]],
            }
            for row in rows
        ],
        "annotationRelationships": ["segment"],
    }
    if linked:
        layer["linkedSegmentationLayer"] = {"segment": "segmentation"}
    return layer


def _plain_state(facts: Mapping[str, Any]) -> Json:
    lower, upper = facts["bounds_nm"]
    widest = max(high - low for low, high in zip(lower, upper, strict=True))
    return {
        "dimensions": _NM,
        "position": [(low + high) / 2 for low, high in zip(lower, upper, strict=True)],
        "crossSectionScale": widest / 1000,
        "projectionScale": widest,
        "layers": [],
        "layout": "4panel",
        "title": f"{facts['dataset']} · somas v{facts['version']}",
    }


def _split(link: str) -> tuple[str, Json]:
    fragment = urlsplit(link).fragment
    try:
        state = json.loads(unquote(fragment.removeprefix("!")))
        if not fragment.startswith("!") or not isinstance(state, dict):
            raise ValueError(fragment[:40])
    except ValueError as error:
        raise SpecError(
            f"base: expected a Neuroglancer link with its state after '#!', got {link[:80]!r}; take one that "
            "`cloudseg link` or `cloudseg serve` prints"
        ) from error
    return link.partition("#")[0], state

"""Neuroglancer states: layers become one view with a position, a zoom and a layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cloudseg.errors import SpecError
from cloudseg_viewer.layers import Json, LayerFacts, layer_json

# Half of a laptop's window, less the bars: the edge of one of four panels, in screen pixels.
_PANEL_PX = 420.0
# Beyond this zoom-out cell outlines vanish; a larger volume opens on its middle instead.
_MAX_VOXELS_PER_PX = 4.0
# A turn that shows three faces of a box; a view along an axis looks flat.
_ORIENTATION = (0.35, 0.25, 0.1, 0.9)


def viewer_state(
    layers: Sequence[tuple[LayerFacts, str]],
    *,
    title: str,
    focus_nm: tuple[float, float, float] | None = None,
    annotations: Sequence[Json] = (),
    properties: Mapping[str, Sequence[str]] | None = None,
) -> Json:
    """Return a Neuroglancer state that shows ``layers`` in four panels.

    Parameters
    ----------
    layers
        Pairs of facts and Neuroglancer source, in drawing order: the first lies lowest. The voxels of the first
        are the unit of the whole view.
    title
        Title of the browser's tab.
    focus_nm
        Where to look; the middle of the first layer when None.
    annotations
        Layers of annotations. The view in 3D then shows all of the volume.
    properties
        Further tables of segment properties, Neuroglancer's addresses by the name of the layer.

    Raises
    ------
    SpecError
        If there is no layer.
    """
    if not layers:
        raise SpecError("a view needs at least one layer, got none; check that the root holds a volume")
    base = layers[0][0]
    size_nm = [b - a for a, b in zip(base.start_nm, base.stop_nm, strict=True)]
    if focus_nm is None:
        x, y, z = ((a + b) / 2 for a, b in zip(base.start_nm, base.stop_nm, strict=True))
        focus_nm = (x, y, z)
    # Neuroglancer measures zoom in the finest voxel edge.
    unit_nm = min(base.voxel_size_nm)
    extent = max(size_nm) / unit_nm
    state: Json = {
        "title": title,
        "dimensions": {
            axis: [_metres(size), "m"] for axis, size in zip("xyz", base.voxel_size_nm, strict=True)
        },
        "position": [
            math.floor(p / s + 1e-6) + 0.5 for p, s in zip(focus_nm, base.voxel_size_nm, strict=True)
        ],
        "crossSectionScale": round(min(extent / _PANEL_PX, _MAX_VOXELS_PER_PX), 4),
        "projectionOrientation": list(_ORIENTATION),
        "projectionScale": round(
            1.5 * extent if annotations else min(1.5 * extent, 2 * _MAX_VOXELS_PER_PX * _PANEL_PX), 1
        ),
        # Annotations first: Neuroglancer 2.41.2 may lose a layer that it restores before them, on a slow start.
        "layers": [
            *annotations,
            *(
                layer_json(facts, source=source, properties=(properties or {}).get(facts.name, ()))
                for facts, source in layers
            ),
        ],
        "showSlices": False,
        "layout": "4panel",
    }
    shown = [facts.name for facts, _ in layers if facts.role == "segmentation"]
    if shown:
        state["selectedLayer"] = {"layer": shown[-1], "visible": False}
    return state


def _metres(size_nm: float) -> float:
    # Through text: 8 * 1e-9 is 8.000000000000001e-09, which then shows in every link.
    return float(f"{size_nm:.12g}e-9")

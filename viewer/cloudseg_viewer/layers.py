"""Neuroglancer layers: what is known about a volume becomes the JSON of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cloudseg.geometry import Box

Role = Literal["image", "mask", "affinities", "supervoxels", "segmentation"]
"""What a volume is to a reader; it decides how the layer is drawn."""

Json = dict[str, Any]
"""A JSON object, as Neuroglancer's documentation describes it."""

HIDDEN: frozenset[Role] = frozenset({"mask", "affinities", "supervoxels"})
"""Intermediate results: in the link, but switched off until the reader wants them."""

GRAY_SHADER = "#uicontrol invlerp normalized\nvoid main() {\n  emitGrayscale(normalized());\n}\n"

# One colour for each axis: a link that is cut along x, y or z is dark in red, green or blue.
AFFINITY_SHADER = (
    "#uicontrol float brightness slider(min=0, max=2, default=1)\n"
    "void main() {\n"
    "  emitRGB(brightness * vec3(toNormalized(getDataValue(0)), toNormalized(getDataValue(1)),"
    " toNormalized(getDataValue(2))));\n"
    "}\n"
)

MASK_SHADER = (
    '#uicontrol vec3 color color(default="#3fa7ff")\n'
    "void main() {\n"
    "  if (toRaw(getDataValue()) == 0u) emitTransparent();\n"
    "  else emitRGBA(vec4(color, 0.4));\n"
    "}\n"
)


@dataclass(frozen=True, slots=True)
class Contrast:
    """Grey levels, in the volume's own values.

    Attributes
    ----------
    low, high
        Shown black and white.
    window
        Ends of the histogram that the reader can drag in.
    """

    low: float
    high: float
    window: tuple[float, float]


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What a link needs to know about one volume. Tuples are in X, Y, Z order.

    Attributes
    ----------
    name, role, uri
        How the layer is called, what it is, where it lives.
    voxel_size_nm, bounds
        Of the finest scale; ``bounds`` in its voxels.
    n_channels
        Values in a voxel.
    contrast
        Grey levels of an image, or None to leave them to the viewer.
    segments
        Ids to show in 3D when the link is opened.
    lacking
        Parts that the ``info`` names but that are not there yet (``mesh``, ``skeletons``, ``properties``): they
        are switched off, because one source that fails keeps the viewer from being ready.
    """

    name: str
    role: Role
    uri: str
    voxel_size_nm: tuple[float, float, float]
    bounds: Box
    n_channels: int = 1
    contrast: Contrast | None = None
    segments: tuple[int, ...] = ()
    lacking: frozenset[str] = frozenset()

    @property
    def start_nm(self) -> tuple[float, float, float]:
        """Lowest corner."""
        x, y, z = (v * s for v, s in zip(self.bounds.start, self.voxel_size_nm, strict=True))
        return (x, y, z)

    @property
    def stop_nm(self) -> tuple[float, float, float]:
        """Highest corner."""
        x, y, z = (v * s for v, s in zip(self.bounds.stop, self.voxel_size_nm, strict=True))
        return (x, y, z)


def layer_json(facts: LayerFacts, *, source: str) -> Json:
    """Return the Neuroglancer layer that shows ``facts``.

    Parameters
    ----------
    facts
        What is known about the volume.
    source
        Neuroglancer's address of it, see :func:`cloudseg_viewer.links.layer_source`.
    """
    build = {"image": _image, "mask": _mask, "affinities": _affinities}.get(facts.role, _segmentation)
    layer = build(facts)
    layer["source"] = _source(facts, source)
    layer["name"] = facts.name
    if facts.role in HIDDEN:
        layer["visible"] = False
    return layer


def _image(facts: LayerFacts) -> Json:
    layer: Json = {"type": "image", "shader": GRAY_SHADER}
    if facts.contrast is not None:
        layer["shaderControls"] = {
            "normalized": {
                "range": [_number(facts.contrast.low), _number(facts.contrast.high)],
                "window": [_number(v) for v in facts.contrast.window],
            }
        }
    return layer


def _affinities(facts: LayerFacts) -> Json:
    if facts.n_channels < 3:
        return _image(facts)
    return {"type": "image", "shader": AFFINITY_SHADER, "opacity": 1}


def _mask(_: LayerFacts) -> Json:
    return {"type": "image", "shader": MASK_SHADER, "opacity": 1, "blend": "default"}


def _segmentation(facts: LayerFacts) -> Json:
    layer: Json = {"type": "segmentation", "selectedAlpha": 0.35}
    if facts.segments:
        # Ids travel as text: JSON numbers above 2**53 lose digits in a browser.
        layer["segments"] = [str(i) for i in facts.segments]
        # The other segments stay faintly visible in the sections, so that the picture shows the whole result.
        layer["notSelectedAlpha"] = 0.12
        layer["objectAlpha"] = 0.85
        layer["skeletonRendering"] = {
            "mode2d": "lines",
            "lineWidth2d": 1,
            "mode3d": "lines",
            "lineWidth3d": 3,
        }
    return layer


def _source(facts: LayerFacts, source: str) -> str | Json:
    if not facts.lacking:
        return source
    return {"url": source, "subsources": dict.fromkeys(sorted(facts.lacking), False)}


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)

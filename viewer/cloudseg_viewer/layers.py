"""Neuroglancer layers: what is known about a volume becomes the JSON of one layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cloudseg.geometry import Box

Role = Literal["image", "mask", "affinities", "supervoxels", "soma_masks", "segmentation"]
"""What a volume is to a reader; it decides how the layer is drawn."""

Json = dict[str, Any]
"""A JSON object, as Neuroglancer's documentation describes it."""

SLIDERS = ("volume_um3", "radius_um", "score", "nearest_um")
"""Numbers of somas that a reader can filter by."""

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
    properties
        Addresses of further tables to search its segments by.
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
    properties: tuple[str, ...] = ()

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


@dataclass(frozen=True, slots=True)
class SomaFacts:
    """What a link needs to know about the annotations of a soma catalogue.

    Attributes
    ----------
    points, ellipsoids
        Where they live.
    ranges
        Smallest and largest value of the numbers that sliders are made for.
    """

    points: str
    ellipsoids: str
    ranges: Mapping[str, tuple[float, float]]


SPACING_PX = 1
"""How near annotations may lie on the screen before the viewer leaves finer levels out: of a hundred thousand somas it
loads all. Its own 8 takes the whole depth of the view into account, and somas fill little of it: of the somas near by,
most would be missing."""

_SPACINGS = ("crossSectionAnnotationSpacing", "projectionAnnotationSpacing")


def soma_layers(facts: SomaFacts, *, points: str, ellipsoids: str, others: Sequence[str]) -> list[Json]:
    """Return the layers of somas: points, which are on, and ellipsoids, which are not.

    Parameters
    ----------
    facts
        What is known about them.
    points, ellipsoids
        Neuroglancer's addresses of the two.
    others
        Names of the layers of the view: what is picked among the somas is selected in those.
    """
    linked = {"segment": "segmentation", "soma": "soma_masks"}
    linked = {relation: name for relation, name in linked.items() if name in others}
    common: Json = {"type": "annotation", "tab": "rendering"} | dict.fromkeys(_SPACINGS, SPACING_PX)
    if linked:
        common["linkedSegmentationLayer"] = linked
    return [
        {**common, "source": points, "shader": soma_shader(facts.ranges, size=True), "name": "somas"},
        {
            **common,
            "source": ellipsoids,
            "shader": soma_shader(facts.ranges, size=False),
            "name": "soma_shapes",
            "visible": False,
        },
    ]


def soma_shader(ranges: Mapping[str, tuple[float, float]], *, size: bool) -> str:
    """Return a shader with two sliders for each number of :data:`SLIDERS` that is known, colours by volume.

    What lies outside a slider is not drawn; nothing is fetched for that. What is not known passes.

    Parameters
    ----------
    ranges
        Smallest and largest value of each number.
    size
        Whether points are drawn, whose size can be chosen.
    """
    controls, tests = [], []
    for name in SLIDERS:
        if name not in ranges or not ranges[name][0] < ranges[name][1]:
            continue
        low, high = _rounded(ranges[name][0], math.floor), _rounded(ranges[name][1], math.ceil)
        step = float(f"{(high - low) / 1000:.1g}")
        for end, default in (("min", low), ("max", high)):
            controls.append(
                f"#uicontrol float {name}_{end} slider(min={low:g}, max={high:g}, default={default:g}, step={step:g})"
            )
        value = f"float(prop_{name}())"
        tests.append(f"  if ({value} < {name}_min || {value} > {name}_max) discard;")
    if size:
        controls.append("#uicontrol float point_size slider(min=1, max=30, default=7)")
    body = ["  setColor(color);"]
    controls.append('#uicontrol vec3 color color(default="#ffd84a")')
    if "volume_um3" in ranges and 0 < ranges["volume_um3"][0] < ranges["volume_um3"][1]:
        # Volumes spread over orders of magnitude: equal ratios are equal steps of colour.
        low, high = (math.log(v) for v in ranges["volume_um3"])
        controls.append('#uicontrol vec3 color_small color(default="#37b6ff")')
        share = f"clamp((log(float(prop_volume_um3())) - {low:.4f}) / {max(high - low, 1e-3):.4f}, 0.0, 1.0)"
        body = [f"  setColor(mix(color_small, color, {share}));"]
    if size:
        body += ["  setPointMarkerSize(point_size);", "  setPointMarkerBorderWidth(1.0);"]
    return "\n".join([*controls, "void main() {", *tests, *body, "}", ""])


def layer_json(facts: LayerFacts, *, source: str, properties: Sequence[str] = ()) -> Json:
    """Return the Neuroglancer layer that shows ``facts``.

    Parameters
    ----------
    facts
        What is known about the volume.
    source
        Neuroglancer's address of it, see :func:`cloudseg_viewer.links.layer_source`.
    properties
        Neuroglancer's addresses of further tables of segment properties.
    """
    build = {"image": _image, "mask": _mask, "affinities": _affinities}.get(facts.role, _segmentation)
    layer = build(facts)
    main = _source(facts, source)
    layer["source"] = [main, *properties] if properties else main
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
    if facts.role == "soma_masks":
        # Those that are picked among the somas; all of them would hide the neurons below.
        layer |= {"selectedAlpha": 0.6, "notSelectedAlpha": 0.08}
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


def _rounded(value: float, towards: Callable[[float], int]) -> float:
    """Return a number of two digits that is not inside the range which ends at ``value``."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return float(f"{towards(value / unit) * unit:.6g}")

"""Roots: which volumes lie at an address, and the few numbers about them that a good link needs."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cloudseg.errors import NotFoundError, SpecError, StorageError
from cloudseg.geometry import XYZ, Box
from cloudseg.somas.annotation_rows import SHAPES
from cloudseg.somas.annotations import annotations_key, has_annotations, read_ranges
from cloudseg.somas.store import read_latest
from cloudseg.volumes import open_objects, open_volume, read_info, scales
from cloudseg.volumes.by_id import stored_ids
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.protocol import Array, Volume, VolumeInfo
from cloudseg_viewer.layers import Contrast, LayerFacts, Role, SomaFacts
from cloudseg_viewer.links import address_of, child

# Drawing order: each lies above the ones before.
_ROLES: tuple[Role, ...] = ("image", "mask", "affinities", "supervoxels", "soma_masks", "segmentation")
# Where a layer does not lie under its own name.
_FOLDERS: dict[Role, str] = {"soma_masks": "somas"}

# A sample must be enough for percentiles and quick from a bucket: at most nine boxes, each inside one chunk.
_SAMPLE_EDGE_VX = 64
_SAMPLE_SPOTS = (
    (0.5, 0.5, 0.5),
    *((x, y, z) for x in (0.25, 0.75) for y in (0.25, 0.75) for z in (0.25, 0.75)),
)

# Enough to fill the picture with neurites, few enough to tell apart and to load in a moment.
_SHOWN_SEGMENTS = 16
# Some of the sampled segments are too small to have a mesh.
_CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class Root:
    """What lies at an address.

    Attributes
    ----------
    uri
        The address, in its one spelling.
    layers
        In drawing order; the first lies lowest.
    focus_nm
        A place worth looking at.
    somas
        Annotations of the published version of its soma catalogue, if it has them.
    """

    uri: str
    layers: tuple[LayerFacts, ...]
    focus_nm: tuple[float, float, float]
    somas: SomaFacts | None = None


def read_root(root: str) -> Root:
    """Find the volumes at a pipeline root, or take ``root`` as one volume. Reads infos and a few chunks.

    A root holds ``pipeline/spec.toml`` (which names the image) and layers at ``<root>/<name>``; both may be
    incomplete, as they are while a pipeline runs.

    Raises
    ------
    NotFoundError
        If no volume lies there.
    SpecError
        If no browser can reach such an address.
    VolumeFormatError
        If an ``info`` cannot be read.
    """
    uri = address_of(root).uri
    objects = open_objects(uri)
    if objects.exists("info"):
        found = [_read_volume(uri)]
    else:
        found = list(_read_layers(uri, objects))
    if not found:
        raise NotFoundError(
            f"no volume lies at {uri}: expected a Precomputed 'info' there, or a pipeline root with one of "
            f"{', '.join(_FOLDERS.get(role, role) for role in _ROLES)} in it; run the pipeline first, or give the "
            "address of a volume"
        )
    layers = [facts for facts, _ in found]
    somas, of_segments = _somas(uri)
    if of_segments:
        layers = [
            replace(each, properties=(of_segments,)) if each.role == "segmentation" else each
            for each in layers
        ]
    return Root(uri, tuple(layers), _focus(found), somas)


_Found = tuple[LayerFacts, "_Sample | None"]


@dataclass(frozen=True, slots=True)
class _Sample:
    """Voxels of one box, which holds or touches the point ``at_nm``."""

    at_nm: tuple[float, float, float]
    data: Array


def _somas(root: str) -> tuple[SomaFacts | None, str]:
    """Return what is published of somas at a root, and the address of what is known of their neurons."""
    for uri in (child(root, "somas"), root):
        objects = open_objects(uri)
        try:
            version = read_latest(objects).version
            ranges = read_ranges(objects, version)
            if not all(has_annotations(objects, version, shape) for shape in SHAPES):
                continue
        except NotFoundError:
            continue
        points, ellipsoids = (child(uri, annotations_key(version, shape)) for shape in SHAPES)
        properties = f"v{version}/properties/segments"
        return SomaFacts(points, ellipsoids, ranges), child(uri, properties) if objects.exists(
            f"{properties}/info"
        ) else ""
    return None, ""


def _read_layers(root: str, objects: Objects) -> Iterator[_Found]:
    for role in _ROLES:
        uri = child(root, _FOLDERS.get(role, role))
        if role == "image":
            uri = _image_of(objects) or uri
        try:
            yield _read_volume(uri, name=role, role=role)
        except NotFoundError:
            if role == "image" and uri != child(root, role):
                raise
            continue


def _image_of(objects: Objects) -> str | None:
    """The image that the pipeline file names, or None where there is no pipeline file."""
    try:
        text = objects.get("pipeline/spec.toml")
    except NotFoundError:
        return None
    try:
        image = tomllib.loads(text.decode()).get("image")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(
            f"{objects.uri}/pipeline/spec.toml is no TOML ({error}); restore it from the run"
        ) from error
    if image is None:
        return None
    if not isinstance(image, str):
        raise SpecError(f"{objects.uri}/pipeline/spec.toml: image must be an address, got {image!r}")
    return image


def _read_volume(uri: str, *, name: str | None = None, role: Role | None = None) -> _Found:
    objects = open_objects(uri)
    raw = read_info(uri)
    infos = scales(uri)
    info = infos[0]
    if role is None:
        role = _role_of(info)
    samples = list(_samples(uri, infos)) if role in ("image", "segmentation") else []
    segments: tuple[int, ...] = ()
    lacking = _lacking(raw, objects)
    if role == "segmentation" and samples:
        segments, lacking = _shown(uri, raw, _by_size([s.data for s in samples]), lacking)
    facts = LayerFacts(
        name=name or address_of(uri).path.rsplit("/", 1)[-1] or role,
        role=role,
        uri=uri,
        voxel_size_nm=info.voxel_size_nm,
        bounds=info.bounds,
        n_channels=info.n_channels,
        contrast=contrast_of([s.data for s in samples]) if role == "image" else None,
        segments=segments,
        lacking=lacking,
    )
    return facts, _best(samples)


def _role_of(info: VolumeInfo) -> Role:
    if info.layer == "segmentation":
        return "segmentation"
    return "affinities" if info.n_channels >= 3 else "image"


def _lacking(raw: Mapping[str, Any], objects: Objects) -> frozenset[str]:
    """Parts that are named but whose own ``info`` is not there, by Neuroglancer's names for them."""
    parts = {"mesh": "mesh", "skeletons": "skeletons", "segment_properties": "properties"}
    return frozenset(
        part
        for key, part in parts.items()
        if key in raw and not objects.exists(f"{str(raw[key]).strip('/')}/info")
    )


def _samples(uri: str, infos: list[VolumeInfo]) -> Iterator[_Sample]:
    """Yield one box around each of nine spots of the finest scale, each inside one chunk."""
    info = infos[0]
    volume = open_volume(uri)
    seen: set[Box] = set()
    for spot in _SAMPLE_SPOTS:
        point = _point(info.bounds, spot)
        box = _sample_box(info, point)
        if box in seen:
            continue
        seen.add(box)
        data = _read(volume, box)
        if data is not None:
            yield _Sample(_nm(point, info.voxel_size_nm), data)


def _read(volume: Volume, box: Box) -> Array | None:
    """Read a box for a look; what cannot be read now (a run is writing it) is left out of the sample."""
    try:
        return volume.read(box, missing="zero")
    except StorageError:
        return None


def _point(bounds: Box, spot: tuple[float, float, float]) -> XYZ:
    """Return the voxel at ``spot``, given as fractions of the bounds."""
    x, y, z = (a + int(f * (b - a)) for f, a, b in zip(spot, bounds.start, bounds.stop, strict=True))
    return (x, y, z)


def _sample_box(info: VolumeInfo, point: XYZ) -> Box:
    """Return a box around ``point`` that does not leave the chunk which holds it."""
    lows: list[int] = []
    for p, first, chunk in zip(point, info.bounds.start, info.chunk_shape, strict=True):
        low = first + (p - first) // chunk * chunk
        edge = min(chunk, _SAMPLE_EDGE_VX)
        lows.append(min(max(p - edge // 2, low), low + chunk - edge))
    shape = tuple(min(c, _SAMPLE_EDGE_VX) for c in info.chunk_shape)
    start: XYZ = (lows[0], lows[1], lows[2])
    return Box.of_shape((shape[0], shape[1], shape[2]), at=start).intersect(info.bounds)


def contrast_of(samples: list[Array]) -> Contrast | None:
    """Return the grey levels that show ``samples`` well, or None where all is empty or of one value.

    Parameters
    ----------
    samples
        Arrays of one volume's values. Exact zeros are taken for padding around the tissue.
    """
    flat = [s.ravel(order="K") for s in samples]
    values = np.concatenate(flat) if flat else np.zeros(0, np.uint8)
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    values = values[values != 0]
    if values.size == 0:
        return None
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    if not low < high:
        return None
    if values.dtype == np.uint8:
        return Contrast(low, high, (0.0, 255.0))
    margin = 0.25 * (high - low)
    window = (
        (low - margin, high + margin) if values.dtype.kind == "f" else (max(0.0, low - margin), high + margin)
    )
    return Contrast(low, high, window)


def _best(samples: list[_Sample]) -> _Sample | None:
    """The sample with most voxels that are not zero; the middle of the volume wins unless another is far fuller."""
    scored = [(int(np.count_nonzero(s.data)), -i) for i, s in enumerate(samples)]
    if not scored or max(scored)[0] == 0:
        return None
    first = scored[0][0]
    n, index = max(scored)
    return samples[0] if first >= 0.5 * n else samples[-index]


def _by_size(samples: list[Array]) -> list[int]:
    """The ids with most voxels, largest first (the lower id where two are equal); 0 is background."""
    ids, counts = np.unique(np.concatenate([s.ravel(order="K") for s in samples]), return_counts=True)
    ids, counts = ids[ids != 0], counts[ids != 0]
    return [int(i) for i in ids[np.lexsort((ids, -counts))][:_CANDIDATES]]


def _shown(
    uri: str, raw: Mapping[str, Any], ids: list[int], lacking: frozenset[str]
) -> tuple[tuple[int, ...], frozenset[str]]:
    """Choose among ``ids`` those that can be shown whole; a part that none of them has is lacking.

    Returns
    -------
    The ids, largest first, and the parts to switch off.
    """
    there = ids
    for part in ("mesh", "skeletons"):
        if part not in raw or part in lacking:
            continue
        stored = stored_ids(child(uri, str(raw[part]).strip("/")), ids)
        if stored:
            there = [i for i in there if i in stored]
        else:
            lacking = lacking | {part}
    return tuple(there[:_SHOWN_SEGMENTS]), lacking


def _focus(found: list[_Found]) -> tuple[float, float, float]:
    """Where there is something to see: in the topmost layer that was sampled, else the middle of the first."""
    for _, sample in reversed(found):
        if sample is not None:
            return sample.at_nm
    facts = found[0][0]
    x, y, z = ((a + b) / 2 for a, b in zip(facts.start_nm, facts.stop_nm, strict=True))
    return (x, y, z)


def _nm(voxel: XYZ, voxel_size_nm: tuple[float, float, float]) -> tuple[float, float, float]:
    x, y, z = (v * s for v, s in zip(voxel, voxel_size_nm, strict=True))
    return (x, y, z)

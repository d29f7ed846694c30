"""Are two segments one object? Grow each anew where they touch, and see whether either becomes the other.

After google/ffn (Januszewski et al. 2018): both segments are removed, all others stay as obstacles; from the deepest
place of each an object grows. If it fills its own segment and the other one too, whichever it started from, they are
one. All lengths are in voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box
from cloudseg.ops.flood import Canvas, FloodRule, Grow

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class ReseedRule:
    """Where two segments are grown anew, and what they must show to be joined.

    Attributes
    ----------
    radius, analysis_radius
        Half edges of the box that is grown in, and of the one that is judged, round the place of contact.
    recovered
        Share of its own segment that an object must fill; if not, it is tried again from another seed.
    retries, exclusion_radius
        How often, and how far from the seeds that failed.
    min_iou, min_consistency
        Overlap of the two objects; shares of both segments that both objects fill.
    max_deleted
        Share of voxels that were in the object and fell out again: growth that contradicts itself. One of the two
        objects must stay below.
    """

    radius: XYZ = (50, 50, 50)
    analysis_radius: XYZ = (34, 34, 34)
    recovered: float = 0.6
    retries: int = 8
    exclusion_radius: int = 8
    min_iou: float = 0.8
    min_consistency: float = 0.6
    max_deleted: float = 0.02


@dataclass(frozen=True, slots=True)
class Resegmentation:
    """What two objects that grew anew say about their segments.

    Attributes
    ----------
    iou
        Of the two objects.
    consistency
        Share of segment a, b filled from a; of a, b filled from b.
    deleted
        Share of voxels that fell out again, from a and from b.
    joined
        Whether they are one.
    """

    iou: float
    consistency: tuple[float, float, float, float]
    deleted: tuple[float, float]
    joined: bool


def contact_point(labels: Labels, a: int, b: int) -> XYZ | None:
    """Return the middle of where two segments touch, but for a voxel between them; None: nowhere.

    Of all voxels of ``a`` that have a neighbour in ``b``, or would if one voxel between them were filled, the one
    nearest to the middle of them.
    """
    near = ndimage.binary_dilation(labels == b, ndimage.generate_binary_structure(3, 3), iterations=2)
    places = np.argwhere(near & (labels == a))
    if not len(places):
        return None
    x, y, z = places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))].tolist()
    return (x, y, z)


def resegment(
    image: Floats,
    labels: Labels,
    pair: tuple[int, int],
    point: XYZ,
    *,
    grow: Grow,
    flood: FloodRule,
    rule: ReseedRule,
) -> Resegmentation:
    """Grow both segments of a pair anew round a point, and judge.

    Parameters
    ----------
    image, labels
        ``(x, y, z)``: normalised grey levels, and the segmentation of the same voxels.
    pair
        Ids of the two segments.
    point
        Where they touch; see :func:`contact_point`.
    grow, flood
        The network, and how objects grow.
    rule
        Where and how it is judged.

    Raises
    ------
    SpecError
        If a segment is not there, or the field of view does not fit into the box.
    """
    bounds = Box.of_shape((image.shape[0], image.shape[1], image.shape[2]))
    box = Box(point, (point[0] + 1, point[1] + 1, point[2] + 1)).grow(rule.radius).intersect(bounds)
    judged = Box(point, (point[0] + 1, point[1] + 1, point[2] + 1)).grow(rule.analysis_radius).intersect(box)
    here = labels[box.slices_in(bounds)]
    masks = [here == segment for segment in pair]
    for segment, mask in zip(pair, masks, strict=True):
        if not mask.any():
            raise SpecError(
                f"segment {segment} is not within {rule.radius} voxels of {point}: give a place where both are"
            )
    others = np.where(masks[0] | masks[1], 0, here)
    _, obstacles = np.unique(others, return_inverse=True)
    cut = judged.slices_in(box)
    grown, deleted = [], []
    for mask in masks:
        logits, n_deleted = _regrow(
            image[box.slices_in(bounds)],
            obstacles.reshape(here.shape),
            mask,
            cut,
            grow=grow,
            flood=flood,
            rule=rule,
        )
        inside = logits[cut] >= 0
        grown.append(inside)
        deleted.append(n_deleted / max(1, int(inside.sum())))
    own = [mask[cut] for mask in masks]
    consistency = [
        float((obj & segment).sum() / max(1, int(segment.sum()))) for obj in grown for segment in own
    ]
    union = int((grown[0] | grown[1]).sum())
    iou = float((grown[0] & grown[1]).sum() / union) if union else 0.0
    joined = (
        iou > rule.min_iou and min(consistency) > rule.min_consistency and min(deleted) < rule.max_deleted
    )
    aa, ab, ba, bb = consistency
    return Resegmentation(iou, (aa, ab, ba, bb), (deleted[0], deleted[1]), joined)


def _regrow(
    image: Floats,
    obstacles: npt.NDArray[Any],
    segment: npt.NDArray[np.bool_],
    judged: tuple[slice, slice, slice],
    *,
    grow: Grow,
    flood: FloodRule,
    rule: ReseedRule,
) -> tuple[Floats, int]:
    """Grow from the deepest place of a segment, and from others until enough of it is filled."""
    canvas = Canvas(image, flood, grow, labels=obstacles)
    depth = ndimage.distance_transform_edt(np.pad(segment, 1))[1:-1, 1:-1, 1:-1]
    for axis, half in enumerate(flood.half):
        edge = np.arange(segment.shape[axis])
        outside = (edge < half) | (edge >= segment.shape[axis] - half)
        depth[tuple(outside if a == axis else slice(None) for a in range(3))] = 0
    best: tuple[float, Floats, int] = (-1.0, np.full(segment.shape, np.nan, np.float32), 0)
    wanted = segment[judged]
    for _ in range(rule.retries):
        x, y, z = (int(v) for v in np.unravel_index(np.argmax(depth), depth.shape))
        if depth[x, y, z] <= 0:
            break
        canvas.grow_from((x, y, z))
        reached = float((canvas.logits[judged] >= canvas.threshold)[wanted].mean()) if wanted.any() else 0.0
        if reached > best[0]:
            best = (reached, canvas.logits.copy(order="F"), canvas.n_deleted)
        if reached >= rule.recovered:
            break
        r = rule.exclusion_radius
        depth[max(0, x - r) : x + r + 1, max(0, y - r) : y + r + 1, max(0, z - r) : z + r + 1] = 0
    return best[1], best[2]

"""How good is a network at what it is for? Segment the validation boxes and compare with their labels.

The loss of a voxel says little about that: a handful of wrong links merge two neurons. So the held-back boxes are
predicted, cut into supervoxels and agglomerated as a pipeline would do it, at several thresholds, and scored.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt, model_validator

from cloudseg.geometry import Box
from cloudseg.models.layers import VoxelNetwork
from cloudseg.models.network import Network
from cloudseg.models.package import ModelDescription
from cloudseg.models.predict import Model
from cloudseg.ops.affinities import NEAREST
from cloudseg.ops.agglomerate import Rule, decide
from cloudseg.ops.blend import SlabBlender, to_uint8
from cloudseg.ops.boundaries import boundary_affinities
from cloudseg.ops.contingency import contingency
from cloudseg.ops.lattice import PatchLattice, mirror
from cloudseg.ops.metrics import Scores
from cloudseg.ops.region_graph import edges_of_runs
from cloudseg.ops.watershed import supervoxels
from cloudseg.specs import FrozenModel
from cloudseg.training.labels import FIRST_OBJECT
from cloudseg.training.picture import Picture, grey_picture, id_picture, side_by_side
from cloudseg.training.sampling import LabelledBlock

Fraction = Annotated[float, Field(gt=0, lt=1)]


METRICS = {"adapted_rand_error": "adapted Rand error", "voi_sum": "VOI", "cremi_score": "CREMI score"}
"""What readers call each metric."""


class SegmentationSettings(FrozenModel):
    """``[segmentation]``: measure on a segmentation of the validation boxes, and stop when it gets no better.

    Attributes
    ----------
    every
        Steps between two measurements; the last step is always measured.
    metric
        Which score counts; lower is better.
    thresholds
        Agglomeration thresholds to try; the best one counts.
    t_low, t_high, emphasis, min_size_vx
        As in the stages ``supervoxels`` and ``agglomerate``.
    join
        How a predicted boundary becomes links; see :func:`cloudseg.ops.boundaries.boundary_affinities`.
    patience
        Stop after so many measurements without a better one; None: never.
    keep
        Which weights the model package gets: those that measured ``best``, or the ``last``.
    """

    every: PositiveInt = 500
    metric: Literal["adapted_rand_error", "voi_sum", "cremi_score"] = "adapted_rand_error"
    thresholds: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.3, 0.4, 0.5, 0.6, 0.7)
    t_low: Annotated[int, Field(ge=0, le=255)] = 1
    t_high: Annotated[int, Field(ge=0, le=255)] = 253
    emphasis: Annotated[int, Field(ge=0)] = 0
    min_size_vx: Annotated[int, Field(ge=0)] = 100
    join: Literal["max", "mean"] = "mean"
    patience: PositiveInt | None = None
    keep: Literal["best", "last"] = "best"

    @model_validator(mode="after")
    def _thresholds_are_in_order(self) -> Self:
        if self.t_low >= self.t_high:
            raise ValueError(f"t_low must be below t_high, got {self.t_low} and {self.t_high}")
        return self


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge found.

    Attributes
    ----------
    score
        The metric at the best threshold, averaged over the boxes.
    threshold
        The best one.
    curve
        The metric at each threshold.
    scores
        All scores at the best threshold, box by box.
    picture
        A section of the first box: image, prediction, labels, segmentation.
    """

    score: float
    threshold: float
    curve: tuple[tuple[float, float], ...]
    scores: tuple[Scores, ...]
    picture: Picture


def judge(
    network: VoxelNetwork,
    description: ModelDescription,
    blocks: Sequence[LabelledBlock],
    settings: SegmentationSettings,
    *,
    channels: Sequence[int],
    device: Literal["cpu", "cuda"],
    precision: Literal["float32", "bfloat16"],
) -> Verdict:
    """Segment ``blocks`` with ``network`` (which stays as it is) and score the result.

    Parameters
    ----------
    network
        With all channels that it is trained on.
    description
        What the model package says: patch, normalisation, offsets.
    blocks
        Held back from training.
    settings
        How to segment, and what counts.
    channels
        Which channels of the network the package keeps.
    device, precision
        What to compute with.
    """
    # A copy: predicting folds normalisations into convolutions.
    network = copy.deepcopy(network)
    network.keep_outputs(list(channels))
    offsets = NEAREST if description.output == "affinities" else ()
    model = Model(description, network, offsets=offsets, device=device, precision=precision)
    found: list[dict[float, tuple[Scores, npt.NDArray[np.uint64]]]] = []
    predictions = []
    for block in blocks:
        predicted = predict_whole(model, block.image)
        affinities = predicted
        if description.output == "boundaries":
            box = Box.of_shape(block.ids.shape)
            affinities = boundary_affinities(predicted[0], core=box, bounds=box, join=settings.join)
        truth = np.where(block.ids >= FIRST_OBJECT, block.ids, 0)
        found.append(
            {
                threshold: (contingency(segments, truth).scores(), segments)
                for threshold, segments in segmentations(affinities, settings)
            }
        )
        predictions.append(predicted)
    curve = [
        (t, float(np.mean([getattr(by[t][0], settings.metric) for by in found]))) for t in settings.thresholds
    ]
    threshold, score = min(curve, key=lambda point: (point[1], point[0]))
    return Verdict(
        score,
        threshold,
        tuple(curve),
        tuple(by[threshold][0] for by in found),
        _picture(blocks[0], predictions[0], found[0][threshold][1]),
    )


def predict_whole(model: Network, image: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Return the blended prediction of a block, ``(c, x, y, z)``, 0 to 255; grey levels are those of uint8."""
    spec = model.spec
    bounds = Box.of_shape((image.shape[0], image.shape[1], image.shape[2]))
    lattice = PatchLattice.fit(
        bounds,
        patch_shape=spec.patch_shape,
        context=spec.context,
        blend=spec.blend,
        multiple=spec.arguments.multiple,
    )
    blender = SlabBlender(lattice, bounds, n_channels=model.n_channels)
    for index in lattice.order(bounds):
        box = lattice.patch_box(index)
        places = [
            mirror(a, b, low=0, high=n) for a, b, n in zip(box.start, box.stop, image.shape, strict=True)
        ]
        patch = np.ascontiguousarray(image[np.ix_(*places)])[None]
        blender.add(index, model.predict(patch, grey_range=(0.0, 255.0))[0])
    return to_uint8(blender.take(bounds.stop[2])[1])


def segmentations(
    affinities: npt.NDArray[np.uint8], settings: SegmentationSettings
) -> list[tuple[float, npt.NDArray[np.uint64]]]:
    """Return the segments of a whole box at each threshold; supervoxels and their graph are made once.

    Parameters
    ----------
    affinities
        ``(c, x, y, z)`` uint8; the first three channels are the nearest neighbours.
    settings
        What supervoxels and agglomeration are told.
    """
    box = Box.of_shape((affinities.shape[1], affinities.shape[2], affinities.shape[3]))
    fragments = supervoxels(affinities, core=box, bounds=box, t_low=settings.t_low, t_high=settings.t_high)
    edges = edges_of_runs(fragments.runs, affinities, core=box, bounds=box, emphasis=settings.emphasis)
    nothing = np.zeros(len(fragments.n_voxels), np.bool_)
    made = []
    for threshold in settings.thresholds:
        rule = Rule(threshold * 255, min_size_vx=settings.min_size_vx)
        decided = decide(edges, is_frozen=nothing, n_voxels=fragments.n_voxels, rule=rule)
        made.append((threshold, fragments.runs.labels(fragments.runs.ids[decided.name])))
    return made


def _picture(
    block: LabelledBlock, predicted: npt.NDArray[np.uint8], segments: npt.NDArray[np.uint64]
) -> Picture:
    """Show the section with the most labelled voxels."""
    z = int(np.argmax(np.count_nonzero(block.ids >= FIRST_OBJECT, axis=(0, 1))))
    section = block.image[:, :, z]
    image = grey_picture(
        section, low=float(np.percentile(section, 1)), high=float(np.percentile(section, 99))
    )
    # Sections are looked at along x and y: the mean of these two links, or the boundary itself.
    prediction = predicted[: min(2, len(predicted)), :, :, z].mean(axis=0)
    truth = np.where(block.ids[:, :, z] >= FIRST_OBJECT, block.ids[:, :, z], 0)
    return side_by_side(
        [
            image,
            grey_picture(prediction, low=0, high=255),
            id_picture(truth, over=image),
            id_picture(segments[:, :, z], over=image),
        ]
    )

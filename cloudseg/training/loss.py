"""How wrong a prediction is: cross-entropy, overlap and squared error over the voxels whose target is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from cloudseg.specs import FrozenModel
from cloudseg.training.targets import Target

_AXES = (0, 2, 3, 4)
NonNegative = Annotated[float, Field(ge=0)]


class LossSettings(FrozenModel):
    """``[loss]``: parts of the loss and how classes are weighted.

    Targets that are no yes or no (shape, distance) get the squared error; the parts here are for the others.

    Attributes
    ----------
    bce, dice
        Shares of the binary cross-entropy and of one minus the Dice overlap. PlantSeg: 1 and 1.
    weighting
        ``balanced``: both classes count alike, channel by channel. ``fixed``: by ``positive_weight`` and
        ``negative_weight`` (DeepEM3D keeps every boundary voxel and 30 % of the others: 1 and 0.3).
    max_weight
        Greatest weight that balancing gives to the rarer class.
    positive_weight, negative_weight
        Weights of targets of 1 and 0, if ``fixed``.
    """

    bce: NonNegative = 1.0
    dice: NonNegative = 0.0
    weighting: Literal["balanced", "fixed"] = "balanced"
    max_weight: Annotated[float, Field(ge=1)] = 5.0
    positive_weight: PositiveFloat = 1.0
    negative_weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if not self.bce and not self.dice:
            raise ValueError("bce and dice are both 0: nothing would be learned; give one of them a share")
        return self


@dataclass(frozen=True)
class Loss:
    """The loss of a network's output against the channels of its targets.

    Parameters
    ----------
    targets
        What the channels are, in their order.
    settings
        Parts and weights.
    """

    targets: Sequence[Target]
    settings: LossSettings

    def __call__(self, logits: Tensor | Sequence[Tensor], values: Tensor, known: Tensor) -> Tensor:
        """Return one number.

        Parameters
        ----------
        logits
            ``(b, c, x, y, z)``, or several of them (a network with deep supervision): their losses are averaged.
        values, known
            ``(b, c, x, y, z)``: targets from 0 to 1, and weights of 0 where they are not known.
        """
        if not isinstance(logits, Tensor):
            return torch.stack([self(one, values, known) for one in logits]).mean()
        logits, values, known = logits.float(), values.float(), known.float()
        total = logits.new_zeros(())
        first = 0
        for target in self.targets:
            part = slice(first, first + target.n_channels)
            first = part.stop
            one, want, where = logits[:, part], values[:, part], known[:, part]
            if target.binary:
                total = total + target.weight * self._binary(one, want, where)
            else:
                total = total + target.weight * squared_error(one, want, where)
        return total / sum(target.weight for target in self.targets)

    def _binary(self, logits: Tensor, values: Tensor, known: Tensor) -> Tensor:
        settings = self.settings
        loss = logits.new_zeros(())
        if settings.bce and settings.weighting == "balanced":
            loss = loss + settings.bce * balanced_bce(logits, values, known, max_weight=settings.max_weight)
        elif settings.bce:
            weight = torch.where(values > 0.5, settings.positive_weight, settings.negative_weight) * known
            loss = loss + settings.bce * weighted_bce(logits, values, weight)
        if settings.dice:
            loss = loss + settings.dice * dice_loss(logits, values, known)
        return loss


def balanced_bce(logits: Tensor, targets: Tensor, known: Tensor, *, max_weight: float = 5.0) -> Tensor:
    """Return the mean binary cross-entropy with broken and intact links weighted alike, channel by channel.

    Parameters
    ----------
    logits, targets, known
        ``(b, c, x, y, z)``; targets in {0, 1}; links with ``known`` = 0 carry no weight.
    max_weight
        Upper limit of the weight of the rarer class.
    """
    n_known = known.sum(_AXES).clamp(min=1.0)
    positive = ((targets * known).sum(_AXES) / n_known).clamp(1e-3, 1 - 1e-3)
    w_pos = (0.5 / positive).clamp(max=max_weight).view(1, -1, 1, 1, 1)
    w_neg = (0.5 / (1 - positive)).clamp(max=max_weight).view(1, -1, 1, 1, 1)
    return weighted_bce(logits, targets, torch.where(targets > 0.5, w_pos, w_neg) * known)


def weighted_bce(logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of the binary cross-entropy, the mean over the channels that have any weight."""
    loss = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    total = weight.sum(_AXES)
    return _mean_of_seen((loss * weight).sum(_AXES) / total.clamp(min=1e-6), total)


def dice_loss(logits: Tensor, targets: Tensor, known: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Return one minus the Dice overlap ``2 sum(p t) / (sum(p^2) + sum(t^2))``, averaged over channels.

    ``smooth`` is added to both sides of the fraction: a patch without any positive voxel is then no cliff.
    """
    probability = torch.sigmoid(logits)
    both = (probability * targets * known).sum(_AXES)
    sizes = ((probability.square() + targets.square()) * known).sum(_AXES)
    return _mean_of_seen(1.0 - (2.0 * both + smooth) / (sizes + smooth), known.sum(_AXES))


def squared_error(logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Return the mean squared difference between probability and target, averaged over channels."""
    total = known.sum(_AXES)
    error = ((torch.sigmoid(logits) - targets).square() * known).sum(_AXES)
    return _mean_of_seen(error / total.clamp(min=1.0), total)


def _mean_of_seen(per_channel: Tensor, total: Tensor) -> Tensor:
    """Average over the channels of which anything is known; 0 if there is none."""
    seen = (total > 0).float()
    return (per_channel * seen).sum() / seen.sum().clamp(min=1.0)

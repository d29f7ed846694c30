"""Balanced cross-entropy over the links whose target is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def balanced_bce(logits: Tensor, targets: Tensor, known: Tensor, *, max_weight: float = 5.0) -> Tensor:
    """Return the mean binary cross-entropy with broken and intact links weighted alike, channel by channel.

    Parameters
    ----------
    logits, targets, known
        ``(b, c, x, y, z)``; targets in {0, 1}; links with ``known`` = 0 carry no weight.
    max_weight
        Upper limit of the weight of the rarer class.
    """
    loss = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    axes = (0, 2, 3, 4)
    n_known = known.sum(axes).clamp(min=1.0)
    positive = ((targets * known).sum(axes) / n_known).clamp(1e-3, 1 - 1e-3)
    w_pos = (0.5 / positive).clamp(max=max_weight).view(1, -1, 1, 1, 1)
    w_neg = (0.5 / (1 - positive)).clamp(max=max_weight).view(1, -1, 1, 1, 1)
    weight = torch.where(targets > 0.5, w_pos, w_neg) * known
    per_channel = (loss * weight).sum(axes) / weight.sum(axes).clamp(min=1.0)
    seen = (known.sum(axes) > 0).float()
    return (per_channel * seen).sum() / seen.sum().clamp(min=1.0)

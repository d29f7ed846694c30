"""Flood-filling network: grey levels and the object so far in, the object grown a little out.

A stack of residual blocks of two convolutions at full resolution, without normalisation, after Januszewski et al. 2018
(Nature Methods 15, 605). It sees one field of view; how the field moves is :mod:`cloudseg.ops.flood`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cloudseg.errors import ModelError
from cloudseg.geometry import XYZ
from cloudseg.models.layers import VoxelNetwork


class Block(nn.Module):
    """Two convolutions with a ReLU between them: ``(b, n_in, x, y, z)`` to ``(b, width, x, y, z)``."""

    def __init__(self, n_in: int, width: int) -> None:
        super().__init__()
        self.a = nn.Conv3d(n_in, width, 3, padding=1)
        self.b = nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``b(relu(a(x)))``."""
        out: Tensor = self.b(torch.relu_(self.a(x)))
        return out


class FloodFillingNetwork(VoxelNetwork):
    """Returns the logits of the object, given the image and the logits so far.

    Parameters
    ----------
    n_in, n_out
        2 and 1: normalised grey levels and logits in, logits out.
    depth
        Residual blocks, the first one included.
    width
        Features.
    fov
        Voxels of the field of view.
    deltas
        How far the field moves in one step.
    """

    def __init__(
        self, *, n_in: int = 2, n_out: int = 1, depth: int, width: int, fov: XYZ, deltas: XYZ
    ) -> None:
        super().__init__()
        self.n_out = n_out
        self.fov, self.deltas = fov, deltas
        self.blocks = nn.ModuleList(Block(n_in if i == 0 else width, width) for i in range(depth))
        self.head = nn.Conv3d(width, n_out, 1)

    @property
    def multiple(self) -> XYZ:
        """Any field of view will do."""
        return (1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, 2, x, y, z)`` to logits ``(b, 1, x, y, z)``."""
        return x[:, 1:] + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        """Return what is added to the logits so far."""
        first, *others = self.blocks
        h = first(x)
        for block in others:
            h = h + block(torch.relu(h))
        update: Tensor = self.head(torch.relu_(h))
        return update

    def keep_outputs(self, channels: Sequence[int]) -> None:
        """There is one output, and it stays."""
        if list(channels) != [0]:
            raise ModelError(f"a flood-filling network has one output, 0; got {list(channels)}")

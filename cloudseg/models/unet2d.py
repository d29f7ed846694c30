"""2D U-Net (Ronneberger et al. 2015, arXiv 1505.04597), run over each slice of a volume.

All kernels are one voxel thick along z, so a slice is computed as if it were alone, and a patch of many slices is a
batch of them. Unlike the publication, convolutions keep the size, batch normalisation follows each of them, and
upsampling repeats voxels: then the output covers the input, as the blending of patches wants it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cloudseg.geometry import XYZ
from cloudseg.models.layers import ConvNormAct, VoxelNetwork, keep_rows

_FLAT: XYZ = (3, 3, 1)
_HALVE: XYZ = (2, 2, 1)


class DoubleConv(nn.Sequential):
    """Two flat convolutions: ``(b, n_in, x, y, z)`` to ``(b, n_out, x, y, z)``."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(ConvNormAct(n_in, n_out, _FLAT), ConvNormAct(n_out, n_out, _FLAT))


class UNet2D(VoxelNetwork):
    """2D U-Net that returns one logit per output channel and voxel.

    Parameters
    ----------
    n_in, n_out
        Channels of input and output.
    widths
        Features per level, finest first; each level halves x and y.
    """

    def __init__(self, *, n_in: int = 1, n_out: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.n_out = n_out
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in itertools.pairwise([n_in, *widths]))
        self.up = nn.ModuleList(DoubleConv(a + b, a) for a, b in itertools.pairwise(widths))
        self.head = nn.Conv3d(widths[0], n_out, 1)

    @property
    def multiple(self) -> XYZ:
        """What each edge of the input must be a multiple of."""
        edge = 2 ** len(self.up)
        return (edge, edge, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, n_in, x, y, z)`` to logits ``(b, n_out, x, y, z)``; no slice sees another."""
        skips = []
        for level, block in enumerate(self.down):
            x = block(x)
            if level < len(self.up):
                skips.append(x)
                x = nn.functional.max_pool3d(x, _HALVE)
        for level in reversed(range(len(self.up))):
            x = nn.functional.interpolate(x, scale_factor=[float(f) for f in _HALVE])
            x = self.up[level](torch.cat([skips[level], x], dim=1))
        logits: Tensor = self.head(x)
        return logits

    def keep_outputs(self, channels: Sequence[int]) -> None:
        """Drop every output channel but ``channels``."""
        self.head = keep_rows(self.head, channels)
        self.n_out = len(channels)

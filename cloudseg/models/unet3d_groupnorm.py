"""The 3D U-Nets of PlantSeg (Wolny et al. 2020, eLife 57613), plain and residual, with group normalisation.

Layer for layer the networks whose weights PlantSeg and pytorch-3dunet publish: see
:mod:`cloudseg.models.published` for reading those. The plain one has double convolutions, joined skips and
nearest-neighbour upsampling (Cicek et al. 2016, arXiv 1606.06650); the residual one has residual blocks, added skips
and transposed convolutions (Lee et al. 2017, arXiv 1706.00120).

A group norm takes its mean over the whole patch: the same voxel comes out slightly differently in a patch of another
shape or place. On a lattice of patches that is fixed for a volume this is no seam between blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cloudseg.geometry import XYZ
from cloudseg.models.layers import VoxelNetwork, keep_rows


@dataclass(frozen=True, slots=True)
class Style:
    """What all convolutions of a network have in common; see :class:`GroupNormUNet`."""

    order: str = "gcr"
    n_groups: int = 8
    flat: bool = False

    @property
    def kernel(self) -> XYZ:
        """Edges of a kernel."""
        return (3, 3, 1) if self.flat else (3, 3, 3)

    @property
    def padding(self) -> XYZ:
        """What keeps the size."""
        return (1, 1, 0) if self.flat else (1, 1, 1)


class Conv(nn.Sequential):
    """A convolution with what the order puts round it."""

    def __init__(self, n_in: int, n_out: int, style: Style) -> None:
        super().__init__()
        n, n_groups = n_in, style.n_groups
        for letter in style.order:
            if letter == "c":
                n = n_out
                bias = "g" not in style.order and "b" not in style.order
                self.add_module(
                    "conv", nn.Conv3d(n_in, n_out, style.kernel, padding=style.padding, bias=bias)
                )
            elif letter == "g":
                self.add_module("norm", nn.GroupNorm(n_groups if n >= n_groups else 1, n))
            elif letter == "b":
                self.add_module("norm", nn.BatchNorm3d(n))
            else:
                self.add_module("act", _activation(letter))


class DoubleConv(nn.Module):
    """Two convolutions; going down, the first makes half of the features."""

    def __init__(self, n_in: int, n_out: int, *, down: bool, style: Style) -> None:
        super().__init__()
        n_between = max(n_out // 2, n_in) if down else n_out
        self.first = Conv(n_in, n_between, style)
        self.second = Conv(n_between, n_out, style)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, n_in, x, y, z)`` to ``(b, n_out, x, y, z)``."""
        out: Tensor = self.second(self.first(x))
        return out


class ResidualBlock(nn.Module):
    """To ``n_out`` features by a 1 x 1 x 1 convolution, then two convolutions with a skip round them."""

    def __init__(self, n_in: int, n_out: int, style: Style) -> None:
        super().__init__()
        self.enter = nn.Conv3d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        linear = replace(style, order=style.order.strip("rel"))
        self.first = Conv(n_out, n_out, style)
        self.second = Conv(n_out, n_out, linear)
        self.act = _activation(style.order.strip("gbc") or "r")

    def forward(self, x: Tensor) -> Tensor:
        """``(b, n_in, x, y, z)`` to ``(b, n_out, x, y, z)``."""
        x = self.enter(x)
        out: Tensor = self.act(self.second(self.first(x)) + x)
        return out


class GroupNormUNet(VoxelNetwork):
    """Plain or residual 3D U-Net that returns one logit per output channel and voxel.

    Parameters
    ----------
    n_in, n_out
        Channels of input and output.
    widths
        Features per level, finest first.
    pools
        Down-sampling between the levels, one per step.
    order
        What a convolution comes with: ``gcr`` is group norm, convolution, ReLU. b is batch norm, e ELU, l leaky ReLU.
    n_groups
        Groups of a group norm; a layer with fewer features has one.
    residual
        See the module.
    flat
        Each slice is computed alone, as in a 2D network; the pools must leave z as it is.
    """

    def __init__(
        self,
        *,
        n_in: int = 1,
        n_out: int,
        widths: Sequence[int],
        pools: Sequence[XYZ],
        order: str = "gcr",
        n_groups: int = 8,
        residual: bool = False,
        flat: bool = False,
    ) -> None:
        super().__init__()
        style = Style(order, n_groups, flat)
        self.flat = flat
        self.n_out = n_out
        self.pools: list[XYZ] = [(p[0], p[1], p[2]) for p in pools]
        self.residual = residual
        ends = list(itertools.pairwise([n_in, *widths]))
        if residual:
            self.down = nn.ModuleList(ResidualBlock(a, b, style) for a, b in ends)
            self.up = nn.ModuleList(ResidualBlock(a, a, style) for a in widths[:-1])
            self.rise = nn.ModuleList(
                nn.ConvTranspose3d(b, a, style.kernel, stride=p, padding=style.padding, bias=False)
                for (a, b), p in zip(ends[1:], self.pools, strict=True)
            )
        else:
            self.down = nn.ModuleList(DoubleConv(a, b, down=True, style=style) for a, b in ends)
            self.up = nn.ModuleList(DoubleConv(a + b, a, down=False, style=style) for a, b in ends[1:])
        self.head = nn.Conv3d(widths[0], n_out, 1)

    @property
    def multiple(self) -> XYZ:
        """What each edge of the input must be a multiple of."""
        edges = [1, 1, 1]
        for pool in self.pools:
            edges = [e * p for e, p in zip(edges, pool, strict=True)]
        return (edges[0], edges[1], edges[2])

    def forward(self, x: Tensor) -> Tensor:
        """``(b, n_in, x, y, z)`` to logits ``(b, n_out, x, y, z)``."""
        if not self.flat:
            return self._logits(x)
        # Slices become a batch, so that a group norm takes the mean of one slice.
        b, c, nx, ny, nz = x.shape
        slices = x.permute(0, 4, 1, 2, 3).reshape(b * nz, c, nx, ny, 1)
        return self._logits(slices).reshape(b, nz, self.n_out, nx, ny).permute(0, 2, 3, 4, 1)

    def _logits(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(x)
            if level < len(self.pools):
                skips.append(x)
                x = nn.functional.max_pool3d(x, self.pools[level])
        for level in reversed(range(len(self.pools))):
            skip = skips[level]
            if self.residual:
                # 2 n - 1 voxels come out of the transposed convolution; one is repeated to make 2 n.
                risen = nn.functional.interpolate(self.rise[level](x), size=skip.shape[2:])
                x = self.up[level](skip + risen)
            else:
                risen = nn.functional.interpolate(x, size=skip.shape[2:])
                x = self.up[level](torch.cat([skip, risen], dim=1))
        logits: Tensor = self.head(x)
        return logits

    def keep_outputs(self, channels: Sequence[int]) -> None:
        """Drop every output channel but ``channels``."""
        self.head = keep_rows(self.head, channels)
        self.n_out = len(channels)


def _activation(letter: str) -> nn.Module:
    if letter == "e":
        return nn.ELU(inplace=True)
    if letter == "l":
        return nn.LeakyReLU(0.1, inplace=True)
    return nn.ReLU(inplace=True)

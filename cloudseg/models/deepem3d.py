"""DeepEM3D (Zeng, Wu & Ji 2017, Bioinformatics btx188): an inception-residual network for thick sections.

Two convolutions look at 1, 3 or 5 slices; all that follows is flat. Four taps, at 1/2, 1/4, 1/8 and 1/16 of the
resolution, are each brought back to full resolution by transposed convolutions, the finer three by dilated ones
besides; their sum is the output, and each is a target of its own while training.

Differences to the publication, each because it leaves a choice: the 3- and 5-slice variants use their slices evenly
(1 + 2 and 2 + 2 slices round the middle); all slices of a patch are computed at once; one logit instead of two
classes, which is the same after the sigmoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cloudseg.geometry import XYZ
from cloudseg.models.arguments import DEEPEM3D_WIDTHS, scaled
from cloudseg.models.layers import ConvNormAct, VoxelNetwork

_HALVE: XYZ = (2, 2, 1)
_DILATIONS = (5, 11, 17, 23)
_STRIDES = (2, 4, 8, 16)


class Branches(nn.Module):
    """Parallel chains of layers whose results are joined."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c, x, y, z)`` to the features of all branches."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class InceptionResidual(nn.Module):
    """Parallel branches, a 1 x 1 convolution back to ``n`` features, and a skip round them."""

    def __init__(self, n: int, branches: Branches, n_joined: int) -> None:
        super().__init__()
        self.branches = branches
        self.join = nn.Conv3d(n_joined, n, 1)
        self.after = nn.Sequential(nn.BatchNorm3d(n, momentum=0.05), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """``(b, n, x, y, z)`` in and out."""
        out: Tensor = self.after(x + self.join(self.branches(x)))
        return out


class Rise(nn.Module):
    """A tap back to full resolution: ``(b, n_in, x / s, y / s, z)`` to logits ``(b, n_out, x, y, z)``."""

    def __init__(self, n_in: int, n_out: int, *, stride: int, dilated: bool) -> None:
        super().__init__()
        half = stride // 2
        self.plain = nn.ConvTranspose3d(
            n_in, n_out, (2 * stride, 2 * stride, 1), stride=(stride, stride, 1), padding=(half, half, 0)
        )
        # A kernel of 3 with these paddings gives s voxels for each one, as the plain one does.
        self.dilated = nn.ModuleList(
            nn.ConvTranspose3d(
                n_in,
                n_out,
                (3, 3, 1),
                stride=(stride, stride, 1),
                padding=(d + 1 - half, d + 1 - half, 0),
                output_padding=(1, 1, 0),
                dilation=(d, d, 1),
            )
            for d in (_DILATIONS if dilated else ())
        )
        self.smooth = nn.Conv3d(n_out, n_out, (3, 3, 1), padding=(1, 1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Add all upsamplings, then smooth them."""
        risen = self.plain(x)
        if self.dilated:
            # On a CPU, torch 2.13 corrupts memory in gradients of dilated transposed convolutions of bfloat16.
            with torch.autocast(x.device.type, enabled=False):
                risen = risen + self._dilated(x.to(self.plain.weight.dtype))
        logits: Tensor = self.smooth(risen)
        return logits

    def _dilated(self, x: Tensor) -> Tensor:
        risen: Tensor = self.dilated[0](x)
        for layer in self.dilated[1:]:
            risen = risen + layer(x)
        return risen


class DeepEM3D(VoxelNetwork):
    """DeepEM3D that returns one logit per output channel and voxel.

    Parameters
    ----------
    n_in, n_out
        Channels of input and output.
    n_slices
        Slices of input for one of output.
    width
        Factor on all numbers of features; 1 is the published network.
    """

    def __init__(
        self, *, n_in: int = 1, n_out: int = 1, n_slices: Literal[1, 3, 5] = 3, width: float = 1.0
    ) -> None:
        super().__init__()

        def n(features: int) -> int:
            return scaled(features, width)

        def conv(a: int, b: int, kernel: tuple[int, int] = (3, 3), stride: XYZ = (1, 1, 1)) -> ConvNormAct:
            return ConvNormAct(a, b, (kernel[0], kernel[1], 1), stride=stride)

        def one(a: int, b: int) -> ConvNormAct:
            return conv(a, b, (1, 1))

        def pool() -> nn.Module:
            return nn.MaxPool3d((3, 3, 1), stride=_HALVE, padding=(1, 1, 0))

        self.n_out = n_out
        tap1, tap2, tap3, tap4 = (n(f) for f in DEEPEM3D_WIDTHS)
        thick1, thick2 = 3 if n_slices == 5 else 1, 3 if n_slices >= 3 else 1
        half = tap1 // 2
        rest = tap1 - half
        self.stem = nn.Sequential(
            ConvNormAct(n_in, n(32), (3, 3, thick1), stride=_HALVE),
            ConvNormAct(n(32), n(64), (3, 3, thick2)),
            Branches(
                nn.Sequential(one(n(64), n(64)), conv(n(64), half)),
                nn.Sequential(
                    one(n(64), n(64)),
                    conv(n(64), n(64), (1, 7)),
                    conv(n(64), n(64), (7, 1)),
                    conv(n(64), rest),
                ),
            ),
        )
        self.level2 = nn.Sequential(
            Branches(conv(tap1, tap1, stride=_HALVE), pool()),
            one(2 * tap1, tap2),
            InceptionResidual(
                tap2,
                Branches(
                    one(tap2, n(32)),
                    nn.Sequential(one(tap2, n(32)), conv(n(32), n(32))),
                    nn.Sequential(one(tap2, n(32)), conv(n(32), n(48)), conv(n(48), n(64))),
                ),
                2 * n(32) + n(64),
            ),
        )
        self.level3 = nn.Sequential(
            Branches(
                pool(),
                conv(tap2, n(384), stride=_HALVE),
                nn.Sequential(one(tap2, n(256)), conv(n(256), n(256)), conv(n(256), n(384), stride=_HALVE)),
            ),
            one(tap2 + 2 * n(384), tap3),
            InceptionResidual(
                tap3,
                Branches(
                    one(tap3, n(192)),
                    nn.Sequential(
                        one(tap3, n(128)), conv(n(128), n(160), (1, 7)), conv(n(160), n(192), (7, 1))
                    ),
                ),
                2 * n(192),
            ),
        )
        self.level4 = nn.Sequential(
            Branches(
                pool(),
                nn.Sequential(one(tap3, n(256)), conv(n(256), n(384), stride=_HALVE)),
                nn.Sequential(one(tap3, n(256)), conv(n(256), n(288), stride=_HALVE)),
                nn.Sequential(one(tap3, n(256)), conv(n(256), n(288)), conv(n(288), n(320), stride=_HALVE)),
            ),
            one(tap3 + n(384) + n(288) + n(320), tap4),
            InceptionResidual(
                tap4,
                Branches(
                    one(tap4, n(192)),
                    nn.Sequential(
                        one(tap4, n(192)), conv(n(192), n(224), (1, 7)), conv(n(224), n(256), (7, 1))
                    ),
                ),
                n(192) + n(256),
            ),
        )
        self.rises = nn.ModuleList(
            Rise(f, n_out, stride=s, dilated=s < _STRIDES[-1])
            for f, s in zip((tap1, tap2, tap3, tap4), _STRIDES, strict=True)
        )
        self.kept = list(range(n_out))

    @property
    def multiple(self) -> XYZ:
        """What each edge of the input must be a multiple of."""
        return (_STRIDES[-1], _STRIDES[-1], 1)

    def taps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the features of the four taps: ``(b, f, x / s, y / s, z)`` with s of 2, 4, 8 and 16."""
        first = self.stem(x)
        second = self.level2(first)
        third = self.level3(second)
        return first, second, third, self.level4(third)

    def all_logits(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the output, then the logits of each tap, all ``(b, n_out, x, y, z)``."""
        parts = [rise(tap)[:, self.kept] for rise, tap in zip(self.rises, self.taps(x), strict=True)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return (total, *parts)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, n_in, x, y, z)`` to logits ``(b, n_out, x, y, z)``."""
        return self.all_logits(x)[0]

    def keep_outputs(self, channels: Sequence[int]) -> None:
        """Drop every output channel but ``channels``; the taps are so costly that nothing is saved by it."""
        self.kept = [self.kept[c] for c in channels]
        self.n_out = len(self.kept)

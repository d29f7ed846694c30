"""What the architectures share: a convolution with its normalisation, and what a caller may ask of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cloudseg.geometry import XYZ


class ConvNormAct(nn.Sequential):
    """Convolution, batch normalisation, ReLU: ``(b, c, x, y, z)`` in, same spatial shape out (over ``stride``)."""

    def __init__(self, n_in: int, n_out: int, kernel: XYZ, *, stride: XYZ = (1, 1, 1)) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        super().__init__(
            nn.Conv3d(n_in, n_out, kernel, stride=stride, padding=padding, bias=False),
            nn.BatchNorm3d(n_out, momentum=0.05),
            nn.ReLU(inplace=True),
        )


class VoxelNetwork(nn.Module):
    """A network that returns logits for every voxel: ``(b, n_in, x, y, z)`` to ``(b, n_out, x, y, z)``."""

    n_out: int

    @property
    def multiple(self) -> XYZ:
        """What each edge of the input must be a multiple of."""
        raise NotImplementedError

    def keep_outputs(self, channels: Sequence[int]) -> None:
        """Drop every output channel but ``channels``, in this order."""
        raise NotImplementedError

    def all_logits(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return all that a loss may be put on: the output, then others of its shape (deep supervision)."""
        logits: Tensor = self(x)
        return (logits,)


def keep_rows(head: nn.Conv3d, rows: Sequence[int]) -> nn.Conv3d:
    """Return the last convolution of a network with some of its output channels only."""
    size, padding = head.kernel_size, head.padding
    kept = nn.Conv3d(head.in_channels, len(rows), size, padding=padding, bias=head.bias is not None)  # type: ignore[arg-type]
    with torch.no_grad():
        kept.weight.copy_(head.weight[list(rows)])
        if head.bias is not None and kept.bias is not None:
            kept.bias.copy_(head.bias[list(rows)])
    return kept


def fuse_batch_norm(model: nn.Module) -> nn.Module:
    """Fold each batch normalisation into the convolution before it, in place; for inference only."""
    for module in model.modules():
        if not isinstance(module, ConvNormAct):
            continue
        convolution, norm = module[0], module[1]
        if isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
            module[0] = nn.utils.fusion.fuse_conv_bn_eval(convolution.eval(), norm.eval())
            module[1] = nn.Identity()
    return model.eval()

"""Which architectures a model package may name, and how each is built."""

from __future__ import annotations

from cloudseg.models.arguments import Architecture
from cloudseg.models.deepem3d import DeepEM3D
from cloudseg.models.ffn import FloodFillingNetwork
from cloudseg.models.layers import VoxelNetwork
from cloudseg.models.package import ModelDescription
from cloudseg.models.unet import ResidualUNet
from cloudseg.models.unet2d import UNet2D
from cloudseg.models.unet3d_groupnorm import GroupNormUNet

ARCHITECTURES: dict[Architecture, type[VoxelNetwork]] = {
    "residual_unet_3d": ResidualUNet,
    "unet_2d": UNet2D,
    "groupnorm_unet_3d": GroupNormUNet,
    "deepem3d": DeepEM3D,
    "ffn": FloodFillingNetwork,
}


def build_network(description: ModelDescription) -> VoxelNetwork:
    """Return the network that ``description`` names, with fresh random weights."""
    return ARCHITECTURES[description.architecture](**description.arguments.model_dump())

"""Which architectures there are, and what each is built from. No torch here.

Every class says what a caller must know without building the network: ``multiple`` (what each edge of an input must
be a multiple of), ``reach`` (how far an output looks), and ``widths`` and ``fold`` (features per voxel of the finest
level, for estimates of memory).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cloudseg.geometry import XYZ
from cloudseg.specs import FrozenModel
from cloudseg.volumes.protocol import Positive3

Architecture = Literal["residual_unet_3d", "unet_2d", "groupnorm_unet_3d", "deepem3d", "ffn"]
Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]

# Features of the four taps of the published network.
DEEPEM3D_WIDTHS = (192, 384, 1154, 2048)


class ResidualUNetArguments(FrozenModel):
    """Arguments of :class:`cloudseg.models.unet.ResidualUNet`."""

    architecture: Literal["residual_unet_3d"] = Field(default="residual_unet_3d", exclude=True, repr=False)
    n_in: Literal[1] = 1
    n_out: PositiveInt
    widths: Widths
    fold: Positive3 = (2, 2, 2)
    pools: tuple[Positive3, ...]
    kernels: Annotated[tuple[Positive3, ...], Field(min_length=1)] = ((3, 3, 3),)

    @model_validator(mode="after")
    def _one_pool_between_levels(self) -> Self:
        _check_pools(self.widths, self.pools)
        return self

    @model_validator(mode="after")
    def _one_kernel_per_level(self) -> Self:
        if len(self.kernels) not in (1, len(self.widths)):
            raise ValueError(
                f"kernels must have 1 or {len(self.widths)} entries (one per level), got {len(self.kernels)}"
            )
        return self

    @model_validator(mode="after")
    def _kernels_are_odd(self) -> Self:
        if any(edge % 2 == 0 for kernel in self.kernels for edge in kernel):
            raise ValueError(f"kernel edges must be odd, or the output would shrink; got {self.kernels}")
        return self

    @property
    def multiple(self) -> XYZ:
        """What each edge of an input must be a multiple of."""
        return _product([self.fold, *self.pools])

    @property
    def reach(self) -> XYZ:
        """How many voxels an output may look to each side, at most."""
        kernels = self.kernels * len(self.widths) if len(self.kernels) == 1 else self.kernels
        convolutions = [5] * (len(self.widths) - 1) + [3]
        return _reach(self.fold, self.pools, kernels, convolutions)


class UNet2DArguments(FrozenModel):
    """Arguments of :class:`cloudseg.models.unet2d.UNet2D`; ``pools`` halve x and y, z stays."""

    architecture: Literal["unet_2d"] = Field(default="unet_2d", exclude=True, repr=False)
    n_in: Literal[1] = 1
    n_out: PositiveInt
    widths: Widths = (64, 128, 256, 512, 1024)

    @property
    def fold(self) -> XYZ:
        """The finest level has the resolution of the input."""
        return (1, 1, 1)

    @property
    def multiple(self) -> XYZ:
        """What each edge of an input must be a multiple of."""
        edge = 2 ** (len(self.widths) - 1)
        return (edge, edge, 1)

    @property
    def reach(self) -> XYZ:
        """How many voxels an output may look to each side, at most; no slice sees another."""
        n = len(self.widths)
        return _reach((1, 1, 1), ((2, 2, 1),) * (n - 1), ((3, 3, 1),) * n, [4] * (n - 1) + [2])


class GroupNormUNetArguments(FrozenModel):
    """Arguments of :class:`cloudseg.models.unet3d_groupnorm.GroupNormUNet`.

    Attributes
    ----------
    order
        What a convolution comes with, in order: g group norm, b batch norm, c convolution, r ReLU, e ELU, l leaky ReLU.
    residual
        Residual blocks, added skips and learned upsampling, instead of double convolutions, joined skips and nearest
        neighbours.
    flat
        Each slice is computed alone, as in a 2D network; the pools must leave z as it is.
    """

    architecture: Literal["groupnorm_unet_3d"] = Field(default="groupnorm_unet_3d", exclude=True, repr=False)
    n_in: Literal[1] = 1
    n_out: PositiveInt
    widths: Widths = (32, 64, 128, 256)
    pools: tuple[Positive3, ...] = ((2, 2, 2), (2, 2, 2), (2, 2, 2))
    order: Annotated[str, Field(pattern="^[gb]?c[gb]?[rel]?[gb]?$")] = "gcr"
    n_groups: PositiveInt = 8
    residual: bool = False
    flat: bool = False

    @model_validator(mode="after")
    def _flat_networks_keep_z(self) -> Self:
        if self.flat and any(pool[2] != 1 for pool in self.pools):
            raise ValueError(f"a flat network must not pool along z, got pools {self.pools}")
        return self

    @model_validator(mode="after")
    def _one_pool_between_levels(self) -> Self:
        _check_pools(self.widths, self.pools)
        return self

    @model_validator(mode="after")
    def _groups_divide_widths(self) -> Self:
        for width in self.widths if "g" in self.order else ():
            if width >= self.n_groups and width % self.n_groups:
                raise ValueError(
                    f"a width of {width} does not fall into n_groups={self.n_groups} equal groups"
                )
        return self

    @property
    def fold(self) -> XYZ:
        """The finest level has the resolution of the input."""
        return (1, 1, 1)

    @property
    def multiple(self) -> XYZ:
        """What each edge of an input must be a multiple of."""
        return _product(self.pools)

    @property
    def reach(self) -> XYZ:
        """How many voxels convolutions look to each side, at most; a group norm looks at the whole patch besides."""
        n = len(self.widths)
        return _reach(
            (1, 1, 1), self.pools, ((3, 3, 1 if self.flat else 3),) * n, [4] * (n - 1) + [2 + self.residual]
        )


class DeepEM3DArguments(FrozenModel):
    """Arguments of :class:`cloudseg.models.deepem3d.DeepEM3D`.

    Attributes
    ----------
    n_slices
        Slices of input for one of output: 1, 3 or 5.
    width
        Factor on all numbers of features; 1 is the published network.
    """

    architecture: Literal["deepem3d"] = Field(default="deepem3d", exclude=True, repr=False)
    n_in: Literal[1] = 1
    n_out: PositiveInt = 1
    n_slices: Literal[1, 3, 5] = 3
    width: PositiveFloat = 1.0

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of the four taps."""
        return tuple(scaled(n, self.width) for n in DEEPEM3D_WIDTHS)

    @property
    def fold(self) -> XYZ:
        """The finest level has half the resolution of the input along x and y."""
        return (2, 2, 1)

    @property
    def multiple(self) -> XYZ:
        """What each edge of an input must be a multiple of."""
        return (16, 16, 1)

    @property
    def reach(self) -> XYZ:
        """How many voxels an output may look to each side, at most."""
        return (141, 141, self.n_slices // 2)  # measured by gradients, over every place in a cell of 16


class FFNArguments(FrozenModel):
    """Arguments of :class:`cloudseg.models.ffn.FloodFillingNetwork`.

    Attributes
    ----------
    depth, width
        Residual blocks of two convolutions, and their features.
    fov, deltas
        Voxels of the field of view, and how far it moves in one step.
    """

    architecture: Literal["ffn"] = Field(default="ffn", exclude=True, repr=False)
    n_in: Literal[2] = 2
    n_out: Literal[1] = 1
    depth: PositiveInt = 12
    width: PositiveInt = 32
    fov: Positive3 = (33, 33, 33)
    deltas: Positive3 = (8, 8, 8)

    @model_validator(mode="after")
    def _moves_stay_in_view(self) -> Self:
        for axis, edge, delta in zip("xyz", self.fov, self.deltas, strict=True):
            if edge % 2 == 0 or delta > edge // 2:
                raise ValueError(
                    f"fov must be odd and deltas at most half of it; on {axis} they are {edge} and {delta}"
                )
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """All layers have one resolution."""
        return (self.width,)

    @property
    def fold(self) -> XYZ:
        """The only level has the resolution of the input."""
        return (1, 1, 1)

    @property
    def multiple(self) -> XYZ:
        """Any edge will do."""
        return (1, 1, 1)

    @property
    def reach(self) -> XYZ:
        """How many voxels an output may look to each side in one step."""
        return (2 * self.depth, 2 * self.depth, 2 * self.depth)


Arguments = Annotated[
    ResidualUNetArguments | UNet2DArguments | GroupNormUNetArguments | DeepEM3DArguments | FFNArguments,
    Field(discriminator="architecture"),
]


class NetworkChoice(FrozenModel):
    """An architecture by name, and what it is built from."""

    architecture: Architecture = "residual_unet_3d"
    arguments: Arguments

    @model_validator(mode="before")
    @classmethod
    def _arguments_are_of_the_architecture(cls, data: Any) -> Any:
        """Let the name pick the class of the arguments."""
        if not isinstance(data, Mapping) or "arguments" not in data:
            return data
        arguments, name = data["arguments"], data.get("architecture")
        if isinstance(arguments, Mapping):
            return {**data, "arguments": {"architecture": name or "residual_unet_3d", **arguments}}
        # Arguments that are built already say what they are of.
        return {"architecture": getattr(arguments, "architecture", None), **data} if name is None else data

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        if self.arguments.architecture != self.architecture:
            raise ValueError(
                f"the arguments are of {self.arguments.architecture!r}, but the architecture is {self.architecture!r}"
            )
        return self


def scaled(n_features: int, width: float) -> int:
    """Return ``n_features`` times ``width``, rounded, at least 4."""
    return max(4, round(n_features * width))


def _check_pools(widths: Sequence[int], pools: Sequence[XYZ]) -> None:
    if len(pools) != len(widths) - 1:
        raise ValueError(
            f"{len(widths)} widths (levels) need {len(widths) - 1} pools between them, got {len(pools)}"
        )


def _product(factors: Sequence[XYZ]) -> XYZ:
    x, y, z = (math.prod(f[axis] for f in factors) for axis in range(3))
    return (x, y, z)


def _reach(fold: XYZ, pools: Sequence[XYZ], kernels: Sequence[XYZ], convolutions: Sequence[int]) -> XYZ:
    """Add up the convolutions of each level in its own voxels, and the cells that pooling makes one."""
    reach = []
    for axis in range(3):
        cell, total = fold[axis], fold[axis] - 1
        for level, kernel in enumerate(kernels):
            total += convolutions[level] * (kernel[axis] // 2) * cell
            if level < len(pools):
                total += cell * (pools[level][axis] - 1)
                cell *= pools[level][axis]
        reach.append(total)
    return (reach[0], reach[1], reach[2])

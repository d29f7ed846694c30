"""Several predictions of one patch: seen from 16 sides and averaged, and by several networks.

DeepEM3D (Zeng, Wu & Ji 2017) averages over the eight ways to turn and mirror a section and both directions along z,
and takes the maximum of the networks. Both are networks themselves, so a block is predicted by them as by any other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import ModelError
from cloudseg.geometry import XYZ
from cloudseg.models.network import Lanes, Network, Probabilities
from cloudseg.models.package import ModelDescription

# Whether x and y are exchanged, then which axes of (x, y, z) are mirrored.
VIEWS: tuple[tuple[bool, tuple[int, ...]], ...] = tuple(
    (swap, tuple(axis for axis, flip in enumerate(flips) if flip))
    for swap in (False, True)
    for flips in itertools.product((False, True), repeat=3)
)


class Views:
    """A network's mean over 16 views of each patch; for boundaries, which mean the same from every side.

    Parameters
    ----------
    network
        Any network of boundaries that treats x and y alike.

    Raises
    ------
    ModelError
        If the network predicts affinities, or its patches cannot be turned.
    """

    def __init__(self, network: Network) -> None:
        spec = network.spec
        if spec.output != "boundaries":
            raise ModelError(
                f"model {spec.name!r} predicts {spec.output}: only boundaries mean the same seen from another side; "
                "leave test-time augmentation out"
            )
        x, y, _ = spec.arguments.multiple
        if x != y:
            raise ModelError(
                f"the patches of model {spec.name!r} cannot be turned: their edges must be multiples of {x} on x and "
                f"of {y} on y; leave test-time augmentation out"
            )
        self._network = network

    @property
    def spec(self) -> ModelDescription:
        """The package it came from."""
        return self._network.spec

    @property
    def n_channels(self) -> int:
        """Channels of a prediction."""
        return self._network.n_channels

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``."""
        return self._network.device_type

    @property
    def precision(self) -> str:
        """``float32`` or ``bfloat16``."""
        return self._network.precision

    def lanes(self, patch_shape: XYZ, *, batch_size: int) -> Lanes:
        """Return how the network wants to be called."""
        return self._network.lanes(patch_shape, batch_size=batch_size)

    def predict(
        self, patches: npt.NDArray[Any], *, grey_range: tuple[float, float] | None = None
    ) -> Probabilities:
        """Return the mean over all views, turned back; ``(b, x, y, z)`` to ``(b, c, x, y, z)``."""
        total: npt.NDArray[np.float64] | None = None
        for view in VIEWS:
            part = self._network.predict(seen(patches, view), grey_range=grey_range)
            back = seen_back(part, view)
            total = back.astype(np.float64) if total is None else total + back
        assert total is not None
        return (total / len(VIEWS)).astype(np.float32)


class Maximum:
    """The greatest probability that any of several networks gives a voxel.

    Parameters
    ----------
    networks
        At least one; their patches, rims and channels must agree.

    Raises
    ------
    ModelError
        If they do not fit together; both are named.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        first, *others = networks
        for other in others:
            for what in ("output", "offsets", "voxel_size_nm", "patch_shape", "context", "blend"):
                a, b = getattr(first.spec, what), getattr(other.spec, what)
                if a != b:
                    raise ModelError(
                        f"models {first.spec.name!r} and {other.spec.name!r} cannot be joined: "
                        f"{what} is {a} in the first and {b} in the second"
                    )
        self._networks = tuple(networks)

    @property
    def spec(self) -> ModelDescription:
        """The package of the first."""
        return self._networks[0].spec

    @property
    def n_channels(self) -> int:
        """Channels of a prediction."""
        return self._networks[0].n_channels

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``."""
        return self._networks[0].device_type

    @property
    def precision(self) -> str:
        """``float32`` or ``bfloat16``."""
        return self._networks[0].precision

    def lanes(self, patch_shape: XYZ, *, batch_size: int) -> Lanes:
        """Return the most careful of what the networks want."""
        lanes = [n.lanes(patch_shape, batch_size=batch_size) for n in self._networks]
        return min(lanes, key=lambda lane: lane.n_patches)

    def predict(
        self, patches: npt.NDArray[Any], *, grey_range: tuple[float, float] | None = None
    ) -> Probabilities:
        """Return the maximum over the networks; ``(b, x, y, z)`` to ``(b, c, x, y, z)``."""
        parts = [n.predict(patches, grey_range=grey_range) for n in self._networks]
        greatest: Probabilities = np.maximum.reduce(parts)
        return greatest


def seen(patches: npt.NDArray[Any], view: tuple[bool, tuple[int, ...]]) -> npt.NDArray[Any]:
    """Return ``(..., x, y, z)`` from another side: exchange x and y, then mirror axes."""
    swap, mirrored = view
    turned = patches.swapaxes(-3, -2) if swap else patches
    return np.ascontiguousarray(np.flip(turned, tuple(axis - 3 for axis in mirrored)))


def seen_back(patches: npt.NDArray[Any], view: tuple[bool, tuple[int, ...]]) -> npt.NDArray[Any]:
    """Undo :func:`seen`."""
    swap, mirrored = view
    back = np.flip(patches, tuple(axis - 3 for axis in mirrored))
    return back.swapaxes(-3, -2) if swap else back

"""What a block needs of a network, wherever it runs: in this process, or in one that several tasks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import XYZ
from cloudseg.models.package import ModelDescription

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Lanes:
    """How a network wants to be called.

    Attributes
    ----------
    n_threads
        How many threads call it at once.
    n_patches
        How many patches each call brings at most.
    padded_to
        To how many patches a call is filled up with zeros: a network rounds differently for another size.
    initializer
        Runs first in each of the threads; None: nothing.
    """

    n_threads: int
    n_patches: int = 1
    padded_to: int = 1
    initializer: Callable[[], None] | None = None


class Network(Protocol):
    """A trained network as a function on arrays."""

    @property
    def spec(self) -> ModelDescription:
        """The package it came from."""
        ...

    @property
    def n_channels(self) -> int:
        """Channels of a prediction."""
        ...

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``."""
        ...

    @property
    def precision(self) -> str:
        """``float32`` or ``bfloat16``."""
        ...

    def lanes(self, patch_shape: XYZ, *, batch_size: int) -> Lanes:
        """Return how to call it so that each patch gets the same bits in any company."""
        ...

    def predict(
        self, patches: npt.NDArray[Any], *, grey_range: tuple[float, float] | None = None
    ) -> Probabilities:
        """Return ``(b, c, x, y, z)`` probabilities for ``(b, x, y, z)`` grey levels."""
        ...

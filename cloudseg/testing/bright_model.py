"""A flood-filling network made by hand: objects go on where the mean of 3^3 voxels is above the mean grey."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import XYZ
from cloudseg.models.package import OpenObjects, save_package
from cloudseg.models.registry import build_network
from cloudseg.testing.tiny_model import tiny_description
from cloudseg.volumes import open_objects


def bright_package(
    uri: str, *, fov: XYZ = (9, 9, 9), deltas: XYZ = (3, 3, 3), objects: OpenObjects = open_objects
) -> str:
    """Write the package of such a network at ``uri``, for voxels of 8 nm, and return ``uri``."""
    description = tiny_description(
        architecture="ffn",
        arguments={"depth": 1, "width": 2, "fov": fov, "deltas": deltas},
        output="object",
        offsets=(),
        patch_shape=fov,
        context=(0, 0, 0),
        blend=(0, 0, 0),
    )
    weights: dict[str, npt.NDArray[np.float32]] = {
        name: np.zeros(tuple(tensor.shape), np.float32)
        for name, tensor in build_network(description).state_dict().items()
    }
    # The mean and its opposite pass a ReLU each; their difference is the mean again.
    weights["blocks.0.a.weight"][0, 0] = 1 / 27
    weights["blocks.0.a.weight"][1, 0] = -1 / 27
    weights["blocks.0.b.weight"][0, 0, 1, 1, 1] = weights["blocks.0.b.weight"][1, 1, 1, 1, 1] = 1
    weights["head.weight"][0, :, 0, 0, 0] = 9, -9
    save_package(uri, description, weights, objects=objects)
    return uri

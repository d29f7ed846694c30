"""A network of a few thousand random weights: small enough for property tests, real enough to be one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.models.package import ModelDescription, OpenObjects, save_package
from cloudseg.models.registry import build_network
from cloudseg.volumes import open_objects

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (-4, 0, 0))


def tiny_description(**changes: Any) -> ModelDescription:
    """Return the description of a two-level network for 8 nm voxels, with ``changes``."""
    settings: dict[str, Any] = {
        "name": "tiny",
        "arguments": {"n_out": 4, "widths": (4, 6), "pools": ((2, 2, 2),)},
        "voxel_size_nm": (8, 8, 8),
        "normalisation": {"mean": 128, "deviation": 33},
        "patch_shape": (16, 16, 20),
        "context": (2, 2, 2),
        "blend": (2, 3, 4),
        "offsets": OFFSETS,
        "training": {"data": ("none: the weights are random",), "n_steps": 0, "seed": 0},
        "licence": "Apache-2.0",
    }
    return ModelDescription.load(settings | changes, where="the tiny model")


def tiny_weights(description: ModelDescription, *, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Return random weights for ``description``, large enough that the output depends on every voxel it sees."""
    rng = np.random.default_rng(seed)
    weights: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in build_network(description).state_dict().items():
        shape = tuple(tensor.shape)
        if name.endswith("num_batches_tracked"):
            weights[name] = np.zeros(shape, np.int64)
        elif name.endswith("running_var"):
            weights[name] = rng.uniform(0.5, 2.0, shape).astype(np.float32)
        elif len(shape) == 1:
            low, high = (0.6, 1.0) if name.endswith("weight") else (-0.2, 0.2)
            weights[name] = rng.uniform(low, high, shape).astype(np.float32)
        else:
            scale = (2.0 / int(np.prod(shape[1:]))) ** 0.5
            weights[name] = rng.normal(0.0, scale, shape).astype(np.float32)
    return weights


def tiny_package(uri: str, *, objects: OpenObjects = open_objects, seed: int = 0, **changes: Any) -> str:
    """Write the tiny model as a package at ``uri`` and return ``uri``."""
    description = tiny_description(**changes)
    save_package(uri, description, tiny_weights(description, seed=seed), objects=objects)
    return uri

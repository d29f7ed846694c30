"""From a training checkpoint to a model package: the running average of the weights, no pickle."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cloudseg.errors import ModelError, NotFoundError
from cloudseg.models.package import ModelDescription, ModelSpec, OpenObjects
from cloudseg.models.predict import save_model, set_weights
from cloudseg.models.registry import build_network
from cloudseg.volumes import open_objects


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state that :func:`cloudseg.training.loop.train` stored; tensors only, nothing is executed.

    Raises
    ------
    NotFoundError
        If there is no such file.
    ModelError
        If it is no checkpoint of a training run.
    """
    if not path.exists():
        raise NotFoundError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path} is no checkpoint: {error}") from error
    wanted = {"step", "model", "average", "optimizer"}
    if not isinstance(state, dict) or not wanted <= state.keys():
        raise ModelError(
            f"{path} is no checkpoint of a training run: it must hold {', '.join(sorted(wanted))}"
        )
    return dict(state)


def averaged_weights(state: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Return the running average of the weights, by parameter name of the network."""
    prefix = "module."
    return {
        name.removeprefix(prefix): np.asarray(tensor.numpy())
        for name, tensor in state["average"].items()
        if name.startswith(prefix)
    }


def package_checkpoint(
    checkpoint: Path, description: ModelDescription, uri: str, *, objects: OpenObjects = open_objects
) -> ModelSpec:
    """Write the averaged weights of ``checkpoint`` as a model package at ``uri``.

    The number of steps in the provenance is taken from the checkpoint.

    Raises
    ------
    ModelError
        If the weights do not belong to the described architecture.
    """
    state = read_checkpoint(checkpoint)
    network = build_network(description)
    set_weights(network, averaged_weights(state), where=str(checkpoint))
    training = description.training.model_copy(update={"n_steps": int(state["step"])})
    return save_model(uri, description.model_copy(update={"training": training}), network, objects=objects)

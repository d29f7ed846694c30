"""What a training run leaves behind at each checkpoint, read without executing anything."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cloudseg.errors import ModelError, NotFoundError


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
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
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

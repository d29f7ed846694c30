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


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` whole or not at all."""
    part = path.with_name(path.name + ".part")
    torch.save(state, part)
    part.replace(path)


def averaged_weights(state: dict[str, Any], *, best: bool = False) -> dict[str, npt.NDArray[Any]]:
    """Return the running average of the weights, by parameter name of the network.

    Parameters
    ----------
    state
        A checkpoint.
    best
        Take the average that scored best, if one was measured, instead of the last.
    """
    prefix = "module."
    average = state["best"]["average"] if best and state.get("best") else state["average"]
    return {
        name.removeprefix(prefix): np.asarray(tensor.numpy())
        for name, tensor in average.items()
        if name.startswith(prefix)
    }

"""Checkpoints of pytorch-3dunet, which PlantSeg's published models are, as model packages.

Tensors only are read (``weights_only``): a checkpoint that would run code is refused. What a checkpoint does not say
(order of the layers, voxel size, how grey levels become input) its configuration file does; it is given by the caller.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloudseg.errors import ModelError, NotFoundError
from cloudseg.geometry import XYZ
from cloudseg.models.arguments import GroupNormUNetArguments

Weights = dict[str, npt.NDArray[Any]]

# Names there and here, part by part.
_NAMES = (
    (r"^module\.", ""),  # of networks that were trained on several GPUs
    (r"^final_conv\.", "head."),
    (r"^encoders\.(\d+)\.basic_module\.", r"down.\1."),
    (r"\bSingleConv1\.", "first."),
    (r"\bSingleConv2\.", "second."),
    (r"\.conv1\.(?=weight|bias)", ".enter."),
    (r"\.conv2\.(?=conv|groupnorm|batchnorm)", ".first."),
    (r"\.conv3\.(?=conv|groupnorm|batchnorm)", ".second."),
    (r"\.(?:group|batch)norm\.", ".norm."),
)


def read_published(
    path: Path, *, order: str = "gcr", n_groups: int = 8, pools: tuple[XYZ, ...] | None = None
) -> tuple[GroupNormUNetArguments, Weights]:
    """Read a checkpoint of a UNet3D, ResidualUNet3D or UNet2D.

    Parameters
    ----------
    path
        The file (``last_checkpoint.pytorch``, ``best_checkpoint.pytorch``).
    order, n_groups, pools
        ``layer_order``, ``num_groups`` and the pooling of its configuration, in x, y, z; by default each step halves
        all axes that the network has.

    Returns
    -------
    What the network is built from, and its weights by our names; kernels are turned from z, y, x to x, y, z.

    Raises
    ------
    NotFoundError
        If there is no such file.
    ModelError
        If it holds anything but tensors, or another network.
    """
    state = _state(path)
    weights = {new: state[old] for old, new in _renamed(state, where=str(path)).items()}
    widths = _widths(weights, where=str(path))
    head = weights["head.weight"]
    flat = head.ndim == 4
    step: XYZ = (2, 2, 1) if flat else (2, 2, 2)
    arguments = GroupNormUNetArguments(
        n_out=head.shape[0],
        widths=widths,
        pools=(step,) * (len(widths) - 1) if pools is None else pools,
        order=order,
        n_groups=n_groups,
        residual=any(name.startswith("rise.") for name in weights),
        flat=flat,
    )
    return arguments, {name: _turned(array) for name, array in weights.items()}


def _state(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no checkpoint {path}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise ModelError(
            f"{path} is no checkpoint that holds tensors only, or is damaged: {str(error).splitlines()[0]}"
        ) from error
    state = content.get("model_state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(
            f"{path} holds no weights by name: expected a dictionary of tensors, or one under 'model_state_dict'"
        )
    return {
        str(name): (tensor.detach().float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in state.items()
    }


def _renamed(state: Weights, *, where: str) -> dict[str, str]:
    """Return our name for each of theirs."""
    n_levels = 1 + max(
        (int(m[1]) for m in (re.match(r"(?:module\.)?encoders\.(\d+)\.", name) for name in state) if m),
        default=-1,
    )
    if n_levels < 1:
        raise ModelError(
            f"{where} is no network of pytorch-3dunet: it has no 'encoders.0...', but {sorted(state)[:2]}"
        )

    def ours(name: str) -> str:
        for pattern, new in _NAMES:
            name = re.sub(pattern, new, name)
        # They count the way up from the coarsest level, we from the finest.
        name = re.sub(
            r"^decoders\.(\d+)\.upsampling\.upsample(?:\.conv_transposed)?\.",
            lambda m: f"rise.{n_levels - 2 - int(m[1])}.",
            name,
        )
        return re.sub(r"^decoders\.(\d+)\.basic_module\.", lambda m: f"up.{n_levels - 2 - int(m[1])}.", name)

    return {name: ours(name) for name in state}


def _widths(weights: Weights, *, where: str) -> tuple[int, ...]:
    widths: list[int] = []
    while (name := f"down.{len(widths)}.second.conv.weight") in weights:
        widths.append(weights[name].shape[0])
    if not widths or "head.weight" not in weights:
        raise ModelError(
            f"{where} is no UNet3D, ResidualUNet3D or UNet2D of pytorch-3dunet: it has {sorted(weights)[:2]}, and no "
            "'encoders.0.basic_module...' with two convolutions, or no 'final_conv'"
        )
    return tuple(widths)


def _turned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a kernel in x, y, z: theirs are z, y, x, or y, x."""
    if array.ndim == 5:
        return np.ascontiguousarray(array.transpose(0, 1, 4, 3, 2))
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(0, 1, 3, 2)[..., None])
    return array

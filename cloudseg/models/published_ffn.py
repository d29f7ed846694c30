"""Published flood-filling networks as model packages: checkpoints of google/ffn, or the same tensors as safetensors.

Their axes are z, y, x, the features last in TensorFlow; ours are x, y, z.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import ModelError, NotFoundError
from cloudseg.geometry import XYZ
from cloudseg.models.arguments import FFNArguments
from cloudseg.models.tf_checkpoint import read_checkpoint

Weights = dict[str, npt.NDArray[Any]]

_TENSOR = re.compile(r"^(?:seed_update/)?conv(\d+|_lom)(?:_([ab]))?[/.](weights?|bias(?:es)?)$")


def read_published_ffn(
    path: Path, *, fov: XYZ = (33, 33, 33), deltas: XYZ = (8, 8, 8)
) -> tuple[FFNArguments, Weights]:
    """Read the weights of a stack of convolutions (``ConvStack3DFFNModel``).

    Parameters
    ----------
    path
        A checkpoint of TensorFlow, without its endings, or a ``.safetensors`` file of the same tensors in PyTorch's
        order (``conv0_a.weight`` as out, in, z, y, x).
    fov, deltas
        Field of view and moves of its configuration, in x, y, z: the files do not say.

    Returns
    -------
    What the network is built from, and its weights by our names, in x, y, z.

    Raises
    ------
    NotFoundError
        If a file is not there.
    ModelError
        If a file is damaged, or holds another network.
    """
    is_safetensors = path.suffix == ".safetensors"
    found = _safetensors(path) if is_safetensors else read_checkpoint(path)
    weights: Weights = {}
    for name, array in found.items():
        match = _TENSOR.match(name)
        if match is None:
            continue  # steps, moments of the optimiser
        number, letter, what = match.groups()
        ours = "head" if number == "_lom" else f"blocks.{number}.{letter}"
        if what.startswith("bias"):
            weights[f"{ours}.bias"] = np.array(array, np.float32)
            continue
        if array.ndim != 5:
            raise ModelError(
                f"{path}: {name} has shape {array.shape}; a kernel in three dimensions has five axes"
            )
        axes = (0, 1, 4, 3, 2) if is_safetensors else (4, 3, 2, 1, 0)
        weights[f"{ours}.weight"] = np.ascontiguousarray(array.transpose(axes), np.float32)
    return _arguments(weights, found=sorted(found), fov=fov, deltas=deltas, where=str(path)), weights


def _safetensors(path: Path) -> Weights:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}") from error
    except SafetensorError as error:
        raise ModelError(f"{path} is no safetensors file: {error}") from error


def _arguments(weights: Weights, *, found: list[str], fov: XYZ, deltas: XYZ, where: str) -> FFNArguments:
    depth = sum(name.endswith(".a.weight") for name in weights)
    wanted = {f"blocks.{i}.{letter}" for i in range(depth) for letter in "ab"} | {"head"}
    if depth == 0 or {f"{name}.{part}" for name in wanted for part in ("weight", "bias")} != weights.keys():
        raise ModelError(
            f"{where} holds no stack of convolutions of google/ffn (seed_update/conv0_a/weights, ..., conv_lom); "
            f"it has {len(found)} tensors, the first: {found[:2]}"
        )
    return FFNArguments(depth=depth, width=int(weights["head.weight"].shape[1]), fov=fov, deltas=deltas)

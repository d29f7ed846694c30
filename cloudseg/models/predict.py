"""A trained network as a function on arrays: grey levels in, probabilities out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cloudseg.errors import ModelError
from cloudseg.geometry import XYZ
from cloudseg.models.layers import VoxelNetwork, fuse_batch_norm
from cloudseg.models.network import Lanes
from cloudseg.models.package import (
    ModelDescription,
    ModelSpec,
    OpenObjects,
    load_spec,
    load_weights,
    save_package,
)
from cloudseg.models.registry import build_network
from cloudseg.ops.affinities import NEAREST
from cloudseg.volumes import open_objects

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]

_FULL_SCALE: dict[str, tuple[float, float]] = {
    "uint8": (0.0, 255.0),
    "uint16": (0.0, 65535.0),
    "float32": (0.0, 1.0),
}


class Model:
    """A network ready to predict. Made by :func:`load_model`.

    Parameters
    ----------
    spec
        The package it came from.
    network
        Built, with weights; it is changed (batch normalisation is folded into the convolutions).
    offsets
        Which affinities to keep; none for a model of boundaries or heads.
    device
        ``cpu`` or ``cuda``.
    precision
        What the network computes in. The result differs between the two, so it is recorded, not guessed per patch.
    """

    def __init__(
        self,
        spec: ModelDescription,
        network: VoxelNetwork,
        *,
        offsets: Sequence[XYZ] = NEAREST,
        device: Literal["cpu", "cuda"] = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.spec = spec
        self.offsets: tuple[XYZ, ...] = tuple(offsets)
        self.device = torch.device(device)
        self.precision = precision
        self._dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        network.keep_outputs(spec.select(self.offsets))
        fuse_batch_norm(network)
        network.to(self.device, self._dtype).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._network: nn.Module = network
        self._network.requires_grad_(False)
        self._mixes: dict[tuple[XYZ, int], bool] = {}

    @property
    def n_channels(self) -> int:
        """Channels of a prediction."""
        if self.spec.output == "heads":
            return len(self.spec.heads)
        return max(1, len(self.offsets))  # boundaries are one channel without an offset

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.device.type

    @property
    def multiple(self) -> XYZ:
        """What each edge of a patch must be a multiple of."""
        return self.spec.arguments.multiple

    def predict(
        self, patches: npt.NDArray[Any], *, grey_range: tuple[float, float] | None = None
    ) -> npt.NDArray[np.float32]:
        """Predict a batch of patches.

        Parameters
        ----------
        patches
            ``(b, x, y, z)`` grey levels: uint8, uint16 or float32.
        grey_range
            The values that mean grey 0 and 255; by default the whole range of the integer type, and 0 to 1 for
            float32.

        Returns
        -------
        ``(b, c, x, y, z)`` float32 probabilities.

        Raises
        ------
        ModelError
            If the patches have another type, number of axes, or edges that the network cannot halve.
        """
        self._check(patches)
        low, high = grey_range or _FULL_SCALE[patches.dtype.name]
        # (value - low) * 255 / (high - low) is the grey level; the model's mean and deviation are in grey levels.
        scale = 255.0 / (high - low) / self.spec.normalisation.deviation
        shift = -low * scale - self.spec.normalisation.mean / self.spec.normalisation.deviation
        out = np.empty((patches.shape[0], self.n_channels, *patches.shape[1:]), np.float32)
        # On a CPU a batch is no faster than its parts, and oneDNN rounds differently for another batch size.
        step = 1 if self.device.type == "cpu" else patches.shape[0]
        for i in range(0, patches.shape[0], step):
            out[i : i + step] = self._pass(patches[i : i + step], scale=scale, shift=shift)
        return out

    def lanes(self, patch_shape: XYZ, *, batch_size: int) -> Lanes:
        """Return how to call it so that each patch gets the same bits in any company.

        A CPU computes one patch a thread. A GPU computes batches of one size, filled up with zeros; and where
        :meth:`mixes` finds that the patches of a batch touch each other's rounding, one patch with zeros.
        """
        if self.device.type == "cpu":
            return Lanes(n_threads(), initializer=use_one_thread)
        n_patches = batch_size if self.mixes(patch_shape, batch_size=batch_size) else 1
        return Lanes(1, n_patches, padded_to=batch_size)

    def mixes(self, patch_shape: XYZ, *, batch_size: int) -> bool:
        """Whether a patch gets the same bits in every place of a batch, among others and among zeros.

        No library promises it, so it is tried out, on the device and in the shape that count: one patch, in each
        place once. This is evidence, not proof.
        """
        key = (patch_shape, batch_size)
        if key not in self._mixes:
            noise = np.random.default_rng(0).integers(0, 256, (batch_size + 1, *patch_shape), np.uint8)
            patch, others = noise[0], noise[1:]
            scale, shift = 1.0 / self.spec.normalisation.deviation, -1.0
            alone = np.zeros_like(others)
            alone[0] = patch
            expected = self._pass(alone, scale=scale, shift=shift)[0]
            found = True
            for place in range(batch_size):
                batch = others.copy()
                batch[place] = patch
                found &= np.array_equal(self._pass(batch, scale=scale, shift=shift)[place], expected)
            self._mixes[key] = found
            if not found:
                log.warning(
                    "the patches of a batch touch each other's rounding on this %s: each is computed alone",
                    self.device.type,
                )
        return self._mixes[key]

    def _pass(self, patches: npt.NDArray[Any], *, scale: float, shift: float) -> npt.NDArray[np.float32]:
        """Run the network once over all ``patches``."""
        with torch.inference_mode(), _same_bits_every_time():
            x = self._to_device(np.ascontiguousarray(patches)).mul_(scale).add_(shift).to(self._dtype)
            logits: Tensor = self._network(x[:, None])
            out: npt.NDArray[np.float32] = torch.sigmoid(logits.float()).cpu().numpy()
        return out

    def _to_device(self, patches: npt.NDArray[Any]) -> Tensor:
        if patches.dtype == np.uint8:  # the bytes travel, a quarter of the floats
            return torch.from_numpy(patches).to(self.device).to(torch.float32)
        return torch.from_numpy(patches.astype(np.float32)).to(self.device)

    def _check(self, patches: npt.NDArray[Any]) -> None:
        if patches.ndim != 4:
            raise ModelError(f"patches must be (b, x, y, z), got shape {patches.shape}")
        if patches.dtype.name not in _FULL_SCALE:
            raise ModelError(f"patches must be {', '.join(_FULL_SCALE)}, got {patches.dtype}")
        for axis, size, multiple in zip("xyz", patches.shape[1:], self.multiple, strict=True):
            if size % multiple:
                raise ModelError(f"patches have {size} voxels on {axis}, which is no multiple of {multiple}")


def load_model(
    uri: str,
    *,
    offsets: Sequence[XYZ] = NEAREST,
    device: Device = "auto",
    precision: Precision = "auto",
    sha256: str | None = None,
    objects: OpenObjects = open_objects,
) -> Model:
    """Load a model package: a folder, a bucket address, or a name that comes with cloudseg (``fib25``).

    Parameters
    ----------
    uri
        Where the package is.
    offsets
        Which affinities to keep, in this order; the others cost nothing.
    device
        ``auto``: a CUDA GPU if there is one.
    precision
        ``auto``: bfloat16 where the device computes in it natively, float32 elsewhere.
    sha256
        Digest that the weights must have, or None.
    objects
        How an address becomes an object folder.

    Raises
    ------
    NotFoundError
        If there is no package at ``uri``.
    ModelError
        If the package is malformed or damaged, does not predict ``offsets``, or is not the one of ``sha256``.
    """
    spec = load_spec(uri, objects=objects)
    if sha256 is not None and spec.weights.sha256 != sha256:
        raise ModelError(
            f"model {uri} has weights {spec.weights.sha256[:12]}..., but this task was planned with {sha256[:12]}...; "
            "a run keeps to one model: plan it anew, or bring the old weights back"
        )
    network = build_network(spec)
    set_weights(network, load_weights(uri, spec, objects=objects), where=uri)
    chosen = pick_device(device)
    return Model(
        spec, network, offsets=offsets, device=chosen, precision=pick_precision(precision, device=chosen)
    )


def save_model(
    uri: str, description: ModelDescription, network: nn.Module, *, objects: OpenObjects = open_objects
) -> ModelSpec:
    """Write ``network`` as a model package at ``uri`` and return its ``model.json``."""
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    return save_package(uri, description, weights, objects=objects)


def set_weights(network: nn.Module, weights: Mapping[str, npt.NDArray[Any]], *, where: str) -> None:
    """Put ``weights`` into ``network``.

    Raises
    ------
    ModelError
        If names or shapes do not match; each kind of mismatch is named once.
    """
    wanted = network.state_dict()
    missing, unknown = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or unknown:
        raise ModelError(
            f"{where}: the weights do not belong to this architecture: "
            f"{len(missing)} missing (first: {missing[:1]}), {len(unknown)} unknown (first: {unknown[:1]})"
        )
    for name, tensor in wanted.items():
        if tuple(tensor.shape) != weights[name].shape:
            raise ModelError(
                f"{where}: weight {name!r} has shape {weights[name].shape}, "
                f"the architecture wants {tuple(tensor.shape)}"
            )
    network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})


def pick_device(device: Device) -> Literal["cpu", "cuda"]:
    """Return the device that ``auto`` means here; refuse ``cuda`` where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "device 'cuda' was asked for, but this machine has no usable CUDA GPU; use device 'auto'"
        )
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def pick_precision(precision: Precision, *, device: Literal["cpu", "cuda"]) -> Literal["float32", "bfloat16"]:
    """Return the precision that ``auto`` means on ``device``."""
    if precision != "auto":
        return precision
    return "bfloat16" if _has_native_bfloat16(device) else "float32"


def n_threads() -> int:
    """Return how many threads this process may compute with (``OMP_NUM_THREADS``, or the worker's limit)."""
    return torch.get_num_threads()


def use_threads(n: int) -> None:
    """Compute with at most ``n`` threads."""
    torch.set_num_threads(n)


def use_one_thread() -> None:
    """Make the calling thread compute alone.

    oneDNN rounds differently for another number of threads. Patches are therefore computed by one thread each, and
    several of them at once, which keeps every core busy and gives the same bits on any number of cores.
    """
    torch.set_num_threads(1)


def _same_bits_every_time() -> AbstractContextManager[None]:
    """Let cuDNN neither search for the algorithm that is fastest today, nor round products to 10 bits."""
    manager: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return manager


def _has_native_bfloat16(device: Literal["cpu", "cuda"]) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # x86 (AVX-512, AMX) and Arm name it differently; a capability that is not listed is not there.
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))

"""A flood-filling network as the function that :mod:`cloudseg.ops.flood` wants: fields of view in, logits out."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from cloudseg.errors import ModelError
from cloudseg.geometry import XYZ
from cloudseg.models.arguments import FFNArguments
from cloudseg.models.ffn import Block, FloodFillingNetwork
from cloudseg.models.package import ModelDescription, OpenObjects, load_spec, load_weights
from cloudseg.models.predict import Device, Precision, pick_device, pick_precision, set_weights
from cloudseg.models.registry import build_network
from cloudseg.ops.flood import Floats
from cloudseg.ops.winograd import Kernel, Workspace
from cloudseg.volumes import open_objects

_ONE = (1, 1, 1)
# What torch's own compiler calls; they have no public names. Where they are not, the layers run one by one.
_OPS: tuple[Any, ...] = tuple(
    getattr(torch.ops.mkldnn, name, None)
    for name in (
        "_is_mkldnn_bf16_supported",
        "_reorder_convolution_weight",
        "_convolution_pointwise",
        "_convolution_pointwise_",
    )
)
_supports_bfloat16, _reorder, _convolve, _convolve_into = _OPS


class FloodNetwork:
    """A network ready to grow objects. Made by :func:`load_flood_network`.

    Parameters
    ----------
    spec
        The package it came from.
    network
        Built, with weights; it is changed.
    device
        ``cpu`` or ``cuda``.
    precision
        ``float32`` on a CPU computes convolutions by fewer multiplications (:mod:`cloudseg.ops.winograd`), which
        changes logits by less than 1e-4. ``bfloat16`` changes them by up to 0.1, and is four times faster where the
        processor computes in it natively.
    """

    def __init__(
        self,
        spec: ModelDescription,
        network: FloodFillingNetwork,
        *,
        device: Literal["cpu", "cuda"] = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.spec, self.precision = spec, precision
        self.device = torch.device(device)
        self.fov: XYZ = network.fov
        network.eval().requires_grad_(False)
        self._stack: _Stack | _Fused | None = None
        self._network: nn.Module | None = None
        if device == "cpu" and precision == "float32":
            self._stack = _Stack(network)
            return
        if device == "cpu" and None not in _OPS and _supports_bfloat16():
            self._stack = _Fused(network)
            return
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self._network = network.to(self.device, dtype)
        self._network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._dtype = dtype

    @property
    def deltas(self) -> XYZ:
        """How far its field of view moves in one step."""
        arguments = self.spec.arguments
        assert isinstance(arguments, FFNArguments)
        return arguments.deltas

    def __call__(self, views: Floats) -> Floats:
        """Return new logits ``(b, x, y, z)`` for ``(b, 2, x, y, z)`` normalised grey levels and logits."""
        if views.shape[1:] != (2, *self.fov):
            raise ModelError(
                f"model {self.spec.name!r} looks at fields of view of {self.fov} with 2 channels, got {views.shape[1:]}"
            )
        if self._stack is not None:
            return np.stack([self._stack(view) for view in views])
        # On a CPU a batch is slower than its parts.
        step = 1 if self.device.type == "cpu" else len(views)
        return np.concatenate([self._pass(views[i : i + step]) for i in range(0, len(views), step)])

    def _pass(self, views: Floats) -> Floats:
        assert self._network is not None
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(views)).to(self.device)
            old = x[:, 1]
            x = x.to(self._dtype).contiguous(memory_format=torch.channels_last_3d)
            # The object itself is added up in single precision.
            updates = self._network.update(x)[:, 0].float()  # type: ignore[operator]
            out: Floats = (old + updates).cpu().numpy()
        return out


def load_flood_network(
    uri: str,
    *,
    device: Device = "auto",
    precision: Precision = "float32",
    sha256: str | None = None,
    objects: OpenObjects = open_objects,
) -> FloodNetwork:
    """Load the package of a flood-filling network.

    Raises
    ------
    NotFoundError
        If there is no package at ``uri``.
    ModelError
        If it is malformed or damaged, holds another kind of network, or is not the one of ``sha256``.
    """
    spec = load_spec(uri, objects=objects)
    check_flood_model(spec, uri=uri)
    if sha256 is not None and spec.weights.sha256 != sha256:
        raise ModelError(
            f"model {uri} has weights {spec.weights.sha256[:12]}..., but this task was planned with {sha256[:12]}...; "
            "a run keeps to one model: plan it anew, or bring the old weights back"
        )
    network = build_network(spec)
    assert isinstance(network, FloodFillingNetwork)
    set_weights(network, load_weights(uri, spec, objects=objects), where=uri)
    chosen = pick_device(device)
    return FloodNetwork(spec, network, device=chosen, precision=pick_precision(precision, device=chosen))


def check_flood_model(spec: ModelDescription, *, uri: str) -> None:
    """Refuse a package of another kind of network."""
    if spec.output != "object":
        raise ModelError(
            f"model {uri} predicts {spec.output}, and cannot grow objects: give a flood-filling network "
            "(architecture 'ffn')"
        )


class _Stack:
    """The layers, computed by fewer multiplications."""

    def __init__(self, network: FloodFillingNetwork) -> None:
        width = network.head.in_channels
        self._work = Workspace(network.fov, n_features=max(2, width))
        self._input = self._work.volume(2)
        self._sum, self._between = self._work.volume(width), self._work.volume(width)
        self._kernels = [
            tuple(Kernel.of(c.weight.numpy(), _bias(c)) for c in (block.a, block.b))
            for block in network.blocks
            if isinstance(block, Block)
        ]
        self._head = np.array(network.head.weight.numpy()[0, :, 0, 0, 0])
        self._head_bias = float(_bias(network.head)[0])

    def __call__(self, view: Floats) -> Floats:
        """``(2, x, y, z)`` to logits ``(x, y, z)``."""
        work, total, between = self._work, self._sum, self._between
        work.put(self._input, np.moveaxis(view, 0, -1))
        for n, (a, b) in enumerate(self._kernels):
            work.convolve(total if n else self._input, a, between, relu=n > 0, add=False)
            work.convolve(between, b, total, relu=True, add=n > 0)
        features = np.maximum(work.get(total), np.float32(0))
        logits: Floats = view[1] + (features @ self._head + np.float32(self._head_bias))
        return logits


class _Fused:
    """The layers in bfloat16, in memory of their own: each convolution takes the ReLU or the sum after it along.

    Layer by layer, the system clears two megabytes for each result: that is as long as the convolution.
    """

    def __init__(self, network: FloodFillingNetwork) -> None:
        network.to(torch.bfloat16)
        width = network.head.in_channels
        shape = (1, width, *network.fov)
        self._between = torch.empty(shape, dtype=torch.bfloat16).to(memory_format=torch.channels_last_3d)
        self._sum = torch.empty_like(self._between)
        with torch.inference_mode():
            self._layers = [
                tuple((_reordered(c, network.fov), c.bias) for c in (block.a, block.b))
                for block in network.blocks
                if isinstance(block, Block)
            ]
        self._head = network.head.weight[0, :, 0, 0, 0].float()
        self._head_bias = float(_bias(network.head.float())[0])

    def __call__(self, view: Floats) -> Floats:
        """``(2, x, y, z)`` to logits ``(x, y, z)``."""
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(view))[None]
            inner = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
            for n, ((a, bias_a), (b, bias_b)) in enumerate(self._layers):
                if n:
                    inner = torch.clamp_min(self._sum, 0, out=self._between)
                y = _convolve(inner, a, bias_a, _ONE, _ONE, _ONE, 1, "relu", [], "")
                if n == 0:
                    self._sum.zero_()
                _convolve_into.binary(
                    self._sum, y, b, bias_b, _ONE, _ONE, _ONE, 1, "add", 1.0, None, [], None
                )
            features = torch.clamp_min(self._sum, 0, out=self._between)[0].movedim(0, -1).float()
            # The object itself is added up in single precision.
            logits: Floats = (x[0, 1] + (features @ self._head + self._head_bias)).numpy()
        return logits


def _reordered(convolution: nn.Conv3d, fov: XYZ) -> torch.Tensor:
    """Return the weights in the order in which the processor reads them."""
    weight: torch.Tensor = _reorder(
        convolution.weight, _ONE, _ONE, _ONE, 1, [1, convolution.in_channels, *fov]
    )
    return weight


def _bias(convolution: nn.Conv3d) -> Floats:
    assert convolution.bias is not None
    bias: Floats = convolution.bias.numpy()
    return bias

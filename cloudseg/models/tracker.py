"""The network that carries colours from one section to the next (3C), and its package. See :mod:`cloudseg.ops.colours`.

The network is a 2D U-Net over two sections and their neighbours, as grey levels, and over the colours of the first; it
returns the colour of each pixel of the second, or that none continues there. One network serves all pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveFloat

from cloudseg.errors import ModelError, NotFoundError, SpecError
from cloudseg.models.arguments import UNet2DArguments, Widths
from cloudseg.models.layers import fuse_batch_norm
from cloudseg.models.package import (
    SPEC_NAME,
    WEIGHTS_NAME,
    Normalisation,
    OpenObjects,
    Provenance,
    Weights,
)
from cloudseg.models.predict import Device, Precision, pick_device, pick_precision, set_weights
from cloudseg.models.unet2d import UNet2D
from cloudseg.specs import FrozenModel
from cloudseg.volumes import open_objects


class TrackerArguments(FrozenModel):
    """What the network is built from.

    Attributes
    ----------
    n_colours
        Colours of a picture.
    around
        Sections on each side of the two that the network sees as well.
    widths
        Features per level, finest first; each level halves x and y.
    """

    n_colours: Annotated[int, Field(ge=2, le=16)] = 4
    around: Annotated[int, Field(ge=0, le=4)] = 0
    widths: Widths = (16, 32, 64, 128)

    @property
    def n_sections(self) -> int:
        """Sections that the network sees."""
        return 2 + 2 * self.around

    def build(self) -> UNet2D:
        """Return the network with fresh random weights."""
        return UNet2D(n_in=self.n_sections + self.n_colours, n_out=self.n_colours + 1, widths=self.widths)

    @property
    def multiple(self) -> int:
        """What the edges of a section must be a multiple of."""
        return UNet2DArguments(n_out=1, widths=self.widths).multiple[0]


class TrackerDescription(FrozenModel):
    """What a tracking network is and wants, without its weights."""

    format: Literal["cloudseg-tracker/1"] = "cloudseg-tracker/1"
    name: Annotated[str, Field(min_length=1)]
    arguments: TrackerArguments = TrackerArguments()
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    voxel_size_tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.25
    normalisation: Normalisation
    training: Provenance
    licence: str

    def check_voxel_size(self, voxel_size_nm: tuple[float, float, float], *, uri: str) -> None:
        """Refuse an image whose voxels differ by more than the tolerance.

        Raises
        ------
        ModelError
            With both sizes.
        """
        for axis, image, model in zip("xyz", voxel_size_nm, self.voxel_size_nm, strict=True):
            if abs(image / model - 1.0) > self.voxel_size_tolerance + 1e-9:
                raise ModelError(
                    f"tracking network {self.name!r} was trained on voxels of {self.voxel_size_nm} nm and tolerates "
                    f"{self.voxel_size_tolerance:.0%}, but {uri} has {voxel_size_nm} nm (differs on {axis}); use "
                    "another scale of the image, or train a network for this voxel size"
                )


class TrackerSpec(TrackerDescription):
    """The content of ``model.json``: the description, and the digest of the weights."""

    weights: Weights


class Tracker:
    """A tracking network as a function on arrays. Made by :func:`load_tracker`.

    Parameters
    ----------
    spec
        What it is.
    network
        With weights; it is changed (batch normalisation is folded into the convolutions).
    device, precision
        Where and in what it computes.
    """

    def __init__(
        self,
        spec: TrackerDescription,
        network: UNet2D,
        *,
        device: Literal["cpu", "cuda"] = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.spec = spec
        self.n_calls = 0
        self._device = torch.device(device)
        self._dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        fuse_batch_norm(network)
        network.to(self._device, self._dtype).requires_grad_(False)
        self._network = network

    def predict(self, sections: npt.NDArray[Any], colours: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        """Carry colours over.

        Parameters
        ----------
        sections
            ``(x, y, n)`` grey levels of uint8: the section before, the next one, then their neighbours (see
            :func:`order_of`).
        colours
            ``(k, x, y)``: the colour of each pixel in the section before, picture by picture; -1: none.

        Returns
        -------
        ``(k, n_colours + 1, x, y)`` logarithms of probabilities for the next section; the last is none of the colours.
        """
        arguments, normalisation = self.spec.arguments, self.spec.normalisation
        x, y, n = sections.shape
        if n != arguments.n_sections or colours.shape[1:] != (x, y):
            raise ModelError(
                f"tracking network {self.spec.name!r} wants {arguments.n_sections} sections of the size of the "
                f"colours, got {n} of {(x, y)} and colours of {colours.shape[1:]}"
            )
        grey = (sections.astype(np.float32) - normalisation.mean) / normalisation.deviation
        edge = arguments.multiple
        lack = [(0, -s % edge) for s in (x, y)]
        grey = np.pad(grey, [*lack, (0, 0)], mode="symmetric")
        out = np.empty((len(colours), arguments.n_colours + 1, x, y), np.float32)
        for digit, picture in enumerate(colours):
            padded = np.pad(picture, lack, constant_values=-1)
            painted = padded == np.arange(arguments.n_colours, dtype=np.int8)[:, None, None]
            stacked = np.concatenate([np.moveaxis(grey, -1, 0), painted.astype(np.float32)])
            with torch.inference_mode():
                logits = self._network(
                    torch.from_numpy(stacked)[None, ..., None].to(self._device, self._dtype)
                )
                found = torch.log_softmax(logits[0, ..., 0].float(), dim=0).cpu().numpy()
            out[digit] = found[:, :x, :y]
            self.n_calls += 1
        return out


def order_of(z: int, following: int, *, around: int) -> list[int]:
    """Return the sections that the network sees, in its order: both, then the neighbours from the inside out.

    Examples
    --------
    >>> order_of(5, 6, around=1), order_of(6, 5, around=1)
    ([5, 6, 4, 7], [6, 5, 7, 4])
    """
    step = 1 if following > z else -1
    return [z, following, *(s for i in range(1, around + 1) for s in (z - i * step, following + i * step))]


def save_tracker(
    uri: str,
    description: TrackerDescription,
    weights: Mapping[str, npt.NDArray[Any]],
    *,
    objects: OpenObjects = open_objects,
) -> TrackerSpec:
    """Write a package: the weights, then ``model.json``."""
    from safetensors.numpy import save

    data = save({name: np.array(array, order="C") for name, array in weights.items()})
    spec = TrackerSpec(
        **{name: getattr(description, name) for name in TrackerDescription.model_fields},
        weights=Weights(
            sha256=hashlib.sha256(data).hexdigest(), n_parameters=sum(int(a.size) for a in weights.values())
        ),
    )
    folder = objects(uri)
    folder.delete(SPEC_NAME)
    folder.put(WEIGHTS_NAME, data)
    folder.put(SPEC_NAME, (json.dumps(spec.model_dump(mode="json"), indent=1) + "\n").encode())
    return spec


def load_tracker_spec(uri: str, *, objects: OpenObjects = open_objects) -> TrackerSpec:
    """Read what a tracking network is.

    Raises
    ------
    NotFoundError
        If there is no package.
    ModelError
        If it is of another kind, or malformed.
    """
    try:
        data = objects(uri).get(SPEC_NAME)
    except NotFoundError as error:
        raise NotFoundError(f"{uri} is no model package: it has no {SPEC_NAME}") from error
    try:
        return TrackerSpec.load(data, where=f"{uri}/{SPEC_NAME}")
    except SpecError as error:
        raise ModelError(
            f"{error}; a tracking network is made by cloudseg train with a [tracker] table"
        ) from error


def load_tracker(
    uri: str,
    *,
    device: Device = "auto",
    precision: Precision = "auto",
    objects: OpenObjects = open_objects,
) -> Tracker:
    """Load a tracking network.

    Raises
    ------
    ModelError
        If the package is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    spec = load_tracker_spec(uri, objects=objects)
    data = objects(uri).get(spec.weights.file)
    if hashlib.sha256(data).hexdigest() != spec.weights.sha256:
        raise ModelError(
            f"{uri}/{spec.weights.file} is not the file that {SPEC_NAME} describes: it is damaged or belongs to "
            "another network; fetch the package again"
        )
    try:
        weights = load(data)
    except SafetensorError as error:
        raise ModelError(f"{uri}/{spec.weights.file} is no safetensors file: {error}") from error
    network = spec.arguments.build()
    set_weights(network, weights, where=uri)
    where = pick_device(device)
    return Tracker(spec, network, device=where, precision=pick_precision(precision, device=where))

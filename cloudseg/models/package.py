"""The model package: ``model.json`` (what a network is, wants and gives) beside its weights. No torch here."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cloudseg.errors import ModelError, NotFoundError, SpecError
from cloudseg.geometry import XYZ
from cloudseg.models.arguments import NetworkChoice
from cloudseg.models.arguments import ResidualUNetArguments as ResidualUNetArguments  # callers find it here
from cloudseg.specs import FrozenModel
from cloudseg.volumes import open_objects
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.protocol import Positive3

SPEC_NAME = "model.json"
WEIGHTS_NAME = "weights.safetensors"

Natural3 = tuple[
    Annotated[int, Field(ge=0)],
    Annotated[int, Field(ge=0)],
    Annotated[int, Field(ge=0)],
]
OpenObjects = Callable[[str], Objects]
Head = Literal["interior", "boundary", "distance", "seed"]
"""What a channel of a network of several heads means; see :mod:`cloudseg.training.targets`."""


# Which stage runs a model, by what it predicts.
_STAGE_OF = {"boundaries": "boundaries", "heads": "soma_heads", "object": "ffn"}


class Normalisation(FrozenModel):
    """Grey levels of uint8 that become 0 and 1.

    Other inputs are brought to the scale of uint8 first: uint16 is divided by 257, float32 (0 to 1) is multiplied
    by 255; a stage may state another range.
    """

    mean: float
    deviation: PositiveFloat


class Provenance(FrozenModel):
    """How the weights came to be."""

    data: tuple[str, ...]
    n_steps: Annotated[int, Field(ge=0)]
    seed: int
    recipe: str = ""
    software: dict[str, str] = Field(default_factory=dict)


class Accuracy(FrozenModel):
    """One measured figure: which metric, on which data, how."""

    data: str
    metric: str
    value: float
    how: str = ""


class Weights(FrozenModel):
    """The weight file and its digest."""

    file: str = WEIGHTS_NAME
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    n_parameters: PositiveInt


class ModelDescription(NetworkChoice):
    """What a network is, wants and gives, without its weights. All tuples are X, Y, Z.

    Attributes
    ----------
    name
        Short name.
    architecture, arguments
        Which network, built how; see :mod:`cloudseg.models.arguments`.
    output
        ``affinities``: one channel per offset. ``boundaries``: one channel, the probability of a boundary.
        ``heads``: one channel per head. ``object``: the object of one place, step by step, by flood filling.
    voxel_size_nm, voxel_size_tolerance
        Voxels it was trained on, and the greatest relative difference it may be used with (0.25: 6 to 10 nm for 8).
    normalisation
        How grey levels become network input.
    patch_shape, context, blend
        Patch for inference; rim that is thrown away; width of the fade between neighbours. See
        :mod:`cloudseg.ops.lattice`.
    offsets
        Meaning of each affinity: the probability that voxel v and voxel v + offset belong to the same cell.
    heads
        Meaning of each channel of a network of cell bodies or nuclei.
    training, accuracy, licence
        Where the weights come from, how good they are, on what terms.
    """

    format: Literal["cloudseg-model/1"] = "cloudseg-model/1"
    name: Annotated[str, Field(min_length=1)]
    output: Literal["affinities", "boundaries", "heads", "object"] = "affinities"
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    voxel_size_tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.25
    normalisation: Normalisation
    patch_shape: Positive3
    context: Natural3
    blend: Natural3
    offsets: tuple[XYZ, ...] = ()
    heads: tuple[Head, ...] = ()
    training: Provenance
    accuracy: tuple[Accuracy, ...] = ()
    licence: str

    @model_validator(mode="after")
    def _one_meaning_per_output(self) -> Self:
        if bool(self.heads) != (self.output == "heads"):
            raise ValueError(
                f"a model of {self.output} has heads {list(self.heads)}: heads go with output 'heads'"
            )
        if self.output == "heads":
            if (
                self.offsets
                or self.arguments.n_out != len(self.heads)
                or len(set(self.heads)) != len(self.heads)
            ):
                raise ValueError(
                    f"a model of heads {list(self.heads)} needs as many outputs, each head once, and no offsets; got "
                    f"{self.arguments.n_out} outputs and {len(self.offsets)} offsets"
                )
            return self
        if (self.output == "object") != (self.architecture == "ffn"):
            raise ValueError(
                f"a network of architecture {self.architecture!r} does not predict {self.output!r}: output "
                "'object' and architecture 'ffn' go together"
            )
        if self.output in ("boundaries", "object"):
            if self.offsets or self.arguments.n_out != 1:
                raise ValueError(
                    f"a model of {self.output} has one output and no offsets, got {self.arguments.n_out} and "
                    f"{len(self.offsets)}"
                )
            return self
        if len(self.offsets) != self.arguments.n_out:
            raise ValueError(
                f"{len(self.offsets)} offsets, but the network has {self.arguments.n_out} outputs"
            )
        return self

    @model_validator(mode="after")
    def _patch_fits_network(self) -> Self:
        for axis, patch, multiple in zip("xyz", self.patch_shape, self.arguments.multiple, strict=True):
            if patch % multiple:
                raise ValueError(
                    f"patch_shape on {axis} is {patch}, which is no multiple of the network's {multiple}"
                )
        return self

    @model_validator(mode="after")
    def _rims_leave_something(self) -> Self:
        for axis, patch, context, blend in zip(
            "xyz", self.patch_shape, self.context, self.blend, strict=True
        ):
            if patch - 2 * (context + blend) < 1:
                raise ValueError(f"context {context} and blend {blend} on {axis} use up the patch of {patch}")
        return self

    def check_voxel_size(self, voxel_size_nm: tuple[float, float, float], *, uri: str) -> None:
        """Refuse an image whose voxels differ by more than the tolerance.

        Raises
        ------
        ModelError
            With both sizes and what to do.
        """
        for axis, image, model in zip("xyz", voxel_size_nm, self.voxel_size_nm, strict=True):
            if abs(image / model - 1.0) > self.voxel_size_tolerance + 1e-9:
                raise ModelError(
                    f"model {self.name!r} was trained on voxels of {_nm(self.voxel_size_nm)} nm and tolerates "
                    f"{self.voxel_size_tolerance:.0%}, but {uri} has {_nm(voxel_size_nm)} nm (differs on {axis}); "
                    "use another scale of the image, resample it, or train a model for this voxel size"
                )

    def select(self, offsets: tuple[XYZ, ...]) -> tuple[int, ...]:
        """Return the output channels of ``offsets``; of others, which have none, all channels.

        Raises
        ------
        ModelError
            If the model does not predict one of them.
        """
        if self.output != "affinities":
            if offsets:
                raise ModelError(
                    f"model {self.name!r} predicts {self.output}, not affinities: run it in a stage of kind "
                    f"{_STAGE_OF[self.output]!r}"
                )
            return tuple(range(self.arguments.n_out))
        if not offsets:
            raise ModelError(
                f"model {self.name!r} predicts affinities, not boundaries: run it in a stage of kind 'affinities'"
            )
        missing = [o for o in offsets if o not in self.offsets]
        if missing:
            raise ModelError(
                f"model {self.name!r} predicts no affinity of offset {missing[0]}; it has {list(self.offsets)}"
            )
        return tuple(self.offsets.index(o) for o in offsets)


class ModelSpec(ModelDescription):
    """The content of ``model.json``: the description, and the digest of the weights."""

    weights: Weights


def zoo() -> tuple[str, ...]:
    """Return the names of the models that come with cloudseg."""
    folder = importlib.resources.files("cloudseg.models") / "zoo"
    return tuple(sorted(f.name for f in folder.iterdir() if f.is_dir() and (f / SPEC_NAME).is_file()))


def load_spec(uri: str, *, objects: OpenObjects = open_objects) -> ModelSpec:
    """Read what a model is: ``uri`` is a folder, a bucket address, or a name of :func:`zoo`.

    Raises
    ------
    NotFoundError
        If there is no package.
    ModelError
        If ``model.json`` is malformed; each offending key is named.
    """
    data = _fetch(uri, SPEC_NAME, objects=objects)
    try:
        return ModelSpec.load(data, where=f"{uri}/{SPEC_NAME}")
    except ModelError:
        raise
    except SpecError as error:
        raise ModelError(str(error)) from error


def load_weights(
    uri: str, spec: ModelSpec, *, objects: OpenObjects = open_objects
) -> dict[str, npt.NDArray[Any]]:
    """Read the weights and check their digest.

    Raises
    ------
    ModelError
        If the file is not the one that ``model.json`` describes.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = _fetch(uri, spec.weights.file, objects=objects)
    digest = hashlib.sha256(data).hexdigest()
    if digest != spec.weights.sha256:
        raise ModelError(
            f"{uri}/{spec.weights.file} has sha256 {digest[:12]}..., but {SPEC_NAME} says "
            f"{spec.weights.sha256[:12]}...: the file is damaged or belongs to another model; fetch the package again"
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise ModelError(f"{uri}/{spec.weights.file} is no safetensors file: {error}") from error


def save_package(
    uri: str,
    description: ModelDescription,
    weights: Mapping[str, npt.NDArray[Any]],
    *,
    objects: OpenObjects = open_objects,
) -> ModelSpec:
    """Write a model package; ``model.json`` last, so that a package is whole or absent.

    Parameters
    ----------
    uri
        Folder or bucket address; an existing package is replaced.
    description
        Everything but the digest.
    weights
        Arrays by parameter name.
    objects
        How an address becomes an object folder.
    """
    from safetensors.numpy import save

    data = save({name: np.array(array, order="C") for name, array in weights.items()})
    n_parameters = sum(int(a.size) for a in weights.values())
    spec = ModelSpec(
        **{name: getattr(description, name) for name in ModelDescription.model_fields},
        weights=Weights(sha256=hashlib.sha256(data).hexdigest(), n_parameters=n_parameters),
    )
    folder = objects(uri)
    folder.delete(SPEC_NAME)
    folder.put(WEIGHTS_NAME, data)
    folder.put(SPEC_NAME, (json.dumps(spec.model_dump(mode="json"), indent=1) + "\n").encode())
    return spec


def _fetch(uri: str, name: str, *, objects: OpenObjects) -> bytes:
    if "/" not in uri and "://" not in uri and not Path(uri).exists():
        if uri not in zoo():
            raise NotFoundError(
                f"there is no model {uri!r}: cloudseg comes with {', '.join(zoo()) or 'none'}; "
                f"give one of these names, or the address of a folder with {SPEC_NAME}"
            )
        return (importlib.resources.files("cloudseg.models") / "zoo" / uri / name).read_bytes()
    try:
        return objects(uri).get(name)
    except NotFoundError as error:
        raise NotFoundError(f"{uri} is no model package: it has no {name}") from error


def _nm(size: tuple[float, float, float]) -> str:
    return " x ".join(f"{s:g}" for s in size)

"""A training run as typed settings: which volumes, which network, how long."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.geometry import XYZ
from cloudseg.models.arguments import NetworkChoice
from cloudseg.models.package import Accuracy, Head, ModelDescription, Natural3, Normalisation, Provenance
from cloudseg.ops.affinities import NEAREST
from cloudseg.specs import BoxField, FrozenModel, canonical_json
from cloudseg.training.augmentation import Augmentation, ElectronAugmentation
from cloudseg.training.judge import SegmentationSettings
from cloudseg.training.labels import Zero
from cloudseg.training.loss import LossSettings
from cloudseg.training.sampling import SamplingSettings
from cloudseg.training.schedule import LoopOptions
from cloudseg.training.targets import AffinityTarget, BoundaryTarget, ClosedBoundaryTarget, Target
from cloudseg.volumes.protocol import Positive3

_MAIN = (AffinityTarget, BoundaryTarget, ClosedBoundaryTarget)


class LabelledVolume(FrozenModel):
    """An image with labels: ``[[volume]]`` to learn from, ``[[validation]]`` to measure on.

    Attributes
    ----------
    image, labels
        Addresses of two volumes with the same voxels.
    zero
        What label 0 means: ``unknown`` (nothing is learned there), ``membrane`` (no object, every link broken), or
        ``background`` (the outside of the tissue, bounded like an object).
    mip
        Scale of both.
    box
        Part to use, in voxels; None takes all that both hold.
    grey_range
        Values of the image that mean black and white; by default the whole range of its integer type, and 0 to 1 for
        float32.
    weight
        How often it is drawn, relative to the others.
    dense
        False where only single planes are labelled.
    """

    image: str
    labels: str
    zero: Zero = "unknown"
    mip: Annotated[int, Field(ge=0)] = 0
    box: BoxField | None = None
    grey_range: tuple[float, float] | None = None
    weight: PositiveFloat = 1.0
    dense: bool = True

    @model_validator(mode="after")
    def _grey_range_rises(self) -> Self:
        if self.grey_range is not None and self.grey_range[0] >= self.grey_range[1]:
            raise ValueError(f"grey_range must rise from black to white, got {self.grey_range}")
        return self


class PhantomVolumes(FrozenModel):
    """Synthetic volumes with exact truth, ``[[phantom]]``: they teach what real labels leave out.

    Attributes
    ----------
    tissue
        ``neurites`` as electron microscopes show them at 8 nm, or plant-like ``cells`` in light microscopy, at the
        network's voxel size.
    count
        How many; each has a seed of its own, counted up from ``seed``.
    shape
        Edges in voxels.
    weight
        How often each is drawn, relative to the others.
    """

    tissue: Literal["neurites", "cells"] = "neurites"
    count: PositiveInt = 1
    shape: Positive3 = (144, 144, 144)
    seed: int = 1000
    weight: PositiveFloat = 1.0


class NetworkSettings(NetworkChoice):
    """What is trained, and how it will be used; see :class:`cloudseg.models.package.ModelDescription`.

    ``offsets`` are those of the affinities, the nearest neighbours first; a network of boundaries has none. ``heads``
    makes a package of all targets, which are then the heads' kinds in this order.
    """

    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    voxel_size_tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.25
    normalisation: Normalisation = Normalisation(mean=128.0, deviation=33.0)
    offsets: tuple[XYZ, ...] = NEAREST
    heads: tuple[Head, ...] = ()
    patch_shape: Positive3 = (160, 160, 160)
    context: Natural3 = (12, 12, 12)
    blend: Natural3 = (8, 8, 8)


class TrainingConfig(FrozenModel):
    """One training run.

    Attributes
    ----------
    name
        Name of the model.
    output
        Folder or bucket address that receives the model package.
    checkpoint
        Local file that holds the state of the run; it is resumed from if it exists.
    start_from
        Model package whose weights training begins with: a folder, a bucket address, or a name that comes with
        cloudseg; it must have the same architecture. None: random weights.
    licence
        Terms of the weights.
    recipe
        A sentence for the model's provenance.
    patch_shape
        Patch to learn from, in voxels.
    isotropic
        Whether z may be exchanged with x and y.
    mixed_voxel_sizes
        Whether volumes may differ in voxel size (within the network's tolerance).
    validate_every
        Steps between two measurements of the loss on the validation boxes.
    log
        Local folder for the log, pictures, TensorBoard's files and the report; None: beside the checkpoint.
    network
        What is trained.
    schedule
        Steps, learning rate, seed.
    target
        What it is taught, in the order of the network's outputs; none: affinities at the network's offsets. The first
        of kind ``affinities``, ``boundary`` or ``closed_boundary`` is what the model predicts, the others only help it
        to learn.
    loss, sampling, augmentation
        How errors count, which patches are drawn, what is done to them.
    segmentation
        Segment the validation boxes, keep the best weights, stop early; None: only their loss is measured.
    volume, phantom
        What to learn from.
    validation
        What to measure on; never learned from.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    output: Annotated[str, Field(min_length=1)]
    checkpoint: Path
    start_from: str | None = None
    licence: str
    recipe: str = ""
    patch_shape: Positive3 = (80, 80, 80)
    isotropic: bool = True
    mixed_voxel_sizes: bool = False
    validate_every: PositiveInt = 200
    log: Path | None = None
    network: NetworkSettings
    schedule: LoopOptions
    target: tuple[Target, ...] = ()
    loss: LossSettings = LossSettings()
    sampling: SamplingSettings = SamplingSettings()
    augmentation: Augmentation = ElectronAugmentation()
    segmentation: SegmentationSettings | None = None
    volume: tuple[LabelledVolume, ...] = ()
    phantom: tuple[PhantomVolumes, ...] = ()
    validation: tuple[LabelledVolume, ...] = ()

    @model_validator(mode="after")
    def _there_is_something_to_learn_from(self) -> Self:
        if not self.volume and not self.phantom:
            raise ValueError("there is nothing to learn from: add a [[volume]] or a [[phantom]] table")
        return self

    @model_validator(mode="after")
    def _patch_fits_network(self) -> Self:
        for axis, patch, multiple in zip(
            "xyz", self.patch_shape, self.network.arguments.multiple, strict=True
        ):
            if patch % multiple:
                raise ValueError(
                    f"patch_shape on {axis} is {patch}, which is no multiple of the network's {multiple}; "
                    f"take {-(-patch // multiple) * multiple}"
                )
        return self

    @model_validator(mode="after")
    def _z_is_special_where_it_is_longer(self) -> Self:
        size = self.network.voxel_size_nm
        if self.isotropic and max(size) > 1.1 * min(size):
            raise ValueError(
                f"isotropic = true exchanges z with x and y, but the voxels are {size} nm: set isotropic = false"
            )
        return self

    @model_validator(mode="after")
    def _network_can_be_taught_here(self) -> Self:
        if self.network.architecture == "ffn":
            raise ValueError(
                "a flood-filling network (architecture 'ffn') learns while its field of view moves: read its training "
                "file by cloudseg.training.flood.load_flood_training, as cloudseg train does"
            )
        return self

    @model_validator(mode="after")
    def _targets_match_the_network(self) -> Self:
        kinds = tuple(t.kind for t in self.targets)
        if self.network.heads and kinds != self.network.heads:
            raise ValueError(
                f"network.heads {list(self.network.heads)} must be the kinds of the targets, {list(kinds)}"
            )
        if self.network.heads and self.segmentation is not None:
            raise ValueError(
                "[segmentation] judges affinities and boundaries; a network of heads is judged by its loss"
            )
        main = self.main_target  # refuses targets without one
        if isinstance(main, AffinityTarget) and main.offsets[:3] != NEAREST:
            raise ValueError(
                f"the first three offsets must be the nearest neighbours {NEAREST}, got {main.offsets[:3]}"
            )
        n_channels, n_out = sum(t.n_channels for t in self.targets), self.network.arguments.n_out
        if n_channels != n_out:
            told = ", ".join(f"{t.kind} {t.n_channels}" for t in self.targets)
            raise ValueError(
                f"the targets have {n_channels} channels ({told}), but network.arguments.n_out is {n_out}"
            )
        if len(self.targets) > 1 and self.network.architecture == "deepem3d":
            raise ValueError("deepem3d cannot drop outputs again: give it one target only")
        return self

    @model_validator(mode="after")
    def _segmentation_has_something_to_measure(self) -> Self:
        if self.segmentation is not None and not self.validation:
            raise ValueError("[segmentation] measures on validation boxes: add a [[validation]] table")
        return self

    @model_validator(mode="after")
    def _description_is_sound(self) -> Self:
        self.description()
        return self

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the network is taught; affinities without offsets have got those of the network."""
        given = self.target or (AffinityTarget(),)
        return tuple(
            t.model_copy(update={"offsets": self.network.offsets})
            if isinstance(t, AffinityTarget) and not t.offsets
            else t
            for t in given
        )

    @property
    def main_target(self) -> AffinityTarget | BoundaryTarget | ClosedBoundaryTarget | None:
        """What the model package predicts; None: all targets, as heads."""
        if self.network.heads:
            return None
        for target in self.targets:
            if isinstance(target, _MAIN):
                return target
        kinds = ", ".join(t.kind for t in self.targets)
        raise ValueError(
            f"targets of kind {kinds} only help others: add one of kind affinities, boundary or closed_boundary, "
            "or keep them all with network.heads"
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Which outputs of the network the model package keeps."""
        if self.network.heads:
            return tuple(range(len(self.targets)))
        first = 0
        for target in self.targets:
            if isinstance(target, _MAIN):
                return tuple(range(first, first + target.n_channels))
            first += target.n_channels
        raise AssertionError("validated: there is a main target")

    @property
    def log_folder(self) -> Path:
        """Where the log goes."""
        return self.log or self.checkpoint.with_name(self.checkpoint.stem + "_log")

    def description(
        self, *, software: Mapping[str, str] | None = None, accuracy: Iterable[Accuracy] = ()
    ) -> ModelDescription:
        """Return what the model package will say."""
        main = self.main_target
        network = {name: getattr(self.network, name) for name in NetworkSettings.model_fields}
        network["arguments"] = self.network.arguments.model_copy(update={"n_out": len(self.channels)})
        network["offsets"] = main.offsets if isinstance(main, AffinityTarget) else ()
        return ModelDescription(
            name=self.name,
            output="heads"
            if main is None
            else "affinities"
            if isinstance(main, AffinityTarget)
            else "boundaries",
            **network,
            training=Provenance(
                data=tuple(_tell(v) for v in self.volume) + tuple(_tell_phantom(p) for p in self.phantom),
                n_steps=0,
                seed=self.schedule.seed,
                recipe=self.recipe,
                software=dict(software or {}),
            ),
            accuracy=tuple(accuracy),
            licence=self.licence,
        )

    def fingerprint(self) -> str:
        """Return the text of all settings that decide the weights: a checkpoint is resumed only with the same."""
        how = {"name", "output", "checkpoint", "log", "licence", "recipe", "validate_every"}
        if self.segmentation is None:
            how.add("validation")
        settings = self.model_dump(mode="json", exclude=how)
        # These decide where and how often things are done, not what comes out.
        for key in ("checkpoint_every", "device", "n_samplers"):
            settings["schedule"].pop(key)
        for key in ("voxel_size_tolerance", "patch_shape", "context", "blend"):
            settings["network"].pop(key)
        # Later additions, left out where they say nothing: checkpoints from before them go on.
        if not settings["network"]["heads"]:
            settings["network"].pop("heads")
        for target in settings["target"]:
            if not target.get("inside", True):
                target.pop("inside")
        return canonical_json(settings)


def load_config(path: Path, *, overrides: Iterable[str] = ()) -> TrainingConfig:
    """Read a training file.

    Parameters
    ----------
    path
        A TOML file.
    overrides
        ``key=value`` texts: dots go down, numbers pick from a list (``volume.0.box=0,0,0:64,64,64``). Values are
        TOML; what is no TOML is text.

    Raises
    ------
    NotFoundError
        If there is no such file.
    SpecError
        If it is no TOML, or a key is unknown, missing or wrong.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no training file {path}; see examples/train_fib25.toml") from error
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from error
    for text in overrides:
        override(data, text)
    return TrainingConfig.load(data, where=str(path))


def override(data: dict[str, Any], text: str) -> None:
    """Apply one ``key=value`` text to the content of a training file, in place."""
    key, equals, raw = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise SpecError(f"--set needs key=value, e.g. schedule.n_steps=2000, got {text!r}")
    table: Any = data
    for part in parts[:-1]:
        table = _step_into(table, part, text=text)
    key = parts[-1]
    _step_into(table, key, text=text)  # refuses what cannot hold the key
    table[int(key) if isinstance(table, list) else key] = _value(raw.strip())


def _step_into(table: Any, part: str, *, text: str) -> Any:
    if isinstance(table, list):
        if not part.isdigit() or int(part) >= len(table):
            raise SpecError(f"--set {text}: {part!r} is no entry of a list of {len(table)}, counted from 0")
        return table[int(part)]
    if not isinstance(table, dict):
        raise SpecError(f"--set {text}: there is nothing below {table!r}")
    return table.setdefault(part, {})


def _value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _tell(volume: LabelledVolume) -> str:
    part = "" if volume.box is None else f", box {volume.box}"
    return f"{volume.image} with {volume.labels}{part}, weight {volume.weight:g}"


def _tell_phantom(phantom: PhantomVolumes) -> str:
    x, y, z = phantom.shape
    return (
        f"{phantom.count} phantom(s) of {phantom.tissue}, {x} x {y} x {z} from seed {phantom.seed}, "
        f"weight {phantom.weight:g} each"
    )

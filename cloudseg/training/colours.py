"""Teaching a network to carry colours to the next section: the same voxels, recoloured at random each time.

Meirovitch et al. 2019 (3C, arXiv 1812.01157). An example is two sections (and their neighbours), the true objects of
the first in random colours, and what colour each pixel of the second has. Some objects lose their colour: the network
learns that what has no colour before has none after.
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from cloudseg.errors import ConflictError, SpecError
from cloudseg.geometry import XYZ
from cloudseg.models.package import SPEC_NAME, Normalisation, OpenObjects, Provenance
from cloudseg.models.tracker import TrackerArguments, TrackerDescription, TrackerSpec, order_of, save_tracker
from cloudseg.specs import FrozenModel, canonical_json
from cloudseg.training.augmentation import Augmentation, ElectronAugmentation
from cloudseg.training.blocks import OpenVolume, check_apart, corners_of, load_block
from cloudseg.training.checkpoint import averaged_weights, read_checkpoint
from cloudseg.training.config import LabelledVolume, override
from cloudseg.training.history import History, Progress
from cloudseg.training.labels import FIRST_OBJECT, UNKNOWN, Ids
from cloudseg.training.loop import Watch, train
from cloudseg.training.loss import Loss, LossSettings
from cloudseg.training.sampling import LabelledBlock, Sample, Sampler, SamplingSettings
from cloudseg.training.schedule import LoopOptions
from cloudseg.training.targets import boundary_of
from cloudseg.volumes import open_objects
from cloudseg.volumes import open_volume as open_any_volume


class TrackerTraining(FrozenModel):
    """A training file with a ``[tracker]`` table.

    Attributes
    ----------
    name, output, checkpoint, licence, recipe
        As in any training file.
    tracker
        What the network is built from.
    voxel_size_nm, normalisation
        Of the images.
    patch_px
        Edges of a patch within a section.
    forget, stain, stain_px
        Share of the objects that lose their colour; how many faults a patch of colours has, on average, and the
        largest radius of one. A fault is a disc that a neighbour, or nothing, has taken: the network learns to mend
        what the tracks got wrong.
    schedule, augmentation, sampling
        As in any training file.
    volume, validation
        What to learn from, and what to measure the loss on.
    validate_every
        Steps between two measurements.
    """

    name: str
    output: str
    checkpoint: Path
    licence: str
    recipe: str = ""
    tracker: TrackerArguments
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    normalisation: Normalisation
    patch_px: tuple[PositiveInt, PositiveInt] = (128, 128)
    forget: Annotated[float, Field(ge=0, lt=1)] = 0.1
    stain: NonNegativeFloat = 0.0
    stain_px: PositiveInt = 8
    schedule: LoopOptions
    augmentation: Augmentation = Field(default_factory=lambda: ElectronAugmentation(missing_section=0.0))
    sampling: SamplingSettings = SamplingSettings()
    volume: Annotated[tuple[LabelledVolume, ...], Field(min_length=1)]
    validation: tuple[LabelledVolume, ...] = ()
    validate_every: PositiveInt = 200

    @model_validator(mode="after")
    def _patch_fits_network(self) -> Self:
        for axis, edge in zip("xy", self.patch_px, strict=True):
            if edge % self.tracker.multiple:
                raise ValueError(
                    f"patch_px on {axis} is {edge}, which is no multiple of the network's {self.tracker.multiple}"
                )
        return self

    def fingerprint(self) -> str:
        """Return the text of all settings that decide the weights."""
        how = {"name", "output", "checkpoint", "licence", "recipe", "validate_every", "validation"}
        settings = self.model_dump(mode="json", exclude=how)
        for key in ("checkpoint_every", "device", "n_samplers"):
            settings["schedule"].pop(key)
        return canonical_json(settings)

    def description(self) -> TrackerDescription:
        """Return what the package will say."""
        data = tuple(f"{v.image} with {v.labels}, box {v.box or 'all'}" for v in self.volume)
        return TrackerDescription(
            name=self.name,
            arguments=self.tracker,
            voxel_size_nm=self.voxel_size_nm,
            normalisation=self.normalisation,
            training=Provenance(
                data=data,
                n_steps=0,
                seed=self.schedule.seed,
                recipe=self.recipe,
                software={n: importlib.metadata.version(n) for n in ("cloudseg", "torch", "numpy")},
            ),
            licence=self.licence,
        )


@dataclass(frozen=True)
class ColourSampler(Sampler):
    """Draws pairs of sections with the objects of the first in random colours.

    Parameters
    ----------
    n_colours, around
        See :class:`cloudseg.models.tracker.TrackerArguments`.
    forget, stain, stain_px
        See :class:`TrackerTraining`.
    """

    n_colours: int = 4
    around: int = 0
    forget: float = 0.1
    stain: float = 0.0
    stain_px: int = 8

    def draw(self, rng: np.random.Generator) -> Sample:
        """Return one random example: ``(n_in, x, y, 1)`` grey levels and colours, ``(n_out, x, y, 1)`` colours."""
        return self._coloured(super().draw(rng), rng)

    def plain(self, block: LabelledBlock, corner: XYZ) -> Sample:
        """Return the example at ``corner`` without augmentation, in colours that the corner decides."""
        return self._coloured(super().plain(block, corner), np.random.default_rng(corner))

    def _sample(
        self, image: np.ndarray[Any, Any], ids: Ids, block: LabelledBlock, corner: XYZ, shape: XYZ
    ) -> Sample:
        where = f"{block.name}, patch of {shape} at {corner}"
        return Sample(np.ascontiguousarray(image)[None], ids[None], (ids != UNKNOWN)[None], where)

    def _coloured(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image, ids = sample.image[0], sample.targets[0]
        before, after = self.around, self.around + 1
        first, second = recolour(ids[:, :, before], ids[:, :, after], rng, self.n_colours, self.forget)
        first = stained(first, rng, n=rng.poisson(self.stain), largest_px=self.stain_px)
        grey = np.moveaxis(image[:, :, order_of(before, after, around=self.around)], -1, 0)
        colours = np.arange(self.n_colours)[:, None, None]
        # Where no colour continues the target is the last channel.
        wanted = np.where(second < 0, self.n_colours, second)
        known = np.broadcast_to(sample.known[0][:, :, after], (self.n_colours + 1, *wanted.shape))
        return Sample(
            np.concatenate([grey, first == colours])[..., None].astype(np.float32),
            (wanted == np.arange(self.n_colours + 1)[:, None, None])[..., None],
            np.ascontiguousarray(known)[..., None],
            sample.where,
        )


def recolour(
    before: Ids, after: Ids, rng: np.random.Generator, n_colours: int, forget: float
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the colours of two sections, -1 for none: the same random colour for an object in both.

    Parameters
    ----------
    before, after
        ``(x, y)`` ids of :mod:`cloudseg.training.labels`. Membranes, and the pixels where two objects meet, have no
        colour; neither has an object that was not there before.
    rng, n_colours, forget
        Where chance comes from; how many colours; share of the objects that lose theirs.
    """
    names = np.unique(before[before >= FIRST_OBJECT])
    colour = rng.integers(0, n_colours, len(names))
    colour[rng.random(len(names)) < forget] = -1
    painted = []
    for ids in (before, after):
        place = np.searchsorted(names, ids)
        place[place == len(names)] = 0
        seen = names[place] == ids if len(names) else np.zeros(ids.shape, np.bool_)
        seen &= ~boundary_of(ids[:, :, None], mode="thick", planar=True)[:, :, 0]
        painted.append(np.where(seen, colour[place] if len(names) else -1, -1))
    return painted[0], painted[1]


def stained(
    colours: np.ndarray[Any, Any], rng: np.random.Generator, *, n: int, largest_px: int
) -> np.ndarray[Any, Any]:
    """Return ``(x, y)`` colours with ``n`` discs that have the colour of their centre, or none.

    Parameters
    ----------
    colours
        -1: none.
    rng, n, largest_px
        Where chance comes from; how many discs; the largest radius.
    """
    out = colours.copy()
    for _ in range(n):
        x, y = (int(rng.integers(edge)) for edge in colours.shape)
        radius = rng.uniform(1.0, largest_px)
        reach = int(radius)
        low = (max(x - reach, 0), max(y - reach, 0))
        part = out[low[0] : x + reach + 1, low[1] : y + reach + 1]
        i, j = np.ogrid[: part.shape[0], : part.shape[1]]
        disc = (i + low[0] - x) ** 2 + (j + low[1] - y) ** 2 <= radius**2
        part[disc] = -1 if rng.random() < 0.3 else colours[x, y]
    return out


@dataclass(frozen=True)
class ColourLoss(Loss):
    """Cross-entropy over the colours."""

    def __call__(self, logits: Tensor | Sequence[Tensor], values: Tensor, known: Tensor) -> Tensor:
        """Return the mean over the known pixels of ``(b, n_out, x, y, 1)``."""
        if not isinstance(logits, Tensor):
            return torch.stack([self(one, values, known) for one in logits]).mean()
        loss = -(values.float() * torch.log_softmax(logits.float(), dim=1)).sum(1)
        weight = known[:, 0].float()
        return (loss * weight).sum() / weight.sum().clamp(min=1.0)


def load_tracker_training(path: Path, *, overrides: Iterable[str] = ()) -> TrackerTraining | None:
    """Read a training file; None if it has no ``[tracker]`` table, or is not there."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return None  # whoever reads training files of other networks says what is wrong
    if "tracker" not in data:
        return None
    for text in overrides:
        override(data, text)
    return TrackerTraining.load(data, where=str(path))


def make_colour_sampler(config: TrackerTraining, blocks: list[LabelledBlock]) -> ColourSampler:
    """Return what draws the examples of a run."""
    return ColourSampler(
        blocks=blocks,
        patch_shape=(*config.patch_px, config.tracker.n_sections),
        targets=(),
        mean=config.normalisation.mean,
        deviation=config.normalisation.deviation,
        voxel_size_nm=config.voxel_size_nm,
        isotropic=False,
        augmentation=config.augmentation,
        settings=config.sampling,
        n_colours=config.tracker.n_colours,
        around=config.tracker.around,
        forget=config.forget,
        stain=config.stain,
        stain_px=config.stain_px,
    )


def fit_tracker(
    config: TrackerTraining,
    *,
    report: Callable[[Progress], None],
    open_volume: OpenVolume = open_any_volume,
    objects: OpenObjects = open_objects,
) -> TrackerSpec:
    """Train, or go on training from the checkpoint, then write the package.

    Raises
    ------
    ConflictError
        If the output holds a package that this run did not begin, or the checkpoint is of another run.
    SpecError
        If the data do not fit, or the loss runs away.
    """
    if not config.checkpoint.exists() and objects(config.output).exists(SPEC_NAME):
        raise ConflictError(
            f"{config.output} holds a model package already, and there is no checkpoint {config.checkpoint} to go on "
            "from; give another output, or delete the package"
        )
    description = config.description()
    blocks = [load_block(v, description=description, open_volume=open_volume) for v in config.volume]
    held_back = [load_block(v, description=description, open_volume=open_volume) for v in config.validation]
    check_apart(
        list(zip(config.volume, blocks, strict=True)), list(zip(config.validation, held_back, strict=True))
    )
    for block in blocks:
        if block.ids.shape[2] < config.tracker.n_sections:
            raise SpecError(
                f"{block.name} has {block.ids.shape[2]} section(s), and the network sees {config.tracker.n_sections}; "
                "widen the box"
            )
    sampler, loss = make_colour_sampler(config, blocks), ColourLoss((), LossSettings())
    torch.manual_seed(config.schedule.seed)
    network = config.tracker.build()
    config.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    first_step = read_checkpoint(config.checkpoint)["step"] if config.checkpoint.exists() else 0
    history = History(config.checkpoint.with_name(config.checkpoint.stem + "_log"), first_step=first_step)

    def write_down(progress: Progress) -> None:
        history.add(progress)
        report(progress)

    try:
        train(
            network,
            sampler,
            config.schedule,
            loss=loss,
            checkpoint=config.checkpoint,
            report=write_down,
            watch=Watch(_validation(held_back, sampler, loss) if held_back else None, config.validate_every),
            fingerprint=config.fingerprint(),
        )
    finally:
        history.close()
    state = read_checkpoint(config.checkpoint)
    training = description.training.model_copy(update={"n_steps": int(state["step"])})
    return save_tracker(
        config.output,
        description.model_copy(update={"training": training}),
        averaged_weights(state),
        objects=objects,
    )


def _validation(
    blocks: list[LabelledBlock], sampler: ColourSampler, loss: ColourLoss
) -> Callable[[nn.Module], float]:
    """Return a function that measures the mean loss over the patches of ``blocks``, without augmentation."""
    places = [(block, corner) for block in blocks for corner in corners_of(block, sampler.patch_shape)]

    def measure(network: nn.Module) -> float:
        device, losses = next(network.parameters()).device, []
        with torch.inference_mode():
            for block, corner in places:
                example = sampler.plain(block, corner)
                image, values, known = (
                    torch.from_numpy(a[None]).to(device)
                    for a in (example.image, example.targets, example.known)
                )
                losses.append(float(loss(network(image), values, known)))
        return float(np.mean(losses))

    return measure

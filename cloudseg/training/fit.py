"""A training run from its settings to the model package and the report."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib import metadata

import numpy as np
import torch
from torch import nn

from cloudseg.errors import ConflictError, SpecError
from cloudseg.models.layers import VoxelNetwork
from cloudseg.models.package import (
    SPEC_NAME,
    Accuracy,
    ModelDescription,
    ModelSpec,
    OpenObjects,
    load_spec,
    load_weights,
)
from cloudseg.models.predict import pick_precision, set_weights
from cloudseg.models.registry import ARCHITECTURES
from cloudseg.training.blocks import (
    MakePhantom,
    OpenVolume,
    check_apart,
    check_same_voxels,
    check_scorable,
    corners_of,
    load_block,
    phantom_blocks,
)
from cloudseg.training.checkpoint import read_checkpoint
from cloudseg.training.config import TrainingConfig
from cloudseg.training.convert import package_checkpoint
from cloudseg.training.crew import Crew
from cloudseg.training.history import History, Progress
from cloudseg.training.judge import Verdict, judge
from cloudseg.training.loop import Watch, train
from cloudseg.training.loss import Loss
from cloudseg.training.report import write_report
from cloudseg.training.sampling import LabelledBlock, Sampler
from cloudseg.volumes import open_objects
from cloudseg.volumes import open_volume as open_any_volume


def fit(
    config: TrainingConfig,
    *,
    make_phantom: MakePhantom,
    report: Callable[[Progress], None],
    open_volume: OpenVolume = open_any_volume,
    objects: OpenObjects = open_objects,
    crew: Crew | None = None,
) -> ModelSpec | None:
    """Train, or go on training from the checkpoint, then write the model package and the report.

    Parameters
    ----------
    config
        The run.
    make_phantom
        How ``[[phantom]]`` volumes are made.
    report
        Called after each step.
    open_volume, objects
        How addresses become volumes and folders.
    crew
        The processes that train together; None: those that ``torchrun`` started, or this one alone.

    Returns
    -------
    What the package says; None in all processes but the first.

    Raises
    ------
    ConflictError
        If the output holds a package that this run did not begin, or the checkpoint is of another run.
    ModelError
        If the weights to start from belong to another architecture.
    SpecError
        If the data do not fit, the loss runs away, or memory runs out.
    """
    _check_output(config, objects)
    description = config.description(software=_software())
    blocks = [load_block(v, description=description, open_volume=open_volume) for v in config.volume]
    held_back = [load_block(v, description=description, open_volume=open_volume) for v in config.validation]
    check_apart(
        list(zip(config.volume, blocks, strict=True)), list(zip(config.validation, held_back, strict=True))
    )
    if config.segmentation is not None:
        check_scorable(held_back)
    for phantom in config.phantom:
        size = config.network.voxel_size_nm
        blocks.extend(phantom_blocks(phantom, voxel_size_nm=size, make_phantom=make_phantom))
    if not config.mixed_voxel_sizes:
        check_same_voxels((*config.volume, *config.validation), open_volume=open_volume)
    sampler = make_sampler(config, blocks)
    for block in blocks:  # refused now, not by chance after an hour
        sampler.draw_corner(block, config.patch_shape, np.random.default_rng(0))
    crew = crew or Crew.join(config.schedule.device)
    torch.manual_seed(config.schedule.seed)
    network = ARCHITECTURES[config.network.architecture](**config.network.arguments.model_dump())
    if config.start_from is not None:
        _start_from(network, config, objects)
    config.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    loss = Loss(config.targets, config.loss)
    watch = Watch(
        _validation(held_back, sampler, loss) if held_back else None,
        config.validate_every,
        _judge(held_back, config, description, crew) if config.segmentation else None,
        config.segmentation.every if config.segmentation else config.schedule.n_steps,
        config.segmentation.patience if config.segmentation else None,
    )
    first_step = read_checkpoint(config.checkpoint)["step"] if config.checkpoint.exists() else 0
    history = History(config.log_folder, first_step=first_step) if crew.is_first else None

    def write_down(progress: Progress) -> None:
        if history is not None:
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
            watch=watch,
            crew=crew,
            fingerprint=config.fingerprint(),
        )
    finally:
        if history is not None:
            history.close()
        crew.part()
    if not crew.is_first:
        return None
    spec = _package(config, objects)
    write_report(config, spec, sampler, config.log_folder)
    return spec


def make_sampler(config: TrainingConfig, blocks: list[LabelledBlock]) -> Sampler:
    """Return what draws the examples of a run."""
    return Sampler(
        blocks=blocks,
        patch_shape=config.patch_shape,
        targets=config.targets,
        mean=config.network.normalisation.mean,
        deviation=config.network.normalisation.deviation,
        voxel_size_nm=config.network.voxel_size_nm,
        isotropic=config.isotropic,
        augmentation=config.augmentation,
        settings=config.sampling,
    )


def _start_from(network: VoxelNetwork, config: TrainingConfig, objects: OpenObjects) -> None:
    assert config.start_from is not None
    spec = load_spec(config.start_from, objects=objects)
    set_weights(network, load_weights(config.start_from, spec, objects=objects), where=config.start_from)


def _validation(blocks: list[LabelledBlock], sampler: Sampler, loss: Loss) -> Callable[[nn.Module], float]:
    """Return a function that measures the mean loss over the patches of ``blocks``, without augmentation."""
    places = [(block, corner) for block in blocks for corner in corners_of(block, sampler.patch_shape)]
    if not places:
        raise SpecError("no patch of the validation boxes is labelled; widen the boxes")

    def measure(network: nn.Module) -> float:
        device = next(network.parameters()).device
        losses = []
        with torch.inference_mode():
            for block, corner in places:
                example = sampler.plain(block, corner)
                image, targets, known = (
                    torch.from_numpy(np.ascontiguousarray(a)[None]).to(device)
                    for a in (example.image, example.targets, example.known)
                )
                losses.append(float(loss(network(image), targets, known)))
        return float(np.mean(losses))

    return measure


def _judge(
    blocks: list[LabelledBlock], config: TrainingConfig, description: ModelDescription, crew: Crew
) -> Callable[[nn.Module], Verdict]:
    settings = config.segmentation
    assert settings is not None
    precision = pick_precision(config.schedule.precision, device=crew.kind)

    def measure(network: nn.Module) -> Verdict:
        assert isinstance(network, VoxelNetwork)
        return judge(
            network,
            description,
            blocks,
            settings,
            channels=config.channels,
            device=crew.kind,
            precision=precision,
        )

    return measure


def _package(config: TrainingConfig, objects: OpenObjects) -> ModelSpec:
    """Write the package, with what was measured."""
    best = read_checkpoint(config.checkpoint).get("best", {})
    settings = config.segmentation
    accuracy = []
    if settings is not None and settings.keep == "best" and best:
        how = (
            f"validation boxes segmented at threshold {best['threshold']:g}, the best of "
            f"{len(settings.thresholds)} tried there; these boxes also chose the weights"
        )
        data = "; ".join(f"{v.labels}, box {v.box or 'all'}" for v in config.validation)
        accuracy.append(Accuracy(data=data, metric=settings.metric, value=best["score"], how=how))
    return package_checkpoint(
        config.checkpoint,
        config.description(software=_software(), accuracy=accuracy),
        config.output,
        trained=config.network,
        channels=config.channels,
        best=settings is not None and settings.keep == "best",
        objects=objects,
    )


def _check_output(config: TrainingConfig, objects: OpenObjects) -> None:
    if not config.checkpoint.exists() and objects(config.output).exists(SPEC_NAME):
        raise ConflictError(
            f"{config.output} holds a model package already, and there is no checkpoint {config.checkpoint} to go on "
            "from; give another output, or delete the package"
        )


def _software() -> dict[str, str]:
    return {
        "cloudseg": metadata.version("cloudseg"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }

"""A training run from its settings to the model package."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib import metadata

import numpy as np
import torch
from torch import nn

from cloudseg.errors import ConflictError, SpecError
from cloudseg.models.package import SPEC_NAME, ModelSpec, OpenObjects, load_spec, load_weights
from cloudseg.models.predict import set_weights
from cloudseg.models.registry import build_network
from cloudseg.training.blocks import MakePhantom, OpenVolume, load_block, patches_of, phantom_blocks
from cloudseg.training.config import TrainingConfig
from cloudseg.training.convert import package_checkpoint
from cloudseg.training.loop import Progress, train
from cloudseg.training.loss import balanced_bce
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
) -> ModelSpec:
    """Train, or go on training from the checkpoint, then write the model package.

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

    Returns
    -------
    What the package says.

    Raises
    ------
    ConflictError
        If the output holds a package that this run did not begin, or the checkpoint is of another run.
    ModelError
        If the weights to start from belong to another architecture.
    SpecError
        If the data do not fit, or the loss runs away.
    """
    _check_output(config, objects)
    description = config.description(software=_software())
    blocks = [load_block(v, description=description, open_volume=open_volume) for v in config.volume]
    for phantom in config.phantom:
        blocks.extend(phantom_blocks(phantom, make_phantom=make_phantom))
    held_back = [load_block(v, description=description, open_volume=open_volume) for v in config.validation]
    sampler = Sampler(
        blocks=blocks,
        patch_shape=config.patch_shape,
        offsets=config.network.offsets,
        mean=config.network.normalisation.mean,
        deviation=config.network.normalisation.deviation,
        isotropic=config.isotropic,
    )
    config.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.schedule.seed)
    network = build_network(description)
    if config.start_from is not None:
        known = load_weights(
            config.start_from, load_spec(config.start_from, objects=objects), objects=objects
        )
        set_weights(network, known, where=config.start_from)
    train(
        network,
        sampler,
        config.schedule,
        checkpoint=config.checkpoint,
        report=report,
        validate=_validation(held_back, sampler) if held_back else None,
        validate_every=config.validate_every,
        fingerprint=config.fingerprint(),
    )
    return package_checkpoint(config.checkpoint, description, config.output, objects=objects)


def _validation(blocks: list[LabelledBlock], sampler: Sampler) -> Callable[[nn.Module], float]:
    """Return a function that measures the mean loss over the patches of ``blocks``, without augmentation."""
    examples = [
        sampler.plain(image, labels)
        for block in blocks
        for image, labels in patches_of(block, sampler.patch_shape)
    ]
    if not examples:
        raise SpecError("no patch of the validation boxes is labelled; widen the boxes")

    def measure(network: nn.Module) -> float:
        device = next(network.parameters()).device
        losses = []
        with torch.inference_mode():
            for example in examples:
                image, targets, known = (
                    torch.from_numpy(a[None]).to(device)
                    for a in (example.image, example.targets, example.known)
                )
                losses.append(float(balanced_bce(network(image), targets.float(), known.float())))
        return float(np.mean(losses))

    return measure


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

"""From a training checkpoint to a model package: the running average of the weights, no pickle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cloudseg.models.arguments import NetworkChoice
from cloudseg.models.package import ModelDescription, ModelSpec, OpenObjects
from cloudseg.models.predict import save_model, set_weights
from cloudseg.models.registry import ARCHITECTURES
from cloudseg.training.checkpoint import averaged_weights, read_checkpoint
from cloudseg.volumes import open_objects


def package_checkpoint(
    checkpoint: Path,
    description: ModelDescription,
    uri: str,
    *,
    trained: NetworkChoice | None = None,
    channels: Sequence[int] = (),
    best: bool = False,
    objects: OpenObjects = open_objects,
) -> ModelSpec:
    """Write the averaged weights of ``checkpoint`` as a model package at ``uri``.

    The number of steps in the provenance is taken from the checkpoint.

    Parameters
    ----------
    checkpoint
        What :func:`cloudseg.training.loop.train` left.
    description
        What the package says.
    uri
        Folder or bucket address.
    trained, channels
        The network as it was trained and which of its outputs are kept, if there are others.
    best
        Take the weights that measured best instead of the last.
    objects
        How an address becomes an object folder.

    Raises
    ------
    ModelError
        If the weights do not belong to the described architecture.
    """
    state = read_checkpoint(checkpoint)
    choice = trained or description
    network = ARCHITECTURES[choice.architecture](**choice.arguments.model_dump())
    set_weights(network, averaged_weights(state, best=best), where=str(checkpoint))
    if channels and len(channels) < network.n_out:
        network.keep_outputs(list(channels))
    found = state["best"] if best and state.get("best") else {}
    training = description.training.model_copy(update={"n_steps": int(found.get("step", state["step"]))})
    return save_model(uri, description.model_copy(update={"training": training}), network, objects=objects)

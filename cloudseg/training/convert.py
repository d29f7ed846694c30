"""From a training checkpoint to a model package: the running average of the weights, no pickle."""

from __future__ import annotations

from pathlib import Path

from cloudseg.models.package import ModelDescription, ModelSpec, OpenObjects
from cloudseg.models.predict import save_model, set_weights
from cloudseg.models.registry import build_network
from cloudseg.training.checkpoint import averaged_weights, read_checkpoint
from cloudseg.volumes import open_objects


def package_checkpoint(
    checkpoint: Path, description: ModelDescription, uri: str, *, objects: OpenObjects = open_objects
) -> ModelSpec:
    """Write the averaged weights of ``checkpoint`` as a model package at ``uri``.

    The number of steps in the provenance is taken from the checkpoint.

    Raises
    ------
    ModelError
        If the weights do not belong to the described architecture.
    """
    state = read_checkpoint(checkpoint)
    network = build_network(description)
    set_weights(network, averaged_weights(state), where=str(checkpoint))
    training = description.training.model_copy(update={"n_steps": int(state["step"])})
    return save_model(uri, description.model_copy(update={"training": training}), network, objects=objects)

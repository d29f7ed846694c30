"""Which architectures a model package may name, and how each is built."""

from __future__ import annotations

from cloudseg.models.package import ModelDescription
from cloudseg.models.unet import ResidualUNet


def build_network(description: ModelDescription) -> ResidualUNet:
    """Return the network that ``description`` names, with fresh random weights."""
    # One architecture so far; model.json admits no other name (ModelDescription.architecture).
    return ResidualUNet(**description.arguments.model_dump())

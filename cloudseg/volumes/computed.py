"""Volumes that are computed when they are read: which address scheme is whose."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from cloudseg.volumes.addresses import Address
from cloudseg.volumes.objects import VersionedObjects
from cloudseg.volumes.protocol import Volume

# By name, so that reading a bucket imports no generator.
MAKERS = {"phantom-brain": "cloudseg.testing.phantom_brain.door"}


class Maker(Protocol):
    """A module that answers for a scheme."""

    def open_computed(self, address: Address, *, mip: int) -> Volume:
        """Return scale ``mip`` of the volume."""
        ...

    def computed_objects(self, address: Address) -> VersionedObjects:
        """Return the info file and the chunks of the volume, as a bucket would have them."""
        ...


def is_computed(address: Address) -> bool:
    """Whether nothing is stored at an address."""
    return address.scheme in MAKERS


def maker_of(address: Address) -> Maker:
    """Return what makes the voxels of an address."""
    return cast("Maker", importlib.import_module(MAKERS[address.scheme]))

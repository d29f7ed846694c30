"""A network for a task: the one that the worker's tasks share, or one of its own."""

from __future__ import annotations

from typing import Literal

from cloudseg.models.network import Network
from cloudseg.models.package import OpenObjects
from cloudseg.models.shared import SharedNetwork


def open_network(
    uri: str,
    *,
    shared: str,
    sha256: str,
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["auto", "float32", "bfloat16"],
    objects: OpenObjects,
) -> Network:
    """Return the network of all outputs of a model package that has no offsets.

    Parameters
    ----------
    uri, sha256
        The package, and the digest that its weights must have.
    shared
        Socket of the process that runs networks for all tasks of the worker; empty: the network runs here.
    device, precision
        As in :func:`cloudseg.models.predict.load_model`.
    objects
        How an address becomes an object folder.
    """
    if shared:
        return SharedNetwork(
            shared, uri, offsets=(), device=device, precision=precision, sha256=sha256, objects=objects
        )
    # torch loads here, in the worker: planning does without it.
    from cloudseg.models.predict import load_model

    return load_model(uri, offsets=(), device=device, precision=precision, sha256=sha256, objects=objects)

"""Objects that one caller creates and everybody else finds: claims that a lost answer cannot confuse."""

from __future__ import annotations

import os
import socket
import uuid

from cloudseg.errors import NotFoundError, TransientStorageError
from cloudseg.volumes.objects import Objects


def new_owner() -> str:
    """Return a name that no other caller has: host, process, and something random."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"


def claim(objects: Objects, key: str, data: bytes) -> bool:
    """Create an object unless one exists; True for the one caller whose object it is.

    A bucket's answer to a create can be lost after the create was carried out. The request that is sent
    again then finds an object, our own, and is refused. So what a refusal found is read, and compared.

    Parameters
    ----------
    objects
        Where.
    key
        What is claimed.
    data
        Bytes that no other caller claims with: they hold a name of :func:`new_owner`.

    Raises
    ------
    TransientStorageError
        If it cannot be known just now who has the key. To ask again with the same ``data`` is safe.
    """
    try:
        if objects.put_if_absent(key, data):
            return True
    except TransientStorageError:
        # Perhaps stored, perhaps not. An object there settles it; none there does not, for a request that
        # is still under way may yet be carried out.
        found = _read(objects, key)
        if found is None:
            raise
        return found == data
    return _read(objects, key) == data


def _read(objects: Objects, key: str) -> bytes | None:
    try:
        return objects.get(key)
    except NotFoundError:  # removed since
        return None

"""From an address to a volume: opening, creating, and listing scales."""

from __future__ import annotations

import os

from cloudseg.errors import SpecError
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.computed import is_computed, maker_of
from cloudseg.volumes.infofile import add_scale, change_info, read_info, scales_of
from cloudseg.volumes.memory import memory_volume
from cloudseg.volumes.protocol import Volume, VolumeInfo


def open_volume(uri: str | os.PathLike[str], *, mip: int = 0) -> Volume:
    """Open one scale of a volume for reading and writing.

    Parameters
    ----------
    uri
        ``memory://name``, ``file:///folder`` (or a local path), ``gs://bucket/folder``,
        ``s3://bucket/folder``, or read-only ``http(s)://``. A prefix ``precomputed://`` is accepted.
        ``phantom-brain://`` addresses are computed: see :mod:`cloudseg.testing.phantom_brain.door`.
    mip
        Which scale: 0 is the finest.

    Raises
    ------
    NotFoundError
        If there is no volume.
    VolumeFormatError
        If its ``info`` is malformed, or it is of a kind that cloudseg does not read.
    SpecError
        If the address is malformed, or has no scale ``mip``.
    """
    address = Address.parse(uri)
    if is_computed(address):
        return maker_of(address).open_computed(address, mip=mip)
    document = read_info(address.uri)
    infos = scales_of(document, uri=address.uri)
    if not 0 <= mip < len(infos):
        raise SpecError(
            f"{address.uri} has no scale {mip}: it has {len(infos)}, numbered from 0 (the finest)"
        )
    if address.scheme == "memory":
        return memory_volume(address.uri, infos[mip], mip=mip)
    from cloudseg.volumes.precomputed import PrecomputedVolume

    return PrecomputedVolume(address, infos[mip], document=document, mip=mip)


def create_volume(uri: str | os.PathLike[str], info: VolumeInfo, *, mip: int = 0) -> Volume:
    """Create a volume, or add a scale to one, by one atomic write of its ``info``; then open it.

    Creating what exists with the same properties does nothing, so any number of processes may do it.

    Parameters
    ----------
    uri
        Where, as for :func:`open_volume`.
    info
        What the scale shall be.
    mip
        Its number. Scales are added in order, each coarser than the one before.

    Raises
    ------
    ConflictError
        If it exists with other properties; each is named.
    VolumeFormatError
        If the format cannot hold such a volume.
    SpecError
        If the address is malformed or read-only, or a finer scale is missing.
    """
    address = Address.parse(uri)
    if address.is_read_only:
        what = "computed when it is read" if is_computed(address) else "a web address, which is read-only"
        raise SpecError(f"{address.uri} is {what}; write to file://, gs:// or s3:// instead")
    if address.scheme != "memory":
        from cloudseg.volumes.precomputed import check_storable

        check_storable(info, uri=address.uri)
    change_info(address.uri, lambda document: add_scale(document, info, mip=mip, uri=address.uri))
    return open_volume(address.uri, mip=mip)


def scales(uri: str | os.PathLike[str]) -> list[VolumeInfo]:
    """Return what each scale of a volume is, finest first; errors as for :func:`open_volume`."""
    address = Address.parse(uri)
    return scales_of(read_info(address.uri), uri=address.uri)

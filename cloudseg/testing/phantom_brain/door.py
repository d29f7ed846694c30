"""``phantom-brain://`` addresses: a brain as a volume that stages read, and as objects that a server hands on.

``phantom-brain://image?seed=3&shape=1000x1000x500`` is the picture; ``labels`` and ``nuclei`` instead of ``image``
are the truth. What follows ``?`` are settings of :class:`~cloudseg.testing.phantom_brain.spec.BrainSpec`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl

import numpy as np

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.geometry import Box
from cloudseg.testing.phantom_brain.brain import PhantomBrain
from cloudseg.testing.phantom_brain.spec import BrainSpec
from cloudseg.volumes.addresses import Address, check_key
from cloudseg.volumes.checks import check_read, chunk_name, chunks_of, new_array
from cloudseg.volumes.infofile import add_scale
from cloudseg.volumes.protocol import Array, VolumeInfo

What = Literal["image", "labels", "nuclei"]
_MOST_SCALES = 8
_LEAST_EDGE = 64


class BrainVolume:
    """One scale of a brain, read-only; see :class:`~cloudseg.volumes.protocol.Volume`.

    Parameters
    ----------
    uri
        Its address.
    brain
        Whose voxels.
    what
        Picture, bodies, or nuclei.
    """

    def __init__(self, uri: str, brain: PhantomBrain, what: What) -> None:
        self._uri = uri
        self._brain = brain
        self._what = what
        self._info = VolumeInfo(
            bounds=brain.spec.bounds,
            voxel_size_nm=brain.spec.voxel_size_nm,
            chunk_shape=tuple(min(64, n) for n in brain.spec.shape),
            dtype="uint8" if what == "image" else "uint64",
            layer="image" if what == "image" else "segmentation",
            encoding="raw",
        )

    @property
    def uri(self) -> str:
        """Where it seems to live."""
        return self._uri

    @property
    def info(self) -> VolumeInfo:
        """What it is."""
        return self._info

    def read(
        self, box: Box, *, fill: int | None = None, missing: Literal["error", "zero"] = "error"
    ) -> Array:
        """Make the voxels of ``box``; none is ever missing."""
        check_read(box, fill=fill, missing=missing, info=self._info, uri=self._uri)
        inside = box.intersect(self._info.bounds)
        make: dict[What, Callable[[Box], Array]] = {
            "image": self._brain.image,
            "labels": self._brain.labels,
            "nuclei": self._brain.nuclei,
        }
        if inside == box:
            return make[self._what](box)
        out = new_array(box, self._info, fill=fill or 0)
        if not inside.is_empty:
            out[inside.slices_in(box)] = make[self._what](inside)
        return out

    def write(self, box: Box, data: Array) -> None:  # noqa: ARG002 - the protocol has them
        """Refuse: what is computed cannot be changed.

        Raises
        ------
        SpecError
            Always.
        """
        raise _read_only(self._uri)


class BrainObjects:
    """The info file and the chunks of a brain, as a bucket with a Precomputed volume would have them."""

    def __init__(self, address: Address) -> None:
        self._address = address

    @property
    def uri(self) -> str:
        """Where it seems to live."""
        return self._address.uri

    def get(self, key: str) -> bytes:
        """Return an object."""
        data, _ = self.get_versioned(key)
        if data is None:
            raise NotFoundError(f"there is no {key!r} in {self.uri}")
        return data

    def get_versioned(self, key: str) -> tuple[bytes | None, bytes]:
        """Return an object (None if there is none) and its version, which never changes."""
        check_key(key, uri=self.uri)
        volumes = _scales(self._address)
        if key == "info":
            document: dict[str, Any] | None = None
            for mip, volume in enumerate(volumes):
                document = add_scale(document, volume.info, mip=mip, uri=self.uri)
            return json.dumps(document, indent=1).encode(), b"1"
        folder, _, name = key.partition("/")
        for volume in volumes:
            if folder != _key_of(volume.info):
                continue
            chunk = _chunk_of(name, volume.info)
            if chunk is not None:
                return np.asfortranarray(volume.read(chunk)).tobytes(order="F"), b"1"
        return None, b""

    def exists(self, key: str) -> bool:
        """Whether an object lies under ``key``."""
        return self.get_versioned(key)[0] is not None

    def list(self, prefix: str = "") -> Iterator[str]:  # noqa: ARG002 - the protocol has it
        """Refuse: a petavoxel has too many chunks to name.

        Raises
        ------
        SpecError
            Always.
        """
        raise SpecError(f"{self.uri} is computed, not stored: it cannot list what it has")

    def put(self, key: str, data: bytes) -> None:  # noqa: ARG002
        """Refuse: what is computed cannot be changed."""
        raise _read_only(self.uri)

    def put_if_absent(self, key: str, data: bytes) -> bool:  # noqa: ARG002
        """Refuse: what is computed cannot be changed."""
        raise _read_only(self.uri)

    def put_if_unchanged(self, key: str, data: bytes, *, version: bytes) -> bool:  # noqa: ARG002
        """Refuse: what is computed cannot be changed."""
        raise _read_only(self.uri)

    def delete(self, key: str) -> None:  # noqa: ARG002
        """Refuse: what is computed cannot be changed."""
        raise _read_only(self.uri)


def open_computed(address: Address, *, mip: int) -> BrainVolume:
    """Return scale ``mip`` of the brain at an address.

    Raises
    ------
    SpecError
        If the address is malformed, or has no such scale.
    """
    volumes = _scales(address)
    if not 0 <= mip < len(volumes):
        raise SpecError(
            f"{address.uri} has no scale {mip}: it has {len(volumes)}, numbered from 0 (the finest)"
        )
    return volumes[mip]


def computed_objects(address: Address) -> BrainObjects:
    """Return the brain at an address as objects."""
    return BrainObjects(address)


def brain_uri(spec: BrainSpec, what: What = "image") -> str:
    """Return the address of a brain; settings that are the default are left out."""
    settings = {
        name: "x".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
        if isinstance(value, tuple)
        else value
        for name, value in spec.model_dump().items()
        if value != BrainSpec.model_fields[name].default
    }
    return f"phantom-brain://{what}?" + "&".join(f"{name}={value}" for name, value in settings.items())


def _scales(address: Address) -> list[BrainVolume]:
    """All scales: x and y are halved, and z as soon as voxels are no longer than wide, while whole voxels come out."""
    if address.host not in get_args(What):
        raise SpecError(
            f"{address.uri!r} must begin phantom-brain://image, phantom-brain://labels or phantom-brain://nuclei"
        )
    what: What = address.host  # type: ignore[assignment]  # checked right above
    settings: dict[str, Any] = dict(parse_qsl(address.query, keep_blank_values=True))
    for name in ("shape", "voxel_size_nm"):
        if name in settings:
            settings[name] = settings[name].replace(",", "x").split("x")
    spec = BrainSpec.load(settings, where=address.uri)
    volumes = [BrainVolume(address.uri, PhantomBrain(spec), what)]
    while len(volumes) < _MOST_SCALES:
        size, shape = spec.voxel_size_nm, spec.shape
        half_z = 2 if size[2] < 2 * size[0] else 1
        factor = (2, 2, half_z)
        if any(n % f or n // f < _LEAST_EDGE for n, f in zip(shape, factor, strict=True)):
            break
        spec = spec.model_copy(
            update={
                "shape": tuple(n // f for n, f in zip(shape, factor, strict=True)),
                "voxel_size_nm": tuple(s * f for s, f in zip(size, factor, strict=True)),
            }
        )
        volumes.append(BrainVolume(address.uri, PhantomBrain(spec), what))
    return volumes


def _key_of(info: VolumeInfo) -> str:
    document = add_scale(None, info, mip=0, uri="")
    return str(document["scales"][0]["key"])


def _chunk_of(name: str, info: VolumeInfo) -> Box | None:
    try:
        edges = [tuple(map(int, part.split("-"))) for part in name.split("_")]
        low, high = zip(*edges, strict=True)
        box = Box(low, high)
    except (ValueError, TypeError):
        return None
    if box.is_empty or not info.bounds.contains(box):
        return None
    _, chunk = next(iter(chunks_of(Box.of_shape((1, 1, 1), at=box.start), info)))
    return chunk if chunk_name(chunk) == name else None


def _read_only(uri: str) -> SpecError:
    return SpecError(
        f"{uri} is computed when it is read: nothing can be written to it; write to a folder or bucket"
    )

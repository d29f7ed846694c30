"""A network that runs in another process of the worker, shared by its tasks; no torch here.

Both ends speak over a Unix socket, one connection for each patch that is on its way at a time. Patches and
probabilities lie in memory that both see: a file without a name, which goes when both are gone. Messages are JSON::

    {"open": {model, offsets, ...}, "owner": ..., "shape": [x, y, z], "dtype": ..., "batch_size": 2}   and the file
      ->  {"device": "cuda", "precision": "bfloat16"}
    {"grey_range": [0, 255]}  ->  {"shared": true}     predict what lies there; whether others' patches went along
    a failure                 ->  {"error": class, "message": ...}
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg import errors
from cloudseg.errors import CloudsegError, TaskFailedError
from cloudseg.geometry import XYZ
from cloudseg.models.network import Lanes, Probabilities
from cloudseg.models.package import ModelDescription, OpenObjects, load_spec
from cloudseg.volumes import open_objects

# The other process is started again when it ends; what it was asked is asked once more.
N_TRIES = 2
RETRY_S = 0.5


class SharedNetwork:
    """A network in the process that listens at ``path``.

    Parameters
    ----------
    path
        Of the Unix socket.
    uri, offsets, device, precision, sha256, objects
        As for :func:`cloudseg.models.predict.load_model`; ``objects`` serves this side alone.

    Attributes
    ----------
    n_shared
        Patches so far that were computed in a batch with patches of others.

    Raises
    ------
    NotFoundError, ModelError
        As ``load_model`` does.
    TaskFailedError
        If the other process ends, or there is none.
    """

    def __init__(
        self,
        path: str,
        uri: str,
        *,
        offsets: Sequence[XYZ],
        device: str = "auto",
        precision: str = "auto",
        sha256: str | None = None,
        objects: OpenObjects = open_objects,
    ) -> None:
        self.n_shared = 0
        self._path = path
        self._spec = load_spec(uri, objects=objects)
        self._model = {
            "uri": uri,
            "offsets": [list(offset) for offset in offsets],
            "device": device,
            "precision": precision,
            "sha256": sha256,
        }
        self._n_channels = len(self._spec.select(tuple(offsets)))
        self._owner = str(uuid.uuid4())
        self._batch_size = 1
        self._idle: list[_Lane] = []
        self._lock = threading.Lock()
        lane = self._new_lane(self._spec.patch_shape, np.dtype(np.uint8))
        self._device, self._precision = lane.device, lane.precision
        lane.close()  # it knows no batch size

    @property
    def spec(self) -> ModelDescription:
        """The package it came from."""
        return self._spec

    @property
    def n_channels(self) -> int:
        """Channels of a prediction."""
        return self._n_channels

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``."""
        return self._device

    @property
    def precision(self) -> str:
        """``float32`` or ``bfloat16``."""
        return self._precision

    def lanes(self, patch_shape: XYZ, *, batch_size: int) -> Lanes:  # noqa: ARG002 - the other side sees to it
        """Return how to call it: patch by patch, enough at once that a task alone fills its batches."""
        if batch_size != self._batch_size:
            self._drop_idle()
            self._batch_size = batch_size
        return Lanes(n_threads=2 * batch_size)

    def predict(
        self, patches: npt.NDArray[Any], *, grey_range: tuple[float, float] | None = None
    ) -> Probabilities:
        """Predict a batch of patches, as :meth:`cloudseg.models.predict.Model.predict` does.

        Raises
        ------
        ModelError
            If the patches do not fit the network.
        TaskFailedError
            If the other process ended, twice.
        """
        x, y, z = patches.shape[1:]
        out = np.empty((patches.shape[0], self.n_channels, x, y, z), np.float32)
        for patch, place in zip(patches, out, strict=True):
            shared = self._predict(patch, place, grey_range)
            with self._lock:
                self.n_shared += shared
        return out

    def _predict(
        self, patch: npt.NDArray[Any], out: Probabilities, grey_range: tuple[float, float] | None
    ) -> bool:
        x, y, z = patch.shape
        for n_try in range(1, N_TRIES + 1):
            try:
                with self._lane((x, y, z), patch.dtype) as lane:
                    return lane.predict(patch, out, grey_range)
            except (EOFError, ConnectionError) as error:
                self._drop_idle()  # they are cut too
                if n_try == N_TRIES:
                    raise _gone() from error
                time.sleep(RETRY_S)
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _lane(self, shape: XYZ, dtype: np.dtype[Any]) -> Iterator[_Lane]:
        with self._lock:
            fitting = [lane for lane in self._idle if lane.fits(shape, dtype)]
            found = fitting[-1] if fitting else None
            if found is not None:
                self._idle.remove(found)
        lane = found or self._new_lane(shape, dtype)
        try:
            yield lane
        except BaseException:
            lane.close()  # whatever comes over it now is out of step
            raise
        with self._lock:
            self._idle.append(lane)

    def _drop_idle(self) -> None:
        with self._lock:
            lanes, self._idle = self._idle, []
        for lane in lanes:
            lane.close()

    def _new_lane(self, shape: XYZ, dtype: np.dtype[Any]) -> _Lane:
        hello = {
            "open": self._model,
            "owner": self._owner,
            "shape": shape,
            "dtype": dtype.name,
            "batch_size": self._batch_size,
        }
        for n_try in range(1, N_TRIES + 1):
            try:
                return _Lane(self._path, hello, n_channels=self.n_channels)
            except (EOFError, ConnectionError, FileNotFoundError) as error:
                if n_try == N_TRIES:
                    raise _gone() from error
                time.sleep(RETRY_S)
        raise AssertionError("the last try returns or raises")


class _Lane:
    """One connection, and the memory that both sides see."""

    def __init__(self, path: str, hello: dict[str, Any], *, n_channels: int) -> None:
        self._shape, self._dtype = tuple(hello["shape"]), np.dtype(hello["dtype"])
        with open_memory(memory_bytes(self._shape, self._dtype, n_channels)) as (memory, fd):
            self._patch, self._out = views(memory, self._shape, self._dtype, n_channels)
            with socket.socket(socket.AF_UNIX) as plug:
                plug.connect(path)
                socket.send_fds(plug, [b"m"], [fd])
                self._connection = Connection(plug.detach())
        try:
            answer = self._ask(hello)
        except BaseException:
            self.close()
            raise
        self.device, self.precision = str(answer["device"]), str(answer["precision"])

    def fits(self, shape: XYZ, dtype: np.dtype[Any]) -> bool:
        """Whether patches of this shape and type go over it."""
        return (self._shape, self._dtype) == (shape, dtype)

    def predict(
        self, patch: npt.NDArray[Any], out: Probabilities, grey_range: tuple[float, float] | None
    ) -> bool:
        """Have a patch predicted; return whether others' patches went along."""
        self._patch[...] = patch
        shared = bool(self._ask({"grey_range": grey_range})["shared"])
        out[...] = self._out
        return shared

    def close(self) -> None:
        """Hang up."""
        with suppress(OSError):
            self._connection.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self._connection.send_bytes(json.dumps(message).encode())
        answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        if "error" in answer:
            kind = getattr(errors, answer["error"], None)
            if isinstance(kind, type) and issubclass(kind, CloudsegError):
                raise kind(answer["message"])
            raise RuntimeError(
                f"the process that runs networks failed: {answer['error']}: {answer['message']}"
            )
        return answer


@contextmanager
def open_memory(n_bytes: int) -> Iterator[tuple[mmap.mmap, int]]:
    """Make memory that another process can map; its file descriptor is good inside."""
    if hasattr(os, "memfd_create"):  # a container's /dev/shm is too small for it
        fd = os.memfd_create("patches")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, n_bytes)
        yield mmap.mmap(fd, n_bytes), fd
    finally:
        os.close(fd)


def memory_bytes(shape: Sequence[int], dtype: np.dtype[Any], n_channels: int) -> int:
    """Return the size of the memory of one connection."""
    return int(np.prod(shape)) * (4 * n_channels + dtype.itemsize)


def views(
    memory: mmap.mmap, shape: Sequence[int], dtype: np.dtype[Any], n_channels: int
) -> tuple[npt.NDArray[Any], Probabilities]:
    """Return where the patch lies, and the probabilities before it."""
    n = int(np.prod(shape))
    out = np.frombuffer(memory, np.float32, n_channels * n).reshape(n_channels, *shape)
    patch = np.frombuffer(memory, dtype, n, offset=4 * n_channels * n).reshape(*shape)
    return patch, out


def _gone() -> TaskFailedError:
    return TaskFailedError(
        "the process that runs the worker's networks ended, and again when it was asked once more; the worker's log "
        "has what it said last, most often that memory ran out: give it more, or make batch_size smaller"
    )

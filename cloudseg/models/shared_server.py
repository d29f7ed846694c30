"""The other end of :mod:`cloudseg.models.shared`: loads networks and computes the patches of all who ask."""

from __future__ import annotations

import json
import logging
import mmap
import os
import socket
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from cloudseg.models.batches import CommonBatches, Request
from cloudseg.models.predict import Model, load_model, n_threads
from cloudseg.models.shared import memory_bytes, views

log = logging.getLogger(__name__)

# One batch travels from the GPU while the next is computed.
GPU_THREADS = 2


class NetworkServer:
    """Answers at a listening Unix socket.

    Parameters
    ----------
    listener
        The socket.
    on_gpu
        Whether the networks run on a GPU: what is left of a failed computation there is in an unknown state, so
        the process leaves after one, unless only memory ran out.
    """

    def __init__(self, listener: socket.socket, *, on_gpu: bool) -> None:
        self._listener = listener
        self._batches = CommonBatches(GPU_THREADS if on_gpu else n_threads(), on_error=self._note)
        self._models: dict[str, Model] = {}
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Answer for ever."""
        while True:
            plug, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=(plug,), name="lane", daemon=True).start()

    def _answer(self, plug: socket.socket) -> None:
        try:
            with plug:
                _, fds, _, _ = socket.recv_fds(plug, 1, 1)
                if not fds:
                    return
                try:
                    memory = mmap.mmap(fds[0], os.fstat(fds[0]).st_size)
                finally:
                    os.close(fds[0])
                connection = Connection(plug.detach())
            with connection:
                self._converse(connection, memory)
        except (EOFError, ConnectionError):  # its task is over, or was killed
            return

    def _converse(self, connection: Connection, memory: mmap.mmap) -> None:
        hello = json.loads(connection.recv_bytes())
        try:
            model = self._model(hello["open"])
            shape, dtype = tuple(hello["shape"]), np.dtype(hello["dtype"])
            if len(memory) != memory_bytes(shape, dtype, model.n_channels):
                raise ValueError(f"{len(memory)} bytes are not a patch {shape} {dtype} and its probabilities")
            patch, out = views(memory, shape, dtype, model.n_channels)
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            connection.send_bytes(_failure(error))
            return
        connection.send_bytes(
            json.dumps({"device": model.device_type, "precision": model.precision}).encode()
        )
        while True:
            asked = json.loads(connection.recv_bytes())
            grey_range = tuple(asked["grey_range"]) if asked["grey_range"] else None
            request = Request(
                model=model,
                patch=patch,
                out=out,
                grey_range=grey_range,
                batch_size=hello["batch_size"],
                owner=hello["owner"],
            )
            try:
                owners = self._batches.predict(request)
            except Exception as error:  # noqa: BLE001 - told to whoever asked
                connection.send_bytes(_failure(error))
            else:
                connection.send_bytes(json.dumps({"shared": len(owners) > 1}).encode())

    def _model(self, wanted: dict[str, Any]) -> Model:
        key = json.dumps(wanted, sort_keys=True)
        with self._lock:
            if key not in self._models:
                self._models[key] = load_model(
                    wanted["uri"],
                    offsets=[tuple(offset) for offset in wanted["offsets"]],
                    device=wanted["device"],
                    precision=wanted["precision"],
                    sha256=wanted["sha256"],
                )
            return self._models[key]

    def _note(self, model: Model, error: BaseException) -> None:
        log.error("a network failed: %s: %s", type(error).__name__, error)
        if model.device_type == "cuda" and not isinstance(error, torch.OutOfMemoryError):
            log.error("what runs on the GPU is in an unknown state now: leaving, to be started again")
            os._exit(1)


def _failure(error: Exception) -> bytes:
    return json.dumps({"error": type(error).__name__, "message": str(error)}).encode()

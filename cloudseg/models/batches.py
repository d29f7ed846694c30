"""Batches that several tasks share: patches wait a moment for each other, then go through a network together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.models.network import Probabilities
from cloudseg.models.predict import Model

# How long a patch waits for others that fill its batch. A forward pass takes longer than that.
LINGER_S = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One patch to predict.

    Attributes
    ----------
    model
        The network.
    patch
        ``(x, y, z)`` grey levels.
    out
        ``(c, x, y, z)`` float32, filled with the probabilities.
    grey_range
        See :meth:`cloudseg.models.predict.Model.predict`.
    batch_size
        How many patches a batch holds.
    owner
        Who asks.
    done
        The owners of the batch it went with, once ``out`` is filled.
    """

    model: Model
    patch: npt.NDArray[Any]
    out: Probabilities
    grey_range: tuple[float, float] | None
    batch_size: int
    owner: str
    done: Future[frozenset[str]] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[object, ...]:
        """What the requests of one batch have in common."""
        return (id(self.model), self.patch.shape, self.patch.dtype, self.grey_range, self.batch_size)


class CommonBatches:
    """Threads that gather patches into batches and compute them.

    A patch gets the bits that it would get alone: see :meth:`cloudseg.models.predict.Model.lanes`.

    Parameters
    ----------
    n_threads
        How many batches are computed at once.
    on_error
        Told of each error of a network, after those who wait were.
    """

    def __init__(
        self, n_threads: int, *, on_error: Callable[[Model, BaseException], None] | None = None
    ) -> None:
        self._on_error = on_error
        self._waiting: list[Request] = []
        self._change = threading.Condition()
        for number in range(n_threads):
            threading.Thread(target=self._work, name=f"batches-{number}", daemon=True).start()

    def predict(self, request: Request) -> frozenset[str]:
        """Compute a patch, with others if there are any; return whose patches went with it, its own among them."""
        with self._change:
            self._waiting.append(request)
            self._change.notify_all()
        return request.done.result()

    def _work(self) -> None:
        prepared: set[int] = set()
        while True:
            batch = self._gather()
            try:
                self._compute(batch, prepared)
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits
                for request in batch:
                    if not request.done.done():
                        request.done.set_exception(error)
                if self._on_error is not None:
                    self._on_error(batch[0].model, error)

    def _gather(self) -> list[Request]:
        """Take the oldest request, and those of its kind that come in time."""
        with self._change:
            while True:
                self._change.wait_for(lambda: self._waiting)
                first = self._waiting[0]
                until = time.monotonic() + LINGER_S
                while (found := self._like(first)) and len(found) < first.batch_size:
                    if not self._change.wait(until - time.monotonic()):
                        break
                found = self._like(first)
                if found:  # else another thread has taken it meanwhile
                    self._waiting = [request for request in self._waiting if request not in found]
                    return found

    def _like(self, first: Request) -> list[Request]:
        """Return the first requests that may go with ``first``; none if it is gone."""
        if first not in self._waiting:
            return []
        return [request for request in self._waiting if request.kind == first.kind][: first.batch_size]

    def _compute(self, batch: list[Request], prepared: set[int]) -> None:
        first = batch[0]
        x, y, z = first.patch.shape
        lanes = first.model.lanes((x, y, z), batch_size=first.batch_size)
        if lanes.initializer is not None and not prepared:
            lanes.initializer()  # once in this thread
            prepared.add(0)
        n = lanes.n_patches if lanes.padded_to > 1 else len(batch)
        for start in range(0, len(batch), n):
            part = batch[start : start + n]
            patches = np.zeros((max(len(part), lanes.padded_to), x, y, z), first.patch.dtype)
            for place, request in enumerate(part):
                patches[place] = request.patch
            predictions = first.model.predict(patches, grey_range=first.grey_range)
            owners = frozenset(request.owner for request in part)
            for request, prediction in zip(part, predictions, strict=False):
                request.out[...] = prediction
                request.done.set_result(owners)

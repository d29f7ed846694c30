"""Batches of examples, drawn ahead of the network in threads of their own."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from cloudseg.training.crew import Crew
from cloudseg.training.sampling import Sampler
from cloudseg.training.schedule import LoopOptions


@dataclass(frozen=True, slots=True)
class Batch:
    """Stacked examples, ``(b, c, x, y, z)`` each, and where they came from."""

    image: Tensor
    targets: Tensor
    known: Tensor
    where: tuple[str, ...]


class Batches:
    """The batches of one process, pass by pass, in an order that nothing but the seed decides.

    Example ``i`` of step ``s`` is drawn from the seed ``(seed, s, i)``. Passes and processes share the examples of a
    step out among them, so two processes learn from what one learns from in two passes.

    Parameters
    ----------
    sampler
        Where examples come from. Its functions run in threads; they let go of the interpreter while they compute.
    options
        Batch size, passes per step, seed, number of threads.
    crew
        Which share is this process's.
    first
        Step to begin with.
    """

    def __init__(self, sampler: Sampler, options: LoopOptions, crew: Crew, *, first: int) -> None:
        self._sampler, self._options, self._crew = sampler, options, crew
        self._n_asked = first * options.accumulate
        self._n_passes = options.n_steps * options.accumulate
        self._pool = ThreadPoolExecutor(options.n_samplers, thread_name_prefix="sampling")
        self._ahead: deque[Future[Batch]] = deque()

    def __enter__(self) -> Self:
        for _ in range(self._options.n_samplers + 2):
            self._ask()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __next__(self) -> Batch:
        batch = self._ahead.popleft().result()
        self._ask()
        return batch

    def _ask(self) -> None:
        if self._n_asked < self._n_passes:
            self._ahead.append(self._pool.submit(self.draw, *divmod(self._n_asked, self._options.accumulate)))
            self._n_asked += 1

    def draw(self, step: int, turn: int) -> Batch:
        """Return the batch of pass ``turn`` of ``step``."""
        options, crew = self._options, self._crew
        first = (turn * crew.size + crew.rank) * options.batch_size
        samples = [
            self._sampler.draw(np.random.default_rng([options.seed, step, first + i]))
            for i in range(options.batch_size)
        ]
        stacked = [
            torch.from_numpy(np.stack([getattr(s, name) for s in samples]))
            for name in ("image", "targets", "known")
        ]
        if crew.kind == "cuda":  # only pinned memory travels while the GPU computes
            stacked = [tensor.pin_memory() for tensor in stacked]
        return Batch(stacked[0], stacked[1], stacked[2], tuple(s.where for s in samples))

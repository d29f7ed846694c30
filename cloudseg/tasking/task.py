"""What a task is: frozen data plus ``run``."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from cloudseg.specs import BoxField, FrozenModel
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.protocol import Volume

T = TypeVar("T")


class OpenVolume(Protocol):
    """Opens one scale of a volume."""

    def __call__(self, uri: str, *, mip: int = 0) -> Volume:
        """Return the volume at ``uri``."""
        ...


class Context:
    """What a running task may touch: storage, warm resources, and its own books.

    Parameters
    ----------
    open_volume, open_objects
        How addresses become volumes and object folders; the worker passes the real ones, tests pass memory.
    warm
        A dictionary that outlives the task (models, opened volumes); one per worker process.
    network
        Socket of the process that runs networks for all tasks of the worker; empty: a task runs its own.
    """

    def __init__(
        self,
        *,
        open_volume: OpenVolume,
        open_objects: Callable[[str], Objects],
        warm: dict[Any, Any] | None = None,
        network: str = "",
    ) -> None:
        self.open_volume = open_volume
        self.open_objects = open_objects
        self.network = network
        self._warm = {} if warm is None else warm
        self.seconds: dict[str, float] = {}
        self.counters: dict[str, int] = {}

    def fresh(self) -> Context:
        """Return a context with the same storage and warm resources, and empty books."""
        return Context(
            open_volume=self.open_volume,
            open_objects=self.open_objects,
            warm=self._warm,
            network=self.network,
        )

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time spent inside to ``seconds[name]`` (they end in the receipt)."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def count(self, **amounts: int) -> None:
        """Add to the task's counters, e.g. ``ctx.count(voxels=box.n_voxels)`` (they end in the receipt)."""
        for name, amount in amounts.items():
            self.counters[name] = self.counters.get(name, 0) + int(amount)

    def warm(self, key: object, build: Callable[[], T]) -> T:
        """Return ``build()``, kept for later tasks of this worker under ``key``."""
        if key not in self._warm:
            self._warm[key] = build()
        value: T = self._warm[key]
        return value


class Task(FrozenModel):
    """A unit of work: typed fields and ``run``. Subclasses fix ``kind`` to a versioned literal.

    ``run`` must be a pure function of the fields and of immutable inputs: running it twice is the same as once.
    """

    kind: str

    @property
    def id(self) -> str:
        """Digest of the canonical JSON: the same task has the same id everywhere."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()[:32]

    def run(self, ctx: Context) -> None:
        """Do the work."""
        raise NotImplementedError


class BlockTask(Task):
    """A task that writes exactly the voxels of ``core``."""

    core: BoxField

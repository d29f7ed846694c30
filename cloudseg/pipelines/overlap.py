"""Start tasks of a step while the step before is still under way: each when the few tasks that it reads are done.

What it costs is bounded: one listing of the earlier step's receipts at each look, however many blocks there are; a few
integers for each task; and each task looks at the tasks that it needs once for each of them at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from cloudseg.tasking.receipts import Receipts
from cloudseg.tasking.steps import Step
from cloudseg.tasking.task import Task
from cloudseg.volumes.objects import Objects

_NOBODY = -1


class Frontier:
    """Which tasks may start, given which tasks of the step before are done.

    Each waiting task watches one task that it needs and that is not done; when that one is, it looks for another.

    Parameters
    ----------
    n_before, n_tasks
        Tasks of the step before, and of the step.
    needs
        See :class:`cloudseg.tasking.near.Near`.
    """

    def __init__(self, n_before: int, n_tasks: int, needs: Callable[[int], Iterable[int]]) -> None:
        self._needs = needs
        self._done = np.zeros(n_before, np.bool_)
        # Watchers of a task as a chain: the first one, and after each one the next.
        self._first = np.full(n_before, _NOBODY, np.int64)
        self._next = np.full(n_tasks, _NOBODY, np.int64)
        self._at_once = [number for number in range(n_tasks) if self._may_start(number)]

    def finish(self, numbers: Iterable[int]) -> Iterator[int]:
        """Yield the tasks that may start now that ``numbers`` of the step before are done; each once."""
        yield from self._at_once
        self._at_once = []
        fresh = [number for number in numbers if not self._done[number]]
        self._done[fresh] = True
        for number in fresh:
            watcher, self._first[number] = int(self._first[number]), _NOBODY
            while watcher != _NOBODY:
                following = int(self._next[watcher])
                if self._may_start(watcher):
                    yield watcher
                watcher = following

    def _may_start(self, number: int) -> bool:
        for needed in self._needs(number):
            if not self._done[needed]:
                self._next[number], self._first[needed] = self._first[needed], number
                return False
        return True


class Overlap:
    """Sends the tasks of a step as the step before lets them go.

    Parameters
    ----------
    before, step
        The two steps; the second one's :attr:`~cloudseg.tasking.steps.Step.near` says what it needs of the first.
    objects
        The root.
    send
        Puts tasks into the queue.
    """

    def __init__(
        self, before: Step, step: Step, *, objects: Objects, send: Callable[[Iterator[Task]], None]
    ) -> None:
        assert step.near is not None
        self._task = step.near.task
        self._before = Receipts(objects, before.name)
        self._send = send
        ids = np.array([task.id.encode() for task in before.tasks()], "S32")
        self._numbers = np.argsort(ids)
        self._ids = ids[self._numbers]
        own = Receipts(objects, step.name)
        self._settled = own.done() | {letter.task_id for letter in own.dead()}
        self._frontier = Frontier(before.n_tasks, step.n_tasks, step.near.needs)
        if step.prepare is not None:
            step.prepare()

    def look(self) -> None:
        """Send what may start by now and has no outcome yet."""
        done = np.array([task_id.encode() for task_id in self._before.done()], "S32")
        at = np.minimum(np.searchsorted(self._ids, done), len(self._ids) - 1)
        numbers = self._numbers[at[self._ids[at] == done]]
        tasks = (self._task(number) for number in self._frontier.finish(numbers.tolist()))
        self._send(task for task in tasks if task.id not in self._settled)

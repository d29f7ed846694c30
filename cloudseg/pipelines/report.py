"""What a run has done and what it took, from receipts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from pydantic import AwareDatetime, Field

from cloudseg.errors import NotFoundError
from cloudseg.pipelines import advance
from cloudseg.pipelines.plan import PlanRecord
from cloudseg.specs import FrozenModel
from cloudseg.tasking.receipts import DeadLetter, Receipt, Receipts
from cloudseg.volumes.objects import Objects

# Enough for a mean that people read; a listing tells the rest.
N_SAMPLED = 256
N_VOXEL_SAMPLES = 8


class Summary(FrozenModel):
    """The sum of some receipts.

    Attributes
    ----------
    n_tasks
        Receipts that were summed.
    n_retried
        Those that needed more than one attempt.
    task_seconds
        Sum of the tasks' own times.
    started, finished
        First start, last end; None where there is no receipt.
    peak_memory_bytes
        Of the largest task.
    counters
        Summed, e.g. ``voxels``.
    seconds
        Summed by step of the work, e.g. ``read``.
    """

    n_tasks: int = 0
    n_retried: int = 0
    task_seconds: float = 0.0
    started: AwareDatetime | None = None
    finished: AwareDatetime | None = None
    peak_memory_bytes: int = 0
    counters: dict[str, int] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)

    @property
    def wall_s(self) -> float:
        """Seconds from the first start to the last end."""
        return (self.finished - self.started).total_seconds() if self.started and self.finished else 0.0

    @property
    def n_voxels(self) -> int:
        """Voxels that the tasks counted."""
        return self.counters.get("voxels", 0)

    @property
    def voxels_per_s(self) -> float:
        """Voxels per second of wall time."""
        return self.n_voxels / self.wall_s if self.wall_s else 0.0

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            n_tasks=self.n_tasks + other.n_tasks,
            n_retried=self.n_retried + other.n_retried,
            task_seconds=self.task_seconds + other.task_seconds,
            started=_extreme(min, self.started, other.started),
            finished=_extreme(max, self.finished, other.finished),
            peak_memory_bytes=max(self.peak_memory_bytes, other.peak_memory_bytes),
            counters=dict(Counter(self.counters) + Counter(other.counters)),
            seconds={
                k: self.seconds.get(k, 0.0) + other.seconds.get(k, 0.0)
                for k in sorted(self.seconds.keys() | other.seconds.keys())
            },
        )


def summarise(receipts: Iterable[Receipt]) -> Summary:
    """Return the sum of ``receipts``, each read once and not kept."""
    n_tasks = n_retried = peak_memory_bytes = 0
    task_seconds = 0.0
    started: datetime | None = None
    finished: datetime | None = None
    counters: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for receipt in receipts:
        n_tasks += 1
        n_retried += receipt.attempt > 1
        task_seconds += receipt.wall_s
        peak_memory_bytes = max(peak_memory_bytes, receipt.peak_memory_bytes)
        started, finished = _extreme(min, started, receipt.started), _extreme(max, finished, receipt.finished)
        counters.update(receipt.counters)
        for name, amount in receipt.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + amount
    return Summary(
        n_tasks=n_tasks,
        n_retried=n_retried,
        task_seconds=task_seconds,
        started=started,
        finished=finished,
        peak_memory_bytes=peak_memory_bytes,
        counters=dict(sorted(counters.items())),
        seconds=dict(sorted(seconds.items())),
    )


def write_summary(step: str, objects: Objects, *, n_tasks: int) -> Summary:
    """Return the summary of a complete step, read from the root or summed and stored there.

    A million receipts are read once, not each time that somebody asks.
    """
    stored = read_summary(step, objects)
    if stored is not None and stored.n_tasks == n_tasks:
        return stored
    made = summarise(Receipts(objects, step).all())
    objects.put(_summary_key(step), made.canonical_json().encode())
    return made


def read_summary(step: str, objects: Objects) -> Summary | None:
    """Return the stored summary of a step, or None."""
    try:
        return Summary.load(objects.get(_summary_key(step)), where=f"{objects.uri}/{_summary_key(step)}")
    except NotFoundError:
        return None


def voxels_per_task(step: str, objects: Objects) -> float:
    """Return how many voxels a task of ``step`` covers, from a few receipts."""
    few = list(_sampled(Receipts(objects, step), N_VOXEL_SAMPLES))
    return sum(r.counters.get("voxels", 0) for r in few) / len(few) if few else 0.0


@dataclass(frozen=True, slots=True)
class StepStatus:
    """Where a step stands, for people.

    Attributes
    ----------
    n_tasks, n_done, n_failed_attempts
        From the plan and from listings.
    dead
        Tasks that gave up.
    summary
        Of the receipts, or of an even sample of them.
    """

    stage: str
    kind: str
    step: str
    n_tasks: int
    n_done: int
    n_failed_attempts: int
    dead: tuple[DeadLetter, ...]
    summary: Summary

    @property
    def is_complete(self) -> bool:
        """Whether every task has its receipt."""
        return self.n_done >= self.n_tasks

    @property
    def tasks_per_s(self) -> float:
        """Finished tasks per second of wall time."""
        return self.n_done / self.summary.wall_s if self.summary.wall_s else 0.0

    @property
    def voxels_per_s(self) -> float:
        """Voxels per second of wall time."""
        per_task = self.summary.n_voxels / self.summary.n_tasks if self.summary.n_tasks else 0.0
        return per_task * self.tasks_per_s

    @property
    def eta_s(self) -> float | None:
        """Seconds until the step is complete at the rate so far; None where that is unknown."""
        if self.is_complete:
            return 0.0
        return (self.n_tasks - self.n_done) / self.tasks_per_s if self.tasks_per_s else None


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a run stands."""

    record: PlanRecord
    steps: tuple[StepStatus, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every step is complete."""
        return all(step.is_complete for step in self.steps)

    @property
    def n_dead(self) -> int:
        """Tasks that gave up."""
        return sum(len(step.dead) for step in self.steps)

    @property
    def exit_code(self) -> int:
        """0 complete, 1 tasks gave up, 3 not complete yet."""
        if self.n_dead:
            return 1
        return 0 if self.is_complete else 3


def status(objects: Objects) -> RunStatus:
    """Return where the run in a root stands; nothing is expanded, no queue is asked.

    Raises
    ------
    NotFoundError
        If no run was planned there.
    """
    record = advance.load_record(objects)
    if record is None:
        raise NotFoundError(
            f"{objects.uri} has no {advance.PLAN_KEY}: no pipeline was run there yet; start one with: cloudseg run FILE"
        )
    steps = []
    for stage, step in record.steps():
        books = Receipts(objects, step.name)
        n_done, n_dead = advance.count_settled(step.name, objects)
        stored = read_summary(step.name, objects)
        steps.append(
            StepStatus(
                stage=stage.label,
                kind=stage.kind,
                step=step.name,
                n_tasks=step.n_tasks,
                n_done=min(n_done, step.n_tasks),
                n_failed_attempts=books.n_errors(),
                dead=tuple(books.dead()) if n_dead else (),
                summary=stored or summarise(_sampled(books, N_SAMPLED)),
            )
        )
    return RunStatus(record=record, steps=tuple(steps))


def last_line(letter: DeadLetter) -> str:
    """Return what a dead letter says at the end of its traceback."""
    lines = [line for line in letter.traceback.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else letter.reason


def _sampled(books: Receipts, n_wanted: int) -> Iterator[Receipt]:
    """Yield up to ``n_wanted`` receipts, evenly spread over the ids (which are digests, so over the step)."""
    ids = sorted(books.done())
    every = max(1, -(-len(ids) // n_wanted))
    for task_id in ids[::every]:
        receipt = books.get(task_id)
        if receipt is not None:
            yield receipt


def _summary_key(step: str) -> str:
    return f"pipeline/summaries/{step}.json"


def _extreme(
    choose: Callable[[datetime, datetime], datetime], a: datetime | None, b: datetime | None
) -> datetime | None:
    return a or b if a is None or b is None else choose(a, b)

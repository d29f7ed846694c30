"""Where a run stands, read from its bucket alone: any process may ask, and any process may go on from there.

Keys under the root, beside the receipts::

    pipeline/spec.toml              what was asked, defaults included
    pipeline/plan.json              what it consists of: steps, counts, digests of the task lists, versions
    pipeline/enqueued/<step>.json   which shared queue received the step's tasks
    pipeline/cancel.json            the last cancellation; runs that started before it stop
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import AwareDatetime

from cloudseg.errors import ConflictError, NotFoundError
from cloudseg.pipelines.plan import PipelinePlan, PlanRecord, digest_of, record
from cloudseg.pipelines.spec import PipelineSpec, differing_keys, parse_spec
from cloudseg.specs import FrozenModel
from cloudseg.tasking.receipts import Receipts
from cloudseg.tasking.steps import Step
from cloudseg.tasking.task import Task
from cloudseg.volumes.objects import Objects

SPEC_KEY = "pipeline/spec.toml"
PLAN_KEY = "pipeline/plan.json"
CANCEL_KEY = "pipeline/cancel.json"


@dataclass(frozen=True, slots=True)
class StepState:
    """Where a step stands.

    Attributes
    ----------
    n_tasks
        Tasks of the step's expansion.
    n_done
        Those that have their receipt.
    dead
        Ids of those that gave up.
    """

    name: str
    n_tasks: int
    n_done: int
    dead: frozenset[str]

    @property
    def n_missing(self) -> int:
        """Tasks that are neither done nor dead."""
        return self.n_tasks - self.n_done - len(self.dead)

    @property
    def is_complete(self) -> bool:
        """Whether every task has its receipt."""
        return self.n_done == self.n_tasks


class Enqueued(FrozenModel):
    """Note that all missing tasks of a step were put into a shared queue, after the cancellation ``cancel_id``."""

    queue: str
    cancel_id: str | None = None


class Cancellation(FrozenModel):
    """A request to stop; each has its own id, so that a later run is not stopped by it."""

    id: str
    asked: AwareDatetime


def claim(
    expanded: PipelinePlan, objects: Objects, *, on_task: Callable[[int], None] | None = None
) -> PlanRecord:
    """Write the specification and the plan into the root, or check that the ones there are the same.

    Parameters
    ----------
    expanded
        The plan.
    objects
        The root.
    on_task
        Called with 1 for each task that is counted.

    Returns
    -------
    The plan as it lies in the root.

    Raises
    ------
    ConflictError
        If the root holds a run of another pipeline, or one that was planned with other tasks.
    """
    if not objects.put_if_absent(SPEC_KEY, expanded.spec.to_toml().encode()):
        check_same_spec(expanded.spec, objects)
    stored = load_record(objects)
    if stored is None:
        made = record(expanded, on_task=on_task)
        objects.put_if_absent(PLAN_KEY, made.model_dump_json(indent=1).encode())
        stored = load_record(objects) or made  # another process may have been faster: its plan counts
    there = [(step.name, step.n_tasks) for _, step in stored.steps()]
    here = [(step.name, step.n_tasks) for step in expanded.steps()]
    if there != here:
        differing = sorted({name for name, _ in set(there) ^ set(here)}) or [name for name, _ in here]
        raise _changed(f"steps {', '.join(differing)}", objects)
    return stored


def check_same_spec(spec: PipelineSpec, objects: Objects) -> None:
    """Refuse a root that holds the run of another pipeline; an empty root passes.

    Raises
    ------
    ConflictError
        Naming the keys that differ.
    """
    try:
        stored = load_spec_of(objects)
    except NotFoundError:
        return
    differing = differing_keys(stored, spec)
    if differing:
        raise ConflictError(
            f"{objects.uri} holds a run of another pipeline: {'; '.join(differing)}. "
            "Choose another root (--set root=...), or undo the change, or delete the old root"
        )


def load_spec_of(objects: Objects) -> PipelineSpec:
    """Return the specification that lies in a root.

    Raises
    ------
    NotFoundError
        If nothing was run there.
    """
    try:
        text = objects.get(SPEC_KEY).decode("utf-8")
    except NotFoundError as error:
        raise NotFoundError(
            f"{objects.uri} has no {SPEC_KEY}: no pipeline was run there; start one with: cloudseg run FILE"
        ) from error
    return parse_spec(text, where=f"{objects.uri}/{SPEC_KEY}")


def load_record(objects: Objects) -> PlanRecord | None:
    """Return the plan that lies in a root, or None."""
    try:
        return PlanRecord.load(objects.get(PLAN_KEY), where=f"{objects.uri}/{PLAN_KEY}")
    except NotFoundError:
        return None


def survey(step: Step, objects: Objects, *, digest: str | None = None) -> StepState:
    """Compare a step's expansion with its receipts, task by task.

    Parameters
    ----------
    step
        The step; its tasks are enumerated once.
    objects
        The root.
    digest
        Of the task list when the run was planned; None leaves it unchecked.

    Raises
    ------
    ConflictError
        If the step now expands to other tasks than it was planned with.
    """
    books = Receipts(objects, step.name)
    done = books.done()
    dead = frozenset(letter.task_id for letter in books.dead())
    n_done, found_dead = 0, set()

    def counted() -> Iterator[Task]:
        nonlocal n_done
        for task in step.tasks():
            if task.id in done:
                n_done += 1
            elif task.id in dead:
                found_dead.add(task.id)
            yield task

    n_tasks, found_digest = digest_of(counted())
    if digest is not None and digest != found_digest:
        raise _changed(f"step {step.name!r}", objects)
    return StepState(name=step.name, n_tasks=n_tasks, n_done=n_done, dead=frozenset(found_dead))


def missing(step: Step, objects: Objects) -> Iterator[Task]:
    """Yield the tasks of a step that have neither a receipt nor a dead letter, lazily."""
    books = Receipts(objects, step.name)
    settled = books.done() | {letter.task_id for letter in books.dead()}
    return (task for task in step.tasks() if task.id not in settled)


def count_settled(step_name: str, objects: Objects) -> tuple[int, int]:
    """Return how many receipts and how many dead letters a step has, by listing and by reading segments."""
    n_done = Receipts(objects, step_name).n_done()
    n_dead = sum(1 for _ in objects.list(f"pipeline/dead/{step_name}/"))
    return n_done, n_dead


def cancellation(objects: Objects) -> Cancellation | None:
    """Return the last cancellation of a root, or None."""
    try:
        return Cancellation.load(objects.get(CANCEL_KEY), where=f"{objects.uri}/{CANCEL_KEY}")
    except NotFoundError:
        return None


def cancel_id(objects: Objects) -> str | None:
    """Return the id of the last cancellation, or None."""
    found = cancellation(objects)
    return found.id if found else None


def ask_to_cancel(objects: Objects) -> Cancellation:
    """Ask every run on this root to stop; a run that starts later is not concerned."""
    asked = Cancellation(id=uuid.uuid4().hex, asked=datetime.now(UTC))
    objects.put(CANCEL_KEY, asked.canonical_json().encode())
    return asked


def shared_queues(objects: Objects) -> list[str]:
    """Return the addresses of the shared queues that received tasks of this root."""
    keys = objects.list("pipeline/enqueued/")
    return sorted({Enqueued.load(objects.get(key), where=f"{objects.uri}/{key}").queue for key in keys})


def is_enqueued(step_name: str, objects: Objects, *, note: Enqueued) -> bool:
    """Whether the step's tasks were put into the queue of ``note``, and not cancelled since."""
    key = f"pipeline/enqueued/{step_name}.json"
    try:
        return Enqueued.load(objects.get(key), where=f"{objects.uri}/{key}") == note
    except NotFoundError:
        return False


def note_enqueued(step_name: str, objects: Objects, *, note: Enqueued) -> None:
    """Remember that the step's tasks are in the queue of ``note``."""
    objects.put(f"pipeline/enqueued/{step_name}.json", note.canonical_json().encode())


def _changed(what: str, objects: Objects) -> ConflictError:
    return ConflictError(
        f"{what} of {objects.uri} was planned with other tasks than it expands to now: the image, or the version "
        f"of cloudseg, has changed since ({PLAN_KEY} names the versions). Go on with that version, or run into "
        "another root"
    )

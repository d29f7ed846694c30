"""How a worker works: processes, leases, limits per kind of task, back-off."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from cloudseg.specs import FrozenModel


class TaskLimits(FrozenModel):
    """What a task may use; None: no limit.

    Attributes
    ----------
    max_seconds
        A task that runs longer is killed and counts as failed.
    max_memory_bytes
        A process that grows larger is killed, its task counts as failed.
    """

    max_seconds: PositiveFloat | None = None
    max_memory_bytes: PositiveInt | None = None


class WorkerOptions(FrozenModel):
    """How a worker works.

    Attributes
    ----------
    n_processes
        How many tasks run at once, each in its own process.
    until_empty
        Stop when the queue holds nothing that is waiting, delayed or leased; else wait for more.
    lease_seconds
        How long a message is ours without renewal; it is renewed every third of it.
    max_task_seconds, max_memory_bytes
        Limits of tasks whose kind has none of its own; None: no limit.
    limits
        Limits by kind: ``affinities/1``, ``affinities`` (all its versions), or an igneous class name.
    threads_per_process
        Threads of numerical libraries; None: the machine's cores shared out.
    gpu
        Refuse to start where no GPU can be used; spread the processes over the GPUs there are.
    share_network
        Run the networks of all processes in one more process (one for each GPU), in common batches. None: with
        ``gpu``, and more than one process.
    backoff_s, max_backoff_s
        A failed task waits ``backoff_s`` after its first attempt, then twice as long each time, up to the
        maximum.
    foreign_attempts
        ``max_attempts`` of igneous messages, which do not carry their own.
    """

    n_processes: PositiveInt = 1
    until_empty: bool = False
    lease_seconds: PositiveInt = 60
    max_task_seconds: PositiveFloat | None = None
    max_memory_bytes: PositiveInt | None = None
    limits: dict[str, TaskLimits] = Field(default_factory=dict)
    threads_per_process: PositiveInt | None = None
    gpu: bool = False
    share_network: bool | None = None
    backoff_s: NonNegativeFloat = 2.0
    max_backoff_s: NonNegativeFloat = 300.0
    foreign_attempts: PositiveInt = 3

    @property
    def shares_network(self) -> bool:
        """Whether tasks share networks."""
        return self.gpu and self.n_processes > 1 if self.share_network is None else self.share_network

    def limits_of(self, kind: str) -> TaskLimits:
        """Return the limits of a task: each its kind's own, or else the general one.

        Examples
        --------
        >>> options = WorkerOptions(max_task_seconds=60, limits={"mesh": TaskLimits(max_memory_bytes=2**30)})
        >>> options.limits_of("mesh/1")
        TaskLimits(max_seconds=60.0, max_memory_bytes=1073741824)
        """
        own = self.limits.get(kind) or self.limits.get(kind.partition("/")[0]) or TaskLimits()
        return TaskLimits(
            max_seconds=own.max_seconds or self.max_task_seconds,
            max_memory_bytes=own.max_memory_bytes or self.max_memory_bytes,
        )

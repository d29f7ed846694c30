"""``cloudseg worker``: run the tasks of a queue."""

from __future__ import annotations

import logging
import re
import sys
import time

import click

from cloudseg.errors import SpecError
from cloudseg.tasking.worker import WorkerEvent, WorkerOptions, work

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
DEFAULTS = WorkerOptions()


def parse_size(text: str) -> int:
    """Return bytes from ``4GiB``, ``512M``, ``1.5g`` or a plain number; units are powers of 1024.

    Raises
    ------
    SpecError
        If the text is no positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size <= 0:
        raise SpecError(f"{text!r} is not a size of memory: expected e.g. 4GiB or 512MiB")
    return size


@click.command()
@click.argument("queue")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=DEFAULTS.n_processes,
    show_default=True,
    help="Tasks that run at once, each in its own process.",
)
@click.option(
    "--until-empty/--forever",
    default=DEFAULTS.until_empty,
    show_default=True,
    help="Stop when the queue holds nothing, or wait for more.",
)
@click.option(
    "--lease-seconds",
    type=click.IntRange(min=1),
    default=DEFAULTS.lease_seconds,
    show_default=True,
    help="How soon another worker takes over if this one vanishes; running tasks renew it.",
)
@click.option(
    "--max-task-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="Kill a task that runs longer; it counts as failed.  [default: no limit]",
)
@click.option(
    "--max-memory",
    default=None,
    metavar="SIZE",
    help="Kill a process that grows larger, e.g. 4GiB; its task counts as failed.  [default: no limit]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=None,
    help="Threads of numerical libraries in each process.  [default: the cores shared out]",
)
def worker(
    queue: str,
    *,
    processes: int,
    until_empty: bool,
    lease_seconds: int,
    max_task_seconds: float | None,
    max_memory: str | None,
    threads: int | None,
) -> None:
    """Run the tasks of QUEUE (fq://folder), one line for each.

    Exit codes: 0 when no task went to the dead letters; 1 when one did, or the queue cannot be used; 2 for a
    wrong request; 143 (SIGTERM) or 130 (Ctrl-C) when a signal cut tasks short, which are then handed back at
    once for other workers; 0 when the signal found the worker idle.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options = WorkerOptions(
        n_processes=processes,
        until_empty=until_empty,
        lease_seconds=lease_seconds,
        max_task_seconds=max_task_seconds,
        max_memory_bytes=parse_size(max_memory) if max_memory else None,
        threads_per_process=threads,
    )
    report = work(queue, options, on_event=_print)
    click.echo(
        f"{report.n_done} done ({report.n_skipped} of them before), {report.n_failed} attempts failed, "
        f"{report.n_dead} dead, {report.n_returned} handed back"
    )
    if report.n_dead:
        click.echo(
            "the reasons lie in pipeline/dead/ under the root, and in the queue's folder dead/", err=True
        )
    sys.exit(report.exit_code)


def _print(event: WorkerEvent) -> None:
    if event.name == "started":  # its end says it all
        return
    line = f"{time.strftime('%H:%M:%S')} {event.name:<8} {event.step} {event.kind} {event.task_id[:12]}"
    if event.attempt > 1:
        line += f" attempt {event.attempt}"
    click.echo(f"{line} {event.seconds:.2f} s" + (f": {event.message}" if event.message else ""))

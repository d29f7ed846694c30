"""``cloudseg worker``: run the tasks of a queue."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from dataclasses import asdict

import click

from cloudseg.errors import SpecError
from cloudseg.tasking import logs
from cloudseg.tasking.logs import LogFormat
from cloudseg.tasking.metrics import Health, WorkerMetrics, serving
from cloudseg.tasking.queue import open_queue
from cloudseg.tasking.worker import TaskLimits, WorkerEvent, WorkerOptions, WorkerReport, work

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


def parse_limit(text: str) -> tuple[str, TaskLimits]:
    """Return kind and limits from ``affinities=8GiB,600s``; either limit may be left out.

    Raises
    ------
    SpecError
        If the text is something else.
    """
    kind, _, rest = text.partition("=")
    found: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        seconds = re.fullmatch(r"(\d+(?:\.\d+)?)\s*s", part)
        name, value = (
            ("max_seconds", float(seconds[1])) if seconds else ("max_memory_bytes", parse_size(part))
        )
        if name in found or not value:
            found.clear()
            break
        found[name] = value
    if not kind.strip() or not found:
        raise SpecError(
            f"--limit {text!r} is not a limit: expected KIND=SIZE,SECONDSs, e.g. affinities=8GiB,600s, "
            "or one of both, e.g. meshes=3600s"
        )
    return kind.strip(), TaskLimits.model_validate(found)


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
    "--limit",
    "limits",
    multiple=True,
    metavar="KIND=SIZE,SECONDSs",
    help="Limits of one kind of task instead, e.g. affinities=8GiB,600s or meshes=3600s. May be repeated.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=None,
    help="Threads of numerical libraries in each process.  [default: the cores shared out]",
)
@click.option(
    "--gpu", is_flag=True, help="Refuse to start without a GPU; share out the GPUs among the processes."
)
@click.option(
    "--share-network/--no-share-network",
    default=None,
    help="Run the networks of all processes in one more process, in common batches.  [default: with --gpu]",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Lines for people, or one JSON object each for log collectors.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(min=0, max=65535),
    default=None,
    help="Answer /metrics (Prometheus), /livez and /readyz on this port; 0: any free one.  [default: do not]",
)
@click.option(
    "--metrics-host",
    default="",
    help="Address to answer on, e.g. 127.0.0.1.  [default: all of this machine's]",
)
def worker(
    queue: str,
    *,
    processes: int,
    until_empty: bool,
    lease_seconds: int,
    max_task_seconds: float | None,
    max_memory: str | None,
    limits: tuple[str, ...],
    threads: int | None,
    gpu: bool,
    share_network: bool | None,
    log_format: LogFormat,
    metrics_port: int | None,
    metrics_host: str,
) -> None:
    """Run the tasks of QUEUE (fq://folder or sqs://NAME), one line for each.

    Exit codes: 0 when no task went to the dead letters; 1 when one did, or the queue cannot be used; 2 for a
    wrong request; 143 (SIGTERM) or 130 (Ctrl-C) when a signal cut tasks short, which are then handed back at
    once for other workers; 0 when the signal found the worker idle.
    """
    logs.configure(log_format, stream=sys.stdout if log_format == "json" else sys.stderr)
    options = WorkerOptions(
        n_processes=processes,
        until_empty=until_empty,
        lease_seconds=lease_seconds,
        max_task_seconds=max_task_seconds,
        max_memory_bytes=parse_size(max_memory) if max_memory else None,
        limits=dict(map(parse_limit, limits)),
        threads_per_process=threads,
        gpu=gpu,
        share_network=share_network,
    )
    health = Health()
    metrics = WorkerMetrics(lambda: open_queue(queue, create=False)) if metrics_port is not None else None

    def tell(event: WorkerEvent) -> None:
        if metrics is not None:
            metrics.note(event)
        line = logs.describe(event, log_format)
        if line is not None:
            click.echo(line)

    with ExitStack() as stack:
        if metrics is not None and metrics_port is not None:
            port = stack.enter_context(serving(metrics, health, host=metrics_host, port=metrics_port))
            _say(f"metrics on port {port}", log_format, event="listening", port=port)
        report = work(queue, options, on_event=tell, health=health)
    _say_end(report, queue, log_format)
    sys.exit(report.exit_code)


def _say(text: str, log_format: LogFormat, **fields: object) -> None:
    click.echo(logs.json_line({"level": "info", "message": text, **fields}) if log_format == "json" else text)


def _say_end(report: WorkerReport, queue: str, log_format: LogFormat) -> None:
    text = (
        f"{report.n_done} done ({report.n_skipped} of them before), {report.n_failed} attempts failed, "
        f"{report.n_dead} dead, {report.n_returned} handed back"
    )
    _say(text, log_format, event="stopped", queue=queue, **asdict(report), exit_code=report.exit_code)
    if report.n_dead and log_format == "text":
        click.echo(
            f"the reasons lie in pipeline/dead/ under the root, and in the queue: cloudseg queue dead {queue}",
            err=True,
        )

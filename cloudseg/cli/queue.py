"""``cloudseg queue``: look into a queue, and mend it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cloudseg.errors import CloudsegError
from cloudseg.tasking.envelope import Envelope, parse_message
from cloudseg.tasking.queue import DeadMessage, open_queue

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
_queue = click.argument("address", metavar="QUEUE")


@click.group()
def queue() -> None:
    """Look into a queue (fq://folder or sqs://NAME) and mend it."""


@queue.command()
@_queue
def create(address: str) -> None:
    """Make QUEUE, with a place for its dead letters; what exists stays as it is."""
    open_queue(address, create=True)
    click.echo(f"{address} is there, with a place for dead letters")


@queue.command()
@_queue
@_json
def status(address: str, *, as_json: bool) -> None:
    """Count the messages of QUEUE: waiting, leased or delayed, dead."""
    counts = open_queue(address, create=False).counts()
    if as_json:
        _print_json({"queue": address, **asdict(counts)})
        return
    about = "about " if counts.approximate else ""
    click.echo(
        f"{about}{counts.ready} waiting, {about}{counts.leased} leased or delayed, {about}{counts.dead} dead"
    )
    if counts.approximate:
        click.echo("SQS counts approximately, and may lag behind by a minute")


@queue.command()
@_queue
@click.option("-n", "n", type=click.IntRange(min=1), default=10, show_default=True, help="How many at most.")
@_json
def peek(address: str, *, n: int, as_json: bool) -> None:
    """Show some messages of QUEUE. On SQS these are taken and handed back, uncounted, in a moment."""
    found = open_queue(address, create=False).peek(n)
    now = time.time()
    rows = [
        {
            "id": message.id,
            **_describe(message.message),
            "attempts": message.n_attempts,
            "leased": message.leased,
            "age_s": None if message.sent_s is None else round(max(0.0, now - message.sent_s), 1),
        }
        for message in found
    ]
    if as_json:
        _print_json(rows)
        return
    table = Table("id", "kind", "step", "task", "attempts", "leased", "age s", box=None, pad_edge=False)
    for row in rows:
        row["leased"] = "yes" if row["leased"] else "no"
        cells = [row[name] for name in ("id", "kind", "step", "task_id", "attempts", "leased", "age_s")]
        table.add_row(*(str(cell) if cell is not None else "?" for cell in cells))
    _console().print(table)


@queue.command()
@_queue
@click.option(
    "--traceback/--no-traceback", default=True, show_default=True, help="Whole reasons, or their first lines."
)
@_json
def dead(address: str, *, traceback: bool, as_json: bool) -> None:
    """Show the dead letters of QUEUE and why each gave up."""
    letters = list(open_queue(address, create=False).dead())
    if as_json:
        _print_json([{"id": x.id, **_describe(x.message), "reason": x.reason} for x in letters])
        return
    for letter in letters:
        about = _describe(letter.message)
        click.echo(
            f"{letter.id}  {about['kind'] or 'unreadable'}  {about['step'] or ''}  {about['task_id'] or ''}"
        )
        lines = letter.reason.splitlines() if traceback else letter.reason.splitlines()[:1]
        click.echo("\n".join(f"    {line}" for line in lines))
    click.echo(f"{len(letters)} dead letters", err=True)


@queue.command()
@_queue
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--kind", help="Only tasks of this kind, e.g. affinities or affinities/1.")
def retry(address: str, ids: tuple[str, ...], *, kind: str | None) -> None:
    """Put dead letters of QUEUE (all, or those named) back among the waiting, with fresh attempts.

    For a pipeline's tasks, `cloudseg retry ROOT` does this and clears the run's own list of dead tasks too.
    """
    known: set[str] = set()

    def wanted(letter: DeadMessage) -> bool:
        about = _describe(letter.message)
        named = {letter.id, about["task_id"]} & set(ids)
        known.update(name for name in named if name)
        found = str(about["kind"])
        return (not ids or bool(named)) and (kind is None or kind in (found, found.partition("/")[0]))

    n_moved = open_queue(address, create=False).redrive(wanted)
    click.echo(f"{n_moved} dead letters put back")
    if missing := [name for name in ids if name not in known]:
        click.echo(
            f"no dead letter has the id {', '.join(missing)}; see: cloudseg queue dead {address}", err=True
        )
        sys.exit(1)


@queue.command()
@_queue
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(address: str, *, yes: bool) -> None:
    """Remove every message of QUEUE, leased ones too; dead letters stay."""
    opened = open_queue(address, create=False)
    counts = opened.counts()
    about = "about " if counts.approximate else ""
    if not yes:
        click.confirm(
            f"Remove {about}{counts.ready + counts.leased} messages from {address}?", abort=True, err=True
        )
    opened.purge()
    click.echo(
        f"{about}{counts.ready + counts.leased} messages removed; {about}{counts.dead} dead letters stay"
    )


def _describe(message: bytes) -> dict[str, str | None]:
    """Say whose message it is, as far as it can be read."""
    try:
        job = parse_message(message)
    except CloudsegError:
        return {"kind": None, "step": None, "task_id": None, "root": None}
    if isinstance(job, Envelope):
        return {"kind": job.kind, "step": job.step, "task_id": job.task_id, "root": job.root}
    return {"kind": job.name, "step": "igneous", "task_id": None, "root": None}


def _print_json(value: dict[str, Any] | Iterable[Any]) -> None:
    click.echo(json.dumps(value, indent=1))


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)

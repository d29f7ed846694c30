"""A progress bar on standard error, so that standard output stays clean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn


@contextmanager
def bar(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar a stage of the work; yields ``report(what, done, total)``.

    Parameters
    ----------
    unit
        What is counted, in the plural.
    """
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]} " + unit),
        TimeRemainingColumn(),
    )
    stages: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as display:

        def report(what: str, done: int, total: int) -> None:
            amount = f"{done:,}/{total:,}"
            if what not in stages:
                stages[what] = display.add_task(what, total=total, amount=amount)
            display.update(stages[what], completed=done, total=total, amount=amount)

        yield report

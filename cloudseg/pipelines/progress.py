"""How a run shows how far it is: moving bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

PLAIN_EVERY_SECONDS = 10.0


class _Rate:
    """Rate and remaining time of one step, from what was done since we began to look."""

    def __init__(self, n_tasks: int, n_done: int) -> None:
        self.n_tasks, self.n_before, self.started = n_tasks, n_done, time.monotonic()

    def text(self, n_done: int, *, voxels_per_task: float) -> str:
        """Return e.g. ``1.2 Mvx/s, 3 min left``; empty until something was done."""
        elapsed_s = time.monotonic() - self.started
        n_new = n_done - self.n_before
        if n_new < 1 or elapsed_s < 0.5:
            return ""
        per_s = n_new / elapsed_s
        rate = f"{voxels_per_task * per_s / 1e6:.3g} Mvx/s" if voxels_per_task else f"{per_s:.3g} tasks/s"
        return f"{rate}, {duration((self.n_tasks - n_done) / per_s)} left"


class BarProgress:
    """Bars on a terminal."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._ids: dict[str, TaskID] = {}
        self._rates: dict[str, _Rate] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def counting(self, n_tasks: int) -> Callable[[int], None]:
        """Begin a bar at the first call of the answer."""
        bar: TaskID | None = None

        def count(n: int) -> None:
            nonlocal bar
            if bar is None:
                bar = self._bars.add_task("counting tasks", total=n_tasks, note="")
            self._bars.advance(bar, n)
            if self._bars.tasks[self._bars.task_ids.index(bar)].finished:
                self._bars.remove_task(bar)
                bar = None

        return count

    def begin(self, step: str, *, n_tasks: int, n_done: int) -> None:
        """Add a bar."""
        note = f"{n_done} done before" if n_done else ""
        self._ids[step] = self._bars.add_task(step, total=n_tasks, completed=n_done, note=note)
        self._rates[step] = _Rate(n_tasks, n_done)

    def update(self, step: str, *, n_done: int, n_dead: int, voxels_per_task: float) -> None:
        """Move the bar."""
        note = self._rates[step].text(n_done, voxels_per_task=voxels_per_task)
        if n_dead:
            note = f"[red]{n_dead} gave up[/red] {note}"
        if note:
            self._bars.update(self._ids[step], note=note)
        self._bars.update(self._ids[step], completed=n_done)

    def end(self, step: str) -> None:
        """Leave the bar as it is."""
        self._bars.stop_task(self._ids[step])

    def say(self, text: str) -> None:
        """Print above the bars."""
        self._bars.console.print(escape(text), highlight=False)


class LineProgress:
    """A line now and then: for logs."""

    def __init__(self, console: Console, *, every_s: float = PLAIN_EVERY_SECONDS) -> None:
        self._console = console
        self._every_s = every_s
        self._rates: dict[str, _Rate] = {}
        self._latest: dict[str, int] = {}
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def counting(self, n_tasks: int) -> Callable[[int], None]:
        """Say so for the first task only."""
        said = False

        def count(_n: int) -> None:
            nonlocal said
            if not said:
                said = True
                self.say(f"counting {n_tasks} tasks")

        return count

    def begin(self, step: str, *, n_tasks: int, n_done: int) -> None:
        """Print how much there is to do."""
        self._rates[step] = _Rate(n_tasks, n_done)
        self._latest[step] = n_done
        self._next = time.monotonic() + self._every_s
        self.say(f"{step}: {n_tasks} tasks" + (f", {n_done} done before" if n_done else ""))

    def update(self, step: str, *, n_done: int, n_dead: int, voxels_per_task: float) -> None:
        """Print, if the last line is old enough."""
        self._latest[step] = n_done
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every_s
        rate = self._rates[step]
        note = rate.text(n_done, voxels_per_task=voxels_per_task)
        parts = [f"{n_done}/{rate.n_tasks}", note, f"{n_dead} gave up" if n_dead else ""]
        self.say(f"{step}: " + ", ".join(part for part in parts if part))

    def end(self, step: str) -> None:
        """Print what it took."""
        rate = self._rates[step]
        took = duration(time.monotonic() - rate.started)
        self.say(f"{step}: {self._latest[step]}/{rate.n_tasks} after {took}")

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(escape(text), highlight=False, soft_wrap=True)


def progress_for(console: Console) -> BarProgress | LineProgress:
    """Return bars for a terminal, lines for everything else."""
    return BarProgress(console) if console.is_terminal else LineProgress(console)


def duration(seconds: float) -> str:
    """Return a time for people, e.g. ``1 h 05 min``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"

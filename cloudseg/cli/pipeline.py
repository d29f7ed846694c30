"""``cloudseg plan``, ``run``, ``status``, ``retry``, ``cancel`` and ``verify``."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from cloudseg.cli.values import whole_numbers
from cloudseg.errors import StorageError

if TYPE_CHECKING:
    from cloudseg.pipelines.spec import PipelineSpec
    from cloudseg.volumes.objects import Objects

EXIT_INCOMPLETE = 3

_set = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override image, root or any option, e.g. --set agglomerate.threshold=0.6. May be repeated.",
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@_set
@click.option(
    "--prices", type=click.Path(path_type=Path), help="Price file to use instead of the built-in one."
)
@click.option(
    "--calibrate",
    "wants_calibration",
    is_flag=True,
    help="Run a few real blocks in a scratch root first, and take the hours from them; later plans do so too.",
)
@click.option("--calibrate-at", metavar="X,Y,Z", help="A voxel of the blocks to run; default: the middle.")
def plan(
    file: Path,
    overrides: tuple[str, ...],
    prices: Path | None,
    wants_calibration: bool,
    calibrate_at: str | None,
) -> None:
    """Show what FILE would do and cost; touches nothing, but for what --calibrate leaves: its figures."""
    from cloudseg.pipelines.calibration import load_calibration, step_times, usable
    from cloudseg.pipelines.plan import plan as make_plan
    from cloudseg.pipelines.prices import load_prices
    from cloudseg.pipelines.space import free_bytes, human_bytes
    from cloudseg.pipelines.spec import read_spec
    from cloudseg.pipelines.tables import plan_table
    from cloudseg.volumes import open_objects

    loaded_prices = load_prices(prices)
    wants_calibration = wants_calibration or calibrate_at is not None
    absent: Literal["error", "allow"] = "error" if wants_calibration else "allow"
    expanded = make_plan(read_spec(file, overrides=overrides), absent_image=absent)
    info = expanded.image.info
    console = _console()
    console.print(
        f"image  {expanded.image.uri}  {info.shape} voxels of {info.voxel_size_nm} nm, {info.dtype}"
    )
    if expanded.image_is_absent:
        console.print("[yellow]image  its first voxel was never written: a run would be refused[/yellow]")
    console.print(f"root   {expanded.spec.root}")
    figures = None
    if wants_calibration:
        from cloudseg.pipelines.calibrate import calibrate

        at = whole_numbers(calibrate_at, option="--calibrate-at")
        figures = calibrate(expanded, at=at, say=lambda text: console.print(f"measuring  {text}"))
    else:
        with suppress(StorageError):  # a plan needs no right to read its root
            figures = load_calibration(open_objects(expanded.spec.root))
    fits = figures is not None and usable(figures, expanded.spec)
    times = step_times(expanded, figures) if figures is not None and fits else {}
    console.print(plan_table(expanded, loaded_prices, times))
    free = free_bytes(expanded.spec.root)
    if free is not None:
        room = "enough" if free >= expanded.outputs_bytes else "[red]too little: a run would be refused[/red]"
        console.print(
            f"disk   {human_bytes(free)} free, {human_bytes(expanded.outputs_bytes)} needed: {room}"
        )
    if figures is not None and not fits:
        console.print(
            "[yellow]The root has figures of a calibration with other settings; they are left out. "
            "Measure anew with --calibrate.[/yellow]"
        )
    if figures is None or not fits:
        console.print(
            "Hours and dollars come from a price file: edit a copy of it and pass it with --prices."
        )
        return
    console.print(
        f"Hours were measured on {figures.box} with one worker on {figures.host}, "
        f"{figures.measured:%Y-%m-%d %H:%M} UTC, and multiplied by the volume. Dollars come from a price file.",
        soft_wrap=True,
    )
    guessed = [name for name, time in times.items() if time.origin == "extrapolated"]
    if guessed:
        console.print(
            f"Extrapolated, for one task grows or a level was out of reach: {', '.join(guessed)}.",
            soft_wrap=True,
        )


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@_set
@click.option(
    "--workers", type=click.IntRange(min=0), help="Worker processes here; 0: only enqueue and wait."
)
@click.option(
    "--executor", metavar="QUEUE", help="'local', or a shared queue such as fq:///shared/queue or sqs://NAME."
)
def run(file: Path, overrides: tuple[str, ...], workers: int | None, executor: str | None) -> None:
    """Run the pipeline FILE, or go on with it; exit code 0 complete, 1 tasks gave up, 3 cancelled."""
    from cloudseg.pipelines.execute import execute
    from cloudseg.pipelines.plan import plan as make_plan
    from cloudseg.pipelines.progress import progress_for
    from cloudseg.pipelines.spec import read_spec
    from cloudseg.pipelines.tables import summary_table

    chosen = list(overrides)
    chosen += [f"workers={workers}"] if workers is not None else []
    chosen += [f"executor={executor}"] if executor is not None else []
    expanded = make_plan(read_spec(file, overrides=chosen))
    console = _console()
    with progress_for(console) as progress:
        report = execute(expanded, progress=progress)
    if report.stopped_by is not None:
        click.echo(f"stopped by a signal; run again to go on: cloudseg run {file}", err=True)
        sys.exit(128 + report.stopped_by)
    if report.cancelled:
        click.echo(f"cancelled; run again to go on: cloudseg run {file}", err=True)
        sys.exit(EXIT_INCOMPLETE)
    console.print(summary_table(expanded, report.summaries))
    _print_link(expanded.spec.root, console)


@click.command()
@click.argument("root_or_file")
@_set
def status(root_or_file: str, overrides: tuple[str, ...]) -> None:
    """Show how far a run is, from its receipts; exit code 0 complete, 1 tasks gave up, 3 not complete."""
    from cloudseg.pipelines.report import last_line
    from cloudseg.pipelines.report import status as find_status
    from cloudseg.pipelines.tables import status_table

    objects = _root(root_or_file, overrides)
    found = find_status(objects)
    console = _console()
    console.print(status_table(found))
    for step in found.steps:
        for letter in step.dead:
            where = f"{objects.uri}/pipeline/dead/{step.step}/{letter.task_id}.json"
            console.print(
                f"[red]{step.step} {letter.task_id}[/red] gave up after {letter.attempts} attempts:"
            )
            console.print(f"  {escape(last_line(letter))}\n  {where}", highlight=False, soft_wrap=True)
    if found.n_dead:
        console.print(f"Mend the cause, then: cloudseg retry {objects.uri}, and run again", soft_wrap=True)
    sys.exit(found.exit_code)


@click.command()
@click.argument("root_or_file")
@_set
def retry(root_or_file: str, overrides: tuple[str, ...]) -> None:
    """Clear the dead letters of a run, so that its tasks are tried again."""
    from cloudseg.pipelines.control import retry as clear

    n_cleared = clear(_root(root_or_file, overrides))
    click.echo(f"{n_cleared} dead letters cleared; run again to try those tasks again")


@click.command()
@click.argument("root_or_file")
@_set
def cancel(root_or_file: str, overrides: tuple[str, ...]) -> None:
    """Stop a run, wherever it runs; run it again to go on."""
    from cloudseg.pipelines.control import cancel as ask

    n_removed = ask(_root(root_or_file, overrides))
    click.echo(f"cancelled; {n_removed} waiting tasks taken out of shared queues; run again to go on")


@click.command()
@click.argument("root_or_file")
@_set
@click.option(
    "--sample",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the chunks to read; default: all of a small layer.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the sample.")
def verify(root_or_file: str, overrides: tuple[str, ...], sample: float | None, seed: int) -> None:
    """Read what a run has made by two libraries and compare; exit code 1 if anything is wrong."""
    from cloudseg.pipelines.tables import verify_table
    from cloudseg.pipelines.verify import verify as check

    console = _console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = None

        def begin(name: str, n_chunks: int) -> None:
            nonlocal bar
            bar = bars.add_task(name, total=n_chunks)

        def advance(n: int) -> None:
            if bar is not None:
                bars.advance(bar, n)

        report = check(
            _root(root_or_file, overrides), sample=sample, seed=seed, on_layer=begin, on_chunk=advance
        )
    console.print(verify_table(report))
    for problem in report.problems:
        console.print(f"[red]wrong[/red] {escape(problem)}", soft_wrap=True, highlight=False)
    if report.problems:
        sys.exit(1)
    console.print(f"all {report.n_tasks} tasks have receipts; every chunk that was read is there and agrees")


def _root(root_or_file: str, overrides: tuple[str, ...]) -> Objects:
    """Open the root that is named, or that a pipeline file names."""
    from cloudseg.pipelines.spec import read_spec, resolve_uri
    from cloudseg.volumes import open_objects

    if root_or_file.endswith(".toml") or Path(root_or_file).is_file():
        spec: PipelineSpec = read_spec(root_or_file, overrides=overrides)
        return open_objects(spec.root)
    if overrides:
        raise click.UsageError("--set goes with a pipeline file, not with a root")
    return open_objects(resolve_uri(root_or_file, where="root"))


def _console() -> Console:
    console = Console(highlight=False)
    # A log has no width of its own: wide enough for every table, rather than rich's 80 columns.
    return console if console.is_terminal else Console(highlight=False, width=160)


def _print_link(root: str, console: Console) -> None:
    # The viewer package stands above the pipelines, and a result without a link is still a result.
    try:
        link: str = importlib.import_module("cloudseg_viewer.links").link_for_root(root)
    except (ImportError, OSError, ValueError) as error:
        click.echo(f"no link: {error}", err=True)
        return
    console.print(link, soft_wrap=True)

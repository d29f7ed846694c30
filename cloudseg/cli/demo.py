"""``cloudseg demo``: the main job from end to end on tissue whose truth is known."""

from __future__ import annotations

import importlib.resources
import shutil
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("demo-data"),
    show_default=True,
    help="Where volumes and results go.",
)
@click.option(
    "--shape", default="160,160,128", show_default=True, help="Voxels of the phantom along x, y, z."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which phantom.")
@click.option(
    "--fresh/--resume", default=True, show_default=True, help="Delete an earlier run's results first."
)
def demo(folder: Path, shape: str, seed: int, *, fresh: bool) -> None:
    """Segment an EM-like phantom: affinities, supervoxels, agglomeration, meshes, skeletons, statistics, link."""
    from cloudseg.cli.values import whole_numbers
    from cloudseg.pipelines.execute import execute
    from cloudseg.pipelines.plan import plan
    from cloudseg.pipelines.progress import progress_for
    from cloudseg.pipelines.spec import parse_spec
    from cloudseg.pipelines.tables import summary_table
    from cloudseg.testing.store import store_phantom
    from cloudseg.volumes.evaluate import Labels, evaluate
    from cloudseg_viewer.links import link_for_root

    size = whole_numbers(shape, option="--shape")
    assert size is not None, "the option has a default"
    root = folder.absolute().as_uri()
    for name in ("image", "truth", "run"):
        if fresh and (folder / name).is_dir():
            shutil.rmtree(folder / name)
    terminal = Console(highlight=False)
    console = terminal if terminal.is_terminal else Console(highlight=False, width=160)
    started = time.monotonic()
    console.print(f"growing {shape} voxels of tissue (seed {seed}) in {root}")
    image_uri, truth_uri = store_phantom(root, shape=size, seed=seed)
    grown_s = time.monotonic() - started

    started = time.monotonic()
    text = importlib.resources.files("cloudseg.cli").joinpath("demo.toml").read_text(encoding="utf-8")
    spec = parse_spec(f'image = "{image_uri}"\nroot = "{root}/run"\n{text}', where="the demo's pipeline")
    expanded = plan(spec)
    with progress_for(console) as progress:
        report = execute(expanded, progress=progress)
    if not report.is_complete:
        raise click.ClickException("the run was stopped; go on with: cloudseg demo --resume")
    job_s = time.monotonic() - started
    console.print(summary_table(expanded, report.summaries))

    scores = evaluate(Labels.open(f"{root}/run/segmentation"), Labels.open(truth_uri)).table.scores()
    table = Table(title="the segmentation against the exact truth", title_justify="left")
    for name in ("figure", "value", "meaning"):
        table.add_column(name, justify="right" if name == "value" else "left")
    table.add_row("adapted Rand error", f"{scores.adapted_rand_error:.4f}", "0 is perfect")
    table.add_row(
        "VOI split / merge", f"{scores.voi_split:.3f} / {scores.voi_merge:.3f}", "bits; 0 is perfect"
    )
    table.add_row("segments / true objects", f"{scores.n_segments} / {scores.n_truth_objects}", "")
    table.add_row("growing the phantom", f"{grown_s:.0f} s", "")
    table.add_row("the main job", f"{job_s:.0f} s", "image to meshes, skeletons, statistics")
    console.print(table)
    console.print(f"To look at it, leave this running:\n  cloudseg serve {folder / 'run'}\nand open:")
    console.print(f"  {link_for_root(f'{root}/run')}", soft_wrap=True)

"""Plans, runs and checks as tables for people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from cloudseg.pipelines.calibration import StepTime
from cloudseg.pipelines.plan import PipelinePlan
from cloudseg.pipelines.prices import Estimate, Prices, estimate_stage, total
from cloudseg.pipelines.progress import duration
from cloudseg.pipelines.report import RunStatus, StepStatus, Summary
from cloudseg.pipelines.space import human_bytes
from cloudseg.pipelines.verify import VerifyReport


def plan_table(expanded: PipelinePlan, prices: Prices, times: Mapping[str, StepTime] | None = None) -> Table:
    """Return stages, steps, tasks, bytes, memory, hours and dollars of a plan; ``times``: of measured steps."""
    numbers = ("tasks", "writes", "memory", "core h", "hours", "$", "$/month")
    table = _table("stage", numbers=(*numbers, "hours are") if times else numbers, texts=("steps",))
    estimates = []
    for stage in expanded.stages:
        estimate = estimate_stage(stage, expanded, prices, times)
        estimates.append(estimate)
        steps = ", ".join(step.name.removeprefix(f"{stage.label}.") for step in stage.plan.steps)
        table.add_row(
            stage.label,
            steps if steps != stage.label else "",
            *_estimate_cells(estimate, with_origin=bool(times)),
        )
    table.add_section()
    table.add_row("total", "", *_estimate_cells(total(estimates)))
    return table


def summary_table(expanded: PipelinePlan, summaries: Mapping[str, Summary]) -> Table:
    """Return what each stage took, from its receipts."""
    table = _table("stage", numbers=("tasks", "retried", "wall", "task time", "Mvx/s", "s/Mvx", "memory"))
    megavoxels = expanded.image.info.bounds.n_voxels / 1e6
    for stage in expanded.stages:
        stage_sum = sum((summaries[s.name] for s in stage.plan.steps if s.name in summaries), Summary())
        table.add_row(
            stage.label,
            str(stage_sum.n_tasks),
            str(stage_sum.n_retried),
            duration(stage_sum.wall_s),
            duration(stage_sum.task_seconds),
            f"{megavoxels / stage_sum.wall_s:.3g}" if stage_sum.wall_s else "",
            f"{stage_sum.task_seconds / megavoxels:.3g}",
            human_bytes(stage_sum.peak_memory_bytes),
        )
    return table


def status_table(found: RunStatus) -> Table:
    """Return where each step stands."""
    table = _table(
        "step",
        numbers=("done", "failed", "gave up", "wall", "s/task", "Mvx/s", "s/Mvx", "left"),
        texts=("state",),
    )
    megavoxels = found.record.image.info.bounds.n_voxels / 1e6
    for step in found.steps:
        table.add_row(*_status_cells(step, megavoxels=megavoxels))
    return table


def verify_table(report: VerifyReport) -> Table:
    """Return which layers were read, and how much of them."""
    table = _table("layer", numbers=("mip", "chunks", "read by both"))
    for layer in report.layers:
        table.add_row(layer.name, str(layer.mip), str(layer.n_chunks), str(layer.n_read))
    return table


def _table(first: str, *, numbers: tuple[str, ...], texts: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False)
    # Names are what people look for: only they are never cut.
    table.add_column(first, no_wrap=True)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _estimate_cells(estimate: Estimate, *, with_origin: bool = False) -> tuple[str, ...]:
    return (
        str(estimate.n_tasks),
        human_bytes(estimate.outputs_bytes),
        human_bytes(estimate.task_memory_bytes) if estimate.task_memory_bytes else "?",
        f"{estimate.core_hours:.3g}",
        f"{estimate.hours:.3g}",
        f"{estimate.dollars:.3g}",
        f"{estimate.dollars_per_month:.3g}",
        *([estimate.origin] if with_origin else []),
    )


def _status_cells(step: StepStatus, *, megavoxels: float) -> tuple[str, ...]:
    summary = step.summary
    per_task_s = summary.task_seconds / summary.n_tasks if summary.n_tasks else 0.0
    if step.is_complete:
        state = "[green]complete[/green]"
    elif step.dead:
        state = "[red]stuck[/red]"
    else:
        state = "going on" if step.n_done else "waiting"
    return (
        step.step,
        state,
        f"{step.n_done}/{step.n_tasks}",
        str(step.n_failed_attempts or ""),
        str(len(step.dead) or ""),
        duration(summary.wall_s) if summary.n_tasks else "",
        f"{per_task_s:.3g}" if summary.n_tasks else "",
        f"{step.voxels_per_s / 1e6:.3g}" if step.voxels_per_s else "",
        f"{per_task_s * step.n_done / megavoxels:.3g}" if step.is_complete and step.n_tasks else "",
        "" if step.is_complete or step.eta_s is None else duration(step.eta_s),
    )

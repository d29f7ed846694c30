"""How far the runs of the served roots are: steps, rates, what gave up and why, and what it has cost so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from cloudseg.errors import CloudsegError
from cloudseg.pipelines import advance
from cloudseg.pipelines.prices import load_prices
from cloudseg.pipelines.report import StepStatus, status
from cloudseg.server.access import Access, Identity
from cloudseg.server.answers import tagged
from cloudseg.server.somas import PROBLEMS
from cloudseg.volumes import open_objects
from cloudseg.volumes.objects import Objects
from cloudseg_viewer.links import mount_name

# A run is listed in its bucket at most so often, however many look at it.
_LOOK_S = 3.0
# Enough to see what is wrong; `cloudseg status` tells of all.
MAX_DEAD = 50


def progress_router(roots: Sequence[str], access: Access) -> APIRouter:
    """Return the routes ``/v1/runs`` and ``/v1/runs/<run>``.

    Parameters
    ----------
    roots
        Addresses of the served roots; those without a run are left out.
    access
        Who may read.
    """
    router = APIRouter(tags=["runs"], responses=PROBLEMS)
    known = {mount_name(uri): uri for uri in roots}
    seen: dict[str, tuple[float, dict[str, Any]]] = {}
    lock = threading.Lock()

    def may_read(request: Request) -> Identity:
        peer = request.client.host if request.client else "unknown"
        return access.admit(request.headers.get("authorization"), peer=peer, scope="read")

    @router.get("/v1/runs", dependencies=[Depends(may_read)])
    def runs(request: Request) -> Response:
        """List the roots in which a pipeline was run."""
        found = [
            {"run": name, "root": uri}
            for name, uri in known.items()
            if open_objects(uri).exists(advance.PLAN_KEY)
        ]
        return tagged(JSONResponse({"runs": found}), request, immutable=False)

    @router.get("/v1/runs/{run}", dependencies=[Depends(may_read)])
    def run_status(run: str, request: Request) -> Response:
        """Say where a run stands: its steps, what gave up, and what it has cost."""
        if run not in known:
            raise HTTPException(404, f"there is no run {run[:80]!r}; /v1/runs lists those that there are")
        with lock:
            then, body = seen.get(run, (float("-inf"), {}))
            if time.monotonic() - then > _LOOK_S:
                body = {"run": run, **progress_of(open_objects(known[run]))}
                seen[run] = (time.monotonic(), body)
        return tagged(JSONResponse(body), request, immutable=False)

    return router


def progress_of(
    objects: Objects, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> dict[str, Any]:
    """Return where the run in a root stands, as JSON values. Times are those of the tasks' receipts.

    The cost is that of finished tasks, by the price of a core's hour in the price file of the package: what failed
    attempts took is in no receipt.

    Raises
    ------
    NotFoundError
        If no run was planned there.
    """
    found = status(objects)
    prices = load_prices()
    n_threads = _threads(objects)
    steps = [_step(each, n_threads) for each in found.steps]
    core_hours = sum(each["core_seconds"] for each in steps) / 3600
    return {
        "root": objects.uri,
        "at": now().isoformat(timespec="seconds"),
        "complete": found.is_complete,
        "cancelled": advance.cancellation(objects) is not None and not found.is_complete,
        "n_dead": found.n_dead,
        "steps": steps,
        "cost": {
            "core_hours": core_hours,
            "dollars": core_hours * prices.dollars_per_core_hour,
            "dollars_per_core_hour": prices.dollars_per_core_hour,
        },
    }


def _step(each: StepStatus, n_threads: int) -> dict[str, Any]:
    summary = each.summary
    per_task_s = summary.task_seconds / summary.n_tasks if summary.n_tasks else 0.0
    return {
        "stage": each.stage,
        "kind": each.kind,
        "step": each.step,
        "n_tasks": each.n_tasks,
        "n_done": each.n_done,
        "n_failed_attempts": each.n_failed_attempts,
        "n_dead": len(each.dead),
        "dead": [
            letter.model_dump(mode="json", include={"task_id", "kind", "reason", "attempts", "traceback"})
            for letter in each.dead[:MAX_DEAD]
        ],
        "tasks_per_s": each.tasks_per_s,
        "voxels_per_s": each.voxels_per_s,
        "eta_s": each.eta_s,
        "seconds_per_task": per_task_s,
        "core_seconds": per_task_s * each.n_done * n_threads,
        "peak_memory_bytes": summary.peak_memory_bytes,
        "started": summary.started.isoformat() if summary.started else None,
        "finished": summary.finished.isoformat() if summary.finished else None,
    }


def _threads(objects: Objects) -> int:
    """Return the cores that a task was given; one where the pipeline's file cannot be read any more."""
    try:
        return advance.load_spec_of(objects).threads_per_worker
    except CloudsegError:
        return 1

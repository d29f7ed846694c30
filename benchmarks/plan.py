"""Hold plans against what happens: peak memory of each step, planning a huge volume, the books of a huge step.

1. The example pipeline is planned and run on FIB-25 with one worker; the peak memory that the plan says of each step
   stands beside the highest of its receipts.
2. ``cloudseg plan`` of the same stages on a volume of which only the ``info`` exists.
3. A step of a million tasks whose receipts are written into the root in bulk, as if workers had been there: planning
   it, looking at it as a waiting run does, summing and folding the receipts, looking again. Each in a process of its
   own; its peak memory includes Python and libraries.

Usage: python benchmarks/plan.py [--data $CLOUDSEG_DATA] [--edge 250] [--teravoxels 100] [--tasks 1000000]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cloudseg.geometry import Box
from cloudseg.pipelines import advance
from cloudseg.pipelines.compaction import fold
from cloudseg.pipelines.plan import PipelinePlan, plan
from cloudseg.pipelines.report import write_summary
from cloudseg.pipelines.spec import load_spec, read_spec
from cloudseg.tasking.receipts import Receipt, Receipts
from cloudseg.tasking.run_task import versions
from cloudseg.tasking.steps import Step
from cloudseg.testing.runs import cloudseg, command_line, print_table, real_or_phantom, store, watched
from cloudseg.volumes import VolumeInfo, create_volume, open_objects

EXAMPLE = Path(__file__).parents[1] / "examples" / "fib25.toml"
BLOCK = 256


def memory_rows(image_uri: str, root: str) -> list[tuple[object, ...]]:
    """Run the example; return step, estimate, measurement and their ratio."""
    overrides = [f"image={image_uri}", f"root={root}", "workers=1"]
    expanded = plan(read_spec(EXAMPLE, overrides=overrides))
    cloudseg("run", str(EXAMPLE), *(word for text in overrides for word in ("--set", text)))
    objects, rows = open_objects(root), []
    for name, planned in expanded.memory_bytes().items():
        peak = max(receipt.peak_memory_bytes for receipt in Receipts(objects, name).all())
        rows.append((name, f"{planned / 1e6:.0f}", f"{peak / 1e6:.0f}", f"{planned / peak:.2f}"))
    return rows


def announced(folder: Path, edge: int, *, layer: str = "image") -> str:
    """Write the ``info`` of a cube, and none of its voxels."""
    info = VolumeInfo(
        bounds=Box.of_shape((edge, edge, edge)),
        voxel_size_nm=(8, 8, 8),
        dtype="uint8" if layer == "image" else "uint64",
        layer="image" if layer == "image" else "segmentation",
    )
    create_volume(f"file://{folder}", info)
    return f"file://{folder}"


def planned_step(folder: Path, n_tasks: int) -> PipelinePlan:
    """Plan one block of statistics after another, at least ``n_tasks`` of them."""
    edge = BLOCK * max(1, round(n_tasks ** (1 / 3)))
    image, labels = folder / "image", folder / "labels"
    if not image.exists():
        announced(image, edge)
        announced(labels, edge, layer="segmentation")
    data = {
        "image": f"file://{image}",
        "root": f"file://{folder}/root",
        "inputs": {"segmentation": f"file://{labels}"},
        "stage": [{"kind": "statistics", "block_shape": [BLOCK] * 3}],
    }
    return plan(load_spec(data, where="benchmark"), absent_image="allow")


def write_receipts(step: Step, folder: Path) -> int:
    """Write every receipt of the step, as its tasks would have."""
    place = folder / "root" / "pipeline" / "receipts" / step.name
    place.mkdir(parents=True, exist_ok=True)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    first = next(step.tasks())
    model = Receipt(
        task_id=first.id,
        kind=first.kind,
        step=step.name,
        counters={"segments": 999, "voxels": BLOCK**3},
        seconds={"compute": 1.5, "read": 0.25, "total": 2.0, "write": 0.25},
        peak_memory_bytes=500_000_000,
        versions=versions(),
        host="worker-1",
        owner=f"worker-1:1:{first.id}",
        started=now,
        finished=now + timedelta(seconds=2),
    )
    text = model.canonical_json()
    for task in step.tasks():
        task_id = task.id  # a digest, made anew each time
        (place / f"{task_id}.json").write_bytes(text.replace(first.id, task_id).encode())
    return step.n_tasks


def phase(name: str, folder: Path, n_tasks: int) -> dict[str, object]:
    """Do one thing to the step's books; return the seconds it took and what came out."""
    expanded = planned_step(folder, n_tasks)
    step, objects = next(iter(expanded.steps())), open_objects(f"file://{folder}/root")
    acts: dict[str, Callable[[], object]] = {
        "plan and digest of all tasks": lambda: advance.claim(expanded, objects).stages[0].steps[0].n_tasks,
        "(receipts written in bulk)": lambda: write_receipts(step, folder),
        "count (a look while waiting)": lambda: advance.count_settled(step.name, objects)[0],
        "compare all tasks with the receipts": lambda: advance.survey(step, objects).n_done,
        "sum": lambda: write_summary(step.name, objects, n_tasks=step.n_tasks).n_tasks,
        "fold": lambda: fold(step.name, objects, fold_from=1),
        "find one": lambda: int(Receipts(objects, step.name).get(next(step.tasks()).id) is not None),
    }
    started = time.monotonic()
    found = acts[name]()
    return {"seconds": time.monotonic() - started, "found": found}


PHASES = (
    "plan and digest of all tasks",
    "(receipts written in bulk)",
    "count (a look while waiting)",
    "compare all tasks with the receipts",
    "sum",
    "fold",
    "count (a look while waiting)",
    "compare all tasks with the receipts",
    "find one",
)


def book_rows(folder: Path, n_tasks: int) -> list[tuple[object, ...]]:
    """Return what each phase took, found and held."""
    rows: list[tuple[object, ...]] = []
    for name in PHASES:
        _, _, peak_mb, text = watched(
            sys.executable, __file__, "--phase", name, "--folder", str(folder), "--tasks", str(n_tasks)
        )
        said = json.loads(text)
        when = "folded: " if "fold" in [row[0] for row in rows] else ""
        rows.append((f"{when}{name}", said["found"], f"{said['seconds']:.1f}", f"{peak_mb:.0f}"))
    return rows


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--edge", type=int, default=250, help="of the volume that is run; 0: none")
    parser.add_argument("--teravoxels", type=float, default=100.0, help="0: none")
    parser.add_argument("--tasks", type=int, default=1_000_000, help="0: none")
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phase:
        print(json.dumps(phase(args.phase, args.folder, args.tasks)))
        return
    if args.edge:
        image, _ = real_or_phantom(args.data and Path(args.data), args.edge)
        with tempfile.TemporaryDirectory() as name:
            rows = memory_rows(store(f"file://{name}/image", image), f"file://{name}/run")
        worst = max(rows, key=lambda row: max(float(str(row[3])), 1 / float(str(row[3]))))
        print_table(
            f"peak memory of a worker, MB, {args.edge}^3 (furthest off: {worst[0]}, {worst[3]})",
            ("step", "planned", "measured", "ratio"),
            rows,
        )
    if args.teravoxels:
        edge = round((args.teravoxels * 1e12) ** (1 / 3))
        with tempfile.TemporaryDirectory() as name:
            uri = announced(Path(name) / "image", edge)
            words = ("plan", str(EXAMPLE), "--set", f"image={uri}", "--set", f"root=file://{name}/root")
            seconds, _, peak_mb, text = watched(*command_line(*words))
        n_tasks = next(line.split()[1] for line in text.splitlines() if line.startswith("total"))
        print_table(
            f"planning {args.teravoxels:g} teravoxels",
            ("tasks", "seconds", "peak MB"),
            [(n_tasks, f"{seconds:.1f}", f"{peak_mb:.0f}")],
        )
    if args.tasks:
        with tempfile.TemporaryDirectory() as name:
            print_table(
                "the books of one large step",
                ("", "tasks", "seconds", "peak MB"),
                book_rows(Path(name), args.tasks),
            )


if __name__ == "__main__":
    main()

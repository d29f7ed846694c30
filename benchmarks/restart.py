"""Show that a run that is killed and started again ends with the same bytes, and runs nothing twice.

The example pipeline runs once undisturbed. Then it runs again into another folder and its whole process group is
killed (SIGKILL) at random moments, ``--kills`` times, before it may finish. Every file outside ``pipeline/`` must be
equal, and no task may have run after its receipt existed (each receipt is the one that was there at the kill).

Usage: python benchmarks/restart.py [--data $CLOUDSEG_DATA] [--edge 250] [--kills 3] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cloudseg.testing.runs import cloudseg, command_line, file_digests, print_table, real_or_phantom, store

EXAMPLE = Path(__file__).parents[1] / "examples" / "fib25.toml"


def receipts(root: Path) -> dict[str, str]:
    """Return what each receipt says now, by its path."""
    return file_digests(root / "pipeline" / "receipts", leave_out=()) if root.exists() else {}


def words(image_uri: str, root: Path) -> list[str]:
    """Return the command line of a run into ``root``."""
    return ["run", str(EXAMPLE), "--set", f"image={image_uri}", "--set", f"root=file://{root}"]


def main() -> None:
    """Print the table; exit code 1 if files differ or a finished task ran again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--edge", type=int, default=250)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    image, _ = real_or_phantom(args.data and Path(args.data), args.edge)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image_uri = store(f"file://{folder}/image", image)
        calm, rough = folder / "calm", folder / "rough"
        started = time.monotonic()
        cloudseg(*words(image_uri, calm))
        whole_s = time.monotonic() - started
        rows, rerun = [("undisturbed", f"{whole_s:.0f} s", len(receipts(calm)), "")], 0
        for kill in range(args.kills):
            before = receipts(rough)
            process = subprocess.Popen(
                command_line(*words(image_uri, rough)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            wait_s = rng.uniform(0.1, 0.9) * whole_s
            try:
                process.wait(wait_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            time.sleep(1)  # children notice that their supervisor is gone
            after = receipts(rough)
            changed = sum(after.get(key) != digest for key, digest in before.items())
            rerun += changed
            rows.append((f"kill {kill + 1}", f"{wait_s:.0f} s", len(after), changed))
        before = receipts(rough)
        started = time.monotonic()
        cloudseg(*words(image_uri, rough))
        changed = sum(receipts(rough).get(key) != digest for key, digest in before.items())
        rerun += changed
        rows.append(("last start", f"{time.monotonic() - started:.0f} s", len(receipts(rough)), changed))
        a, b = file_digests(calm), file_digests(rough)
    differing = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    print_table(
        f"killed and restarted, {args.edge}^3",
        ("run", "ran for", "receipts after it", "receipts that changed"),
        rows,
    )
    print_table("files outside pipeline/", ("files", "differing"), [(len(a), len(differing))])
    if differing or rerun:
        sys.exit(f"{rerun} finished tasks ran again; differing files: {differing[:10]}")


if __name__ == "__main__":
    main()

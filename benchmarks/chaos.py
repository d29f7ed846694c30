"""Show that faults of every kind change nothing: byte-identical outputs, one receipt a task, poison buried.

Runs the main job on servers of a bucket and of SQS on this machine, with three workers, while it kills, freezes, cuts,
corrupts, duplicates, reorders, fills the disk and poisons the queue, all by one seed. Then it proves from the records
what was kept.

Usage: python benchmarks/chaos.py [--seeds 1 2] [--store s3|gcs] [--short] [--folder KEEP_LOGS_HERE]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from cloudseg.testing.chaos.run import run_chaos
from cloudseg.testing.chaos.table import is_kept, print_report

SIZE = "2m"


def on_small_disk(folder: Path, words: list[str]) -> int:
    """Run this script with a file system of its own at ``folder/disk``, which needs a user namespace."""
    (folder / "disk").mkdir()
    script = f'mount -t tmpfs -o size={SIZE} none "$1" && shift && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(folder / "disk"), sys.executable, __file__]
    return subprocess.run([*command, *words], check=False).returncode


def has_namespaces() -> bool:
    """Whether this user may mount a file system of their own."""
    try:
        command = ["unshare", "-rm", "true"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def main() -> None:
    """Print the tables; exit code 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--store", choices=["s3", "gcs"], default="s3", help="what the bucket is")
    parser.add_argument("--short", action="store_true", help="a few faults of each kind, in a minute or two")
    parser.add_argument("--folder", type=Path, help="where to leave the logs; default: nowhere")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here is not None:
        disk = args.here / "disk" if (args.here / "disk").is_mount() else None
        records = run_chaos(
            args.here,
            seed=args.seeds[0],
            store=args.store,
            is_long=not args.short,
            disk=disk if disk.is_mount() else None,
        )
        print_report(records)
        sys.exit(0 if is_kept(records) else 1)
    failed = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            folder = Path(name) if args.folder is None else args.folder / str(seed)
            folder.mkdir(parents=True, exist_ok=True)
            words = ["--here", str(folder), "--seeds", str(seed), "--store", args.store]
            words += ["--short"] if args.short else []
            if has_namespaces():
                code = on_small_disk(folder, words)
            else:
                print("no user namespaces here: the disk is not filled")
                code = subprocess.run([sys.executable, __file__, *words], check=False).returncode
            if code:
                failed.append(seed)
    if failed:
        sys.exit(
            f"promises were broken with seeds {failed}; again: {sys.argv[0]} --store {args.store} --seeds {failed[0]}"
        )


if __name__ == "__main__":
    main()

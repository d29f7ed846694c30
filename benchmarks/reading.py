"""What does it cost that reads from buckets are checked? Ours beside tensorstore alone, on stand-ins for GCS and S3.

    python benchmarks/reading.py [--edge 256] [--rounds 5] [--delay-ms 0 50]

Reads one volume whole, in each round once checked and once by tensorstore alone, which gives out whatever arrives.
``chunks`` are objects of 64^3 voxels, compared with the digest that the bucket keeps; ``shards`` are read through their
gzip envelopes; ``shards, no envelope`` are those of others, read twice. ``--delay-ms`` is waited in the middle of each
answer, as a network would: 0 is bare loopback, the worst case. Prints medians and their ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import numpy as np
import tensorstore as ts

from cloudseg.geometry import Box
from cloudseg.testing.emulators import Fault, Front, aws_emulator, environment, front, gcs_emulator
from cloudseg.testing.phantom import neurite_phantom
from cloudseg.testing.runs import print_table
from cloudseg.volumes import VolumeInfo, create_volume, open_volume, sharding_for
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.kvstore import kvstore_spec, renew_context, uncached_context

LAYOUTS = ("chunks", "shards", "shards, no envelope")


def volume(uri: str, image: np.ndarray, layout: str) -> VolumeInfo:
    """Store the image."""
    info = VolumeInfo(bounds=Box.of_shape(image.shape), voxel_size_nm=(8, 8, 8), chunk_shape=(64, 64, 64))
    if layout != "chunks":
        sharding = sharding_for(info, target_bytes=16 << 20)
        if layout == "shards, no envelope":
            sharding = sharding.model_copy(update={"data_encoding": "raw", "minishard_index_encoding": "raw"})
        info = info.model_copy(update={"sharding": sharding})
    create_volume(uri, info).write(info.bounds, image)
    return info


def read_checked(uri: str) -> np.ndarray:
    """Read as cloudseg does, nothing cached."""
    renew_context()
    found = open_volume(uri)
    return found.read(found.info.bounds)


def read_bare(uri: str) -> np.ndarray:
    """Read as tensorstore does, nothing cached."""
    spec = {"driver": "neuroglancer_precomputed", "kvstore": kvstore_spec(Address.parse(uri))}
    return ts.open(spec, context=uncached_context()).result().read(order="F").result()[..., 0]


def seconds(read: Callable[[str], np.ndarray], uri: str, image: np.ndarray) -> float:
    """Time one reading; it must be right."""
    started = time.perf_counter()
    got = read(uri)
    taken = time.perf_counter() - started
    np.testing.assert_array_equal(got, image)
    return taken


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edge", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delay-ms", type=int, nargs="+", default=[0, 50])
    args = parser.parse_args()
    image = np.asfortranarray(neurite_phantom((args.edge,) * 3, seed=0).image)
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gcs = stack.enter_context(gcs_emulator(folder / "gcs.log"))
        s3: Front = stack.enter_context(front(stack.enter_context(aws_emulator(folder / "aws.log"))))
        stack.enter_context(environment(AWS_ENDPOINT_URL=s3.url))
        for scheme, before in (("gs", gcs), ("s3", s3)):
            for n, layout in enumerate(LAYOUTS):
                uri = f"{scheme}://vol/v{n}"
                volume(uri, image, layout)
                for delay_ms in args.delay_ms:
                    before.faults[:] = [Fault("^GET", delay_s=delay_ms / 1000)] if delay_ms else []
                    taken: dict[str, list[float]] = {"checked": [], "bare": []}
                    for _ in range(args.rounds + 1):
                        taken["checked"].append(seconds(read_checked, uri, image))
                        taken["bare"].append(seconds(read_bare, uri, image))
                    before.faults.clear()
                    # The first round opens connections and loads code.
                    checked, bare = (statistics.median(taken[name][1:]) for name in ("checked", "bare"))
                    rows.append(
                        [
                            f"{scheme}://",
                            layout,
                            delay_ms,
                            f"{checked:.3f}",
                            f"{bare:.3f}",
                            f"{checked / bare:.2f}",
                        ]
                    )
    print_table(
        f"Reading {args.edge}^3 uint8, {os.cpu_count()} cores, tensorstore {metadata.version('tensorstore')}",
        ["bucket", "layout", "delay ms", "checked s", "tensorstore alone s", "ratio"],
        rows,
    )


if __name__ == "__main__":
    main()

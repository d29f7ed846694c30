"""What tracking by colours costs as the number of objects grows: it should grow with its logarithm.

One step from a section to the next, over the same pixels, cut into 4 ... 16384 squares: how often the network runs, CPU
seconds of one thread in the network and in decoding. A network with random weights costs what a trained one does.

Usage: python benchmarks/tracking_cost.py [--edge 512] [--plot cost.svg]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from cloudseg.models.package import Normalisation, Provenance
from cloudseg.models.tracker import Tracker, TrackerArguments, TrackerDescription
from cloudseg.ops.colours import decode, n_digits, paint, random_codes
from cloudseg.testing.runs import print_table
from cloudseg.training.plot import Curve, plot

REDUNDANCY = 2


def main() -> None:
    """Print the table; draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edge", type=int, default=512)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    edge = args.edge
    torch.set_num_threads(1)
    torch.manual_seed(0)
    arguments = TrackerArguments(widths=(8, 16, 32, 64))
    description = TrackerDescription(
        name="random",
        arguments=arguments,
        voxel_size_nm=(1, 1, 1),
        normalisation=Normalisation(mean=128, deviation=40),
        training=Provenance(data=(), n_steps=0, seed=0),
        licence="CC0",
    )
    tracker = Tracker(description, arguments.build())
    sections = np.random.default_rng(0).integers(0, 256, (edge, edge, 2)).astype(np.uint8)
    rows, curves = [], []
    x, y = np.mgrid[:edge, :edge]
    for side in (2, 4, 8, 16, 32, 64, 128):
        if side > edge // 4:
            break
        before = (1 + x * side // edge * side + y * side // edge).astype(np.int32)
        n = side * side
        k = n_digits(n, n_colours=4, redundancy=REDUNDANCY)
        codes = random_codes(n, n_colours=4, n_digits=k, seed=(n,))
        colours = paint(before, codes)
        tracker.predict(sections, colours[:1])
        started, calls = time.process_time(), tracker.n_calls
        log_p = tracker.predict(sections, colours)
        network_s, calls = time.process_time() - started, tracker.n_calls - calls
        decode(log_p, codes, before, cell=16, min_posterior=0.5)
        started = time.process_time()
        decode(log_p, codes, before, cell=16, min_posterior=0.5)
        decode_s = time.process_time() - started
        rows.append(
            (n, calls, f"{network_s:.2f}", f"{decode_s:.2f}", f"{1e3 * (network_s + decode_s) / n:.2f}")
        )
        curves.append((np.log2(n), network_s + decode_s))
    print_table(
        f"one section of {edge} x {edge} pixels, 4 colours, {REDUNDANCY} pictures more than needed",
        ("objects", "network runs", "network, CPU s", "decoding, CPU s", "CPU ms / object"),
        rows,
    )
    if args.plot:
        points = Curve("", [p[0] for p in curves], [p[1] for p in curves], "#1f77b4", dots=True)
        drawn = plot(
            "CPU seconds for one section", [points], x_title="logarithm (base 2) of the number of objects"
        )
        args.plot.write_text(drawn + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

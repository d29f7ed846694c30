"""Does the network ever wait for examples? Training steps with everything around them over bare steps.

A bare step is forward pass, loss, backward pass, clipping, optimizer and running average on one batch that is there
already: what no loader, however good, could save. Training draws, augments and makes targets besides. Both run in
this process, turn by turn, the same number of steps with the same threads. CPU seconds of the whole process are given
too: their ratio is what training would reach if nothing could be hidden, because every core is busy already, and unlike
the wall clock it means something on a machine that others use as well.

Usage: python benchmarks/training.py [--data $CLOUDSEG_DATA] [--patch 64] [--steps 10] [--rounds 5] [--threads 1]

Without the real data, or with --phantom, a phantom takes its place. On a CPU the network should leave the samplers a
core: with as many threads as cores both compete, and there is nothing to hide behind.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cloudseg.models.predict import n_threads, pick_precision, use_threads
from cloudseg.models.registry import ARCHITECTURES
from cloudseg.testing.phantom import neurite_phantom
from cloudseg.training.batches import Batch, Batches
from cloudseg.training.config import TrainingConfig
from cloudseg.training.crew import Crew
from cloudseg.training.fit import make_sampler
from cloudseg.training.loop import _Heads, _State, _Work
from cloudseg.training.loss import Loss
from cloudseg.training.sampling import LabelledBlock
from cloudseg.training.schedule import make_optimizer

FAR = [[-s if axis == i else 0 for axis in range(3)] for s in (1, 4, 10, 24) for i in range(3)]


def block_of(data: Path | None, edge: int) -> LabelledBlock:
    """Return labelled voxels of real EM, or of a phantom."""
    folder = data / "fib25" if data else None
    if folder is not None and (folder / "sample2_image.npz").is_file():
        image = np.load(folder / "sample2_image.npz")["image"][:, :, :120]
        labels = np.load(folder / "sample2_labels_z000_160.npz")["labels"][:, :, :120]
        return LabelledBlock.of(image, labels)
    phantom = neurite_phantom((edge, edge, edge), seed=0)
    return LabelledBlock.of(phantom.image, phantom.labels)


def config_of(folder: str, *, patch: int, n_samplers: int, widths: list[int]) -> TrainingConfig:
    """Return the settings of the shipped model, but for the patch."""
    settings = {
        "name": "benchmark",
        "output": f"{folder}/model",
        "checkpoint": f"{folder}/run.ckpt",
        "licence": "none",
        "patch_shape": [patch] * 3,
        "schedule": {"n_steps": 1_000_000, "n_samplers": n_samplers},
        "network": {
            "arguments": {"n_out": len(FAR), "widths": widths, "pools": [[2, 2, 2]] * (len(widths) - 1)},
            "voxel_size_nm": [8, 8, 8],
            "offsets": FAR,
        },
        "phantom": [{}],
    }
    return TrainingConfig.load(settings, where="benchmark")


class Again:
    """The same batch, as often as asked for."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __next__(self) -> Batch:
        return self.batch


def measure(block: LabelledBlock, config: TrainingConfig, *, steps: int, rounds: int) -> dict[str, float]:
    """Run bare steps and training steps in turn and return medians."""
    crew = Crew.join("auto")
    network = ARCHITECTURES["residual_unet_3d"](**config.network.arguments.model_dump()).to(crew.device)
    network = network.to(memory_format=torch.channels_last_3d).train()
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.997), use_buffers=True
    )
    state = _State(network, average, make_optimizer(network, config.schedule))
    half = pick_precision("auto", device=crew.kind) == "bfloat16"
    loss = Loss(config.targets, config.loss)
    work = _Work(state, _Heads(network), loss, config.schedule, crew, half, config.checkpoint)
    sampler = make_sampler(config, [block])

    def timed(batches: Again | Batches) -> tuple[float, float]:
        started, used = time.perf_counter(), time.process_time()
        for _ in range(steps):
            work.step(batches)  # type: ignore[arg-type]
        return (time.perf_counter() - started) / steps, (time.process_time() - used) / steps

    bare: list[tuple[float, float]] = []
    whole: list[tuple[float, float]] = []
    drawing = Batches(sampler, config.schedule, crew, first=0)
    first = drawing.draw(0, 0)
    started = time.process_time()
    for i in range(10):
        drawing.draw(i, 0)
    draw_s = (time.process_time() - started) / 10
    timed(Again(first))  # warm
    for turn in range(rounds):
        # Nobody draws while the bare steps run: each turn has loaders of its own, filled before the clock starts.
        def with_loading(turn: int = turn) -> tuple[float, float]:
            with Batches(sampler, config.schedule, crew, first=1000 * (turn + 1)) as batches:
                work.step(batches)
                # Begin with as many batches ahead as there will be at the end: each step then pays for one.
                for ahead in batches._ahead:
                    ahead.result()
                return timed(batches)

        order = [lambda: bare.append(timed(Again(first))), lambda: whole.append(with_loading())]
        for one in order if turn % 2 else order[::-1]:
            one()
        told = ", ".join(
            f"{name} {wall:.3f} s ({cpu:.3f} s of CPU)"
            for name, (wall, cpu) in (("bare", bare[-1]), ("training", whole[-1]))
        )
        print(f"  turn {turn + 1}: {told} a step", flush=True)
    return {
        "bare_s": statistics.median(wall for wall, _ in bare),
        "training_s": statistics.median(wall for wall, _ in whole),
        "draw_s": draw_s,
        "throughput": statistics.median(a / b for (a, _), (b, _) in zip(bare, whole, strict=True)),
        "unhidden": statistics.median(a / b for (_, a), (_, b) in zip(bare, whole, strict=True)),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--phantom", action="store_true")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 96, 192])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samplers", type=int, default=1)
    given = parser.parse_args()
    use_threads(given.threads)
    block = block_of(None if given.phantom or given.data is None else Path(given.data), 2 * given.patch)
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(folder, patch=given.patch, n_samplers=given.samplers, widths=given.widths)
        found = measure(block, config, steps=given.steps, rounds=given.rounds)
    print(
        f"{os.cpu_count()} cores, torch {torch.__version__}, {n_threads()} thread(s), patch {given.patch}^3"
    )
    print("| bare step, s | training step, s | drawing one patch, CPU s | speed over bare | by CPU seconds |")
    print("|---|---|---|---|---|")
    print("| " + " | ".join(f"{value:.3f}" for value in found.values()) + " |")


if __name__ == "__main__":
    main()

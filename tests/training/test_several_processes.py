"""Two processes learn what one learns in two passes, and each step is the same however it is shared out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cloudseg.errors import SpecError
from cloudseg.models.package import load_spec
from cloudseg.training.batches import Batches
from cloudseg.training.checkpoint import read_checkpoint
from cloudseg.training.crew import Crew
from cloudseg.training.fit import make_sampler
from cloudseg.training.sampling import LabelledBlock
from cloudseg.training.schedule import LoopOptions, make_optimizer, rate

SCHEDULE = {
    "n_steps": 4,
    "checkpoint_every": 2,
    "learning_rate": 0.005,
    "precision": "float32",
    "device": "cpu",
}
SEGMENTATION = {"every": 2, "thresholds": [0.5], "min_size_vx": 5, "keep": "last"}


def as_toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {as_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(as_toml(v) for v in value) + "]"
    return json.dumps(value)


def test_two_processes_learn_what_one_learns_in_two_passes(runs):
    one = runs.config(schedule=SCHEDULE | {"accumulate": 2}, segmentation=SEGMENTATION)
    _, lines = runs.run(one)
    names = {"output": str(runs.folder / "two"), "checkpoint": str(runs.folder / "two.ckpt")}
    settings = runs.settings(schedule=SCHEDULE, segmentation=SEGMENTATION, **names)
    path = runs.folder / "two.toml"
    path.write_text("".join(f"{key} = {as_toml(value)}\n" for key, value in settings.items()))
    command = Path(sys.executable).with_name("cloudseg")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(command), "train", str(path), "--threads", "1"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("model 'small'") == 1, "one process speaks for all"
    ours, theirs = read_checkpoint(one.checkpoint), read_checkpoint(runs.folder / "two.ckpt")
    assert theirs["step"] == 4
    weights = [name for name in ours["model"] if "running" not in name and "num_batches" not in name]
    assert len(weights) > 10
    for name in weights:
        torch.testing.assert_close(theirs["model"][name], ours["model"][name], rtol=2e-3, atol=2e-5)
    # Running statistics see each batch once in either case, but in another order.
    log = [json.loads(text) for text in (runs.folder / "two_log" / "steps.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in log] == pytest.approx([line.loss for line in lines], rel=1e-4)
    assert [line["step"] for line in log if "segmentation" in line] == [1, 3]
    assert load_spec(str(runs.folder / "two")).training.n_steps == 4


def test_examples_of_a_step_are_shared_out_without_a_double(runs, phantom):
    config = runs.config(schedule=SCHEDULE)
    sampler = make_sampler(config, [LabelledBlock.of(phantom.image, phantom.labels)])

    def images(options, crew):
        batches = Batches(sampler, LoopOptions(**options), crew, first=0)
        n = options.get("accumulate", 1)
        with batches:
            return [image for turn in range(n) for image in np.asarray(batches.draw(2, turn).image)]

    cpu = torch.device("cpu")
    whole = images(SCHEDULE | {"batch_size": 4}, Crew(cpu))
    passes = images(SCHEDULE | {"batch_size": 2, "accumulate": 2}, Crew(cpu))
    shared = [
        image for rank in range(2) for image in images(SCHEDULE | {"batch_size": 2}, Crew(cpu, rank, 2))
    ]
    assert len({image.tobytes() for image in whole}) == 4
    for others in (passes, shared):
        np.testing.assert_array_equal(np.stack(whole), np.stack(others))


def test_the_number_of_sampling_threads_changes_nothing(runs):
    losses = []
    for n in (1, 3):
        names = {"output": str(runs.folder / f"p{n}"), "checkpoint": str(runs.folder / f"{n}.ckpt")}
        spec, lines = runs.run(runs.config(schedule=SCHEDULE | {"n_samplers": n}, **names))
        losses.append((spec.weights.sha256, [line.loss for line in lines]))
    assert losses[0] == losses[1]


def test_passes_of_one_patch_add_up_to_the_gradient_of_their_mean(runs):
    """Interrupted between steps, with accumulation: the same weights, bit for bit."""
    schedule = SCHEDULE | {"accumulate": 3, "checkpoint_every": 1, "precision": "auto"}
    whole, _ = runs.run(runs.config(schedule=schedule))
    names = {"output": str(runs.folder / "b"), "checkpoint": str(runs.folder / "b.ckpt")}
    broken = runs.config(schedule=schedule, **names)
    for stop in (0, 2):
        with pytest.raises(runs.StoppedError):
            runs.run(broken, stop_after=stop)
    resumed, _ = runs.run(broken)
    assert resumed.weights.sha256 == whole.weights.sha256


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_every_optimizer_resumes_exactly(runs, optimizer):
    schedule = SCHEDULE | {
        "optimizer": optimizer,
        "course": "poly",
        "checkpoint_every": 1,
        "precision": "auto",
    }
    whole, _ = runs.run(runs.config(schedule=schedule, validation=[]))
    names = {"output": str(runs.folder / "b"), "checkpoint": str(runs.folder / "b.ckpt")}
    broken = runs.config(schedule=schedule, validation=[], **names)
    with pytest.raises(runs.StoppedError):
        runs.run(broken, stop_after=2)
    resumed, _ = runs.run(broken)
    assert resumed.weights.sha256 == whole.weights.sha256


def test_courses_of_the_learning_rate():
    def course(**changes):
        options = LoopOptions(n_steps=1000, warm_up=10, **changes)
        return [rate(options, step) for step in (0, 4, 9, 500, 999)]

    assert course(course="constant") == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert course(course="poly", power=0.8)[3:] == pytest.approx([0.5**0.8, 0.001**0.8])
    assert course()[3:] == pytest.approx([0.51, 0.02], abs=1e-4)
    assert rate(LoopOptions(n_steps=10, warm_up=0), 0) == 1.0
    sgd = make_optimizer(torch.nn.Linear(1, 1), LoopOptions(n_steps=1, optimizer="sgd", learning_rate=0.1))
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (0.1, 0.9)


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        with pytest.raises(SpecError, match="has no GPU: there are"):
            Crew.join("cuda", environment={"WORLD_SIZE": "99", "RANK": "98", "LOCAL_RANK": "98"})
    else:
        with pytest.raises(SpecError, match="this machine has no usable CUDA GPU; use device 'auto'"):
            Crew.join("cuda", environment={})

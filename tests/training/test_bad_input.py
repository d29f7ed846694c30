"""What cannot be learned from is refused with a letter; what goes wrong on the way leaves the last good state."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from cloudseg.errors import SpecError
from cloudseg.models.registry import ARCHITECTURES
from cloudseg.training.checkpoint import read_checkpoint
from cloudseg.training.fit import make_sampler
from cloudseg.training.loop import train
from cloudseg.training.memory import is_out_of_memory, largest_patch, smaller_patches
from cloudseg.training.sampling import LabelledBlock


def floats(phantom):
    return phantom.image.astype(np.float32) / 255


def test_an_image_with_nan_is_refused_before_anything_is_written(runs, phantom):
    image = floats(phantom)
    image[3, 4, 5] = np.nan
    uri = runs.volume(f"file://{runs.folder}/nan", image)
    with pytest.raises(
        SpecError, match=r"nan holds nan \(first at voxel \(3, 4, 5\) of the box\); replace what"
    ):
        runs.run(runs.config(volume=[runs.data | {"image": uri}]))
    assert not (runs.folder / "run.ckpt").exists()


def test_volumes_of_different_voxel_size_are_refused_unless_that_is_meant(runs, phantom):
    size = (9, 9, 9)
    image = runs.volume(f"file://{runs.folder}/image9", phantom.image, voxel_size_nm=size)
    labels = runs.volume(
        f"file://{runs.folder}/labels9", phantom.labels, voxel_size_nm=size, layer="segmentation"
    )
    volumes = [runs.data, {"image": image, "labels": labels}]
    with pytest.raises(
        SpecError, match=r"voxels of \(8.0, 8.0, 8.0\) nm, but .*image9 has \(9.0, 9.0, 9.0\) nm"
    ):
        runs.run(runs.config(volume=volumes))
    _, lines = runs.run(runs.config(volume=volumes, mixed_voxel_sizes=True))
    assert len(lines) == 8


def test_validation_on_what_was_learned_is_refused(runs):
    validation = [runs.data | {"box": "0,0,31:48,48,48"}]
    with pytest.raises(
        SpecError,
        match=r"box 0,0,31:48,48,48 of .*image shares 0,0,31:48,48,32 with the training box 0,0,0:48,48,32",
    ):
        runs.run(runs.config(validation=validation))


def test_a_box_of_nothing_but_background_is_named(runs, phantom):
    labels = phantom.labels.copy()
    labels[:, :, :32] = 0
    uri = runs.volume(f"file://{runs.folder}/empty", labels, layer="segmentation")
    for zero in ("unknown", "membrane", "background"):
        with pytest.raises(
            SpecError, match=r"empty, box 0,0,0:48,48,32: the labels of a training block are all 0"
        ):
            runs.run(runs.config(volume=[runs.data | {"labels": uri, "zero": zero}]))


def test_labels_beyond_every_signed_type_train_as_others_do(runs, phantom):
    names = np.where(phantom.labels, phantom.labels + np.uint64(2**64 - 10_000), 0).astype(np.uint64)
    assert names.max() > np.iinfo(np.int64).max
    uri = runs.volume(f"file://{runs.folder}/huge", names, layer="segmentation")
    _, plain = runs.run(runs.config())
    other = {"output": str(runs.folder / "b"), "checkpoint": str(runs.folder / "b.ckpt")}
    _, huge = runs.run(runs.config(volume=[runs.data | {"labels": uri}], **other))
    assert [line.loss for line in huge] == [line.loss for line in plain]


def test_labels_stored_as_floats_are_refused(runs, phantom):
    uri = runs.volume(f"file://{runs.folder}/floats", floats(phantom))
    with pytest.raises(SpecError, match=r"got 1 of float32: ids beyond 16,777,216 do not survive float32"):
        runs.run(runs.config(volume=[runs.data | {"labels": uri}]))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_loss_that_is_no_number_names_its_patch_and_keeps_the_last_good_checkpoint(runs, phantom):
    image = floats(phantom)
    image[40:, :, :] = 1e36  # a number, but infinite once it is divided by the deviation
    uri = runs.volume(f"file://{runs.folder}/spoilt", image)
    schedule = {"n_steps": 200, "checkpoint_every": 1, "precision": "float32", "seed": 3}
    bad = runs.config(
        volume=[runs.data | {"image": uri}],
        phantom=[],
        validation=[],
        schedule=schedule,
        augmentation={"kind": "none"},
        network=runs.settings()["network"] | {"normalisation": {"mean": 0, "deviation": 0.001}},
    )
    with pytest.raises(SpecError, match=r"became (nan|inf) at step \d+") as caught:
        runs.run(bad)
    message = str(caught.value)
    x0, x1 = (int(n) for n in re.search(r"patch (\d+),\d+,\d+:(\d+),", message).groups())
    assert x0 < 48
    assert x1 > 40, "the patch that reaches into the spoilt part"
    assert f"the last good state is in {bad.checkpoint}" in message
    state = read_checkpoint(bad.checkpoint)
    assert state["step"] == int(re.search(r"at step (\d+)", message).group(1)) > 0
    assert all(torch.isfinite(t).all() for t in state["model"].values())
    assert not (runs.folder / "package").exists()


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(runs, phantom):
    config = runs.config(schedule={"n_steps": 4, "precision": "float32"})
    network = ARCHITECTURES["residual_unet_3d"](**config.network.arguments.model_dump())
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    sampler = make_sampler(config, [LabelledBlock.of(phantom.image, phantom.labels, name="a cube")])

    def steep(logits, values, known):
        # The root is 0 here, a good number; its slope is not.
        return torch.sqrt((logits[0] * 0).sum())

    with pytest.raises(
        SpecError, match=r"the gradient became nan at step 0; .*a cube, patch .*no checkpoint had been"
    ):
        train(network, sampler, config.schedule, loss=steep, checkpoint=config.checkpoint, report=print)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0)


def test_isotropy_is_not_claimed_of_thick_sections(runs):
    network = runs.settings()["network"] | {"voxel_size_nm": [6, 6, 30]}
    with pytest.raises(SpecError, match=r"but the voxels are \(6.0, 6.0, 30.0\) nm: set isotropic = false"):
        runs.config(network=network)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target": [{"kind": "boundary"}]},
            r"the targets have 1 channels \(boundary 1\), but network.arguments.n_out is 4",
        ),
        ({"target": [{"kind": "distance"}]}, "targets of kind distance only help others: add one of kind"),
        ({"target": [{"kind": "lsd"}]}, "target.0"),
        ({"augmentation": {"kind": "em", "haze": 1}}, "unknown key 'augmentation.em.haze'"),
        ({"sampling": {"min_labelled": 60}}, "sampling.min_labelled: Input should be less than 1"),
        ({"schedule": {"n_steps": 3, "course": "plateau"}}, "schedule.course"),
    ],
)
def test_settings_that_contradict_each_other_are_named(runs, changes, message):
    with pytest.raises(SpecError, match=message):
        runs.config(**changes)


def test_a_grey_range_must_rise(runs):
    with pytest.raises(SpecError, match="grey_range must rise from black to white"):
        runs.config(volume=[runs.data | {"grey_range": [40, 0]}])


def test_smaller_patches_fit_the_network_and_keep_their_proportions():
    found = list(smaller_patches((96, 96, 16), multiple=(8, 8, 2)))
    assert found[0] == (80, 80, 14)
    assert all(a % 8 == 0 and c % 2 == 0 for a, _, c in found)
    assert sorted(found, reverse=True) == found
    assert len(set(found)) == len(found)


def test_the_largest_patch_is_found_by_trying():
    def step(patch):
        if np.prod(patch) > 40**3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_patch(step, (96, 96, 96), multiple=(8, 8, 8)) == (32, 32, 32)
    assert largest_patch(step, (4096, 4096, 4096), multiple=(8, 8, 8)) is None

    def broken(patch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        largest_patch(broken, (96, 96, 96), multiple=(8, 8, 8))
    assert not is_out_of_memory(ValueError("out of memory"))


CRAMPED = """
import json, resource, sys
import torch
from cloudseg.errors import SpecError
from cloudseg.training.config import TrainingConfig
from cloudseg.training.fit import fit

torch.set_num_threads(1)
settings, spare = json.loads(sys.argv[1]), int(sys.argv[2])
config = TrainingConfig.load(settings, where="settings")

def limit(line):
    # After the first step everything is loaded; the second one finds little room.
    if line.step:
        return
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))

try:
    fit(config, make_phantom=None, report=limit)
except SpecError as error:
    print("refused:", error)
else:
    print("trained")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux's")
def test_memory_that_runs_out_names_a_patch_that_fits(runs):
    """A real limit on a real process: no allocation is faked."""
    network = runs.settings()["network"]
    network["arguments"] = network["arguments"] | {"widths": [24, 32]}
    settings = runs.settings(
        network=network,
        phantom=[],
        validation=[],
        patch_shape=[96, 96, 96],
        sampling={"min_labelled": 0.0},
        schedule={"n_steps": 3, "checkpoint_every": 1, "n_samplers": 1, "precision": "float32"},
    )

    def train(settings, spare):
        # Freed memory goes back at once and threads share one arena: then the limit means what it says.
        env = os.environ | {
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", CRAMPED, json.dumps(settings), str(spare)]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    told = train(settings, 150_000_000)
    found = re.search(
        r"cpu ran out of memory at step 1 with patch_shape = \[96, 96, 96\] and batch_size = 1: "
        r"patch_shape = \[(\d+), \1, \1\] fits \(tried\); the last checkpoint is ",
        told,
    )
    assert found, told
    edge = int(found.group(1))
    assert 4 <= edge < 96
    assert edge % 4 == 0
    smaller = settings | {"patch_shape": [edge] * 3, "checkpoint": str(runs.folder / "b.ckpt")}
    assert train(smaller, 150_000_000) == "trained\n", "what it names does fit"

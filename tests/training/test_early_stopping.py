"""A segmentation of the validation boxes decides which weights are kept, and when to stop."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from skimage.metrics import adapted_rand_error

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.models.package import load_spec, load_weights
from cloudseg.models.predict import load_model
from cloudseg.ops.boundaries import boundary_affinities
from cloudseg.training.checkpoint import averaged_weights, read_checkpoint
from cloudseg.training.history import read_lines
from cloudseg.training.judge import SegmentationSettings, Verdict, judge, segmentations
from cloudseg.training.labels import renumber
from cloudseg.training.loop import _State
from cloudseg.training.sampling import LabelledBlock

SEGMENTATION = {"every": 2, "thresholds": [0.4, 0.6], "min_size_vx": 5}


def test_the_judge_scores_as_scikit_image_does(runs, phantom):
    config = runs.config(segmentation=SEGMENTATION)
    runs.run(config)
    spec = load_spec(config.output)
    block = LabelledBlock.of(phantom.image[:, :, 32:], phantom.labels[:, :, 32:])
    network = load_network(config)
    verdict = judge(
        network, spec, [block], config.segmentation, channels=(0, 1, 2, 3), device="cpu", precision="float32"
    )
    best = read_checkpoint(config.checkpoint)["best"]
    assert verdict.threshold in (0.4, 0.6)
    assert verdict.score == min(score for _, score in verdict.curve)
    assert best["score"] == pytest.approx(verdict.score, abs=0.02)  # bfloat16 there, where the machine has it
    model = load_model(config.output, precision="float32")
    from cloudseg.training.judge import predict_whole

    affinities = predict_whole(model, block.image)
    for threshold, segments in segmentations(affinities, config.segmentation):
        expected = adapted_rand_error(
            np.asarray(phantom.labels[:, :, 32:]).astype(int), segments.astype(int)
        )[0]
        assert dict(verdict.curve)[threshold] == pytest.approx(expected, abs=1e-9)


def load_network(config):
    from cloudseg.models.predict import set_weights
    from cloudseg.models.registry import ARCHITECTURES

    network = ARCHITECTURES["residual_unet_3d"](**config.network.arguments.model_dump())
    state = read_checkpoint(config.checkpoint)
    set_weights(network, averaged_weights(state, best=True), where="checkpoint")
    return network.eval()


def test_the_package_holds_the_weights_that_measured_best_and_their_score(runs):
    spec, lines = runs.run(runs.config(segmentation=SEGMENTATION))
    measured = {line.step + 1: line.verdict.score for line in lines if line.verdict is not None}
    assert sorted(measured) == [2, 4, 6, 8]
    best = min(measured, key=lambda step: (measured[step], step))
    assert spec.training.n_steps == best
    assert spec.accuracy[0].metric == "adapted_rand_error"
    assert spec.accuracy[0].value == measured[best]
    assert "box 0,0,32:48,48,48" in spec.accuracy[0].data
    state = read_checkpoint(runs.folder / "run.ckpt")
    for name, array in load_weights(str(runs.folder / "package"), spec).items():
        np.testing.assert_array_equal(array, state["best"]["average"][f"module.{name}"].numpy())


def test_the_last_weights_can_be_kept_instead(runs):
    spec, _ = runs.run(runs.config(segmentation=SEGMENTATION | {"keep": "last"}))
    state = read_checkpoint(runs.folder / "run.ckpt")
    assert spec.training.n_steps == 8
    assert spec.accuracy == ()
    for name, array in load_weights(str(runs.folder / "package"), spec).items():
        np.testing.assert_array_equal(array, state["average"][f"module.{name}"].numpy())


def verdict(score):
    return Verdict(score, 0.5, ((0.5, score),), (), np.zeros((2, 2, 3), np.uint8))


def test_patience_counts_measurements_in_a_row_that_are_no_better():
    model = torch.nn.Conv3d(1, 1, 1)
    state = _State(
        model, torch.optim.swa_utils.AveragedModel(model), torch.optim.SGD(model.parameters(), lr=1)
    )
    for score, n_worse, stopped in [
        (0.5, 0, False),
        (0.6, 1, False),
        (0.4, 0, False),
        (0.4, 1, False),
        (0.7, 2, True),
    ]:
        state.step += 10
        state.learn_of(verdict(score), patience=2)
        assert (state.n_worse, state.stopped) == (n_worse, stopped)
    assert (state.best["score"], state.best["step"]) == (0.4, 30)


def test_a_run_that_gets_no_better_stops_and_stays_stopped(runs):
    # A rate of next to nothing: the first measurement is never beaten.
    schedule = {"n_steps": 40, "learning_rate": 1e-12, "weight_decay": 0.0, "average_decay": 1e-6, "seed": 1}
    segmentation = SEGMENTATION | {"every": 1, "patience": 2}
    frozen = runs.config(segmentation=segmentation, schedule=schedule)
    spec, lines = runs.run(frozen)
    n_steps = len(lines)
    assert 3 <= n_steps < 40
    assert spec.training.n_steps == n_steps - 2
    assert read_checkpoint(frozen.checkpoint)["stopped"]
    again, more = runs.run(frozen)
    assert more == []
    assert again.weights == spec.weights


def test_stopping_is_the_same_if_the_run_was_interrupted(runs):
    segmentation = SEGMENTATION | {"every": 2, "patience": 2}
    names = {"output": str(runs.folder / "b"), "checkpoint": str(runs.folder / "b.ckpt")}
    whole, lines = runs.run(runs.config(segmentation=segmentation))
    broken = runs.config(segmentation=segmentation, **names)
    with pytest.raises(runs.StoppedError):
        runs.run(broken, stop_after=4)
    resumed, rest = runs.run(broken)
    assert resumed.weights.sha256 == whole.weights.sha256
    assert resumed.accuracy[0].value == whole.accuracy[0].value
    told = [json.loads(json.dumps(line.as_line())) for line in lines]
    kept = read_lines(broken.log_folder)
    assert [line["step"] for line in kept] == [line["step"] for line in told], "no step twice, none missing"
    assert [line.get("segmentation") for line in kept] == [line.get("segmentation") for line in told]
    assert rest[0].step == 4


def test_a_validation_box_of_one_object_is_refused(runs, phantom):
    uri = runs.volume(f"file://{runs.folder}/one", np.ones_like(phantom.labels), layer="segmentation")
    validation = [runs.data | {"labels": uri, "box": "0,0,32:48,48,48"}]
    with pytest.raises(
        SpecError, match=r"one, box 0,0,32:48,48,48 holds 1 object: its segmentation cannot be scored"
    ):
        runs.run(runs.config(segmentation=SEGMENTATION, validation=validation))
    _, lines = runs.run(runs.config(validation=validation))
    assert lines[-1].validation is not None, "its loss can be measured all the same"


def test_a_boundary_of_two_cells_segments_them():
    labels = np.ones((12, 8, 8), np.uint8)
    labels[6:] = 2
    boundary = np.zeros(labels.shape, np.uint8)
    boundary[5:7] = 230
    settings = SegmentationSettings(thresholds=(0.5,), min_size_vx=1)
    box = Box.of_shape(boundary.shape)
    ((_, segments),) = segmentations(boundary_affinities(boundary, core=box, bounds=box), settings)
    assert segments[0, 0, 0] != segments[-1, 0, 0]
    assert len(np.unique(segments[:4])) == len(np.unique(segments[8:])) == 1
    assert renumber(labels, zero="unknown").min() == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"validation": [], "segmentation": {}},
            r"\[segmentation\] measures on validation boxes: add a \[\[validation\]\]",
        ),
        ({"segmentation": {"t_low": 9, "t_high": 9}}, "t_low must be below t_high, got 9 and 9"),
        ({"segmentation": {"thresholds": []}}, "segmentation.thresholds"),
        ({"segmentation": {"metric": "accuracy"}}, "segmentation.metric"),
    ],
)
def test_settings_of_the_segmentation_are_checked(runs, changes, message):
    with pytest.raises(SpecError, match=message):
        runs.config(**changes)

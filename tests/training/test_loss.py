"""Losses, each against its formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cloudseg.errors import SpecError
from cloudseg.training.loss import Loss, LossSettings, balanced_bce, dice_loss, squared_error, weighted_bce
from cloudseg.training.targets import AffinityTarget, BoundaryTarget, DistanceTarget

SHAPE = (2, 3, 4, 5, 6)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, SHAPE).astype(np.float32)
    values = (rng.random(SHAPE) < 0.7).astype(np.float32)
    known = (rng.random(SHAPE) < 0.8).astype(np.float32)
    known[:, 2] = 0
    return logits, values, known


def tensors(batch):
    return [torch.from_numpy(a) for a in batch]


def cross_entropy(logits, values):
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -(values * np.log(p) + (1 - values) * np.log(1 - p))


def test_cross_entropy_is_the_weighted_mean_of_known_voxels(batch):
    logits, values, known = batch
    weight = np.where(values > 0.5, 1.0, 0.3) * known
    expected = np.mean(
        [(cross_entropy(logits, values) * weight)[:, c].sum() / weight[:, c].sum() for c in range(2)]
    )
    settings = LossSettings(weighting="fixed", positive_weight=1.0, negative_weight=0.3)
    loss = Loss([AffinityTarget(offsets=((1, 0, 0),) * 3)], settings)
    assert float(loss(*tensors(batch))) == pytest.approx(expected, rel=1e-5)
    assert float(weighted_bce(*tensors((logits, values, weight)))) == pytest.approx(expected, rel=1e-5)


def test_balancing_gives_both_classes_the_same_say(batch):
    logits, values, known = batch
    expected = []
    for c in range(2):
        loss = cross_entropy(logits, values)[:, c]
        sides = [loss[(values[:, c] == side) & (known[:, c] == 1)].mean() for side in (0, 1)]
        expected.append(np.mean(sides))
    assert float(balanced_bce(*tensors(batch))) == pytest.approx(np.mean(expected), rel=1e-5)


def test_dice_is_one_minus_the_overlap(batch):
    logits, values, known = (a.astype(np.float64) for a in batch)
    p = 1 / (1 + np.exp(-logits))
    overlap = [
        (2 * (p * values * known)[:, c].sum() + 1) / (((p**2 + values**2) * known)[:, c].sum() + 1)
        for c in range(2)
    ]
    assert float(dice_loss(*tensors(batch))) == pytest.approx(1 - np.mean(overlap), rel=1e-5)


def test_a_perfect_prediction_has_no_loss_and_a_wrong_one_has():
    values = torch.zeros(1, 1, 4, 4, 4)
    values[..., 2:] = 1
    known = torch.ones_like(values)
    right, wrong = (values - 0.5) * 60, (0.5 - values) * 60
    for settings in (LossSettings(), LossSettings(bce=0.0, dice=1.0), LossSettings(dice=1.0)):
        loss = Loss([BoundaryTarget()], settings)
        assert float(loss(right, values, known)) < 1e-6
        assert float(loss(wrong, values, known)) > 0.9
    assert float(squared_error(right, values, known)) < 1e-6


def test_unknown_voxels_have_no_say_and_no_gradient(batch):
    logits, values, known = tensors(batch)
    loss = Loss([AffinityTarget(offsets=((1, 0, 0),) * 2), DistanceTarget()], LossSettings(dice=1.0))
    other = torch.where(known > 0, values, 1 - values)
    assert float(loss(logits, values, known)) == float(loss(logits, other, known))
    logits.requires_grad_()
    loss(logits, values, known).backward()
    assert logits.grad is not None
    assert not logits.grad[known == 0].any()
    assert logits.grad[known == 1].any()
    nothing = loss(logits, values, torch.zeros_like(known))
    assert float(nothing.detach()) == 0.0


def test_targets_count_by_their_weights(batch):
    logits, values, known = tensors(batch)
    known = torch.ones_like(known)
    links, far = AffinityTarget(offsets=((1, 0, 0),) * 2, weight=3.0), DistanceTarget(weight=1.0)
    expected = (
        3 * float(balanced_bce(logits[:, :2], values[:, :2], known[:, :2]))
        + float(squared_error(logits[:, 2:], values[:, 2:], known[:, 2:]))
    ) / 4
    assert float(Loss([links, far], LossSettings())(logits, values, known)) == pytest.approx(
        expected, rel=1e-5
    )


def test_deep_supervision_averages_over_the_heads(batch):
    logits, values, known = tensors(batch)
    loss = Loss([AffinityTarget(offsets=((1, 0, 0),) * 3)], LossSettings())
    both = float(loss((logits, -logits), values, known))
    assert both == pytest.approx(
        (float(loss(logits, values, known)) + float(loss(-logits, values, known))) / 2
    )


def test_a_loss_of_nothing_is_refused():
    with pytest.raises(SpecError, match="bce and dice are both 0"):
        LossSettings.load({"bce": 0, "dice": 0}, where="x")

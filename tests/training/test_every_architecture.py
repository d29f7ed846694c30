"""Every architecture learns every kind of target, is measured, and comes out as a package that predicts."""

from __future__ import annotations

import numpy as np
import pytest

from cloudseg.errors import SpecError
from cloudseg.models.package import load_spec
from cloudseg.models.predict import load_model

BOUNDARIES = [
    ("unet_2d", {"n_out": 1, "widths": [4, 8]}, [{"kind": "boundary", "mode": "thin", "planar": True}]),
    (
        "groupnorm_unet_3d",
        {"n_out": 2, "widths": [4, 8], "pools": [[2, 2, 2]], "n_groups": 2},
        [{"kind": "distance", "weight": 0.5}, {"kind": "boundary", "smooth_vx": 1.0}],
    ),
    ("deepem3d", {"n_out": 1, "n_slices": 3, "width": 0.01}, [{"kind": "closed_boundary"}]),
    (
        "residual_unet_3d",
        {"n_out": 11, "widths": [4, 6], "pools": [[2, 2, 2]]},
        [{"kind": "boundary"}, {"kind": "shape", "sigma_nm": 40}],
    ),
]


def of_boundaries(runs, architecture, arguments, targets, **changes):
    network = runs.settings()["network"] | {
        "architecture": architecture,
        "arguments": arguments,
        "offsets": [],
        "patch_shape": [32, 32, 16],
    }
    return {
        "network": network,
        "target": targets,
        "patch_shape": [16, 16, 8],
        "schedule": {"n_steps": 3, "learning_rate": 0.01, "n_samplers": 1},
        "loss": {"bce": 1, "dice": 1},
        "segmentation": {"every": 2, "thresholds": [0.3, 0.6], "min_size_vx": 5},
        "augmentation": {"kind": "light"},
        "isotropic": False,
    } | changes


@pytest.mark.parametrize(("architecture", "arguments", "targets"), BOUNDARIES, ids=[b[0] for b in BOUNDARIES])
def test_boundaries_are_learned_measured_and_packaged(runs, architecture, arguments, targets):
    settings = of_boundaries(runs, architecture, arguments, targets)
    data = runs.data | {"zero": "membrane"}
    spec, lines = runs.run(runs.config(**settings, volume=[data], phantom=[]))
    assert [line.step for line in lines if line.verdict is not None] == [1, 2]
    read = load_spec(str(runs.folder / "package"))
    assert read == spec
    assert (read.output, read.offsets, read.arguments.n_out) == ("boundaries", (), 1)
    model = load_model(str(runs.folder / "package"), offsets=())
    predicted = model.predict(np.full((1, 32, 32, 16), 90, np.uint8))
    assert predicted.shape == (1, 1, 32, 32, 16)
    assert 0 <= predicted.min() <= predicted.max() <= 1


def test_channels_that_only_helped_are_dropped_from_the_package(runs):
    """The package predicts what the channels of the main target predicted during training."""
    architecture, arguments, targets = BOUNDARIES[1]
    spec, lines = runs.run(runs.config(**of_boundaries(runs, architecture, arguments, targets)))
    assert spec.arguments.n_out == 1
    assert runs.config(**of_boundaries(runs, architecture, arguments, targets)).channels == (1,)
    assert spec.accuracy[0].value == min(line.verdict.score for line in lines if line.verdict)


def test_deepem3d_takes_one_target_only(runs):
    arguments = {"n_out": 2, "n_slices": 1, "width": 0.01}
    settings = of_boundaries(runs, "deepem3d", arguments, [{"kind": "boundary"}, {"kind": "distance"}])
    with pytest.raises(SpecError, match="deepem3d cannot drop outputs again: give it one target only"):
        runs.config(**settings)

"""Networks of several heads, for cell bodies and nuclei: trained, packed, and used."""

from __future__ import annotations

import numpy as np
import pytest

from cloudseg.errors import ModelError, SpecError
from cloudseg.models.predict import load_model
from cloudseg.testing.tiny_model import tiny_description, tiny_package
from cloudseg.volumes import open_objects

HEADS = ["interior", "boundary", "distance"]
TARGETS = [
    {"kind": "interior"},
    {"kind": "boundary"},
    {"kind": "distance", "scale_nm": 40.0, "inside": True},
]
NETWORK = {"arguments": {"n_out": 3, "widths": [4, 6], "pools": [[2, 2, 2]]}, "offsets": [], "heads": HEADS}


def test_a_network_of_heads_is_trained_and_says_what_its_channels_are(runs):
    settings = runs.settings()
    config = runs.config(network=settings["network"] | NETWORK, target=TARGETS)
    spec, lines = runs.run(config)
    assert spec.output == "heads"
    assert spec.heads == tuple(HEADS)
    assert len(lines) == 8
    model = load_model(str(runs.folder / "package"), offsets=(), device="cpu", precision="float32")
    out = model.predict(np.zeros((1, 16, 16, 16), np.uint8))
    assert out.shape == (1, model.n_channels, 16, 16, 16) == (1, 3, 16, 16, 16)


def test_heads_that_are_no_targets_are_refused(runs):
    settings = runs.settings()
    with pytest.raises(SpecError, match=r"network.heads \['interior', .* must be the kinds of the targets"):
        runs.config(network=settings["network"] | NETWORK, target=TARGETS[::-1])
    with pytest.raises(SpecError, match="judged by its loss"):
        runs.config(network=settings["network"] | NETWORK, target=TARGETS, segmentation={})
    with pytest.raises(SpecError, match="keep them all with network.heads"):
        runs.config(network=settings["network"] | NETWORK | {"heads": []}, target=[TARGETS[0]])


def test_settings_of_earlier_runs_keep_their_fingerprint(runs):
    """Settings that came later are not in it unless they are used: long runs go on after an update."""
    text = runs.config(
        target=[{"kind": "affinities"}, {"kind": "distance"}], network=_five(runs)
    ).fingerprint()
    assert "heads" not in text
    assert "inside" not in text


def _five(runs):
    network = runs.settings()["network"]
    return network | {"arguments": network["arguments"] | {"n_out": 5}}


def test_heads_and_outputs_must_agree(tmp_path):
    with pytest.raises(SpecError, match="heads go with output 'heads'"):
        tiny_description(heads=["interior"])
    with pytest.raises(SpecError, match="needs as many outputs, each head once, and no offsets"):
        tiny_description(output="heads", heads=["interior", "seed"])
    uri = tiny_package(
        str(tmp_path / "model"),
        output="heads",
        heads=["interior", "seed"],
        offsets=(),
        arguments={"n_out": 2, "widths": (4, 6), "pools": ((2, 2, 2),)},
        objects=open_objects,
    )
    with pytest.raises(ModelError, match="predicts heads, not affinities: .* 'soma_heads'"):
        load_model(uri)

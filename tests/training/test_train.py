"""Training: reproducible, resumable, and explicit about data that does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cloudseg.cli.train import train as train_command
from cloudseg.errors import ConflictError, ModelError, NotFoundError, SpecError
from cloudseg.models.package import load_spec, load_weights
from cloudseg.models.predict import load_model
from cloudseg.training.checkpoint import read_checkpoint
from cloudseg.training.config import load_config
from cloudseg.training.convert import package_checkpoint


@pytest.fixture
def data(runs):
    return runs.data


def test_an_interrupted_and_resumed_run_gives_the_same_weights_as_an_undisturbed_one(tmp_path, data, runs):
    whole = runs.config(output=str(tmp_path / "a"), checkpoint=str(tmp_path / "a.ckpt"))
    spec, lines = runs.run(whole)
    assert [line.step for line in lines] == list(range(8))
    assert [line.step for line in lines if line.validation is not None] == [2, 5, 7]
    broken = runs.config(output=str(tmp_path / "b"), checkpoint=str(tmp_path / "b.ckpt"))
    with pytest.raises(runs.StoppedError):
        runs.run(broken, stop_after=4)
    resumed, rest = runs.run(broken)
    assert [line.step for line in rest] == [4, 5, 6, 7], "steps 0 to 3 were saved"
    assert [line.loss for line in rest] == [line.loss for line in lines[4:]]
    assert resumed.weights.sha256 == spec.weights.sha256


def test_the_package_holds_the_averaged_weights_and_says_how_they_were_made(tmp_path, data, runs):
    spec, _ = runs.run(runs.config())
    state = read_checkpoint(tmp_path / "run.ckpt")
    weights = load_weights(str(tmp_path / "package"), spec)
    for name, array in weights.items():
        np.testing.assert_array_equal(array, state["average"][f"module.{name}"].numpy())
    assert any(not torch.equal(state["average"][f"module.{n}"], t) for n, t in state["model"].items())
    read = load_spec(str(tmp_path / "package"))
    assert read == spec
    assert read.training.n_steps == 8
    assert data["image"] in read.training.data[0]
    assert "box 0,0,0:48,48,32" in read.training.data[0]
    assert read.training.software["torch"] == str(torch.__version__)
    assert load_model(str(tmp_path / "package")).predict(np.zeros((1, 8, 8, 8), np.uint8)).shape[1] == 3


def test_training_can_start_from_a_package(tmp_path, data, runs):
    first, _ = runs.run(runs.config())
    before = load_weights(str(tmp_path / "package"), first)
    new = {
        "output": str(tmp_path / "more"),
        "checkpoint": str(tmp_path / "more.ckpt"),
        "start_from": str(tmp_path / "package"),
    }
    schedule = {"n_steps": 2, "learning_rate": 1e-9, "weight_decay": 0.0, "seed": 5}
    second, _ = runs.run(runs.config(**new, schedule=schedule))
    after = load_weights(new["output"], second)
    kernels = [name for name, array in before.items() if array.ndim == 5]
    assert kernels
    for name in kernels:
        np.testing.assert_allclose(after[name], before[name], atol=1e-6)


def test_a_package_of_another_architecture_is_no_start(tmp_path, data, runs):
    runs.run(runs.config())
    new = {
        "output": str(tmp_path / "more"),
        "checkpoint": str(tmp_path / "more.ckpt"),
        "start_from": str(tmp_path / "package"),
    }
    wider = runs.settings()["network"]
    wider["arguments"] = wider["arguments"] | {"widths": [4, 8]}
    with pytest.raises(ModelError, match="the architecture wants"):
        runs.run(runs.config(**new, network=wider))
    assert not (tmp_path / "more.ckpt").exists()


def test_training_learns_the_phantom(tmp_path, data, runs):
    schedule = {"n_steps": 60, "checkpoint_every": 60, "learning_rate": 0.01, "average_decay": 0.9}
    _, lines = runs.run(runs.config(schedule=schedule, validate_every=10))
    validation = [line.validation for line in lines if line.validation is not None]
    # Chance is log 2 = 0.693.
    assert validation[0] > 0.68
    assert validation[-1] < 0.66


def test_the_command_trains_resumes_and_writes_the_package(tmp_path, data, runs):
    path = tmp_path / "train.toml"
    path.write_text(
        f"""
        name = "small"
        output = "{tmp_path}/package"
        checkpoint = "{tmp_path}/run.ckpt"
        licence = "Apache-2.0"
        patch_shape = [16, 16, 16]
        [schedule]
        n_steps = 500
        [network]
        voxel_size_nm = [8, 8, 8]
        patch_shape = [32, 32, 32]
        context = [2, 2, 2]
        blend = [2, 2, 2]
        arguments = {{ n_out = 3, widths = [4], pools = [] }}
        [[volume]]
        image = "{data["image"]}"
        labels = "{data["labels"]}"
        """
    )
    done = CliRunner().invoke(
        train_command,
        [str(path), "--set", "schedule.n_steps=2", "--set", "volume.0.box=0,0,0:32,32,32", "--threads", "1"],
    )
    assert done.exit_code == 0, done.output
    assert "model 'small'" in done.stdout
    assert "step 2/2 loss" in done.stderr
    spec = load_spec(str(tmp_path / "package"))
    assert spec.training.n_steps == 2
    assert "box 0,0,0:32,32,32" in spec.training.data[0]
    unknown = CliRunner().invoke(train_command, [str(path), "--set", "schedule.steps=2"])
    assert isinstance(unknown.exception, SpecError)
    assert "unknown key 'schedule.steps'" in str(unknown.exception)


def test_a_checkpoint_of_other_settings_is_not_resumed_from(tmp_path, data, runs):
    runs.run(runs.config())
    with pytest.raises(ConflictError, match=r"belongs to a run with other settings \(schedule\)"):
        runs.run(runs.config(schedule={"n_steps": 9}))


def test_an_output_that_another_run_made_is_not_overwritten(tmp_path, data, runs):
    runs.run(runs.config())
    (tmp_path / "run.ckpt").unlink()
    with pytest.raises(ConflictError, match="holds a model package already, and there is no checkpoint"):
        runs.run(runs.config())


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, data, runs):
    description = runs.config().description()
    with pytest.raises(NotFoundError, match="there is no checkpoint"):
        package_checkpoint(tmp_path / "none.ckpt", description, str(tmp_path / "p"))
    (tmp_path / "text.ckpt").write_bytes(b"hello")
    with pytest.raises(ModelError, match=r"text.ckpt is no checkpoint"):
        package_checkpoint(tmp_path / "text.ckpt", description, str(tmp_path / "p"))
    torch.save({"step": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ModelError, match="it must hold average, model, optimizer, step"):
        package_checkpoint(tmp_path / "other.ckpt", description, str(tmp_path / "p"))
    assert not (tmp_path / "p").exists()


def test_a_loss_that_runs_away_stops_the_run(tmp_path, data, runs):
    with pytest.raises(
        SpecError, match=r"the loss became (nan|inf) at step \d+; lower learning_rate \(now 1e\+30\)"
    ):
        runs.run(runs.config(schedule={"n_steps": 60, "learning_rate": 1e30}))
    assert not (tmp_path / "package").exists()


def test_data_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, data, phantom, runs):
    far = runs.volume(f"file://{tmp_path}/far", phantom.labels, at=(500, 0, 0), layer="segmentation")
    coarse = runs.volume(
        f"file://{tmp_path}/coarse", phantom.labels, voxel_size_nm=(8, 8, 9), layer="segmentation"
    )
    zeros = runs.volume(f"file://{tmp_path}/zeros", np.zeros_like(phantom.labels), layer="segmentation")
    thick = runs.volume(f"file://{tmp_path}/thick", phantom.image, voxel_size_nm=(8, 8, 40))
    cases = [
        ({"labels": far, "box": None}, "they do not overlap; check the voxel offsets"),
        ({"labels": coarse}, r"has voxels of \(8.0, 8.0, 8.0\) nm, its labels .* have \(8.0, 8.0, 9.0\) nm"),
        ({"labels": zeros}, r"zeros, box 0,0,0:48,48,32: the labels of a training block are all 0"),
        ({"box": "0,0,0:48,48,49"}, r"box 0,0,0:48,48,49 is not inside 0,0,0:48,48,48"),
        ({"image": thick}, "was trained on voxels of 8 x 8 x 8 nm"),
        ({"image": data["labels"]}, "must be one channel of uint8, uint16, float32, got 1 of uint64"),
    ]
    before = sorted(tmp_path.iterdir())
    for changes, message in cases:
        with pytest.raises(SpecError, match=message):
            runs.run(runs.config(volume=[data | changes]))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"patch_shape": [16, 18, 16]},
            "patch_shape on y is 18, which is no multiple of the network's 4; take 20",
        ),
        ({"volume": [], "phantom": []}, r"there is nothing to learn from: add a \[\[volume\]\]"),
        ({"volumes": []}, "unknown key 'volumes'"),
        ({"schedule": {"n_steps": 0}}, "schedule.n_steps: Input should be greater than 0"),
    ],
)
def test_settings_that_make_no_sense_are_named(tmp_path, data, changes, message, runs):
    with pytest.raises(SpecError, match=message):
        runs.config(**changes)


def test_long_offsets_may_not_take_the_place_of_the_nearest(tmp_path, data, runs):
    network = runs.settings()["network"]
    with pytest.raises(SpecError, match="the first three offsets must be the nearest neighbours"):
        runs.config(network=network | {"offsets": network["offsets"][::-1]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schedule.n_steps", "--set needs key=value"),
        ("volume.7.weight=1", "'7' is no entry of a list of 2"),
        ("name.x=1", "there is nothing below 'fib25'"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(repository, text, message):
    with pytest.raises(SpecError, match=message):
        load_config(repository / "examples" / "train_fib25.toml", overrides=[text])


def test_the_file_that_the_manual_shows_is_valid(repository, tmp_path):
    text = (repository / "docs" / "train.md").read_text()
    shown = text.split("```toml\n")[1].split("```")[0]
    (tmp_path / "mine.toml").write_text(shown)
    loaded = load_config(tmp_path / "mine.toml")
    assert loaded.segmentation.patience == 6
    assert loaded.log_folder == Path("models/mine_log")


@pytest.mark.parametrize(
    ("name", "n_channels", "output"),
    [("snemi3d_affinities", 9, "affinities"), ("snemi3d_deepem3d", 1, "boundaries")],
)
def test_examples_of_thick_sections_are_valid(repository, name, n_channels, output):
    loaded = load_config(repository / "examples" / f"train_{name}.toml")
    assert not loaded.isotropic
    assert loaded.description().output == output
    assert len(loaded.channels) == n_channels
    learned, held_back = loaded.volume[0].box, loaded.validation[0].box
    assert learned.intersect(held_back).is_empty


def test_the_example_is_a_valid_training_file(repository, tmp_path):
    loaded = load_config(repository / "examples" / "train_fib25.toml", overrides=["schedule.n_steps=7"])
    assert loaded.schedule.n_steps == 7
    assert loaded.network.arguments.multiple == (8, 8, 8)
    with pytest.raises(NotFoundError, match="there is no training file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name =")
    with pytest.raises(SpecError, match="bad.toml is not valid TOML"):
        load_config(tmp_path / "bad.toml")

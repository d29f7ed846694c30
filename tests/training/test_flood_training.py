"""Flood-filling networks: thin places are drawn as often as thick ones, the field of view moves, and it learns."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner

from cloudseg.cli.main import cli
from cloudseg.errors import ConflictError, SpecError
from cloudseg.geometry import Box
from cloudseg.models.flood import load_flood_network
from cloudseg.ops.flood import Canvas, FloodRule, normalised
from cloudseg.ops.flood_seeds import peak_seeds
from cloudseg.training.checkpoint import read_checkpoint
from cloudseg.training.flood import fit_flood, load_flood_training
from cloudseg.training.flood_examples import SHARES, FloodSampler, surroundings
from cloudseg.training.flood_views import MovingViews
from cloudseg.training.history import read_lines
from cloudseg.training.sampling import LabelledBlock
from cloudseg.volumes import VolumeInfo, create_volume

SHAPE = (44, 40, 36)


def columns(seed=0):
    """Bright columns of random width along z, with dark membranes between them."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint64, order="F")
    x = 0
    for n in itertools.count(1):
        width = int(rng.integers(9, 14))
        cut = int(rng.integers(14, 26))
        labels[x + 1 : x + width, 1:cut], labels[x + 1 : x + width, cut + 3 : -1] = 2 * n, 2 * n + 1
        x += width + 2
        if x >= SHAPE[0] - 4:
            break
    image = np.where(labels > 0, 180, 60) + rng.normal(0, 12, SHAPE)
    return np.asfortranarray(np.clip(image, 0, 255).astype(np.uint8)), labels


def settings(tmp_path, *, more="", **schedule):
    image, labels = columns()
    for name, data in (("image", image), ("labels", labels)):
        kind = {"dtype": "uint64", "layer": "segmentation"} if name == "labels" else {}
        info = VolumeInfo(bounds=Box.of_shape(SHAPE), voxel_size_nm=(8, 8, 8), chunk_shape=SHAPE, **kind)
        create_volume(f"file://{tmp_path}/{name}", info).write(info.bounds, data)
    schedule = {
        "n_steps": 12,
        "batch_size": 2,
        "learning_rate": 0.006,
        "warm_up": 20,
        "average_decay": 0.95,
        "precision": "float32",
    } | schedule
    volume = {"image": f"file://{tmp_path}/image", "labels": f"file://{tmp_path}/labels", "zero": "membrane"}
    path = tmp_path / "train.toml"
    path.write_text(
        f'name = "columns"\noutput = "{tmp_path}/model"\ncheckpoint = "{tmp_path}/c.ckpt"\nlicence = "none"\n{more}\n'
        "[sampling]\nmin_size_vx = 500\n"
        '[network]\narchitecture = "ffn"\nvoxel_size_nm = [8, 8, 8]\nnormalisation = { mean = 120, deviation = 60 }\n'
        "arguments = { depth = 2, width = 8, fov = [11, 11, 11], deltas = [3, 3, 3] }\n[schedule]\n"
        + "".join(f"{k} = {json.dumps(v)}\n" for k, v in schedule.items())
        + "".join(
            f"[[{table}]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in (volume | {"box": box}).items())
            for table, box in (("volume", "0,0,0:44,40,18"), ("validation", "0,0,18:44,40,36"))
        )
    )
    return path


def test_classes_are_shares_of_the_surroundings():
    ids = np.random.default_rng(0).integers(-1, 4, (9, 8, 7)).astype(np.int32)
    ids[:4] = 2
    reach = (2, 1, 1)
    got = surroundings(ids, reach=reach, min_size_vx=1)
    expected = np.zeros_like(got)
    for x, y, z in itertools.product(range(2, 7), range(1, 7), range(1, 6)):
        around = ids[x - 2 : x + 3, y - 1 : y + 2, z - 1 : z + 2]
        if ids[x, y, z] >= 2:
            expected[x, y, z] = 1 + sum((around == ids[x, y, z]).mean() >= s for s in SHARES)
    np.testing.assert_array_equal(got, expected)
    assert len(np.unique(expected)) > 5
    few = surroundings(ids, reach=reach, min_size_vx=int((ids == 3).sum()) + 1)
    assert not few[ids == 3].any()
    assert few.any()


def test_each_class_is_drawn_as_often(tmp_path):
    image, labels = columns()
    labels[:, :, :] = np.where(labels > 0, labels, 0)
    block = LabelledBlock.of(image, labels, zero="membrane")
    sampler = FloodSampler([block], (5, 5, 5), (2, 2, 2), 120, 60, min_size_vx=100)
    classes = surroundings(block.ids, reach=(4, 4, 4), min_size_vx=100)
    present = np.unique(classes[classes > 0])
    rng = np.random.default_rng(0)
    drawn = np.zeros(256, int)
    for _ in range(600):
        example = sampler.draw(rng)
        assert example.inside[4, 4, 4]
        assert example.image.shape == sampler.patch_shape == (9, 9, 9)
        drawn[1 + sum(example.inside.mean() >= s for s in SHARES)] += 1
        bright = example.image > 0
        assert (bright == example.inside)[
            example.inside
        ].mean() > 0.99  # grey levels and labels are turned alike
    assert set(np.flatnonzero(drawn)) == set(present.tolist())
    assert drawn[present].min() > 0.6 * 600 / len(present)
    assert len(present) > 2


def test_the_field_of_view_moves_only_where_the_object_went_on():
    image, labels = columns()
    block = LabelledBlock.of(image, labels, zero="membrane")
    sampler = FloodSampler([block], (5, 7, 5), (2, 3, 1), 120, 60, min_size_vx=100, isotropic=False)
    rule = FloodRule(fov=(5, 7, 5), deltas=(2, 3, 1))
    views = MovingViews(sampler, rule, n=1, seed=3)
    half, middle = np.array(rule.half), np.array(sampler.patch_shape) // 2
    begun, places = 0, []
    for _ in range(400):
        seat = views._seats[0]
        place = np.array(seat.places[seat.turn])
        seen, wanted, known = views.views()
        assert seen.shape == (1, 2, 5, 7, 5)
        assert known.all()
        cut = tuple(slice(p - h, p + h + 1) for p, h in zip(place, half, strict=True))
        np.testing.assert_array_equal(seen[0, 0], seat.example.image[cut])
        np.testing.assert_array_equal(wanted[0] > 0.5, seat.example.inside[cut])
        if (place == middle).all():
            begun += 1
            assert (seen[0, 1] > 0).sum() == 1
            np.testing.assert_allclose(seen[0, 1].max(), np.log(0.95 / 0.05), rtol=1e-6)
        else:
            assert seen[0, 1][tuple(half)] >= np.float32(np.log(0.9 / 0.1))
            assert seat.example.inside[tuple(place)]
            assert (np.abs(place - middle) % np.array(rule.deltas) == 0).all()
        places.append((begun, *place.tolist()))
        views.move(np.where(wanted > 0.5, np.float32(3), np.float32(-3)))  # a network that is always right
    assert views.n_examples == begun - 1 > 10
    assert len(set(places)) == len(places)
    n_places = [sum(p[0] == n for p in places) for n in range(1, begun)]
    assert 1 < min(n_places) < max(n_places) <= 27


def test_a_state_of_the_views_goes_on_as_if_nothing_had_happened():
    image, labels = columns()
    sampler = FloodSampler(
        [LabelledBlock.of(image, labels, zero="membrane")], (5, 5, 5), (2, 2, 2), 120, 60, min_size_vx=100
    )

    def moved(views, n):
        for _ in range(n):
            seen, wanted, _ = views.views()
            views.move(np.where(wanted > 0.5, np.float32(3), np.float32(-3)) + np.float32(0.01) * seen[:, 0])
        return views

    def fresh():
        return MovingViews(sampler, FloodRule(fov=(5, 5, 5), deltas=(2, 2, 2)), n=3, seed=1)

    straight = moved(fresh(), 50)
    again = fresh()
    again.restore(moved(fresh(), 23).state())
    for a, b in zip(moved(again, 27).views(), straight.views(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.n_examples == straight.n_examples > 0


@pytest.mark.timeout(600)
def test_a_network_learns_to_fill_objects_and_is_resumed(tmp_path):
    path = settings(tmp_path, n_steps=800, checkpoint_every=150)
    config = load_flood_training(path)

    class StoppedError(Exception):
        pass

    def stops(progress):
        if progress.step == 200:
            raise StoppedError

    with pytest.raises(StoppedError):
        fit_flood(config, make_phantom=None, report=stops)
    assert read_checkpoint(config.checkpoint)["step"] == 150
    run = CliRunner().invoke(cli, ["train", str(path), "--threads", "1"])
    assert run.exit_code == 0, run.output + repr(run.exception)
    assert f"model = '{tmp_path}/model' in the ffn stage" in run.output
    lines = read_lines(config.log_folder)
    assert [line["step"] for line in lines] == list(range(800))
    losses = [line["loss"] for line in lines]
    first, last = np.mean(losses[:20]), np.mean(losses[-50:])
    least = -0.95 * np.log(0.95) - 0.05 * np.log(0.05)  # of a network that is always right
    assert last - least < 0.1 * (first - least)
    assert lines[-1]["validation"] - least < 0.1 * (first - least)
    # It grows objects that it never saw.
    image, labels = columns(seed=5)
    network = load_flood_network(f"{tmp_path}/model", device="cpu")
    assert network.spec.training.n_steps == 800
    rule = FloodRule(fov=network.fov, deltas=network.deltas, min_size_vx=200)
    canvas = Canvas(normalised(image, mean=120, deviation=60), rule, network)
    canvas.run(peak_seeds(canvas.image))
    inner = (slice(6, -6),) * 3
    segments = canvas.labels()[inner]
    for name in np.unique(labels[inner][labels[inner] > 0]):
        true = labels[inner] == name
        ids, n = np.unique(segments[true], return_counts=True)
        best = ids[np.argmax(n)]
        both = (segments == best) & true
        assert best > 0
        assert both.sum() / (true | (segments == best)).sum() > 0.8


def test_what_cannot_be_learned_from_is_refused(tmp_path):
    def load(*overrides, more=""):
        return load_flood_training(settings(tmp_path, more=more), overrides=overrides)

    def fit(*overrides):
        fit_flood(load(*overrides), make_phantom=None, report=lambda progress: None)

    with pytest.raises(SpecError, match="takes one pass a step: raise batch_size"):
        load("schedule.accumulate=2")
    with pytest.raises(SpecError, match=r"voxels are \(8.0, 8.0, 30.0\) nm: set isotropic = false"):
        load("network.voxel_size_nm=[8, 8, 30]")
    with pytest.raises(
        SpecError, match="no object of 500 voxels or more round which a patch of 43 x 43 x 43 fits"
    ):
        fit("network.arguments.fov=[37, 37, 37]")
    with pytest.raises(SpecError, match="no object of 90000 voxels or more"):
        fit("sampling.min_size_vx=90000")
    assert load_flood_training(tmp_path / "none.toml") is None
    config = load("schedule.n_steps=2")
    fit_flood(config, make_phantom=None, report=lambda progress: None)
    with pytest.raises(ConflictError, match="belongs to a run with other settings"):
        fit("schedule.n_steps=2", "schedule.seed=4")
    config.checkpoint.unlink()
    with pytest.raises(ConflictError, match="holds a model package already"):
        fit("schedule.n_steps=2")


def test_the_example_is_a_valid_training_file(repository):
    loaded = load_flood_training(repository / "examples" / "train_ffn.toml")
    assert loaded.description().output == "object"
    assert loaded.volume[0].box.intersect(loaded.validation[0].box).is_empty


def test_other_training_refuses_such_a_network(runs):
    network = runs.settings()["network"] | {"architecture": "ffn", "arguments": {"depth": 1, "width": 2}}
    with pytest.raises(SpecError, match="learns while its field of view moves"):
        runs.config(network=network)

"""Model packages: what model.json promises is checked before anything is computed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cloudseg.errors import ModelError, NotFoundError, SpecError
from cloudseg.models.package import load_spec, load_weights, zoo
from cloudseg.models.predict import load_model, save_model, set_weights
from cloudseg.models.registry import build_network
from cloudseg.ops.affinities import NEAREST
from cloudseg.testing.tiny_model import OFFSETS, tiny_description, tiny_package, tiny_weights


@pytest.mark.parametrize("scheme", ["memory://tests/package/{}", "{}"])
def test_a_package_reads_back_as_it_was_written(tmp_path, scheme):
    uri = scheme.format(tmp_path / "tiny").replace("//tests/package//", "//tests/package/")
    tiny_package(uri, seed=5)
    spec = load_spec(uri)
    description = tiny_description()
    assert spec.model_dump(exclude={"weights"}) == description.model_dump()
    weights = load_weights(uri, spec)
    expected = tiny_weights(description, seed=5)
    assert weights.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(weights[name], array)
    assert spec.weights.n_parameters == sum(a.size for a in expected.values())


def test_a_network_saved_and_loaded_predicts_the_same(tmp_path):
    description = tiny_description()
    network = build_network(description)
    set_weights(network, tiny_weights(description), where="test")
    save_model(str(tmp_path / "m"), description, network)
    patch = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 16)).astype(np.uint8)
    got = load_model(str(tmp_path / "m"), offsets=OFFSETS, device="cpu", precision="float32").predict(patch)
    with torch.inference_mode():
        x = (torch.from_numpy(patch.astype(np.float32)) - 128) / 33
        expected = torch.sigmoid(network.eval()(x[:, None])).numpy()
    # Folding the normalisation and the grey levels rounds elsewhere, no more.
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert got.std() > 0.02


def test_damaged_weights_are_refused(tmp_path):
    uri = tiny_package(str(tmp_path / "m"))
    weights = tmp_path / "m" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ModelError, match=r"weights.safetensors has sha256 .* the file is damaged"):
        load_model(uri)


def test_weights_of_another_architecture_are_refused(tmp_path):
    other = tiny_description(arguments={"n_out": 4, "widths": (4, 8), "pools": ((2, 2, 2),)})
    with pytest.raises(ModelError, match=r"here: weight 'down.1.enter.0.weight' has shape \(6, 4, 3, 3, 3\)"):
        set_weights(build_network(other), tiny_weights(tiny_description()), where="here")
    deeper = tiny_description(arguments={"n_out": 4, "widths": (4,), "pools": ()}, context=(2, 2, 2))
    with pytest.raises(
        ModelError, match=r"do not belong to this architecture: 0 missing .* unknown \(first: \['down.1"
    ):
        set_weights(build_network(deeper), tiny_weights(tiny_description()), where="here")


def test_an_unknown_key_in_model_json_is_named(tmp_path):
    uri = tiny_package(str(tmp_path / "m"))
    path = tmp_path / "m" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"voxel_sise_nm": [8, 8, 8]}))
    with pytest.raises(ModelError, match=r"m/model.json: unknown key 'voxel_sise_nm'"):
        load_spec(uri)


def test_a_folder_without_a_package_and_an_unknown_name_are_not_found(tmp_path):
    with pytest.raises(NotFoundError, match=r"is no model package: it has no model.json"):
        load_spec(str(tmp_path))
    with pytest.raises(NotFoundError, match=r"there is no model 'fib52': cloudseg comes with"):
        load_spec("fib52")


def test_a_model_is_refused_for_voxels_beyond_its_tolerance():
    spec = tiny_description()
    spec.check_voxel_size((10, 8, 6), uri="x")
    with pytest.raises(
        ModelError,
        match=r"trained on voxels of 8 x 8 x 8 nm and tolerates 25%, but file://x has "
        r"8 x 8 x 40 nm \(differs on z\)",
    ):
        spec.check_voxel_size((8, 8, 40), uri="file://x")


def test_an_output_that_the_model_does_not_have_is_refused():
    assert tiny_description().select(((-4, 0, 0), (0, 0, -1))) == (3, 2)
    with pytest.raises(ModelError, match=r"predicts no affinity of offset \(0, -4, 0\)"):
        tiny_description().select(((0, -4, 0),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": OFFSETS[:3]}, "3 offsets, but the network has 4 outputs"),
        ({"patch_shape": (18, 16, 20)}, "patch_shape on x is 18, which is no multiple of the network's 4"),
        ({"context": (7, 2, 2)}, "context 7 and blend 2 on x use up the patch of 16"),
        ({"arguments": {"n_out": 4, "widths": (4, 6), "pools": ()}}, r"2 widths \(levels\) need 1 pools"),
        (
            {"arguments": {"n_out": 4, "widths": (4, 6), "pools": ((2, 2, 2),), "kernels": ((3, 3, 2),)}},
            "kernel edges must be odd",
        ),
        (
            {"arguments": {"n_out": 4, "widths": (4, 6), "pools": ((2, 2, 2),), "kernels": ((3, 3, 3),) * 3}},
            "kernels must have 1 or 2 entries",
        ),
        ({"architecture": "pickle"}, "architecture: Input should be 'residual_unet_3d'"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        tiny_description(**changes)


def test_every_model_of_the_zoo_loads_and_predicts():
    for name in zoo():
        offsets = NEAREST if load_spec(name).output == "affinities" else ()
        model = load_model(name, offsets=offsets, device="cpu")
        edge = tuple(2 * m for m in model.multiple)
        got = model.predict(np.full((1, *edge), 128, np.uint8))
        assert got.shape == (1, model.n_channels, *edge)
        assert model.spec.accuracy, f"{name} states no measured accuracy"

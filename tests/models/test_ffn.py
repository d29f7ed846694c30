"""Flood-filling networks: checkpoints are read without TensorFlow, and the published network computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cloudseg.cli.main import cli
from cloudseg.errors import ModelError, NotFoundError, SpecError
from cloudseg.models.arguments import FFNArguments
from cloudseg.models.ffn import FloodFillingNetwork
from cloudseg.models.flood import FloodNetwork, load_flood_network
from cloudseg.models.package import load_spec
from cloudseg.models.published_ffn import read_published_ffn
from cloudseg.models.tf_checkpoint import read_checkpoint
from cloudseg.testing.tiny_model import tiny_description, tiny_package

HERE = Path(__file__).parent
TINY = {
    "architecture": "ffn",
    "arguments": {"depth": 2, "width": 4, "fov": (9, 7, 5), "deltas": (2, 2, 1)},
    "output": "object",
    "offsets": (),
    "patch_shape": (9, 7, 5),
    "context": (0, 0, 0),
    "blend": (0, 0, 0),
}


@pytest.fixture
def checkpoint(tmp_path):
    """Write the checkpoint that TensorFlow wrote; return its prefix."""
    content = json.loads((HERE / "tensorflow_checkpoint.json").read_text())
    prefix = tmp_path / "model.ckpt-7"
    Path(f"{prefix}.index").write_bytes(bytes.fromhex(content["index"]))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(bytes.fromhex(content["data"]))
    return prefix


def what_was_saved():
    """Return the tensors as the script drew them that wrote the checkpoint: multiples of 1/64, in its order."""
    rng = np.random.default_rng(1)
    tensors = {}

    def drawn(shape):
        return rng.integers(-128, 128, shape).astype(np.float32) / 64

    for name, n_in in (("conv0_a", 2), ("conv0_b", 3), ("conv1_a", 3), ("conv1_b", 3)):
        tensors[f"seed_update/{name}/weights"] = drawn((3, 3, 3, n_in, 3))
        tensors[f"seed_update/{name}/biases"] = drawn((3,))
    tensors["seed_update/conv_lom/weights"] = drawn((1, 1, 1, 3, 1))
    tensors["seed_update/conv_lom/biases"] = drawn((1,))
    return tensors


def test_a_checkpoint_of_tensorflow_is_read_to_the_last_bit(checkpoint):
    read = read_checkpoint(checkpoint)
    saved = what_was_saved()
    assert read.keys() == saved.keys() | {"global_step", "beta1_power"}
    for name, array in saved.items():
        np.testing.assert_array_equal(read[name], array, err_msg=name)
    assert (read["beta1_power"], read["beta1_power"].shape) == (0.5, ())
    arguments, weights = read_published_ffn(checkpoint.with_name("model.ckpt-7.index"))
    assert (arguments.depth, arguments.width) == (2, 3)
    kernel = saved["seed_update/conv1_a/weights"]
    assert (
        weights["blocks.1.a.weight"][2, 0, 0, 1, 2] == kernel[2, 1, 0, 0, 2]
    )  # out, in, x, y, z; z, y, x, in, out


@pytest.mark.parametrize(
    ("part", "at", "message"),
    [
        ("index", -3, "does not end with the magic number"),
        ("index", 20, "a block does not have its digest"),
        ("data-00000-of-00001", 100, "the bytes do not have the digest of the index"),
        ("data-00000-of-00001", None, "the data file is cut short"),
    ],
)
def test_a_damaged_checkpoint_is_refused(checkpoint, part, at, message):
    path = Path(f"{checkpoint}.{part}")
    data = bytearray(path.read_bytes())
    if at is None:
        del data[-40:]
    else:
        data[at] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match=message):
        read_checkpoint(checkpoint)


def test_what_is_no_checkpoint_is_refused(tmp_path, checkpoint):
    with pytest.raises(NotFoundError, match=r"NAME\.index beside NAME\.data-00000-of-00001"):
        read_checkpoint(tmp_path / "other")
    Path(f"{checkpoint}.data-00000-of-00001").unlink()
    with pytest.raises(NotFoundError, match="data-00000-of-00001"):
        read_checkpoint(checkpoint)


def test_the_command_makes_a_package_of_a_checkpoint(tmp_path, checkpoint):
    package = tmp_path / "package"
    words = (
        "--name tiny --voxel-size 8,8,8 --mean 128 --deviation 33 --licence none --source test --fov 9,9,7"
    )
    result = CliRunner().invoke(
        cli, ["import-model", str(checkpoint), str(package), *words.split(), "--deltas", "2,2,1"]
    )
    assert result.exit_code == 0, result.output
    assert "2 blocks of 3 features" in result.output
    assert "in a stage of kind ffn" in result.output
    spec = load_spec(str(package))
    assert (spec.output, spec.arguments.fov, spec.arguments.deltas) == ("object", (9, 9, 7), (2, 2, 1))
    network = load_flood_network(str(package), device="cpu")
    assert network(np.zeros((1, 2, 9, 9, 7), np.float32)).shape == (1, 9, 9, 7)


def test_another_network_is_refused(tmp_path):
    uri = tiny_package(f"file://{tmp_path}/affinities")
    with pytest.raises(ModelError, match="predicts affinities, and cannot grow objects"):
        load_flood_network(uri)
    with pytest.raises(SpecError, match="output 'object' and architecture 'ffn' go together"):
        tiny_description(**TINY | {"output": "boundaries"})
    with pytest.raises(SpecError, match="deltas at most half of it; on y they are 7 and 4"):
        tiny_description(**TINY | {"arguments": TINY["arguments"] | {"deltas": (2, 4, 1)}})
    objects = tiny_package(f"file://{tmp_path}/object", **TINY)
    with pytest.raises(ModelError, match="planned with 000000000000"):
        load_flood_network(objects, sha256="0" * 64)
    with pytest.raises(ModelError, match=r"fields of view of \(9, 7, 5\) with 2 channels"):
        load_flood_network(objects, device="cpu")(np.zeros((1, 2, 9, 9, 9), np.float32))


def test_every_way_to_compute_it_gives_the_same(tmp_path, monkeypatch):
    """The layers one by one, fewer multiplications, lower precision with and without the processor's help for it."""
    uri = tiny_package(f"file://{tmp_path}/object", **TINY)
    exact = load_flood_network(uri, device="cpu")
    low = load_flood_network(uri, device="cpu", precision="bfloat16")
    monkeypatch.setattr("cloudseg.models.flood._OPS", (None,))
    plain = load_flood_network(uri, device="cpu", precision="bfloat16")
    assert plain._stack is None
    views = np.random.default_rng(0).normal(size=(3, 2, 9, 7, 5)).astype(np.float32)
    kept = views.copy()
    spec = load_spec(uri)
    network = FloodFillingNetwork(**spec.arguments.model_dump())
    from cloudseg.models.package import load_weights
    from cloudseg.models.predict import set_weights

    set_weights(network, load_weights(uri, spec), where=uri)
    x = torch.from_numpy(views)
    with torch.inference_mode():
        h = network.blocks[0].b(torch.relu(network.blocks[0].a(x)))
        h = h + network.blocks[1].b(torch.relu(network.blocks[1].a(torch.relu(h))))
        expected = (x[:, 1:] + network.head(torch.relu(h)))[:, 0].numpy()
        np.testing.assert_allclose(network(x)[:, 0].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(exact(views), expected, atol=1e-4)
    np.testing.assert_allclose(low(views), expected, atol=0.1)
    np.testing.assert_allclose(plain(views), expected, atol=0.1)
    np.testing.assert_array_equal(views, kept)


def published(cloudseg_data, fov_of):
    """Return the published network two ways, and what TensorFlow computed with it."""
    golden = json.loads((HERE / "published_ffn_logits.json").read_text())
    arguments, weights = read_published_ffn(cloudseg_data / "models" / "ffn_fib25.safetensors")
    assert arguments == FFNArguments()
    network = FloodFillingNetwork(**arguments.model_dump())
    network.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    description = tiny_description(
        **TINY | {"arguments": arguments.model_dump(), "patch_shape": (33, 33, 33)}
    )
    fast = FloodNetwork(description, network)
    views = (fov_of - np.array([128, 0], np.float32)[:, None, None, None]) / np.array([33, 1], np.float32)[
        :, None, None, None
    ]
    at = tuple(np.array(golden["at"]).T)
    with torch.inference_mode():
        plain = network(torch.from_numpy(views)[None])[0, 0].numpy()
    return plain[at], fast(views[None])[0][at], golden


def test_logits_of_the_published_network_on_noise(cloudseg_data):
    rng = np.random.default_rng(7)
    noise = rng.integers(0, 256, (33, 33, 33), dtype=np.uint8).astype(np.float32)
    so_far = ((rng.integers(0, 2, (33, 33, 33)) * 2 - 1) * 2.5).astype(np.float32)
    plain, fast, golden = published(cloudseg_data, np.stack([noise, so_far]))
    np.testing.assert_allclose(plain, golden["noise"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(fast, golden["noise"], rtol=0, atol=1e-4)


def test_logits_of_the_published_network_at_its_first_step(cloudseg_data):
    image = np.load(cloudseg_data / "fib25" / "sample2_image.npz")["image"]
    view = image[93:126, 2:35, 0:33].astype(np.float32)
    so_far = np.full((33, 33, 33), np.log(0.05 / 0.95), np.float32)
    so_far[16, 16, 16] = np.log(0.95 / 0.05)
    plain, fast, golden = published(cloudseg_data, np.stack([view, so_far]))
    np.testing.assert_allclose(plain, golden["first_step"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(fast, golden["first_step"], rtol=0, atol=1e-4)

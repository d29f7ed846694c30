"""Checkpoints in the layout of pytorch-3dunet: read as tensors, turned to x, y, z, computing the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional

from cloudseg.cli.main import cli
from cloudseg.errors import ConflictError, ModelError, NotFoundError
from cloudseg.models.predict import load_model, set_weights
from cloudseg.models.published import read_published
from cloudseg.models.registry import ARCHITECTURES

N_GROUPS = 2
WIDTHS = (4, 8, 16)


def random_state(*, residual, flat, seed=0):
    """Return weights by their names and in their axes (z, y, x), as a training of theirs leaves them."""
    g = torch.Generator().manual_seed(seed)
    kernel = (3, 3) if flat else (3, 3, 3)
    one = (1, 1) if flat else (1, 1, 1)
    state = {}

    def single(name, n_in, n_out):
        state[f"{name}.groupnorm.weight"] = torch.rand(n_in, generator=g) + 0.5
        state[f"{name}.groupnorm.bias"] = torch.randn(n_in, generator=g) * 0.1
        state[f"{name}.conv.weight"] = torch.randn(n_out, n_in, *kernel, generator=g) / (n_in * 9) ** 0.5

    def block(name, n_in, n_out, *, down):
        if residual:
            if n_in != n_out:
                state[f"{name}.conv1.weight"] = torch.randn(n_out, n_in, *one, generator=g)
                state[f"{name}.conv1.bias"] = torch.randn(n_out, generator=g)
            single(f"{name}.conv2", n_out, n_out)
            single(f"{name}.conv3", n_out, n_out)
            return
        between = max(n_out // 2, n_in) if down else n_out
        single(f"{name}.SingleConv1", n_in, between)
        single(f"{name}.SingleConv2", between, n_out)

    for level, (a, b) in enumerate(zip((1, *WIDTHS), WIDTHS, strict=False)):
        block(f"encoders.{level}.basic_module", a, b, down=True)
    for step, (b, a) in enumerate([(16, 8), (8, 4)]):
        if residual:
            weight = torch.randn(b, a, *kernel, generator=g) / 8
            state[f"decoders.{step}.upsampling.upsample.conv_transposed.weight"] = weight
            block(f"decoders.{step}.basic_module", a, a, down=False)
        else:
            block(f"decoders.{step}.basic_module", a + b, a, down=False)
    state["final_conv.weight"] = torch.randn(1, 4, *one, generator=g)
    state["final_conv.bias"] = torch.randn(1, generator=g)
    return state


def by_definition(state, x, *, residual, flat):
    """Compute their network from its weights alone: ``x`` is (1, 1, z, y, x), or (1, 1, y, x)."""
    conv = functional.conv2d if flat else functional.conv3d
    rise = functional.conv_transpose2d if flat else functional.conv_transpose3d
    pool = functional.max_pool2d if flat else functional.max_pool3d

    def single(name, x, *, act=True):
        n = x.shape[1]
        norm = (state[f"{name}.groupnorm.weight"], state[f"{name}.groupnorm.bias"])
        x = functional.group_norm(x, N_GROUPS if n >= N_GROUPS else 1, *norm)
        x = conv(x, state[f"{name}.conv.weight"], padding=1)
        return functional.relu(x) if act else x

    def block(name, x):
        if not residual:
            return single(f"{name}.SingleConv2", single(f"{name}.SingleConv1", x))
        if f"{name}.conv1.weight" in state:
            x = conv(x, state[f"{name}.conv1.weight"], state[f"{name}.conv1.bias"])
        return functional.relu(single(f"{name}.conv3", single(f"{name}.conv2", x), act=False) + x)

    skips = []
    for level in range(3):
        x = block(f"encoders.{level}.basic_module", pool(x, 2) if level else x)
        skips.append(x)
    for step, skip in enumerate((skips[1], skips[0])):
        if residual:
            weight = state[f"decoders.{step}.upsampling.upsample.conv_transposed.weight"]
            x = rise(x, weight, stride=2, padding=1)
            x = skip + functional.interpolate(x, size=skip.shape[2:])
        else:
            x = torch.cat([skip, functional.interpolate(x, size=skip.shape[2:])], dim=1)
        x = block(f"decoders.{step}.basic_module", x)
    return conv(x, state["final_conv.weight"], state["final_conv.bias"])


@pytest.mark.parametrize("flat", [False, True], ids=["3d", "2d"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_published_checkpoint_computes_the_same(tmp_path, residual, flat, parallel):
    state = random_state(residual=residual, flat=flat)
    path = tmp_path / "best_checkpoint.pytorch"
    prefix = "module." if parallel else ""
    content = {
        "num_epochs": 3,
        "best_eval_score": 0.1,
        "model_state_dict": {prefix + name: tensor for name, tensor in state.items()},
    }
    torch.save(content, path)
    arguments, weights = read_published(path, n_groups=N_GROUPS)
    assert (arguments.widths, arguments.residual, arguments.flat) == (WIDTHS, residual, flat)
    network = ARCHITECTURES[arguments.architecture](**arguments.model_dump()).eval()
    set_weights(network, weights, where="the checkpoint")
    x = torch.rand(1, 1, 16, 8, 4, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        got = network(x)
        turned = x.permute(0, 1, 4, 3, 2)
        if flat:
            slices = [by_definition(state, turned[:, :, z], residual=residual, flat=True) for z in range(4)]
            expected = torch.stack(slices, dim=2)
        else:
            expected = by_definition(state, turned, residual=residual, flat=False)
    torch.testing.assert_close(got, expected.permute(0, 1, 4, 3, 2), rtol=1e-3, atol=1e-4)
    assert got.std() > 0.01


def test_the_command_makes_a_package_that_predicts(tmp_path):
    path = tmp_path / "best.pytorch"
    torch.save({"model_state_dict": random_state(residual=False, flat=False)}, path)
    line = [
        *("import-model", str(path), f"{tmp_path}/model", "--name", "roots", "--voxel-size", "163,163,250"),
        *("--mean", "100", "--deviation", "50", "--licence", "MIT", "--source", "this test"),
        *("--groups", str(N_GROUPS), "--patch", "32,32,16", "--context", "4,4,2"),
    ]
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 0, result.output
    assert "plain 3D U-Net of 4, 8, 16 features" in result.output
    model = load_model(f"{tmp_path}/model", offsets=(), device="cpu", precision="float32")
    assert model.spec.output == "boundaries"
    assert model.spec.training.data == ("this test",)
    patch = np.random.default_rng(0).integers(0, 256, (1, 24, 24, 16)).astype(np.uint8)
    x = (torch.from_numpy(patch.astype(np.float32)) - 100) / 50
    expected = by_definition(
        random_state(residual=False, flat=False),
        x[:, None].permute(0, 1, 4, 3, 2),
        residual=False,
        flat=False,
    )
    got = model.predict(patch)
    np.testing.assert_allclose(got, torch.sigmoid(expected).permute(0, 1, 4, 3, 2).numpy(), atol=1e-4)
    again = CliRunner().invoke(cli, line)
    assert isinstance(again.exception, ConflictError)
    wrong = CliRunner().invoke(cli, [*line[:2], f"{tmp_path}/other", *line[3:], "--order", "cr"])
    assert isinstance(wrong.exception, ModelError)
    assert not (tmp_path / "other").exists()


class Code:
    """What a checkpoint must not bring along."""

    def __reduce__(self):
        return (print, ("this ran",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pytorch"
    torch.save({"model_state_dict": Code()}, path)
    with pytest.raises(ModelError, match=r"evil.pytorch is no checkpoint that holds tensors only"):
        read_published(path)
    assert "this ran" not in capsys.readouterr().out


def test_other_files_and_other_networks_are_refused(tmp_path):
    with pytest.raises(NotFoundError, match=r"there is no checkpoint .*nothing"):
        read_published(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelError, match=r"text is no checkpoint that holds tensors only, or is damaged"):
        read_published(tmp_path / "text")
    torch.save({"model_state_dict": {"a": 1}}, tmp_path / "numbers")
    with pytest.raises(ModelError, match=r"numbers holds no weights by name"):
        read_published(tmp_path / "numbers")
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(ModelError, match=r"other is no network of pytorch-3dunet: it has no 'encoders.0...'"):
        read_published(tmp_path / "other")
    torch.save({"encoders.0.weight": torch.zeros(2)}, tmp_path / "half")
    with pytest.raises(ModelError, match=r"half is no UNet3D, ResidualUNet3D or UNet2D"):
        read_published(tmp_path / "half")


def test_weights_of_another_order_of_layers_are_refused(tmp_path):
    path = tmp_path / "c.pytorch"
    torch.save(random_state(residual=False, flat=False), path)
    arguments, weights = read_published(path, n_groups=N_GROUPS, order="cr")
    network = ARCHITECTURES[arguments.architecture](**arguments.model_dump())
    with pytest.raises(ModelError, match=r"the weights do not belong to this architecture"):
        set_weights(network, weights, where="c.pytorch")
    assert all(isinstance(array, np.ndarray) for array in weights.values())

"""What each architecture promises: shapes, how far an output looks, how many weights it has, what it may leave out."""

from __future__ import annotations

import pytest
import torch

from cloudseg.errors import SpecError
from cloudseg.models.arguments import (
    DeepEM3DArguments,
    GroupNormUNetArguments,
    ResidualUNetArguments,
    UNet2DArguments,
)
from cloudseg.models.deepem3d import DeepEM3D
from cloudseg.models.layers import fuse_batch_norm
from cloudseg.models.registry import ARCHITECTURES, build_network
from cloudseg.testing.tiny_model import tiny_description

STEP = ((2, 2, 2), (2, 2, 1))
SMALL = [
    ResidualUNetArguments(
        n_out=2,
        widths=(3, 4, 5),
        fold=(2, 2, 1),
        pools=((2, 2, 1), (2, 2, 2)),
        kernels=((3, 3, 1), (3, 3, 3), (3, 3, 3)),
    ),
    UNet2DArguments(n_out=2, widths=(3, 4, 5)),
    GroupNormUNetArguments(n_out=2, widths=(8, 16, 24), pools=STEP),
    GroupNormUNetArguments(n_out=2, widths=(8, 16, 24), pools=STEP, residual=True, order="cge"),
    GroupNormUNetArguments(n_out=2, widths=(8, 16), pools=((2, 2, 1),), flat=True),
    DeepEM3DArguments(n_out=2, width=0.02, n_slices=5),
]
NAMES = ["residual", "2d", "plantseg", "plantseg-residual", "plantseg-flat", "deepem3d"]
small = pytest.mark.parametrize("arguments", SMALL, ids=NAMES)


def build(arguments, *, positive=False):
    torch.manual_seed(0)
    network = ARCHITECTURES[arguments.architecture](**arguments.model_dump()).eval()
    if positive:  # then nothing cancels, and whatever an output looks at has a gradient
        for parameter in network.parameters():
            parameter.data = parameter.data.abs() + 1e-3
    return network


def looked_at(network, shape, at):
    """Return how many voxels on each axis, before and after ``at``, the output there depends on."""
    x = torch.rand(1, 1, *shape, requires_grad=True)
    network(x)[0, 0][at].backward()
    seen = x.grad[0, 0] != 0
    result = []
    for axis in range(3):
        places = seen.any(dim=[a for a in range(3) if a != axis]).nonzero().flatten()
        result.append(max(at[axis] - int(places.min()), int(places.max()) - at[axis]))
    return tuple(result)


@small
def test_the_output_has_the_voxels_of_the_input(arguments):
    network = build(arguments)
    assert network.multiple == arguments.multiple
    shape = tuple(2 * m for m in arguments.multiple)
    shape = (shape[0], 3 * arguments.multiple[1], shape[2])
    with torch.inference_mode():
        out = network(torch.zeros(2, 1, *shape))
        assert out.shape == (2, 2, *shape)
        for logits in network.all_logits(torch.zeros(2, 1, *shape)):
            assert logits.shape == out.shape


@small
def test_left_out_channels_change_nothing_in_the_others(arguments):
    network = build(arguments)
    x = torch.rand(1, 1, *(2 * m for m in arguments.multiple))
    with torch.inference_mode():
        both = network(x)
        network.keep_outputs([1])
        torch.testing.assert_close(network(x), both[:, 1:])
    assert network.n_out == 1


@small
def test_folding_the_normalisation_changes_nothing_but_rounding(arguments):
    network = build(arguments)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.rand(1, 1, *(2 * m for m in arguments.multiple))
    with torch.inference_mode():
        expected = network(x)
        fuse_batch_norm(network)
        torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (ResidualUNetArguments(n_out=1, widths=(2, 3), fold=(2, 2, 1), pools=((2, 2, 1),)), (80, 80, 24)),
        (UNet2DArguments(n_out=1, widths=(2, 3, 4)), (96, 96, 3)),
        (
            GroupNormUNetArguments(n_out=1, widths=(2, 3), pools=((2, 2, 1),), order="cr"),
            (40, 40, 24),
        ),
        (
            GroupNormUNetArguments(n_out=1, widths=(2, 3), pools=((2, 2, 1),), order="cr", residual=True),
            (40, 40, 24),
        ),
    ],
    ids=["residual", "2d", "plantseg", "plantseg-residual"],
)
def test_no_output_looks_further_than_the_arguments_say(arguments, shape):
    network = build(arguments, positive=True)
    multiple = arguments.multiple
    middle = [n // 2 // m * m for n, m in zip(shape, multiple, strict=True)]
    found = [
        looked_at(network, shape, tuple(c + phase % m for c, m in zip(middle, multiple, strict=True)))
        for phase in range(multiple[0])
    ]
    furthest = tuple(max(f[axis] for f in found) for axis in range(3))
    assert all(f <= r for f, r in zip(furthest, arguments.reach, strict=True))
    if not getattr(arguments, "residual", False):  # there the bound is a voxel or two too cautious
        assert furthest == arguments.reach


def test_the_2d_unet_looks_as_far_as_the_published_one_and_at_one_slice():
    # 572 pixels in, 388 out: 92 on each side, and up to 15 more as pooling makes 16 pixels one.
    assert UNet2DArguments(n_out=2).reach == (92 + 15, 92 + 15, 0)
    network = build(UNet2DArguments(n_out=1, widths=(3, 4)))
    x = torch.rand(1, 1, 8, 8, 5)
    with torch.inference_mode():
        together = network(x)
        for z in range(5):
            torch.testing.assert_close(together[..., z], network(x[..., z : z + 1])[..., 0])


def test_slices_of_a_flat_plantseg_network_are_normalised_alone():
    network = build(GroupNormUNetArguments(n_out=1, widths=(8, 16), pools=((2, 2, 1),), flat=True))
    x = torch.rand(2, 1, 8, 4, 3)
    with torch.inference_mode():
        together = network(x)
        for z in range(3):
            torch.testing.assert_close(together[..., z], network(x[..., z : z + 1])[..., 0])


@pytest.mark.parametrize("n_slices", [1, 3, 5])
def test_deepem3d_looks_at_as_many_slices_as_it_says(n_slices):
    network = build(DeepEM3DArguments(width=0.02, n_slices=n_slices), positive=True)
    assert looked_at(network, (48, 48, 9), (24, 24, 4))[2] == n_slices // 2


def test_deepem3d_looks_no_further_than_it_says():
    arguments = DeepEM3DArguments(width=0.002, n_slices=1)
    network = build(arguments, positive=True)
    assert looked_at(network, (320, 16, 1), (160, 8, 0))[0] <= arguments.reach[0]


def test_deepem3d_has_the_published_taps():
    network = DeepEM3D(width=1.0).eval()
    with torch.inference_mode():
        taps = network.taps(torch.zeros(1, 1, 32, 48, 3))
    assert [tuple(t.shape[1:]) for t in taps] == [
        (192, 16, 24, 3),
        (384, 8, 12, 3),
        (1154, 4, 6, 3),
        (2048, 2, 3, 3),
    ]
    assert [len(rise.dilated) for rise in network.rises] == [4, 4, 4, 0]
    assert [layer.dilation[0] for layer in network.rises[0].dilated] == [5, 11, 17, 23]


def n_deepem3d_weights():
    """Count the convolutions of the publication's table: (in, out, area of the kernel)."""
    stem = [(1, 32, 9), (32, 64, 27), (64, 64, 1), (64, 96, 9)]
    stem += [(64, 64, 1), (64, 64, 7), (64, 64, 7), (64, 96, 9)]
    level2 = [(192, 192, 9), (384, 384, 1), (384, 32, 1), (384, 32, 1), (32, 32, 9)]
    level2 += [(384, 32, 1), (32, 48, 9), (48, 64, 9)]
    level3 = [(384, 384, 9), (384, 256, 1), (256, 256, 9), (256, 384, 9), (1152, 1154, 1)]
    level3 += [(1154, 192, 1), (1154, 128, 1), (128, 160, 7), (160, 192, 7)]
    level4 = [(1154, 256, 1), (256, 384, 9), (1154, 256, 1), (256, 288, 9)]
    level4 += [(1154, 256, 1), (256, 288, 9), (288, 320, 9), (2146, 2048, 1)]
    level4 += [(2048, 192, 1), (2048, 192, 1), (192, 224, 7), (224, 256, 7)]
    normed = sum(a * b * k + 2 * b for a, b, k in stem + level2 + level3 + level4)
    joins = [(128, 384), (384, 1154), (448, 2048)]
    joined = sum(a * b + b + 2 * b for a, b in joins)
    rises = 0
    for features, stride in ((192, 2), (384, 4), (1154, 8), (2048, 16)):
        rises += features * (2 * stride) ** 2 + 1 + 9 + 1
        rises += 4 * (features * 9 + 1) if stride < 16 else 0
    return normed + joined + rises


@pytest.mark.parametrize(
    ("arguments", "n_weights"),
    [
        # The reference implementation logs this number for f_maps 32, layer_order gcr.
        (GroupNormUNetArguments(n_out=1), 4_081_267),
        (DeepEM3DArguments(), n_deepem3d_weights()),
        # Convolutions of 64 ... 1024 features, two a level, two numbers of normalisation each; the last has a bias.
        (
            UNet2DArguments(n_out=2),
            sum(a * b * 9 + 2 * b for a, b in ((1, 64), (64, 128), (128, 256), (256, 512), (512, 1024)))
            + sum(b * b * 9 + 2 * b for b in (64, 128, 256, 512, 1024))
            + sum(3 * b * b * 9 + 2 * b + b * b * 9 + 2 * b for b in (64, 128, 256, 512))
            + 64 * 2
            + 2,
        ),
    ],
    ids=["plantseg", "deepem3d", "2d"],
)
def test_the_number_of_weights_is_the_published_one(arguments, n_weights):
    network = ARCHITECTURES[arguments.architecture](**arguments.model_dump())
    assert sum(p.numel() for p in network.parameters()) == n_weights


def test_a_description_picks_the_architecture_by_name():
    description = tiny_description(
        architecture="unet_2d", arguments={"n_out": 4, "widths": [4, 6]}, patch_shape=(16, 16, 20)
    )
    assert type(build_network(description)).__name__ == "UNet2D"
    again = tiny_description(**description.model_dump(mode="json"))
    assert again == description
    assert "architecture" not in description.model_dump()["arguments"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "unet_2d"}, "unknown key 'arguments.unet_2d.pools'"),
        ({"arguments": UNet2DArguments(n_out=4), "architecture": "deepem3d"}, "arguments are of 'unet_2d'"),
        (
            {"architecture": "deepem3d", "arguments": {"n_slices": 2}},
            "n_slices: Input should be 1, 3 or 5",
        ),
        (
            {
                "architecture": "groupnorm_unet_3d",
                "arguments": {"n_out": 4, "widths": [4, 12], "pools": [[2, 2, 2]]},
            },
            "a width of 12 does not fall into n_groups=8 equal groups",
        ),
        (
            {
                "architecture": "groupnorm_unet_3d",
                "arguments": {"n_out": 4, "widths": [4, 6], "pools": [[2, 2, 2]], "flat": True},
            },
            "a flat network must not pool along z",
        ),
        ({"output": "boundaries"}, "a model of boundaries has one output and no offsets, got 4 and 4"),
        ({"offsets": ()}, "0 offsets, but the network has 4 outputs"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        tiny_description(**changes)


def test_deepem3d_asks_for_no_dilated_transposed_convolution_of_bfloat16():
    """On a CPU that corrupts memory: sometimes NaN, sometimes a crash, often nothing that is seen."""
    network = DeepEM3D(width=0.02).to(memory_format=torch.channels_last_3d)
    seen = []
    for layer in network.modules():
        if isinstance(layer, torch.nn.ConvTranspose3d) and max(layer.dilation) > 1:
            layer.register_forward_hook(lambda _, given, made: seen.append((given[0].dtype, made.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(1, 1, 64, 64, 3))
    assert seen == [(torch.float32, torch.float32)] * 12

"""A network as a function on arrays, and block by block over a volume."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudseg.errors import ModelError
from cloudseg.geometry import Box, tile
from cloudseg.models.predict import Model, load_model, pick_device, pick_precision, set_weights
from cloudseg.models.registry import build_network
from cloudseg.models.stream import predict_block
from cloudseg.models.unet import ResidualUNet
from cloudseg.ops.lattice import PatchLattice
from cloudseg.testing.tiny_model import tiny_description, tiny_package, tiny_weights


def tiny(**changes) -> Model:
    description = tiny_description(**changes)
    network = build_network(description)
    set_weights(network, tiny_weights(description), where="test")
    return Model(description, network)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def grey(shape, seed=0, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


def run(model, lattice, image, blocks, *, tissue=None, grid_z=1) -> np.ndarray:
    """Predict block after block; every voxel must be written exactly once."""
    out = np.full((model.n_channels, *lattice.bounds.shape), 77, np.uint8)
    written = np.zeros(lattice.bounds.shape, np.int64)

    def write(box, slab):
        cut = box.slices_in(lattice.bounds)
        out[(slice(None), *cut)] = slab
        written[cut] += 1

    for core in blocks:
        predict_block(
            model,
            lattice,
            core,
            read=lambda box: image[box.slices_in(lattice.bounds)],
            write=write,
            tissue=None if tissue is None else lambda box: tissue[box.slices_in(lattice.bounds)],
            write_grid_z=grid_z,
        )
    np.testing.assert_array_equal(written, 1)
    return out


def lattice_for(model, bounds) -> PatchLattice:
    d = model.spec
    return PatchLattice.fit(
        bounds, patch_shape=d.patch_shape, context=d.context, blend=d.blend, multiple=model.multiple
    )


edge = st.integers(1, 40)


@given(
    shape=st.tuples(edge, edge, edge),
    block=st.tuples(st.integers(5, 50), st.integers(5, 50), st.integers(1, 50)),
    start=st.tuples(*[st.integers(-20, 20)] * 3),
    seed=st.integers(0, 5),
    masked=st.booleans(),
)
@settings(max_examples=25)
def test_any_tiling_predicts_the_same_bits_as_one_block(model, shape, block, start, seed, masked):
    bounds = Box.of_shape(shape, at=start)
    lattice = lattice_for(model, bounds)
    image = grey(shape, seed)
    tissue = None
    if masked:
        tissue = np.random.default_rng(seed).random(tuple(-(-s // 8) for s in shape)) < 0.4
        tissue = tissue.repeat(8, 0).repeat(8, 1).repeat(8, 2)[: shape[0], : shape[1], : shape[2]]
    whole = run(model, lattice, image, [bounds], tissue=tissue)
    blocks = list(tile(bounds, block))
    order = np.random.default_rng(seed).permutation(len(blocks))
    tiled = run(model, lattice, image, [blocks[i] for i in order], tissue=tissue, grid_z=4)
    np.testing.assert_array_equal(tiled, whole)
    if masked:
        assert not whole[:, ~tissue].any()


def one_shot(model, lattice, image) -> np.ndarray:
    """The definition, without blocks, threads or slabs: pad by mirroring, predict each patch, average by weight."""
    n = lattice.count
    last = lattice.patch_box(tuple(c - 1 for c in n))
    first = lattice.patch_box((0, 0, 0))
    pad = [
        (b - f, max(0, s - e))
        for b, f, s, e in zip(lattice.bounds.start, first.start, last.stop, lattice.bounds.stop, strict=True)
    ]
    padded = np.pad(image, pad, mode="reflect")
    total = np.zeros((model.n_channels, *image.shape), np.float64)
    for index in lattice.order(lattice.bounds):
        patch = padded[lattice.patch_box(index).slices_in(Box(first.start, first.start))]
        support = lattice.support_box(index)
        value = model.predict(patch[None])[0][(slice(None), *support.slices_in(lattice.patch_box(index)))]
        x, y, z = (lattice.weights(a, index[a]).astype(np.float64) for a in range(3))
        total[(slice(None), *support.slices_in(lattice.bounds))] += value * np.einsum("i,j,k->ijk", x, y, z)
    return total * 255


@given(shape=st.tuples(edge, edge, edge), seed=st.integers(0, 5))
@settings(max_examples=15)
def test_a_block_equals_the_plain_definition_of_blended_patches(model, shape, seed):
    bounds = Box.of_shape(shape, at=(3, -2, 9))
    lattice = lattice_for(model, bounds)
    got = run(model, lattice, grey(shape, seed), [bounds])
    expected = one_shot(model, lattice, grey(shape, seed))
    # Single precision may round the other way where the exact value lies on the edge between two levels.
    assert np.abs(got - expected).max() <= 0.5 + 1e-3


def test_the_real_architecture_gives_the_same_bits_for_any_tiling():
    arguments = {"n_out": 4, "widths": (32, 80, 160), "pools": ((2, 2, 2), (2, 2, 2))}
    model = tiny(arguments=arguments, patch_shape=(32, 32, 32), context=(4, 4, 4), blend=(4, 4, 4))
    bounds = Box.of_shape((44, 24, 44))
    lattice = lattice_for(model, bounds)
    assert lattice.n_patches == 4
    image = grey(bounds.shape)
    whole = run(model, lattice, image, [bounds])
    np.testing.assert_array_equal(run(model, lattice, image, tile(bounds, (23, 24, 44)), grid_z=8), whole)
    np.testing.assert_array_equal(run(model, lattice, image, tile(bounds, (44, 24, 24)), grid_z=8), whole)


def test_the_number_of_threads_does_not_change_a_bit(model):
    bounds = Box.of_shape((40, 40, 40))
    lattice = lattice_for(model, bounds)
    image = grey(bounds.shape)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(model, lattice, image, [bounds])
        torch.set_num_threads(3)
        together = run(model, lattice, image, [bounds])
        assert torch.get_num_threads() == 3, "the caller's own setting must survive"
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(together, alone)


def test_the_batch_size_does_not_change_a_bit_on_a_cpu():
    arguments = {"n_out": 4, "widths": (32, 80), "pools": ((2, 2, 2),)}
    model = tiny(arguments=arguments)
    patches = grey((3, 24, 24, 24))
    together = model.predict(patches)
    for i in range(3):
        np.testing.assert_array_equal(model.predict(patches[i : i + 1])[0], together[i])


def test_grey_levels_mean_the_same_in_every_type(model):
    patch = grey((1, 16, 16, 16))
    expected = model.predict(patch)
    np.testing.assert_allclose(model.predict(patch.astype(np.uint16) * 257), expected, atol=1e-5)
    np.testing.assert_allclose(model.predict(patch.astype(np.float32) / 255), expected, atol=1e-5)
    shifted = patch.astype(np.uint16) * 4 + 1000
    np.testing.assert_allclose(model.predict(shifted, grey_range=(1000, 2020)), expected, atol=1e-5)


def test_kept_outputs_equal_those_channels_of_the_whole_network(tmp_path):
    uri = tiny_package(str(tmp_path / "m"))
    patch = grey((1, 16, 16, 16))
    every = load_model(uri, offsets=tiny_description().offsets, device="cpu", precision="float32")
    few = load_model(uri, offsets=((-4, 0, 0), (0, -1, 0)), device="cpu", precision="float32")
    np.testing.assert_allclose(few.predict(patch), every.predict(patch)[:, [3, 1]], atol=1e-6)


def test_bfloat16_is_close_to_float32_and_not_the_same(tmp_path):
    uri = tiny_package(str(tmp_path / "m"))
    patch = grey((1, 16, 16, 16))
    full = load_model(uri, device="cpu", precision="float32").predict(patch)
    half = load_model(uri, device="cpu", precision="bfloat16").predict(patch)
    assert 0 < np.abs(full - half).max() < 0.1


def test_auto_takes_what_the_machine_has():
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_precision("float32", device="cpu") == "float32"
    # A second opinion: torch's own private probes.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert pick_precision("auto", device="cpu") == ("bfloat16" if native else "float32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(
        ModelError, match="device 'cuda' was asked for, but this machine has no usable CUDA GPU"
    ):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        (np.zeros((16, 16, 16), np.uint8), r"patches must be \(b, x, y, z\), got shape \(16, 16, 16\)"),
        (np.zeros((1, 16, 16, 16), np.int8), "patches must be uint8, uint16, float32, got int8"),
        (np.zeros((1, 16, 18, 16), np.uint8), "18 voxels on y, which is no multiple of 4"),
    ],
)
def test_patches_that_the_network_cannot_take_are_refused(model, patches, message):
    with pytest.raises(ModelError, match=message):
        model.predict(patches)


def test_a_failing_write_reaches_the_caller_and_leaves_no_thread_behind(model):
    bounds = Box.of_shape((40, 20, 40))
    lattice = lattice_for(model, bounds)

    def write(box, slab):
        raise OSError(28, "no space left on device")

    with pytest.raises(OSError, match="no space left"):
        predict_block(model, lattice, bounds, read=lambda b: grey(b.shape), write=write)
    names = [t.name for t in threading.enumerate()]
    assert not [n for n in names if n.startswith(("read-ahead", "network", "write-behind"))]


def test_an_architecture_with_anisotropic_pools_keeps_its_shape():
    network = ResidualUNet(
        n_out=3, widths=(4, 6), fold=(2, 2, 1), pools=((2, 2, 1),), kernels=((3, 3, 1), (3, 3, 3))
    )
    assert network.multiple == (4, 4, 1)
    assert network(torch.zeros(1, 1, 8, 12, 5)).shape == (1, 3, 8, 12, 5)
    with pytest.raises(ValueError, match="2 widths need 1 pools, got 0"):
        ResidualUNet(n_out=3, widths=(4, 6), pools=())

"""Augmentation: image and labels move together, nothing is invented, and the same seed gives the same patch."""

from __future__ import annotations

import numpy as np
import pytest

from cloudseg.errors import SpecError
from cloudseg.training import augment, grey
from cloudseg.training.augmentation import (
    ElectronAugmentation,
    LightAugmentation,
    NoAugmentation,
    SomaAugmentation,
    without_bending,
)
from cloudseg.training.labels import UNKNOWN
from cloudseg.training.sampling import LabelledBlock, Sampler, SamplingSettings
from cloudseg.training.targets import AffinityTarget, BoundaryTarget, boundary_of

NM = (8.0, 8.0, 8.0)
NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def sampler(block, **changes):
    how = {
        "patch_shape": (12, 10, 8),
        "targets": [AffinityTarget(offsets=NEAREST)],
        "mean": 0.0,
        "deviation": 1.0,
        "voxel_size_nm": NM,
        "augmentation": NoAugmentation(),
    } | changes
    return Sampler(blocks=[block], **how)


@pytest.fixture(scope="module")
def block():
    """An image that is the labels themselves: wherever both are read from, they must agree."""
    labels = np.random.default_rng(0).integers(1, 6, (6, 6, 6)).repeat(5, 0).repeat(5, 1).repeat(5, 2)
    return LabelledBlock.of((labels * 40).astype(np.float32), labels, name="blocks")


@pytest.mark.parametrize("isotropic", [True, False])
def test_every_orientation_occurs_and_keeps_the_shape(isotropic):
    rng = np.random.default_rng(0)
    seen = {augment.draw_orientation(rng, isotropic=isotropic) for _ in range(2000)}
    assert len(seen) == (48 if isotropic else 16)
    for orientation in seen:
        array = np.arange(60).reshape(3, 4, 5)
        cut = augment.shape_before((7, 5, 3), orientation)
        assert augment.orient(np.zeros(cut), orientation).shape == (7, 5, 3)
        assert sorted(augment.orient(array, orientation).ravel()) == list(range(60))
        if not isotropic:
            assert orientation[0][2] == 2, "z stays z"


def test_standing_still_reads_the_block_itself(block):
    position = augment.grid((8, 9, 10))
    image, ids = augment.resample(block.image, block.ids, position, corner=(3, 4, 5))
    np.testing.assert_array_equal(ids, block.ids[3:11, 4:13, 5:15])
    np.testing.assert_allclose(image, block.image[3:11, 4:13, 5:15], atol=1e-4)


def test_what_lies_outside_of_the_block_is_unknown(block):
    position = augment.grid((8, 8, 8)) - 4
    image, ids = augment.resample(block.image, block.ids, position, corner=(0, 0, 0))
    assert (ids[:4] == UNKNOWN).all()
    np.testing.assert_array_equal(ids[4:, 4:, 4:], block.ids[:4, :4, :4])
    assert np.isfinite(image).all()


def test_a_quarter_turn_is_a_transposed_flip(block):
    class Quarter:
        def uniform(self, low, high):
            return 90.0

        def integers(self, n):
            return 0

    position = augment.grid((9, 9, 9))
    augment.rotate(position, rng=Quarter(), most_deg=180, isotropic=False)
    _, ids = augment.resample(block.image, block.ids, position, corner=(8, 8, 8))
    cut = block.ids[8:17, 8:17, 8:17]
    np.testing.assert_array_equal(ids, np.rot90(cut, -1))


def test_sliding_moves_the_sections_above_by_one_shift(block):
    position = augment.grid((8, 8, 12))
    before = position.copy()
    augment.slide(position, rng=np.random.default_rng(1), most_vx=5.0)
    moved = (position - before)[:2]
    z = int(np.argmax(np.any(moved != 0, axis=(0, 1, 2))))
    assert 1 <= z < 12
    assert not moved[..., :z].any()
    for axis in range(2):
        np.testing.assert_allclose(moved[axis, :, :, z:], moved[axis, 0, 0, z], atol=1e-5)
    np.testing.assert_array_equal(position[2], before[2])


def test_bending_is_smooth_and_as_strong_as_told():
    position = augment.grid((64, 64, 16))
    before = position.copy()
    augment.bend(
        position, rng=np.random.default_rng(0), strength_vx=(3.0, 3.0, 0.5), spacing_vx=(16.0, 16.0, 4.0)
    )
    moved = position - before
    for axis, strength in enumerate((3.0, 3.0, 0.5)):
        # Between knots the linear mean of normal numbers has less spread than these.
        assert 0.3 * strength < moved[axis].std() < 1.1 * strength
    assert np.abs(np.diff(moved[0], axis=0)).max() < 2.0


@pytest.mark.parametrize("kind", ["rotate", "bend", "misalign"])
def test_image_and_labels_move_together(block, kind):
    how = ElectronAugmentation(
        **{
            name: 0.0
            for name, f in ElectronAugmentation.model_fields.items()
            if f.default in (0.05, 0.2, 0.4)
        }
        | {"contrast": 0.0, "gamma": 0.0, "blur": 0.0, "noise": 0.0}
        | {kind: 1.0}
    )
    agreed = []
    for seed in range(8):
        position = how.moves((12, 10, 8), rng=np.random.default_rng(seed), voxel_size_nm=NM, isotropic=True)
        assert position is not None
        image, ids = augment.resample(block.image, block.ids, position, corner=(8, 9, 10))
        # At interfaces the linear image lies between two labels.
        inside = (ids != UNKNOWN) & ~boundary_of(ids, mode="thick", planar=False)
        agreed.append(np.mean(np.rint(image[inside] / 40) == ids[inside] - 1))
    assert np.mean(agreed) > 0.97


def test_published_deformation_is_one_for_all_sections_and_as_strong_as_told(block):
    how = SomaAugmentation(elastic=1.0, rotate=0.0)
    position = how.moves((40, 30, 6), rng=np.random.default_rng(1), voxel_size_nm=NM, isotropic=False)
    moved = position - augment.grid((40, 30, 6))
    assert (moved == moved[:, :, :, :1]).all()
    assert (moved[2] == 0).all()
    # Uniform noise of deviation 1/sqrt(3), smoothed in 2D by 4 voxels: 1 / (2 sqrt(pi) 4) of it is left.
    expected = 16 / 3**0.5 / (2 * np.pi**0.5 * 4)
    assert 0.6 * expected < moved[:2].std() < 1.4 * expected


def test_published_grey_is_one_for_the_patch_or_one_for_each_section():
    image = np.random.default_rng(0).random((16, 16, 5), np.float32)
    image[:, :, 1:] = image[:, :, :1]
    kinds = set()
    for seed in range(12):
        changed = grey.published_grey(image, rng=np.random.default_rng(seed))
        assert 0 <= changed.min() <= changed.max() <= 1
        order = np.argsort(image[:, :, 0], axis=None)
        assert (np.diff(changed[:, :, 0].reshape(-1)[order]) >= 0).all(), "darker stays darker"
        kinds.add(bool((changed == changed[:, :, :1]).all()))
    assert kinds == {True, False}


@pytest.mark.parametrize(
    "how", [ElectronAugmentation(), LightAugmentation(), SomaAugmentation(), NoAugmentation()]
)
@pytest.mark.parametrize("isotropic", [True, False])
def test_the_same_seed_gives_the_same_patch_and_another_seed_another(block, how, isotropic):
    draw = sampler(block, augmentation=how, isotropic=isotropic)
    first, again, other = (draw.draw(np.random.default_rng([5, seed])) for seed in (1, 1, 2))
    assert first.image.shape == (1, 12, 10, 8)
    assert first.targets.shape == (3, 12, 10, 8)
    assert first.where == again.where
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.targets, again.targets)
    assert not np.array_equal(first.image, other.image)
    assert np.isfinite(first.image).all()


CHANGES = [
    grey.stretch,
    grey.gamma,
    grey.blur,
    grey.noise,
    grey.lose_sections,
    grey.shift_section,
    grey.recolour_section,
    grey.jump,
    grey.defocus_section,
    grey.published_grey,
    grey.shot_noise,
    grey.dim_with_depth,
    grey.haze,
    grey.stripes,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(16, 12, 8), (16, 16, 1)])
def test_every_change_of_grey_changes_something_and_leaves_its_input_alone(change, shape):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kept = image.copy()
    results = [change(image, rng=np.random.default_rng(seed)) for seed in range(5)]
    np.testing.assert_array_equal(image, kept)
    for result in results:
        assert result.shape == shape
        assert np.isfinite(result).all()
        assert result.dtype == np.float32
    if shape[2] > 1:
        assert any(not np.array_equal(result, image) for result in results)


@pytest.mark.parametrize(
    ("change", "most"),
    [(grey.lose_sections, 2), (grey.shift_section, 1), (grey.recolour_section, 1), (grey.defocus_section, 1)],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_faults_of_sections_touch_only_these(change, most):
    image = np.random.default_rng(0).normal(size=(16, 16, 9)).astype(np.float32)
    touched = set()
    for seed in range(20):
        differs = np.any(change(image, rng=np.random.default_rng(seed)) != image, axis=(0, 1))
        places = np.flatnonzero(differs)
        assert 1 <= len(places) <= most
        touched.update(places.tolist())
    assert len(touched) > 5, "any section may be hit"


def test_a_contrast_jump_begins_somewhere_and_lasts():
    image = np.random.default_rng(0).normal(size=(8, 8, 9)).astype(np.float32)
    differs = np.any(grey.jump(image, rng=np.random.default_rng(3)) != image, axis=(0, 1))
    z = int(np.argmax(differs))
    assert z >= 1
    assert differs[z:].all()


def test_shot_noise_grows_with_the_signal():
    image = np.zeros((40, 40, 20), np.float32)
    image[20:] = 8.0
    noisy = grey.shot_noise(image, rng=np.random.default_rng(0))
    assert noisy[:20].std() == 0.0, "no light, no noise"
    assert noisy[20:].std() > 0.1
    assert noisy[20:].mean() == pytest.approx(8.0, abs=0.05)


def test_single_planes_are_neither_bent_nor_rotated():
    how = without_bending(ElectronAugmentation())
    rng = np.random.default_rng(0)
    moves = [how.moves((8, 8, 8), rng=rng, voxel_size_nm=NM, isotropic=True) for _ in range(200)]
    assert moves == [None] * 200


def test_the_published_rule_takes_sparse_patches_with_its_probability():
    """Half of the block is labelled: positions in the other half are taken only by slack."""
    labels = np.zeros((400, 8, 8), np.uint8)
    labels[:200] = 1
    block = LabelledBlock.of(labels, labels)
    draw = sampler(
        block, patch_shape=(8, 8, 8), settings=SamplingSettings(min_labelled=0.6, slack_acceptance=0.05)
    )
    rng = np.random.default_rng(47)
    xs = np.array([draw.draw_corner(block, (8, 8, 8), rng)[0] for _ in range(4000)])
    dense = xs <= 195  # over 0.6 of eight columns: at least five of them are labelled
    n_dense, n_sparse = 196, 393 - 196
    expected = 0.05 * n_sparse / (n_dense + 0.05 * n_sparse)
    assert (~dense).mean() == pytest.approx(expected, abs=4 * np.sqrt(expected / 4000))
    never = sampler(block, patch_shape=(8, 8, 8), settings=SamplingSettings(min_labelled=0.6))
    assert max(never.draw_corner(block, (8, 8, 8), rng)[0] for _ in range(1000)) <= 195


def test_a_block_without_a_patch_worth_learning_from_is_named():
    labels = np.zeros((40, 8, 8), np.uint8)
    labels[3, 3, 3] = 1
    block = LabelledBlock.of(labels, labels, name="file:///labels, box 0,0,0:40,8,8")
    with pytest.raises(
        SpecError, match=r"box 0,0,0:40,8,8: of 1000 random patches of \(8, 8, 8\) voxels none had over 2%"
    ):
        sampler(block, patch_shape=(8, 8, 8)).draw(np.random.default_rng(0))


def test_blocks_are_drawn_by_their_weights():
    a = LabelledBlock.of(np.zeros((9, 9, 9), np.uint8), np.ones((9, 9, 9), np.uint8), weight=3.0, name="a")
    b = LabelledBlock.of(np.zeros((9, 9, 9), np.uint8), np.ones((9, 9, 9), np.uint8), weight=1.0, name="b")
    draw = Sampler([a, b], (8, 8, 8), [BoundaryTarget()], 0.0, 1.0, NM, augmentation=NoAugmentation())
    rng = np.random.default_rng(0)
    names = [draw.draw(rng).where[0] for _ in range(800)]
    assert names.count("a") / 800 == pytest.approx(0.75, abs=0.06)


def test_a_block_smaller_than_the_patch_is_mirrored_and_unknown_there():
    image = np.arange(6 * 6 * 6, dtype=np.uint8).reshape(6, 6, 6)
    block = LabelledBlock.of(image, np.ones((6, 6, 6), np.uint8))
    sample = sampler(block, patch_shape=(8, 8, 8)).draw(np.random.default_rng(0))
    assert not sample.known[:, 6:].any()
    assert sample.known[0, 1:6, :6, :6].all()
    np.testing.assert_array_equal(sample.image[0, 6, :6, :6], image[4])

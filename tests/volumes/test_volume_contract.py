"""What every volume keeps, wherever it lives and however its chunks are packed."""

from __future__ import annotations

import numpy as np
import pytest

from cloudseg.errors import (
    AlignmentError,
    BoxOutOfBoundsError,
    ConflictError,
    MissingChunkError,
    NotFoundError,
    SpecError,
    VolumeFormatError,
)
from cloudseg.geometry import Box, tile
from cloudseg.volumes import (
    VolumeInfo,
    create_volume,
    open_objects,
    open_volume,
    read_info,
    scales,
    sharding_for,
    update_info,
)

# Bounds that start off zero and end off the chunk grid on each axis.
BOUNDS = Box((5, -6, 7), (45, 20, 33))
KINDS = {
    "image": {"dtype": "uint8"},
    "16-bit": {"dtype": "uint16"},
    "float": {"dtype": "float32"},
    "png": {"dtype": "uint8", "encoding": "png"},
    "affinities": {"dtype": "uint8", "n_channels": 3},
    "labels": {"dtype": "uint64", "layer": "segmentation"},
    "small labels": {"dtype": "uint32", "layer": "segmentation"},
    "raw labels": {"dtype": "uint64", "layer": "segmentation", "encoding": "raw"},
}


def info_of(kind: str = "labels", *, sharded: bool = False, **changes) -> VolumeInfo:
    fields = {"bounds": BOUNDS, "voxel_size_nm": (8, 8, 33.5), "chunk_shape": (16, 16, 16)}
    info = VolumeInfo(**{**fields, **KINDS[kind], **changes})
    if sharded:
        chunk_bytes = 16**3 * info.n_channels * info.numpy_dtype.itemsize
        info = info.model_copy(update={"sharding": sharding_for(info, target_bytes=4 * chunk_bytes)})
        assert info.write_grid == (32, 32, 16)
    return info


def voxels(info: VolumeInfo, box: Box | None = None, *, seed: int = 0) -> np.ndarray:
    shape = (box or info.bounds).shape
    rng = np.random.default_rng(seed)
    shape = shape if info.n_channels == 1 else (info.n_channels, *shape)
    if info.dtype == "float32":
        return rng.normal(size=shape).astype(np.float32)
    top = np.iinfo(info.dtype).max
    # A few ids, the largest included: what a float would lose.
    return rng.choice(np.array([0, 1, 2, top - 1, top], info.dtype), size=shape)


@pytest.fixture(params=[False, True], ids=["chunks", "shards"])
def sharded(request):
    return request.param


# The codec does not depend on where the bytes lie: a few kinds are enough for a bucket.
ON_BACKENDS = [(scheme, kind) for scheme in ("memory", "file") for kind in KINDS]
ON_BACKENDS += [(scheme, kind) for scheme in ("gs", "s3") for kind in ("image", "affinities", "labels")]


@pytest.mark.parametrize(("scheme", "kind"), ON_BACKENDS)
def test_what_is_written_is_read(new_uri, scheme, sharded, kind):
    uri = new_uri(scheme)
    info = info_of(kind, sharded=sharded)
    data = voxels(info)
    volume = create_volume(uri, info)
    for cell in tile(info.bounds, info.write_grid):
        volume.write(cell, data[(..., *cell.slices_in(info.bounds))])
    again = open_volume(uri)
    assert again.info == info
    whole = again.read(info.bounds)
    np.testing.assert_array_equal(whole, data)
    assert whole.dtype == info.numpy_dtype
    assert whole.flags.writeable
    channels = whole if info.n_channels > 1 else [whole]
    assert all(channel.flags.f_contiguous for channel in channels)
    part = Box((7, -3, 20), (40, 20, 24))
    np.testing.assert_array_equal(again.read(part), data[(..., *part.slices_in(info.bounds))])


def test_one_write_may_cover_many_cells_in_any_memory_order(uri, sharded):
    info = info_of("affinities", sharded=sharded)
    data = voxels(info)
    create_volume(uri, info).write(info.bounds, np.ascontiguousarray(data))
    np.testing.assert_array_equal(open_volume(uri).read(info.bounds), data)


def test_the_callers_array_is_neither_kept_nor_changed(uri):
    info = info_of("image")
    data = np.asfortranarray(voxels(info))
    before = data.copy()
    volume = create_volume(uri, info)
    volume.write(info.bounds, data)
    np.testing.assert_array_equal(data, before)
    data[...] = 9
    read = volume.read(info.bounds)
    np.testing.assert_array_equal(read, before)
    read[...] = 7
    np.testing.assert_array_equal(volume.read(info.bounds), before)


def test_a_later_write_replaces_an_earlier_one(uri, sharded):
    info = info_of("labels", sharded=sharded)
    volume = create_volume(uri, info)
    volume.write(info.bounds, voxels(info, seed=1))
    cell = next(iter(tile(info.bounds, info.write_grid)))
    expected = voxels(info, seed=1)
    expected[cell.slices_in(info.bounds)] = 0
    for _ in range(2):
        volume.write(cell, np.zeros(cell.shape, np.uint64))
        np.testing.assert_array_equal(open_volume(uri).read(info.bounds), expected)


def test_a_chunk_of_zeros_exists_and_an_absent_one_is_an_error(uri, sharded):
    info = info_of("labels", sharded=sharded)
    volume = create_volume(uri, info)
    cells = list(tile(info.bounds, info.write_grid))
    with pytest.raises(MissingChunkError, match=r"a chunk of box 5,-6,7:6,-5,8 of .* was never written"):
        volume.read(Box((5, -6, 7), (6, -5, 8)))
    volume.write(cells[0], np.zeros(cells[0].shape, np.uint64))
    again = open_volume(uri)
    assert not again.read(cells[0]).any()
    with pytest.raises(MissingChunkError, match="missing='zero'"):
        again.read(info.bounds)
    assert not again.read(info.bounds, missing="zero").any()


def test_outside_the_bounds_a_read_fills_or_refuses(uri, sharded):
    info = info_of("labels", sharded=sharded)
    data = voxels(info)
    volume = create_volume(uri, info)
    volume.write(info.bounds, data)
    wide = info.bounds.grow((3, 20, 1))
    expected = np.full(wide.shape, 77, np.uint64)
    expected[info.bounds.slices_in(wide)] = data
    got = volume.read(wide, fill=77)
    np.testing.assert_array_equal(got, expected)
    assert got.flags.f_contiguous
    away = Box((500, 500, 500), (502, 503, 504))
    np.testing.assert_array_equal(volume.read(away, fill=3), np.full((2, 3, 4), 3, np.uint64))
    with pytest.raises(BoxOutOfBoundsError, match=r"box 500.* is not inside the bounds 5,-6,7:45,20,33"):
        volume.read(away)
    assert volume.read(Box((9, 9, 9), (9, 12, 12))).shape == (0, 3, 3)


@pytest.mark.parametrize("fill", [-1, 256, 0.5])
def test_a_fill_that_the_dtype_cannot_hold_is_refused(fill):
    volume = create_volume("memory://fill", info_of("image"))
    with pytest.raises(SpecError, match=r"is no value of memory://fill, which holds uint8: 0 to 255"):
        volume.read(Box((0, 0, 0), (90, 9, 9)), fill=fill)


def test_an_unknown_meaning_of_missing_is_refused():
    volume = create_volume("memory://meaning", info_of("image"))
    with pytest.raises(SpecError, match="missing must be 'error' or 'zero', got 'none'"):
        volume.read(BOUNDS, missing="none")


def test_a_write_that_does_not_fit_is_refused_and_stores_nothing(uri, sharded):
    info = info_of("labels", sharded=sharded)
    volume = create_volume(uri, info)
    before = list(open_objects(uri).list())
    inner = Box.of_shape((16, 16, 15), at=BOUNDS.start)
    with pytest.raises(
        AlignmentError, match=r"does not cover whole chunks .* each edge must lie on the grid"
    ):
        volume.write(inner, np.ones(inner.shape, np.uint64))
    with pytest.raises(BoxOutOfBoundsError, match="is not inside the bounds"):
        volume.write(BOUNDS.grow((1, 0, 0)), np.ones(BOUNDS.grow((1, 0, 0)).shape, np.uint64))
    with pytest.raises(SpecError, match=r"must have shape \(40, 26, 26\) \(x, y, z\), got \(40, 26, 25\)"):
        volume.write(BOUNDS, np.ones((40, 26, 25), np.uint64))
    with pytest.raises(SpecError, match="must have dtype uint64, got float64.*ids never pass through floats"):
        volume.write(BOUNDS, np.ones(BOUNDS.shape))
    with pytest.raises(SpecError, match="must have dtype uint64, got uint32"):
        volume.write(BOUNDS, np.ones(BOUNDS.shape, np.uint32))
    with pytest.raises(SpecError, match="must have dtype uint64, got >u8"):
        volume.write(BOUNDS, np.ones(BOUNDS.shape, ">u8"))
    with pytest.raises(SpecError, match="holds no voxel"):
        volume.write(Box((5, -6, 7), (5, -6, 7)), np.ones((0, 0, 0), np.uint64))
    with pytest.raises(SpecError, match="needs a numpy array, got list"):
        volume.write(BOUNDS, [[[1]]])
    assert list(open_objects(uri).list()) == before


def test_creating_twice_is_creating_once(uri, sharded):
    info = info_of("labels", sharded=sharded)
    create_volume(uri, info).write(info.bounds, voxels(info))
    create_volume(uri, info)
    np.testing.assert_array_equal(open_volume(uri).read(info.bounds), voxels(info))


def test_creating_something_else_names_each_difference_and_changes_nothing(uri):
    create_volume(uri, info_of("labels"))
    before = read_info(uri)
    other = info_of("labels", chunk_shape=(8, 16, 16), voxel_size_nm=(4, 8, 33.5))
    with pytest.raises(ConflictError) as caught:
        create_volume(uri, other)
    assert "chunk_shape is (16, 16, 16), asked for (8, 16, 16)" in str(caught.value)
    assert "voxel_size_nm is (8.0, 8.0, 33.5), asked for (4.0, 8.0, 33.5)" in str(caught.value)
    assert "dtype" not in str(caught.value)
    with pytest.raises(ConflictError, match="dtype is uint64, asked for uint32"):
        create_volume(uri, info_of("small labels"))
    with pytest.raises(ConflictError, match=r"sharding is None, asked for \{.*preshift_bits"):
        create_volume(uri, info_of("labels", sharded=True))
    assert read_info(uri) == before


def test_scales_are_added_in_order_and_each_is_a_volume(uri):
    fine = info_of("labels")
    coarse = info_of("labels", bounds=Box((2, -3, 7), (22, 10, 33)), voxel_size_nm=(16, 16, 33.5))
    with pytest.raises(SpecError, match="has 0 scales, so the next one is mip 0, not 1"):
        create_volume(uri, coarse, mip=1)
    create_volume(uri, fine).write(fine.bounds, voxels(fine))
    with pytest.raises(SpecError, match="has no scale 1: it has 1"):
        open_volume(uri, mip=1)
    create_volume(uri, coarse, mip=1).write(coarse.bounds, voxels(coarse, seed=2))
    assert scales(uri) == [fine, coarse]
    np.testing.assert_array_equal(open_volume(uri).read(fine.bounds), voxels(fine))
    np.testing.assert_array_equal(open_volume(uri, mip=1).read(coarse.bounds), voxels(coarse, seed=2))
    with pytest.raises(SpecError, match="has 2 scales, so the next one is mip 2, not 3"):
        create_volume(uri, coarse, mip=3)
    with pytest.raises(SpecError, match="scale 2 of .* must be coarser than the one before"):
        create_volume(uri, coarse, mip=2)
    wrong = info_of("small labels", voxel_size_nm=(32, 32, 40))
    with pytest.raises(ConflictError, match="dtype is uint64, asked for uint32"):
        create_volume(uri, wrong, mip=2)


def test_other_keys_of_the_info_are_merged_and_kept(uri):
    create_volume(uri, info_of("labels"))
    update_info(uri, mesh="mesh", skeletons="skeletons")
    create_volume(
        uri, info_of("labels", voxel_size_nm=(16, 16, 67), bounds=Box((2, -3, 3), (22, 10, 16))), mip=1
    )
    update_info(uri, skeletons=None, segment_properties="properties")
    info = read_info(uri)
    assert (info["mesh"], info["segment_properties"]) == ("mesh", "properties")
    assert "skeletons" not in info
    assert len(scales(uri)) == 2
    with pytest.raises(SpecError, match=r"the keys \['data_type', 'scales'\] .* are fixed"):
        update_info(uri, scales=[], data_type="uint8")


def test_where_nothing_lies_the_error_says_so(uri):
    with pytest.raises(NotFoundError, match="there is no volume at .*: it has no info file"):
        open_volume(uri)
    with pytest.raises(NotFoundError, match="there is no volume at"):
        update_info(uri, mesh="mesh")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"{oops", "is not JSON"),
        (b"[]", "must hold a JSON object, got list"),
        (b"{}", "describes 'neuroglancer_multiscale_volume', not a volume"),
        (
            b'{"@type": "neuroglancer_skeletons"}',
            "describes 'neuroglancer_skeletons', not a volume of voxels",
        ),
        (b'{"scales": []}', "an empty list of scales"),
        (b'{"scales": [7]}', "scale 0 must be a JSON object, got int"),
        (b'{"scales": [{}]}', "scale 0: missing key 'chunk_sizes'"),
        (
            b'{"type":"image","data_type":"uint8","scales":[{"chunk_sizes":[],"size":[1,1,"q"]}]}',
            "malformed: invalid lit",
        ),
        (
            b'{"type":"image","data_type":"int8","scales":'
            b'[{"chunk_sizes":[[8,8,8]],"size":[1,1,1],"resolution":[1,1,1],"encoding":"raw"}]}',
            "dtype 'int8' is not one that cloudseg reads",
        ),
        (
            b'{"type":"image","data_type":"uint8","scales":'
            b'[{"chunk_sizes":[[8,8,8]],"size":[1,1,1],"resolution":[1,1,1],"encoding":"jxl"}]}',
            "encoding 'jxl' is not one that cloudseg reads",
        ),
        (
            b'{"type":"image","data_type":"uint8","scales":'
            b'[{"chunk_sizes":[[8,8,8]],"size":[1,1,1],"resolution":[0,1,1],"encoding":"raw"}]}',
            "voxel_size_nm.0: Input should be greater than 0",
        ),
        (
            b'{"type":"image","data_type":"uint8","scales":[{"chunk_sizes":[[8,8,8]],"size":[1,1,1],'
            b'"resolution":[1,1,1],"encoding":"raw","sharding":{"@type":"other"}}]}',
            "sharding must have '@type' 'neuroglancer_uint64_sharded_v1'",
        ),
    ],
)
@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_malformed_info_is_refused_by_name(new_uri, scheme, text, message):
    uri = new_uri(scheme)
    open_objects(uri).put("info", text)
    with pytest.raises(VolumeFormatError, match=message):
        open_volume(uri)


@pytest.mark.parametrize("scheme", ["file", "gs", "s3"])
def test_what_the_format_cannot_hold_is_refused_before_anything_is_written(new_uri, scheme):
    uri = new_uri(scheme)
    with pytest.raises(VolumeFormatError, match="cannot be stored at .*jpeg.*channels"):
        create_volume(uri, info_of("affinities", encoding="jpeg", n_channels=2))
    assert list(open_objects(uri).list()) == []


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_a_volume_on_a_web_server_can_be_read_and_not_written(web, tmp_path, sharded, kind):
    info = info_of(kind, sharded=sharded)
    data = voxels(info)
    create_volume(tmp_path / "v", info).write(info.bounds, data)
    volume = open_volume(f"precomputed://{web}/v")
    assert volume.info == info
    np.testing.assert_array_equal(volume.read(info.bounds), data)
    with pytest.raises(SpecError, match="is a web address, which is read-only"):
        volume.write(info.bounds, data)
    with pytest.raises(SpecError, match="is a web address, which is read-only"):
        create_volume(f"{web}/w", info)
    with pytest.raises(NotFoundError, match="there is no volume at"):
        open_volume(f"{web}/nothing")
    (tmp_path / "v" / "8_8_33.5").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingChunkError, match="was never written"):
        open_volume(f"{web}/v").read(info.bounds)

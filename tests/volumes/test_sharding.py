"""Which chunks share a shard: ours equals tensorstore's, for any grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, grid_shape, tile
from cloudseg.volumes import ShardingSpec, VolumeInfo, clear_memory, create_volume, shard_shape, sharding_for
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.checks import chunks_of
from cloudseg.volumes.precomputed import open_array
from cloudseg.volumes.sharding import morton_axes
from cloudseg.volumes.shards import build_shards, chunk_key

triples = st.tuples(*[st.integers(1, 40)] * 3)


def volume_info(shape, chunk_shape=(8, 8, 8), **fields) -> VolumeInfo:
    bounds = Box.of_shape(shape, at=(3, -2, 1))
    return VolumeInfo(bounds=bounds, voxel_size_nm=(1, 1, 1), chunk_shape=chunk_shape, **fields)


@settings(max_examples=40)
@given(shape=triples, bits=st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 5)))
def test_a_shard_is_the_box_that_tensorstore_writes_at_once(tmp_path_factory, shape, bits):
    preshift, minishard, shard = bits
    info = volume_info(shape, (4, 8, 2))
    sharding = ShardingSpec(preshift_bits=preshift, minishard_bits=minishard, shard_bits=shard)
    info = info.model_copy(update={"sharding": sharding})
    folder = tmp_path_factory.mktemp("v")
    create_volume(folder, info)
    theirs = open_array(Address.parse(folder), 0, strict=True).chunk_layout.write_chunk.shape[:3]
    ours = shard_shape(info)
    n_bits = len(morton_axes(grid_shape(info.bounds, info.chunk_shape)))
    if preshift + minishard + shard >= n_bits:
        # Beyond the bounds nobody writes, so a shard may end there or later.
        reach = tuple(math.ceil(s / c) * c for s, c in zip(info.shape, info.chunk_shape, strict=True))
        assert tuple(map(min, ours, reach)) == tuple(map(min, theirs, reach))
    else:
        assert all(a >= b for a, b in zip(ours, info.shape, strict=True)), (
            "only the whole volume covers whole shards"
        )
    assert info.write_grid == ours


@settings(max_examples=25)
@given(shape=triples, target_chunks=st.integers(1, 70), seed=st.integers(0, 9))
def test_each_write_cell_is_one_file_and_no_two_cells_share_one(shape, target_chunks, seed):
    info = volume_info(shape, (8, 4, 16))
    info = info.model_copy(update={"sharding": sharding_for(info, target_bytes=target_chunks * 8 * 4 * 16)})
    scale = {
        "size": info.shape,
        "voxel_offset": info.bounds.start,
        "resolution": (1, 1, 1),
        "chunk_sizes": [info.chunk_shape],
        "encoding": "raw",
        "sharding": {"@type": "neuroglancer_uint64_sharded_v1", **info.sharding.model_dump()},
    }
    names = []
    for cell in tile(info.bounds, info.write_grid):
        data = np.random.default_rng(seed).integers(0, 3, (*cell.shape, 1)).astype(np.uint8)
        files = build_shards(data, cell, info=info, scale=scale)
        assert len(files) == 1
        names += files
    assert len(set(names)) == len(names)


@given(grid=triples)
def test_every_chunk_has_a_number_of_its_own(grid):
    bits = morton_axes(grid)
    bounds = Box((0, 0, 0), grid)
    info = VolumeInfo(bounds=bounds, voxel_size_nm=(1, 1, 1), chunk_shape=(7, 7, 7))
    bits = morton_axes(grid_shape(info.bounds, info.chunk_shape))
    keys = [chunk_key(index, bits) for index, _ in chunks_of(bounds, info)]
    assert len(set(keys)) == len(keys) == math.prod(grid_shape(bounds, info.chunk_shape))
    assert all(int.from_bytes(key, "big") < 1 << len(bits) for key in keys)


@given(
    shape=st.tuples(*[st.integers(1, 1 << 20)] * 3),
    target_bytes=st.integers(1, 1 << 36),
    layer=st.sampled_from(["image", "segmentation"]),
)
def test_a_shard_holds_at_most_the_target_and_more_than_half_of_what_it_could(shape, target_bytes, layer):
    dtype = "uint64" if layer == "segmentation" else "uint8"
    info = volume_info(shape, (64, 64, 32), layer=layer, dtype=dtype)
    sharding = sharding_for(info, target_bytes=target_bytes)
    in_shard = sharding.preshift_bits + sharding.minishard_bits
    chunk_bytes = 64 * 64 * 32 * info.numpy_dtype.itemsize
    n_bits = in_shard + sharding.shard_bits
    assert n_bits == len(morton_axes(grid_shape(info.bounds, info.chunk_shape)))
    assert chunk_bytes << in_shard <= max(target_bytes, chunk_bytes)
    assert in_shard == n_bits or chunk_bytes << in_shard + 1 > target_bytes
    assert sharding.data_encoding == sharding.minishard_index_encoding == "gzip", (
        "a range has no other checksum"
    )


def test_a_target_of_nothing_and_shards_of_an_unsharded_volume_are_refused():
    with pytest.raises(SpecError, match="target_bytes must be positive, got 0"):
        sharding_for(volume_info((9, 9, 9)), target_bytes=0)
    with pytest.raises(
        SpecError, match=r"without sharding has no shards: writes cover chunks of \(8, 8, 8\)"
    ):
        shard_shape(volume_info((9, 9, 9)))


def test_a_hash_that_scatters_chunks_makes_the_whole_volume_one_write(tmp_path):
    info = volume_info((20, 20, 20))
    sharding = ShardingSpec(preshift_bits=0, minishard_bits=1, shard_bits=5, hash="murmurhash3_x86_128")
    info = info.model_copy(update={"sharding": sharding})
    assert info.write_grid == (32, 32, 32)
    data = np.arange(8000, dtype=np.uint16).reshape(20, 20, 20).astype(np.uint8)
    volume = create_volume(tmp_path / "v", info)
    volume.write(info.bounds, data)
    assert len(list((tmp_path / "v" / "1_1_1").iterdir())) > 1
    np.testing.assert_array_equal(volume.read(info.bounds), data)
    clear_memory()

"""Any aligned writes and any reads give what numpy gives."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudseg.errors import AlignmentError, MissingChunkError
from cloudseg.geometry import Box, tile
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_volume, sharding_for
from cloudseg.volumes.checks import chunks_of

small = st.integers(1, 13)
offsets = st.integers(-20, 20)


@st.composite
def infos(draw):
    n_channels = draw(st.sampled_from([1, 1, 3]))
    layer, dtype = draw(
        st.sampled_from([("image", "uint8"), ("image", "float32"), ("segmentation", "uint64")])
    )
    info = VolumeInfo(
        bounds=Box.of_shape(
            (draw(small), draw(small), draw(small)), at=(draw(offsets), draw(offsets), draw(offsets))
        ),
        voxel_size_nm=(4, 4, 40),
        chunk_shape=(draw(st.integers(1, 6)), draw(st.integers(2, 8)), draw(st.integers(2, 16))),
        dtype=dtype,
        layer=layer,
        n_channels=1 if layer == "segmentation" else n_channels,
    )
    if draw(st.booleans()):
        info = info.model_copy(
            update={"sharding": sharding_for(info, target_bytes=draw(st.sampled_from([1, 2000, 9999])))}
        )
    return info


@st.composite
def boxes(draw, around: Box):
    start, stop = [], []
    for low, high in zip(around.start, around.stop, strict=True):
        a, b = sorted((draw(st.integers(low - 3, high + 3)), draw(st.integers(low - 3, high + 3))))
        start.append(a)
        stop.append(b)
    return Box(tuple(start), tuple(stop))


@pytest.mark.parametrize("scheme", ["memory", "file"])
@settings(max_examples=30)
@given(data=st.data())
def test_aligned_writes_in_any_order_and_any_reads_equal_numpy(scheme, data):
    info = data.draw(infos())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shape = info.shape if info.n_channels == 1 else (info.n_channels, *info.shape)
    model = np.zeros(shape, info.dtype)
    written = np.zeros(info.shape, bool)
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{scheme}://{folder}/v"
        volume = create_volume(uri, info)
        cells = list(tile(info.bounds, info.write_grid))
        for cell in data.draw(st.lists(st.sampled_from(cells), max_size=8)):
            box = data.draw(boxes(cell)).align_out(info.write_grid, bounds=info.bounds)
            if box.is_empty:
                box = cell
            where = (..., *box.slices_in(info.bounds))
            block = (rng.integers(0, 9, model[where].shape) * rng.integers(0, 2)).astype(info.dtype)
            (volume if rng.integers(2) else open_volume(uri)).write(box, block)
            model[where] = block
            written[where[1:]] = True
        for _ in range(4):
            box = data.draw(boxes(info.bounds))
            inside = box.intersect(info.bounds)
            expected = np.full((*shape[:-3], *box.shape), 5, info.dtype)
            expected[(..., *inside.slices_in(box))] = model[(..., *inside.slices_in(info.bounds))]
            got = volume.read(box, fill=5, missing="zero")
            np.testing.assert_array_equal(got, expected)
            assert got.dtype == info.numpy_dtype
            touched = [chunk for _, chunk in chunks_of(inside, info)]
            if all(written[chunk.slices_in(info.bounds)].all() for chunk in touched):
                np.testing.assert_array_equal(volume.read(box, fill=5), expected)
            else:
                with pytest.raises(MissingChunkError):
                    volume.read(box, fill=5)
    clear_memory()


@settings(max_examples=40)
@given(data=st.data())
def test_a_write_is_taken_if_and_only_if_it_covers_whole_cells(data):
    info = data.draw(infos())
    volume = create_volume("memory://alignment", info)
    box = data.draw(boxes(info.bounds)).intersect(info.bounds)
    if not box.is_empty:
        covered = [cell for cell in tile(info.bounds, info.write_grid) if not cell.intersect(box).is_empty]
        whole = sum(cell.n_voxels for cell in covered) == box.n_voxels
        shape = box.shape if info.n_channels == 1 else (info.n_channels, *box.shape)
        if whole:
            volume.write(box, np.zeros(shape, info.dtype))
            assert volume.read(box).shape == shape
        else:
            with pytest.raises(AlignmentError):
                volume.write(box, np.zeros(shape, info.dtype))
    clear_memory()

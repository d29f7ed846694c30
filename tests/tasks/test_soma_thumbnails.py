"""Thumbnails: what they show, and that any number of tasks makes the same."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from stage_runs import run_and_count

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.geometry import Box
from cloudseg.ops.thumbnails import BAR, NOTHING, OUTLINE, draw_plane, outline, palette_png
from cloudseg.somas.store import publish, write_version
from cloudseg.somas.thumbnails import EDGE_PX, read_thumbnail
from cloudseg.tasking.steps import Layer
from cloudseg.testing.somas import SPEC, soma_table
from cloudseg.volumes import VolumeInfo, create_volume, open_objects
from cloudseg_tasks.soma_thumbnails import SomaThumbnailsStage

SHAPE = (64, 48, 40)
VOXEL_NM = (100.0, 100.0, 200.0)
BIG = 2**60 + 1
# Corner and size in voxels; the second is cut by the border.
BOXES = {BIG: ((20, 10, 8), (16, 12, 6)), 7: ((50, 30, 30), (14, 10, 10))}


def made(root, *, n_more=0):
    """An image in which x rises, masks that are boxes, and their catalogue; some somas have no mask."""
    bounds = Box.of_shape(SHAPE, at=(5, -3, 100))
    layout = {"bounds": bounds, "voxel_size_nm": VOXEL_NM, "chunk_shape": (32, 32, 32)}
    image = VolumeInfo(**layout)
    grey = np.zeros(SHAPE, np.uint8, order="F")
    grey += (np.arange(SHAPE[0], dtype=np.uint8) * 3 + 10)[:, None, None]
    labels = np.zeros(SHAPE, np.uint64, order="F")
    ids = [*BOXES, *range(100, 100 + n_more)]
    table = soma_table(len(ids), seed=1)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    columns |= {"soma_id": ids, "n_voxels": [100 if i in BOXES else 0 for i in ids]}
    for axis, name in enumerate("xyz"):
        for row, (low, size) in enumerate(BOXES.values()):
            a = (bounds.start[axis] + low[axis]) * VOXEL_NM[axis]
            b = a + size[axis] * VOXEL_NM[axis]
            columns[f"bbox_min_{name}_nm"][row], columns[f"bbox_max_{name}_nm"][row] = a, b
            columns[f"anchor_{name}_nm"][row] = columns[f"{name}_nm"][row] = (a + b) / 2
    for soma, (low, size) in BOXES.items():
        labels[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))] = soma
    masks = VolumeInfo(**layout, dtype="uint64", layer="segmentation")
    create_volume(f"{root}/image", image).write(bounds, grey)
    create_volume(f"{root}/somas", masks).write(bounds, labels)
    objects = open_objects(f"{root}/somas")
    import pyarrow as pa

    typed = pa.table({n: pa.array(v, table.schema.field(n).type) for n, v in columns.items()})
    write_version(objects, typed, SPEC, version=1)
    publish(objects, 1)
    layers = {
        "image": Layer("image", f"{root}/image", image),
        "somas": Layer("somas", f"{root}/somas", masks),
    }
    return objects, layers


def planes_of(png):
    picture = Image.open(io.BytesIO(png))
    whole = np.asarray(picture)
    assert whole.shape == (EDGE_PX, 3 * EDGE_PX + 4)
    assert picture.mode == "P"
    return [whole[:, i : i + EDGE_PX].T for i in range(0, whole.shape[1], EDGE_PX + 2)], picture


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = f"file://{tmp_path_factory.mktemp('thumbs')}"
    objects, layers = made(root, n_more=30)
    _, counters = run_and_count([SomaThumbnailsStage()], layers, root)
    return objects, counters


def test_the_three_planes_show_the_mask_where_it_is(drawn):
    objects, _ = drawn
    planes, picture = planes_of(read_thumbnail(objects, BIG, version=1))
    assert picture.info["width_um"] == "4"  # 1.6 um, and a margin
    pixel_nm = 4000 / EDGE_PX
    for plane, (columns, rows) in zip(planes, ((0, 1), (0, 2), (1, 2)), strict=True):
        x, y = np.nonzero(plane == OUTLINE)
        for found, axis in ((x, columns), (y, rows)):
            size_nm = BOXES[BIG][1][axis] * VOXEL_NM[axis]
            middle = EDGE_PX / 2
            assert found.min() == pytest.approx(middle - size_nm / 2 / pixel_nm, abs=1)
            assert found.max() == pytest.approx(middle + size_nm / 2 / pixel_nm - 1, abs=1)
    for plane in planes[:2]:  # x rises to the right, and nothing changes downwards
        inside = plane[:, EDGE_PX // 2].astype(int)
        grey = inside[inside < OUTLINE]
        assert (np.diff(grey) >= 0).all()
        assert grey[-1] - grey[0] > 150


def test_what_lies_outside_the_volume_is_not_grey(drawn):
    planes, _ = planes_of(read_thumbnail(drawn[0], 7, version=1))
    assert (planes[0][-5:] == NOTHING).all()
    assert not (planes[0][: EDGE_PX // 2, 5 : EDGE_PX // 3] == NOTHING).any()


def test_the_bar_is_a_quarter_of_the_width(drawn):
    planes, _ = planes_of(read_thumbnail(drawn[0], BIG, version=1))
    x, _ = np.nonzero(planes[0] == BAR)
    assert x.max() - x.min() + 1 == EDGE_PX // 4


def test_a_soma_without_a_mask_has_none_and_says_so(drawn):
    assert drawn[1]["soma_thumbnails.draw", "somas"] == len(BOXES)
    with pytest.raises(NotFoundError, match="no thumbnail of soma 100 in version 1"):
        read_thumbnail(drawn[0], 100, version=1)
    with pytest.raises(NotFoundError, match="add the stage soma_thumbnails"):
        read_thumbnail(drawn[0], 7, version=2)


def test_any_number_of_tasks_draws_the_same(drawn):
    objects, layers = made("memory://thumbs-parts", n_more=30)
    run_and_count([SomaThumbnailsStage(somas_per_task=1)], layers, "memory://thumbs-parts", repeat=True)
    keys = list(drawn[0].list("v1/thumbnails/"))
    assert keys == list(objects.list("v1/thumbnails/"))
    assert len(keys) < 5
    assert [objects.get(key) for key in keys] == [drawn[0].get(key) for key in keys]


def test_an_image_and_masks_are_wanted():
    _, layers = made("memory://thumbs-wrong")
    with pytest.raises(SpecError, match="draws the outlines of a segmentation on an image"):
        run_and_count([SomaThumbnailsStage(layer="image")], layers, "memory://thumbs-wrong")


def test_an_outline_is_the_pixels_with_a_side_outside():
    mask = np.zeros((7, 6), bool)
    mask[2:6, 2:] = True  # it goes on beyond the lower edge of the picture
    expected = np.zeros_like(mask)
    expected[2:6, 2], expected[2, 2:], expected[5, 2:] = True, True, True
    np.testing.assert_array_equal(outline(mask), expected)


def test_a_plane_without_image_is_drawn_all_the_same():
    nothing = np.zeros((4, 4), bool)
    plane = draw_plane(np.zeros((4, 4), np.uint8), nothing, nothing)
    assert (plane == NOTHING).all()
    assert Image.open(io.BytesIO(palette_png(plane, text={"a": "b"}))).info["a"] == "b"

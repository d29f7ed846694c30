"""The log of a run: events that TensorBoard reads, pictures, plots, and a report that a browser shows."""

from __future__ import annotations

import io
import json
import re
import struct
from html.parser import HTMLParser

import google_crc32c
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image

from cloudseg.training.events import EventFile
from cloudseg.training.history import LINES_NAME, History, Progress, read_lines
from cloudseg.training.picture import encode_png, grey_picture, id_picture, side_by_side
from cloudseg.training.plot import Curve, plot, ticks


def event_class():
    """``Event`` of TensorFlow's event.proto, as far as it is written, read by Google's own decoder."""
    kinds = {"double": 1, "float": 2, "int64": 3, "int32": 5, "string": 9, "message": 11, "bytes": 12}
    messages = {
        "Image": [
            ("height", 1, "int32"),
            ("width", 2, "int32"),
            ("colorspace", 3, "int32"),
            ("png", 4, "bytes"),
        ],
        "Value": [("tag", 1, "string"), ("simple_value", 2, "float"), ("image", 4, "Image")],
        "Summary": [("value", 1, "Value*")],
        "SessionLog": [("status", 1, "int32")],
        "Event": [
            ("wall_time", 1, "double"),
            ("step", 2, "int64"),
            ("file_version", 3, "string"),
            ("summary", 5, "Summary"),
            ("session_log", 7, "SessionLog"),
        ],
    }
    file = descriptor_pb2.FileDescriptorProto(name="event_of_tests.proto", package="t")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            base = kind.rstrip("*")
            field = message.field.add(name=field_name, number=number, type=kinds.get(base, 11))
            field.label = 3 if kind.endswith("*") else 1
            if base not in kinds:
                field.type_name = f".t.{base}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


def unmasked(stored):
    turned = (struct.unpack("<I", stored)[0] - 0xA282EAD8) & 0xFFFFFFFF
    return ((turned >> 17) | (turned << 15)) & 0xFFFFFFFF


def read_events(folder):
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        file = io.BytesIO(path.read_bytes())
        while length := file.read(8):
            assert unmasked(file.read(4)) == google_crc32c.value(length)
            data = file.read(struct.unpack("<Q", length)[0])
            assert unmasked(file.read(4)) == google_crc32c.value(data)
            event = event_class()()
            event.ParseFromString(data)
            found.append(event)
    return found


def test_events_are_what_the_protocol_says(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 300, 3), np.uint8)
    events = EventFile(tmp_path, first_step=300)
    events.scalar("loss", 0.25, step=300)
    events.image("section", picture, step=70_000)
    events.close()
    version, start, scalar, image = read_events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (300, 1)
    assert (scalar.step, scalar.summary.value[0].tag, scalar.summary.value[0].simple_value) == (
        300,
        "loss",
        0.25,
    )
    shown = image.summary.value[0].image
    assert (image.step, shown.height, shown.width, shown.colorspace) == (70_000, 5, 300, 3)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(shown.png))), picture)
    assert version.wall_time > 1.6e9


def test_a_resumed_run_drops_the_lines_that_it_does_again(tmp_path):
    history = History(tmp_path, first_step=0)
    for step in range(5):
        history.add(Progress(step, 0.5, seconds=step))
    history.close()
    with (tmp_path / LINES_NAME).open("a") as file:
        file.write('{"step": 5, "lo')  # killed while it wrote
    again = History(tmp_path, first_step=3)
    again.add(Progress(3, 0.25, seconds=0.1))
    again.close()
    lines = read_lines(tmp_path)
    assert [(line["step"], line["loss"]) for line in lines] == [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.25)]
    starts = [event.step for event in read_events(tmp_path) if event.HasField("session_log")]
    assert starts == [0, 3], "TensorBoard drops what the first session wrote from step 3 on"


def test_pictures_show_x_to_the_right_and_y_downwards():
    section = np.array([[0, 50], [100, 150], [200, 250]])
    picture = grey_picture(section, low=0, high=250)
    assert picture.shape == (2, 3, 3)
    assert picture[0, :, 0].tolist() == [0, 102, 204]
    colours = id_picture(np.array([[0, 1], [2, 1]]))
    assert not colours[0, 0].any()
    assert (colours[1, 0] == colours[1, 1]).all()
    assert (colours[0, 1] != colours[1, 0]).any()
    row = side_by_side([picture, picture])
    assert row.shape == (2, 10, 3)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(encode_png(row)))), row)


@pytest.mark.parametrize("span", [(0, 1), (0.31, 0.698), (-3, 40_000), (5, 5), (0, 0), (1e-6, 2e-6)])
def test_ticks_are_round_few_and_cover_everything(span):
    found = ticks(*span)
    assert 2 <= len(found) <= 9
    assert found[0] <= span[0] + 1e-12
    assert found[-1] >= span[1] - 1e-12
    steps = np.diff(found)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_a_plot_leaves_out_what_is_no_number():
    svg = plot("Loss & more", [Curve("a", [1, 2, 3], [0.5, float("nan"), 0.25], "#000", dots=True)])
    assert "Loss &amp; more" in svg
    assert svg.count("<circle") == 2
    assert "nan" not in svg


class Closed(HTMLParser):
    """Counts what is opened and closed."""

    def __init__(self):
        super().__init__()
        self.open, self.images = [], 0

    def handle_starttag(self, tag, attrs):
        if tag in ("img", "meta", "br"):
            self.images += tag == "img"
        elif tag not in ("circle", "path", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("circle", "path", "polyline"):
            assert self.open.pop() == tag


def test_the_report_tells_what_the_log_holds(runs):
    segmentation = {"every": 4, "thresholds": [0.4, 0.6], "min_size_vx": 5}
    config = runs.config(segmentation=segmentation, name="a_b-c")
    _, lines = runs.run(config)
    page = (config.log_folder / "report.html").read_text()
    parser = Closed()
    parser.feed(page)
    assert parser.open == []
    assert 'src="http' not in page, "it needs no network"
    assert "href" not in page
    best = min(line.verdict.score for line in lines if line.verdict)
    assert f"<b>{best:.4f}</b>" in page
    assert parser.images >= 2 + 6, "sections of the first and the best measurement, and patches"
    assert re.search(r"8 steps in \d", page)
    told = [json.loads(text) for text in (config.log_folder / LINES_NAME).read_text().splitlines()]
    assert [line["loss"] for line in told] == [line.loss for line in lines]
    assert all(line["waited_s"] >= 0 and line["learning_rate"] > 0 for line in told)

"""The pages on formats say what the code writes."""

from __future__ import annotations

import hashlib
import hmac
import json
import re

import pytest
from pages import Block, blocks_of

from cloudseg.models.package import ModelSpec, load_spec
from cloudseg.pipelines.provenance import Provenance
from cloudseg.server.access import Access, TokenFile
from cloudseg.somas.annotations import RELATIONSHIPS, SHAPES
from cloudseg.tasking.envelope import Envelope, parse_message
from cloudseg.tasking.file_queue import FOLDERS, FileQueue
from cloudseg.tasking.receipts import DeadLetter, Receipt
from cloudseg.testing.tasks import NoteTask
from cloudseg_viewer.links import mount_name


@pytest.fixture
def page(repository):
    """Return the text of a page, by its name."""
    return lambda name: (repository / "docs" / "formats" / f"{name}.md").read_text()


def documents(repository, name: str) -> list[dict]:
    found = blocks_of(repository / "docs" / "formats" / f"{name}.md")
    return [json.loads(block.text) for block in found if block.kind == "json"]


def test_the_receipt_of_the_page_is_one_and_lacks_no_field(repository):
    (receipt,) = documents(repository, "run")
    assert Receipt.load(receipt, where="the page").counters["voxels"] == 524288
    assert receipt.keys() == Receipt.model_fields.keys()


def test_the_message_of_the_page_is_one(repository, tmp_path):
    message, envelope = documents(repository, "queue")
    assert envelope.keys() == Envelope.model_fields.keys()
    message["payload"][1] = [json.dumps(envelope)]
    found = parse_message(json.dumps(message))
    assert isinstance(found, Envelope)
    # The task id, as the page on roots says it is made.
    text = json.dumps(envelope["task"], sort_keys=True, separators=(",", ":"))
    assert found.task_id == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_a_queue_made_by_hand_from_the_page_is_drained(repository, tmp_path):
    (layout,) = [b.text for b in blocks_of(repository / "docs" / "formats" / "queue.md") if b.kind == "text"]
    for folder in FOLDERS:
        assert f"\n{folder}/" in f"\n{layout}"
    message, _ = documents(repository, "queue")
    note = Envelope.of(NoteTask(folder="f", name="x"), root="file:///r", step="notes")
    message["payload"][1] = [note.canonical_json()]
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / f"0--{message['id']}.json").write_text(json.dumps(message))
    queue = FileQueue(f"fq://{tmp_path}")
    lease = queue.lease(30)
    assert lease is not None
    assert parse_message(lease.message) == note
    assert (tmp_path / "attempts" / message["id"]).stat().st_size == 1
    (leased,) = (tmp_path / "queue").iterdir()
    assert int(leased.name.partition("--")[0]) > 1_000_000_000
    queue.bury(lease, "it is a test")
    assert (tmp_path / "dead" / f"{message['id']}.txt").read_text() == "it is a test"


def test_every_field_of_what_we_store_is_on_its_page(page):
    for fields, name in [
        (DeadLetter.model_fields, "run"),
        (Provenance.model_fields.keys() - {"format"}, "run"),
        (ModelSpec.model_fields, "models"),
        (load_spec("fib25").training.model_dump(), "models"),
        (load_spec("fib25").weights.model_dump(), "models"),
        ((*RELATIONSHIPS, *SHAPES), "annotations"),
    ]:
        for field in fields:
            assert re.search(rf"\b{field}\b", page(name)), f"docs/formats/{name}.md does not name {field!r}"


def test_names_of_mounts_are_made_as_the_page_says(page):
    uri = "gs://bucket/my run/segmentation.v2"
    digest = hashlib.sha256(uri.encode()).hexdigest()[:8]
    assert mount_name(uri) == f"segmentation-v2-{digest}"
    assert "first 8 hexadecimal digits of the SHA-256" in page("links")
    secret = "s" * 43
    access = Access(TokenFile(secret=secret, tokens=()))
    mark = hmac.new(secret.encode(), b"run-12345678", hashlib.sha256).hexdigest()[:32]
    assert access.capability("run-12345678") == f"run-12345678.{mark}"


def test_a_block_that_is_no_receipt_is_noticed():
    with pytest.raises(Exception, match="attempt"):
        Receipt.load(json.loads(Block("json", '{"attempt": 0}').text), where="the page")

"""``cloudseg doctor``: each check is one line, each failure has its remedy, and nothing is left behind."""

from __future__ import annotations

import json
import os
import uuid

import pytest
from click.testing import CliRunner

from cloudseg.cli.main import cli
from cloudseg.tasking.doctor import _envelope
from cloudseg.tasking.queue import open_queue
from cloudseg.testing.emulators import Fault, environment, front
from cloudseg.volumes import open_objects

BUCKET_CHECKS = ["read", "write", "list", "conditional create", "CORS", "delete"]
QUEUE_CHECKS = ["open", "send", "lease", "renew", "delete", "dead letters"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setenv("CLOUDSEG_STORAGE_RETRIES", "0")


@pytest.fixture(params=["gs", "s3"])
def bucket(request):
    """An address in a bucket, and the front before it."""
    uri = f"{request.param}://vol/{uuid.uuid4().hex}"
    if request.param == "gs":
        before = request.getfixturevalue("gcs")
        yield uri, before
        before.faults.clear()
    else:
        with front(request.getfixturevalue("aws")) as before, environment(AWS_ENDPOINT_URL=before.url):
            yield uri, before


def run(*arguments: str) -> tuple[int, dict[str, dict]]:
    result = CliRunner().invoke(cli, ["doctor", "--json", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    findings = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    return result.exit_code, {finding["check"]: finding for finding in findings}


def test_a_bucket_that_works_passes_every_check_and_is_left_as_it_was(bucket):
    uri, _ = bucket
    code, found = run(uri)
    assert list(found) == BUCKET_CHECKS
    assert [f["remedy"] for f in found.values()] == [""] * 6
    assert code == 0
    assert list(open_objects(uri).list()) == []


def test_a_folder_that_works_passes_and_is_left_as_it_was(tmp_path):
    (tmp_path / "kept").write_text("x")
    code, found = run(f"file://{tmp_path}")
    assert code == 0
    assert list(found) == [check for check in BUCKET_CHECKS if check != "CORS"]
    assert os.listdir(tmp_path) == ["kept"]


def test_a_bucket_that_is_not_there_is_named_with_the_command_that_makes_it(gcs, aws):
    for uri, command in (
        ("gs://nobucket/a", "gcloud storage buckets create gs://nobucket"),
        ("s3://nobucket/a", "aws s3 mb s3://nobucket"),
    ):
        code, found = run(uri)
        assert code == 1
        assert found["write"]["ok"] is False
        assert command in found["write"]["remedy"]
        assert found["delete"]["ok"] is None


@pytest.mark.parametrize(
    ("match", "check", "remedies"),
    [
        ("^GET .*probe", "read", ("roles/storage.objectViewer", "s3:GetObject")),
        ("^(PUT|POST) ", "write", ("roles/storage.objectUser", "s3:PutObject")),
        ("^DELETE ", "delete", ("roles/storage.objectUser", "s3:DeleteObject")),
        (r"^GET [^?]*(/o\?|/vol/?\?)(?!alt)", "list", ("roles/storage.objectViewer", "s3:ListBucket")),
    ],
)
def test_a_missing_right_is_named(bucket, match, check, remedies):
    uri, before = bucket
    before.faults[:] = [Fault(match, status=403)]
    code, found = run(uri)
    assert code == 1
    assert found[check]["ok"] is False, found
    assert any(remedy in found[check]["remedy"] for remedy in remedies)


def test_a_bucket_that_browsers_may_not_read_is_told_with_the_command(bucket):
    uri, before = bucket
    before.faults[:] = [Fault("", without="access-control")]
    code, found = run(uri)
    assert code == 1
    assert "no Access-Control-Allow-Origin" in found["CORS"]["found"]
    assert "cors" in found["CORS"]["remedy"]
    assert [check for check, f in found.items() if not f["ok"]] == ["CORS"]


def test_a_public_bucket_is_tried_without_rights_to_write(bucket):
    uri, before = bucket
    before.faults[:] = [Fault("^(PUT|POST|DELETE)", status=403)]
    code, found = run("--read-only", uri)
    assert (code, list(found)) == (0, ["read", "list", "CORS"])


def test_without_credentials_the_remedy_is_where_to_get_them(aws, gcs, tmp_path, monkeypatch):
    from cloudseg.volumes import bucket_client

    for cached in (bucket_client._aws_session, bucket_client._google_credentials):
        cached.cache_clear()
    nothing = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_AUTH_TOKEN_FOR_TESTING"))
    with environment(
        **nothing,
        HOME=str(tmp_path),
        AWS_PROFILE=None,
        AWS_CONFIG_FILE=str(tmp_path / "none"),
        CLOUDSDK_CONFIG=str(tmp_path),
    ):
        _, found = run("--read-only", "s3://vol/a")
        assert "no AWS credentials found: set AWS_PROFILE" in found["read"]["found"]
        gcs.faults[:] = [Fault("", status=401)]
        _, found = run("--read-only", "gs://vol/a")
        gcs.faults.clear()
        assert "gcloud auth application-default login" in found["read"]["remedy"]
        with environment(CLOUDSEG_S3_ANONYMOUS="1"):
            _, found = run("--read-only", "s3://vol/a")
            assert found["read"]["ok"]
    for cached in (bucket_client._aws_session, bucket_client._google_credentials):
        cached.cache_clear()


def test_a_file_queue_that_works_passes_and_its_messages_notice_nothing(tmp_path):
    queue = open_queue(f"fq://{tmp_path}/q")
    queue.insert([_envelope()])
    before = sorted(os.listdir(tmp_path / "q"))
    code, found = run(f"fq://{tmp_path}/q")
    assert (code, list(found)) == (0, QUEUE_CHECKS)
    assert sorted(os.listdir(tmp_path / "q")) == before
    assert queue.counts().ready == 1
    code, _ = run(f"fq://{tmp_path}/other")
    assert code == 0
    assert not (tmp_path / "other").exists()


def test_a_queue_in_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    code, found = run(f"fq://{tmp_path}/file/q")
    assert code == 1
    assert "may be written to" in found["open"]["remedy"]


def test_text_has_one_line_a_check(tmp_path):
    result = CliRunner().invoke(cli, ["doctor", f"file://{tmp_path}", f"fq://{tmp_path}/q"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[:2] == [f"file://{tmp_path}", "  ok      read: works"]
    assert len(lines) == 2 + 5 + 6


def test_an_sqs_queue_is_tried_and_left_as_it_was(aws):
    uri = f"sqs://doctor-{uuid.uuid4().hex}"
    code, found = run(uri)
    assert code == 1
    assert found["open"]["remedy"].endswith(f"cloudseg queue create {uri}")
    queue = open_queue(uri, create=True)
    code, found = run(uri)
    assert [f["ok"] for f in found.values()] == [True] * 6, found
    assert (code, list(found)) == (0, QUEUE_CHECKS)
    assert "after 50 receipts" in found["dead letters"]["found"]
    assert queue.is_empty()
    assert list(queue.dead()) == []


def test_an_sqs_queue_at_work_is_left_alone(aws):
    uri = f"sqs://doctor-{uuid.uuid4().hex}"
    queue = open_queue(uri, create=True)
    queue.insert([_envelope()])
    code, found = run(uri)
    assert code == 0
    assert {found[check]["ok"] for check in ("send", "lease", "renew", "delete")} == {None}
    assert queue.counts().ready == 1


def test_an_sqs_queue_without_a_redrive_policy_is_told(aws):
    import boto3

    name = f"doctor-{uuid.uuid4().hex}"
    client = boto3.client("sqs")
    for made in (name, f"{name}-dead"):
        client.create_queue(QueueName=made)
    code, found = run(f"sqs://{name}")
    assert code == 1
    assert "no redrive policy" in found["dead letters"]["found"]
    assert found["dead letters"]["remedy"] == f"set one: cloudseg queue create sqs://{name}"

"""What only SQS does: batches accepted in part, redrive by the server, stock workers, credentials and regions."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from cloudseg.errors import NotFoundError, SpecError, StorageError, TransientStorageError
from cloudseg.tasking import sqs_client
from cloudseg.tasking.envelope import Envelope, parse_message
from cloudseg.tasking.queue import Lease, Queue, QueueCounts, open_queue
from cloudseg.tasking.sqs_client import SqsAddress
from cloudseg.tasking.sqs_queue import MAX_RECEIVES, SqsQueue
from cloudseg.testing.emulators import environment
from cloudseg.testing.front import BatchFront, Fault, front, serving
from cloudseg.testing.tasks import NoteTask

Wrap = Callable[..., Envelope]


def envelopes(n: int, *, n_bytes: int = 1) -> Iterator[Envelope]:
    return (
        Envelope.of(NoteTask(folder="f" * n_bytes, name=str(i)), root="memory://r", step="s")
        for i in range(n)
    )


BUSY = {"SenderFault": True, "Code": "RequestThrottled", "Message": "slow down"}


@contextmanager
def moody_server(upstream: str, refuse: Callable[[dict], dict | None]) -> Iterator[BatchFront]:
    """Send the queue's requests through a front that refuses entries of batches."""
    with front(upstream, BatchFront(refuse)) as moody, environment(AWS_ENDPOINT_URL=moody.url):
        yield moody


def test_entries_of_a_batch_that_sqs_does_not_accept_are_sent_again_until_it_does(aws: str, sqs_uri: str):
    turned_away: dict[str, int] = {}

    def reject(entry: dict) -> dict | None:
        name = json.loads(json.loads(entry["MessageBody"])["payload"][1][0])["task"]["name"]
        n_times = turned_away[name] = turned_away.get(name, 0) + 1
        if int(name) % 3 or n_times > 2:
            return None
        return {"Id": entry["Id"], "SenderFault": False, "Code": "InternalError", "Message": "try again"}

    with moody_server(aws, reject) as moody:
        assert open_queue(sqs_uri).insert(envelopes(25)) == 25
    assert sorted(moody.sizes["SendMessageBatch"], reverse=True) == [10, 10, 5, 4, 4, 3, 3, 2, 2]
    queue = open_queue(sqs_uri)
    found = [queue.lease(60) for _ in range(25)]
    assert sorted(int(parse_message(x.message).task["name"]) for x in found) == list(range(25))
    assert queue.lease(60) is None


def test_an_entry_that_sqs_refuses_for_good_is_an_error(aws: str, sqs_uri: str):
    def reject(entry: dict) -> dict:
        return {"Id": entry["Id"], "SenderFault": True, "Code": "InvalidMessageContents", "Message": "odd"}

    with (
        moody_server(aws, reject) as moody,
        pytest.raises(StorageError, match="refused an entry of a batch: InvalidMessageContents: odd"),
    ):
        open_queue(sqs_uri).insert(envelopes(3))
    assert moody.sizes == {"SendMessageBatch": [3]}


def test_entries_that_sqs_never_accepts_are_an_error_and_not_lost_in_silence(
    aws: str, sqs_uri: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqs_client, "FIRST_WAIT_S", 0.001)

    def reject(entry: dict) -> dict | None:
        return {"Id": entry["Id"], **BUSY} if entry["Id"] in "04" else None

    with (
        moody_server(aws, reject),
        pytest.raises(TransientStorageError, match="did not accept 2 of 7 .*slow down; try again later"),
    ):
        open_queue(sqs_uri).insert(envelopes(7))
    assert open_queue(sqs_uri).counts() == QueueCounts(5, 0, 0, approximate=True)


def leased(queue: Queue, n: int) -> list[Lease]:
    found = [queue.lease(60) for _ in range(n)]
    return [lease for lease in found if lease is not None]


def test_messages_are_deleted_ten_at_once_and_the_entries_that_fail_are_sent_again(
    aws: str, sqs_uri: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqs_client, "FIRST_WAIT_S", 0.001)
    open_queue(sqs_uri).insert(envelopes(23))
    refused: set[str] = set()

    def reject(entry: dict) -> dict | None:
        if entry["Id"] not in "27" or entry["ReceiptHandle"] in refused:
            return None
        refused.add(entry["ReceiptHandle"])
        return {"Id": entry["Id"], **BUSY}

    with moody_server(aws, reject) as moody:
        queue = open_queue(sqs_uri)
        leases = leased(queue, 23)
        assert len(leases) == 23
        queue.delete_all(leases)
        assert moody.sizes == {"DeleteMessageBatch": [10, 2, 10, 2, 3, 1]}
        assert queue.counts() == QueueCounts(0, 0, 0, approximate=True)


def test_a_deletion_that_sqs_never_accepts_is_an_error_and_the_message_comes_back(
    aws: str, sqs_uri: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqs_client, "FIRST_WAIT_S", 0.001)
    open_queue(sqs_uri).insert(envelopes(3))
    with moody_server(aws, lambda entry: {"Id": entry["Id"], **BUSY} if entry["Id"] == "1" else None):
        queue = open_queue(sqs_uri)
        leases = leased(queue, 3)
        with pytest.raises(TransientStorageError, match="did not accept 1 of 3 entries of a batch, 6 times"):
            queue.delete_all(leases)
    assert queue.counts() == QueueCounts(0, 1, 0, approximate=True)
    open_queue(sqs_uri).release(leases[1])
    (again,) = leased(open_queue(sqs_uri), 1)
    assert again.id == leases[1].id


def test_a_stale_receipt_among_deletions_is_no_error_and_keeps_none_of_the_others(aws: str, sqs_uri: str):
    open_queue(sqs_uri).insert(envelopes(3))
    stale = {"SenderFault": True, "Code": "ReceiptHandleIsInvalid", "Message": "not yours"}
    with moody_server(aws, lambda entry: {"Id": entry["Id"], **stale} if entry["Id"] == "0" else None):
        queue = open_queue(sqs_uri)
        queue.delete_all(leased(queue, 3))
        assert queue.counts() == QueueCounts(0, 1, 0, approximate=True)


@pytest.mark.faults
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_although_it_gives_no_code_of_sqs(aws: str, sqs_uri: str, status: int):
    with front(aws) as before, environment(AWS_ENDPOINT_URL=before.url):
        before.faults[:] = [Fault("", status=status, times=2)]
        queue = open_queue(sqs_uri)
        before.faults[:] = [Fault("SendMessageBatch", status=status, times=3)]
        assert queue.insert(envelopes(3)) == 3
        assert before.n_faults == 5
    assert open_queue(sqs_uri).counts().ready == 3


def test_large_messages_share_batches_no_larger_than_sqs_takes(sqs_uri: str):
    queue = open_queue(sqs_uri)
    assert queue.insert(envelopes(9, n_bytes=100_000)) == 9
    assert queue.counts().ready == 9
    with pytest.raises(
        SpecError, match="'test_note/1' takes 3.* bytes, more than the 262144 of an SQS message"
    ):
        queue.insert(envelopes(1, n_bytes=300_000))


def test_a_long_reason_loses_its_middle_only(sqs_uri: str):
    queue = open_queue(sqs_uri)
    queue.insert(envelopes(1, n_bytes=200_000))
    lease = queue.lease(60)
    assert lease is not None
    assert queue.bury(lease, "it began\n" + "é" * 100_000 + "\nit ended")
    (letter,) = queue.dead()
    assert letter.reason.startswith("it began\néé")
    assert "\n...\n" in letter.reason
    assert letter.reason.endswith("é\nit ended")
    assert len(letter.message) > 200_000


def test_a_worker_that_waits_gets_a_message_as_it_comes(sqs_uri: str):
    queue = open_queue(sqs_uri)
    threading.Timer(1.0, lambda: open_queue(sqs_uri).insert(envelopes(1))).start()
    started = time.monotonic()
    assert queue.lease(60, wait_s=20) is not None
    assert 0.9 < time.monotonic() - started < 10


def test_what_the_server_gave_up_itself_is_dead_with_that_reason(sqs_uri: str):
    queue = SqsQueue(sqs_uri)
    client, url = queue._client, queue._url
    policy = client.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])["Attributes"]
    policy = json.loads(policy["RedrivePolicy"])
    assert int(policy["maxReceiveCount"]) == MAX_RECEIVES
    client.set_queue_attributes(
        QueueUrl=url, Attributes={"RedrivePolicy": json.dumps({**policy, "maxReceiveCount": "2"})}
    )
    queue.insert(envelopes(1))
    for attempt in (1, 2):
        lease = queue.lease(60)
        assert lease is not None
        assert lease.attempt == attempt
        queue.release(lease)
    assert queue.lease(60) is None
    assert queue.counts() == QueueCounts(0, 0, 1, approximate=True)
    (letter,) = queue.dead()
    assert "SQS moved it here by its redrive policy" in letter.reason
    assert queue.redrive() == 1
    lease = queue.lease(60)
    assert lease is not None
    assert lease.attempt == 1


def test_dead_letters_go_where_the_redrive_policy_says(aws: str, sqs_uri: str):
    queue = SqsQueue(sqs_uri)
    name = sqs_uri.removeprefix("sqs://")
    other = queue._client.create_queue(QueueName=f"{name}-graves")["QueueUrl"]
    arn = queue._client.get_queue_attributes(QueueUrl=other, AttributeNames=["QueueArn"])["Attributes"]
    policy = json.dumps({"deadLetterTargetArn": arn["QueueArn"], "maxReceiveCount": "9"})
    queue._client.set_queue_attributes(QueueUrl=queue._url, Attributes={"RedrivePolicy": policy})
    queue = SqsQueue(sqs_uri)
    queue.insert(envelopes(1))
    lease = queue.lease(60)
    assert lease is not None
    queue.bury(lease, "broke")
    assert SqsQueue(f"{sqs_uri}-graves", create=True).counts().ready == 1
    assert [letter.reason for letter in queue.dead()] == ["broke"]


# --- stock task-queue at the same queue ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_stock_task_queue_leases_runs_and_deletes_our_messages_and_we_lease_its(
    sqs_uri: str, folder: Path, wrap: Wrap
):
    from taskqueue import TaskQueue
    from taskqueue.registered_task import MockTask

    import cloudseg_tasks.wire  # noqa: F401 - registers the function

    queue = open_queue(sqs_uri)
    queue.insert([wrap(NoteTask(folder=str(folder), name=str(i))) for i in range(3)])
    lease = queue.lease(60)
    assert lease is not None
    queue.release(lease, counted=False)  # a copy of ours is as good to others
    stock = TaskQueue(sqs_uri, n_threads=0, progress=False)
    assert stock.enqueued == 3
    for _ in range(3):
        task = stock.lease(seconds=60)
        stock.renew(task, 60)
        task.execute()
        stock.delete(task)
    assert sorted(note.read_bytes() for note in folder.iterdir()) == [b"<>"] * 3
    stock.insert([MockTask(number=7)])
    lease = queue.lease(60)
    assert lease is not None
    assert parse_message(lease.message).payload["number"] == 7
    queue.delete(lease)
    assert queue.is_empty()


# --- addresses, credentials, servers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("sqs://tasks", SqsAddress("tasks")),
        ("sqs://eu-central-1/tasks", SqsAddress("tasks", region="eu-central-1")),
        (
            "sqs://https://sqs.us-east-2.amazonaws.com/123456789012/my_tasks",
            SqsAddress(
                "my_tasks",
                region="us-east-2",
                url="https://sqs.us-east-2.amazonaws.com/123456789012/my_tasks",
            ),
        ),
        (
            "https://sqs.us-east-2.amazonaws.com/123456789012/a",
            SqsAddress("a", region="us-east-2", url="https://sqs.us-east-2.amazonaws.com/123456789012/a"),
        ),
        (
            "sqs://http://127.0.0.1:9324/000000000000/a",
            SqsAddress("a", url="http://127.0.0.1:9324/000000000000/a", endpoint="http://127.0.0.1:9324"),
        ),
    ],
)
def test_addresses_are_read(uri: str, address: SqsAddress):
    assert SqsAddress.parse(uri) == address


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("sqs://", "'' is no name; expected sqs://NAME"),
        ("sqs://two words", "'two words' is no name"),
        ("sqs://moon/tasks", "'moon' is no region"),
        ("sqs://a/b/c", "'a/b' is no region"),
        ("sqs://tasks.fifo", "is a FIFO queue"),
    ],
)
def test_what_is_no_address_is_refused(uri: str, words: str):
    with pytest.raises(SpecError, match=words):
        open_queue(uri)


def test_the_url_of_a_queue_opens_it(aws: str, sqs_uri: str):
    url = SqsQueue(sqs_uri)._url
    open_queue(f"sqs://{url}").insert(envelopes(2))
    with environment(AWS_ENDPOINT_URL=None):
        assert open_queue(f"sqs://{url}").counts().ready == 2


def test_a_queue_that_is_not_there_is_not_made_unasked(aws: str):
    with pytest.raises(NotFoundError, match="no queue at sqs://tpyo; .*cloudseg queue create sqs://tpyo"):
        open_queue("sqs://tpyo")


def test_a_queue_without_a_place_for_dead_letters_is_refused(sqs_uri: str):
    client = SqsQueue(sqs_uri)._client
    client.create_queue(QueueName="bare")
    with pytest.raises(NotFoundError, match="no place for dead letters: .*cloudseg queue create sqs://bare"):
        open_queue("sqs://bare")
    open_queue("sqs://bare", create=True)
    open_queue("sqs://bare")
    client.delete_queue(QueueUrl=SqsQueue("sqs://bare")._dead_url)
    with pytest.raises(
        NotFoundError, match="names the queue 'bare-dead' for dead letters, and there is none"
    ):
        open_queue("sqs://bare")


def test_a_queue_that_goes_away_says_so(sqs_uri: str):
    queue = SqsQueue(sqs_uri)
    queue._client.delete_queue(QueueUrl=queue._url)
    with pytest.raises(NotFoundError, match="there is no queue at sqs://test-"):
        queue.lease(60)


@pytest.fixture
def no_home(tmp_path: Path) -> Iterator[None]:
    """No configuration and no credentials of whoever runs this."""
    nothing = dict.fromkeys(("AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL_SQS"))
    with environment(
        AWS_CONFIG_FILE=str(tmp_path / "config"),
        AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "credentials"),
        AWS_EC2_METADATA_DISABLED="true",
        **nothing,
    ):
        yield


def test_an_unknown_region_is_asked_for(aws: str, no_home: None):
    with (
        environment(AWS_DEFAULT_REGION=None),
        pytest.raises(
            SpecError, match="no region is known for sqs://q: write sqs://REGION/q, or set AWS_DEF"
        ),
    ):
        open_queue("sqs://q")


def test_missing_credentials_are_asked_for(aws: str, no_home: None):
    with (
        environment(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, AWS_SESSION_TOKEN=None),
        pytest.raises(StorageError, match="no AWS credentials were found .* set AWS_ACCESS_KEY_ID"),
    ):
        open_queue("sqs://q")


def test_an_unknown_profile_is_named(aws: str, no_home: None):
    with (
        environment(AWS_PROFILE="nobody"),
        pytest.raises(SpecError, match=r"profile \(nobody\) could not be found; set AWS_PROFILE"),
    ):
        open_queue("sqs://q")


@pytest.mark.parametrize("status", [403, 500])
def test_a_server_that_refuses_or_fails_is_quoted(status: int, no_home: None):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_POST(self) -> None:
            data = json.dumps({"__type": "com.amazonaws.sqs#Broken", "message": "no luck"}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    kind, words = {
        403: (StorageError, "AWS refuses .*no luck.*; check the credentials in use"),
        500: (TransientStorageError, "SQS is busy .*no luck"),
    }[status]
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with (
        serving(Handler) as port,
        environment(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", **keys),
        pytest.raises(kind, match=words),
    ):
        open_queue("sqs://q")


def test_a_server_that_is_not_there_is_named(aws: str):
    with (
        environment(AWS_ENDPOINT_URL="http://127.0.0.1:1"),
        pytest.raises(TransientStorageError, match="does not answer .*127.0.0.1:1/.*; check the network"),
    ):
        open_queue("sqs://q")


def test_an_endpoint_that_is_no_url_is_refused(aws: str):
    with (
        environment(AWS_ENDPOINT_URL="nonsense"),
        pytest.raises(SpecError, match="Invalid endpoint: nonsense; AWS_ENDPOINT_URL must be a URL"),
    ):
        open_queue("sqs://q")

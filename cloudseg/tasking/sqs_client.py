"""How SQS is reached: addresses, clients, batches that are sent whole, and errors in plain words."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from cloudseg.errors import (
    CloudsegError,
    MissingExtraError,
    NotFoundError,
    SpecError,
    StorageError,
    TransientStorageError,
)

_NAME = re.compile(r"^[A-Za-z0-9_-]{1,80}$")
_REGION = re.compile(r"^[a-z]{2}(-[a-z]+)+-\d+$")
_AWS_HOST = re.compile(r"^sqs\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?$")

# Entries that a batch call did not accept are sent again after 0.1, 0.2, 0.4 ... seconds: half a minute in all.
N_ROUNDS = 9
FIRST_WAIT_S = 0.1
BATCH_ENTRIES = 10

MISSING_QUEUE = {"QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue"}
STALE_RECEIPT = {
    "ReceiptHandleIsInvalid",
    "MessageNotInflight",
    "AWS.SimpleQueueService.MessageNotInflight",
    "InvalidParameterValue",  # AWS's answer to the receipt of a message that is deleted
}
NO_RIGHTS = {
    "AccessDenied",
    "AccessDeniedException",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "MissingAuthenticationToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
EXPECTED = (
    "expected sqs://NAME, sqs://REGION/NAME or sqs://https://sqs.REGION.amazonaws.com/ACCOUNT/NAME, "
    "e.g. sqs://us-east-1/segmentation"
)


@dataclass(frozen=True, slots=True)
class SqsAddress:
    """Where an SQS queue lies.

    Attributes
    ----------
    name
        Its name.
    region
        Its region, or None: the one of the environment or profile.
    url
        Its URL, where the address is one.
    endpoint
        The server's URL, where the address names one that is not Amazon's.
    """

    name: str
    region: str | None = None
    url: str | None = None
    endpoint: str | None = None

    @classmethod
    def parse(cls, uri: str) -> SqsAddress:
        """Read an address.

        Raises
        ------
        SpecError
            If it is none.
        """
        text = uri.removeprefix("sqs://")
        if text.startswith(("http://", "https://")):
            parts = urlsplit(text)
            name = parts.path.rpartition("/")[2]
            aws = _AWS_HOST.match(parts.netloc)
            found = cls(
                name,
                region=aws[1] if aws else None,
                url=text,
                endpoint=None if aws else f"{parts.scheme}://{parts.netloc}",
            )
        else:
            region, slash, name = text.rpartition("/")
            if slash and not _REGION.match(region):
                raise SpecError(f"{uri!r} is not the address of a queue: {region!r} is no region; {EXPECTED}")
            found = cls(name, region=region or None)
        if name.endswith(".fifo"):
            raise SpecError(
                f"{uri!r} is a FIFO queue, and tasks have no order to keep; make a standard queue for them"
            )
        if not _NAME.match(name):
            raise SpecError(f"{uri!r} is not the address of a queue: {name!r} is no name; {EXPECTED}")
        return found


def connect(address: SqsAddress, uri: str, *, patience: Literal["long", "short"] = "long") -> Any:
    """Return a boto3 client. Credentials, region and server come by AWS's own means.

    Parameters
    ----------
    address
        The queue's address.
    uri
        The same, as the user wrote it.
    patience
        ``short`` for what must be answered at once: renewals and hand-backs.

    Raises
    ------
    MissingExtraError
        If boto3 is not installed.
    SpecError
        If no region is known, or the profile or the server's address makes no sense.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import NoRegionError, ProfileNotFound
    except ImportError as error:
        raise MissingExtraError.of("boto3", extra="tasks") from error
    config = Config(
        connect_timeout=5 if patience == "long" else 2,
        read_timeout=40 if patience == "long" else 5,
        retries={"mode": "standard", "total_max_attempts": 5 if patience == "long" else 2},
        user_agent_extra="cloudseg",
    )
    try:
        session = boto3.session.Session()
        client = session.client(
            "sqs", region_name=address.region, endpoint_url=address.endpoint, config=config
        )
    except NoRegionError as error:
        raise SpecError(
            f"no region is known for {uri}: write sqs://REGION/{address.name}, or set AWS_DEFAULT_REGION, "
            "or a region in the AWS profile"
        ) from error
    except ProfileNotFound as error:
        raise SpecError(f"{uri}: {error}; set AWS_PROFILE to one that exists") from error
    except ValueError as error:  # botocore's word for an endpoint that is no URL
        raise SpecError(
            f"{uri}: {error}; AWS_ENDPOINT_URL must be a URL such as http://127.0.0.1:9324"
        ) from error
    most = config.retries["total_max_attempts"]
    client.meta.events.register_first("needs-retry.sqs", lambda **seen: _pause_after_429(most, **seen))
    return client


def _pause_after_429(most: int, *, attempts: int, response: Any = None, **_: Any) -> float | None:
    """Return the seconds after which to ask again; None leaves it to boto3, which knows throttling by its code only.

    A proxy or load balancer before SQS says 429 without one.
    """
    is_429 = response is not None and response[0].status_code == 429
    return FIRST_WAIT_S * 2.0**attempts if is_429 and attempts < most else None


@contextmanager
def plain_errors(uri: str, action: str) -> Iterator[None]:
    """Turn what boto3 raises into errors that say what to do.

    Parameters
    ----------
    uri
        The queue.
    action
        What was being done, e.g. ``lease from``.

    Raises
    ------
    NotFoundError
        If there is no such queue.
    TransientStorageError
        If the server cannot be reached, is busy or failed.
    StorageError
        If credentials or rights are missing, or the server refused.
    """
    from botocore import exceptions as boto

    try:
        yield
    except CloudsegError:
        raise
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        raise StorageError(
            f"cannot {action} the queue {uri}: no AWS credentials were found ({error}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine or pod a role"
        ) from error
    except (boto.HTTPClientError, boto.ConnectionError) as error:
        raise TransientStorageError(
            f"cannot {action} the queue {uri}: the server does not answer ({error}); check the network, the region "
            "in the address, and AWS_ENDPOINT_URL if it is set"
        ) from error
    except boto.ClientError as error:
        raise _explain(error, uri, action) from error
    except boto.BotoCoreError as error:
        raise StorageError(f"cannot {action} the queue {uri}: {error}") from error


def code_of(error: Any) -> str:
    """Return the code of a boto3 ClientError."""
    return str(error.response.get("Error", {}).get("Code", ""))


def send_whole(
    call: Callable[[list[dict[str, Any]]], dict[str, Any]],
    entries: list[dict[str, Any]],
    *,
    uri: str,
    n_rounds: int = N_ROUNDS,
    settled: Container[str] = (),
) -> None:
    """Call a batch operation until every entry is accepted.

    SQS accepts the entries of a batch one by one; those that it did not accept are named in the answer, and
    are lost if nobody looks.

    Parameters
    ----------
    call
        Sends entries, returns SQS's answer.
    entries
        At most ten, each with an ``Id`` of its own.
    uri
        The queue, for errors.
    n_rounds
        How often to send before giving up; 9 take half a minute.
    settled
        Codes of refusals that are as good as an acceptance.

    Raises
    ------
    StorageError
        If SQS refuses an entry for good.
    TransientStorageError
        If entries are still not accepted after the last round.
    """
    left = {entry["Id"]: entry for entry in entries}
    failed: dict[str, Any] = {}
    for n_round in range(n_rounds):
        if n_round:
            time.sleep(FIRST_WAIT_S * 2 ** (n_round - 1))
        answer = call(list(left.values()))
        for done in answer.get("Successful", ()):
            left.pop(done["Id"], None)
        for failed in answer.get("Failed", ()):
            if failed.get("Code") in settled:
                left.pop(failed["Id"], None)
            elif failed.get("SenderFault") and "hrottl" not in failed.get("Code", ""):
                raise StorageError(
                    f"the queue {uri} refused an entry of a batch: {failed.get('Code')}: {failed.get('Message')}"
                )
        if not left:
            return
    why = f": {failed.get('Code')}: {failed.get('Message')}" if failed else ""
    raise TransientStorageError(
        f"the queue {uri} did not accept {len(left)} of {len(entries)} entries of a batch, {n_rounds} times{why}; "
        "try again later"
    )


def _explain(error: Any, uri: str, action: str) -> CloudsegError:
    code, message = code_of(error), error.response.get("Error", {}).get("Message", "")
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in MISSING_QUEUE:
        return missing_queue(uri)
    if code in NO_RIGHTS or status in (401, 403):
        return StorageError(
            f"cannot {action} the queue {uri}: AWS refuses ({code}: {message}); check the credentials in use (aws sts "
            "get-caller-identity) and that they may send, receive, delete and change the visibility of messages"
        )
    if code == "AWS.SimpleQueueService.PurgeQueueInProgress":
        return TransientStorageError(
            f"cannot {action} the queue {uri}: it is being purged; try again in a minute"
        )
    if status >= 500 or status == 429 or "hrottl" in code or code in ("OverLimit", "RequestTimeout"):
        return TransientStorageError(
            f"cannot {action} the queue {uri}: SQS is busy ({code}: {message}); try again later"
        )
    return StorageError(f"cannot {action} the queue {uri}: {code}: {message}")


def missing_queue(uri: str) -> NotFoundError:
    """Say that there is no such queue, and how to make it."""
    return NotFoundError(
        f"there is no queue at {uri}; check name, region and account, or make it and its dead letters with: "
        f"cloudseg queue create {uri}"
    )

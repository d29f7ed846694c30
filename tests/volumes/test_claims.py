"""A claim has one owner, whatever becomes of the answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudseg.errors import TransientStorageError
from cloudseg.testing.emulators import Fault
from cloudseg.volumes import open_objects
from cloudseg.volumes.claims import claim, new_owner

# How the two kinds of bucket are asked to create an object.
CREATE = r"^(PUT|POST) .*{key}"


@pytest.fixture(autouse=True)
def _two_tries(monkeypatch):
    monkeypatch.setenv("CLOUDSEG_STORAGE_RETRIES", "2")


def test_every_owner_has_a_name_of_its_own():
    assert len({new_owner() for _ in range(100)}) == 100


def test_a_bare_create_whose_answer_is_lost_is_taken_for_another_owners(bucket):
    """Why claims exist: if this fails, the engine has learnt it, and claims cost a request too many."""
    uri, front = bucket
    front.faults[:] = [Fault(CREATE.format(key="bare"), cut="after", times=1)]
    objects = open_objects(uri)
    assert objects.put_if_absent("bare", b"mine") is False
    assert front.n_faults
    assert objects.get("bare") == b"mine"


def test_a_claim_whose_answer_is_lost_is_won(bucket):
    uri, front = bucket
    front.faults[:] = [Fault(CREATE.format(key="lost"), cut="after", times=1)]
    objects = open_objects(uri)
    assert claim(objects, "lost", b"mine") is True
    assert front.faults[0].times == 0, "no answer was lost"
    assert claim(objects, "lost", b"mine") is True
    assert claim(objects, "lost", b"theirs") is False
    assert objects.get("lost") == b"mine"


def test_a_claim_whose_answers_are_all_lost_is_won_too(bucket):
    uri, front = bucket
    front.faults[:] = [Fault(CREATE.format(key="all"), cut="after")]
    assert claim(open_objects(uri), "all", b"mine") is True
    assert front.faults[0].times <= (1 << 30) - 2, "it was not tried again"
    assert claim(open_objects(uri), "all", b"theirs") is False


def test_a_claim_that_never_arrived_is_an_error_and_neither_won_nor_lost(bucket):
    uri, front = bucket
    front.faults[:] = [Fault(CREATE.format(key="never"), cut="before")]
    objects = open_objects(uri)
    with pytest.raises(TransientStorageError, match="never"):
        claim(objects, "never", b"mine")
    front.faults.clear()
    assert claim(objects, "never", b"mine") is True


def test_exactly_one_of_many_owners_wins_while_answers_get_lost(bucket):
    uri, front = bucket
    for n in range(3):
        key = f"race{n}"
        front.faults[:] = [Fault(CREATE.format(key=key), cut="after", times=4)]
        names = [new_owner().encode() for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda name, key=key: claim(open_objects(uri), key, name), names))
        # An S3 client looks before it creates, so late racers may send nothing that could get lost.
        assert front.faults[0].times < 4, "no answer was lost"
        assert won.count(True) == 1
        assert open_objects(uri).get(key) == names[won.index(True)]


def test_a_claim_on_a_local_folder_or_in_memory_is_a_claim_too(new_uri):
    for scheme in ("memory", "file"):
        objects = open_objects(new_uri(scheme))
        assert [claim(objects, "k", name) for name in (b"a", b"b", b"a")] == [True, False, True]

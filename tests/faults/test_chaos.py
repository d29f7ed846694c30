"""Everything goes wrong at once, and nothing comes of it; and the proofs of that are shown to find each breach."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cloudseg.testing.chaos import proofs
from cloudseg.testing.chaos.fronts import Asked, Dice, Happening, asked_again
from cloudseg.testing.chaos.plan import CLOCK, KINDS, SHORT_LEASE, events
from cloudseg.testing.chaos.poison import Poison
from cloudseg.testing.chaos.proofs import Begun

pytestmark = pytest.mark.faults

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
ALL_KINDS = {*(kind.name for kind in KINDS), CLOCK, SHORT_LEASE}
ON_DISK = {kind.name for kind in KINDS if kind.place == "disk"}
# `CHAOS_SEED=7 make chaos` runs with that seed; a failure prints the one it had.
SEED = int(os.environ.get("CHAOS_SEED", "1"))


def chaos(folder: Path, *words: str) -> tuple[dict[str, int], dict[str, str]]:
    """Run the script; return the faults it injected by kind, and what it says of each promise."""
    command = [sys.executable, SCRIPT, "--seeds", str(SEED), "--folder", folder, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = f"CHAOS_SEED={SEED}\n{done.stdout}\n{done.stderr}"
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in done.stdout.splitlines()
        if line.startswith("| ")
    ]
    injected = {row[0]: int(row[1]) for row in rows if len(row) == 3 and row[1].isdigit()}
    kept = {row[0]: row[1] for row in rows if len(row) == 3 and row[1] in ("yes", "**NO**")}
    assert done.returncode == 0, said
    assert set(kept.values()) == {"yes"}, said
    assert len(kept) == 7, said
    print(said)
    return injected, kept


def kinds_here() -> set[str]:
    """Every kind, but for a full disk where there are no user namespaces to make a small one in."""
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    return ALL_KINDS if probe.returncode == 0 else ALL_KINDS - ON_DISK


@pytest.mark.timeout(300)
def test_a_few_faults_of_every_kind_change_nothing(tmp_path: Path):
    injected, _ = chaos(tmp_path, "--short")
    assert {kind for kind, n in injected.items() if n} >= kinds_here()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("store", ["s3", "gcs"])
def test_more_than_a_hundred_faults_change_nothing(tmp_path: Path, store: str):
    injected, _ = chaos(tmp_path, "--store", store)
    assert {kind for kind, n in injected.items() if n} >= kinds_here()
    assert injected["**all**"] >= 100


# --- the seed -------------------------------------------------------------------------------------------------------


def test_a_seed_fixes_the_faults_and_another_one_gives_others():
    def drawn(seed: int) -> list[object]:
        lines = ["GET /vol/a/8_8_8/0-16_0-16_0-16", "PUT /vol/a/x", "GET /vol/a?list"] * 300
        of_storage = Dice(seed, "storage", n_tasks=300, is_long=True)
        rolled = [of_storage.roll(line, n // 3) for n, line in enumerate(lines)]
        return [*rolled, *events(seed, n_tasks=300, n_before_disk=9, is_long=True, with_disk=True)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert sum(kind is not None for kind in drawn(1)[:900]) > 20


def test_a_fault_that_cannot_be_delivered_is_given_to_the_next_request():
    of_storage = Dice(3, "storage", n_tasks=9, is_long=False)
    line = "GET /vol/a/8_8_8/0-16_0-16_0-16"
    assert of_storage.roll(line, -1) is None
    kind = next(kind for kind in iter(lambda: of_storage.roll(line, 9), 0) if kind)
    n_left = of_storage.n_left()[kind.name]
    of_storage.give_back(kind)
    assert of_storage.n_left()[kind.name] == n_left + 1
    assert of_storage.roll(line, 0) is kind


def test_a_request_that_suffered_counts_as_asked_again_only_if_it_came_later():
    happened = [Happening("a", "GET x", 2.0), Happening("a", "GET y", 2.0)]
    assert asked_again(happened, [("GET x", 1.0), ("GET y", 2.0), ("GET x", 2.5)]) == {"a": 1}


# --- the proofs -----------------------------------------------------------------------------------------------------

STORED = [("s", "t1"), ("s", "t2")]
PLANNED = {"t1": "s", "t2": "s"}
ASKED = [
    Asked("GET", "s", "t1", 1.0, 1.1, 404),
    Asked("PUT", "s", "t1", 2.0, 2.1, 200),
    Asked("GET", "s", "t1", 3.0, 3.1, 200),
    Asked("GET", "s", "t2", 1.0, 1.1, 404),
    Asked("GET", "s", "t2", 1.5, 1.6, 404),
    Asked("PUT", "s", "t2", 2.0, 2.1, 200),
    Asked("PUT", "s", "t2", 2.2, 2.3, 412),
]
BEGUN = [Begun("t1", 1, 1.2), Begun("t2", 1, 1.2), Begun("t2", 2, 2.2)]
POISON = Poison("bad", "{", "must be JSON")


def test_what_a_good_run_leaves_is_accepted():
    good = [
        proofs.same_bytes({"a": "1"}, {"a": "1"}),
        proofs.one_receipt_each(PLANNED, STORED, ASKED),
        proofs.none_after_its_receipt(ASKED, BEGUN),
        proofs.poison_is_buried([POISON], [("{", "a message must be JSON")]),
        *proofs.nothing_is_left(ready=0, leased=0, stray=[]),
    ]
    assert [verdict for verdict in good if not verdict.kept] == []
    assert "1 while another one was just finishing it (at most 100 ms later)" in good[2].figures


@pytest.mark.parametrize(
    ("chaotic", "words"),
    [
        ({}, "missing a"),
        ({"a": "2", "b": "3"}, "differs a"),
        ({"a": "1", "b": "3", "c": "4"}, "left over c"),
    ],
)
def test_outputs_that_differ_are_found(chaotic: dict[str, str], words: str):
    verdict = proofs.same_bytes({"a": "1", "b": "3"}, chaotic)
    assert not verdict.kept
    assert words in verdict.figures


def test_no_outputs_at_all_prove_nothing():
    assert not proofs.same_bytes({}, {}).kept
    assert not proofs.none_after_its_receipt([], []).kept


@pytest.mark.parametrize(
    ("stored", "asked", "words"),
    [
        (STORED[:1], ASKED, "no receipt: ('s', 't2')"),
        ([*STORED, ("s", "t9")], ASKED, "receipt of no planned task: ('s', 't9')"),
        (STORED, [*ASKED, Asked("PUT", "s", "t1", 5, 6, 200)], "created 2 times: ('s', 't1')"),
        (STORED, ASKED[:1], "created 0 times"),
    ],
)
def test_receipts_that_are_missing_or_doubled_are_found(stored: list, asked: list, words: str):
    verdict = proofs.one_receipt_each(PLANNED, stored, asked)
    assert not verdict.kept
    assert words in verdict.figures


@pytest.mark.parametrize(
    ("asked", "begun", "words"),
    [
        (
            [*ASKED, Asked("GET", "s", "t1", 2.5, 2.6, 404)],
            BEGUN,
            "t1 was said to have no receipt 0.400 s after",
        ),
        (ASKED, [*BEGUN, Begun("t1", 2, 3.2)], "t1 began 2 times, with 1 answers that it had no receipt"),
        (ASKED, [*BEGUN, Begun("t3", 2, 3.2)], "t3 began 1 times, with 0 answers"),
    ],
)
def test_a_task_that_runs_after_its_receipt_is_found(asked: list, begun: list, words: str):
    verdict = proofs.none_after_its_receipt(asked, begun)
    assert not verdict.kept
    assert words in verdict.figures


@pytest.mark.parametrize(
    ("dead", "words"),
    [
        ([], "not among the dead letters: bad"),
        ([("{", "no reason was recorded")], "bad: the reason is 'no reason was recorded'"),
        ([("{", "must be JSON"), ("healthy", "lost")], "a healthy message is dead: 'lost'"),
    ],
)
def test_poison_that_is_not_buried_and_health_that_is_are_found(dead: list, words: str):
    verdict = proofs.poison_is_buried([POISON], dead)
    assert not verdict.kept
    assert words in verdict.figures


def test_what_is_left_over_is_found():
    queue, stray = proofs.nothing_is_left(ready=0, leased=1, stray=["out/pipeline/x"])
    assert not queue.kept
    assert not stray.kept
    assert re.search("1 leased", queue.figures)
    assert "out/pipeline/x" in stray.figures


@pytest.mark.parametrize("ended", [[], ["run ended with 1: error"]])
def test_a_process_that_ends_unasked_breaks_a_promise(ended: list[str]):
    assert proofs.none_ended_unasked(ended).kept is not bool(ended)

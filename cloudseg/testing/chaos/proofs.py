"""What a chaos run must have kept, proved from its records by functions that can be shown to find a breach."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloudseg.testing.chaos.fronts import Asked
from cloudseg.testing.chaos.poison import Poison


@dataclass(frozen=True, slots=True)
class Begun:
    """A task that began to run: its id, in which process, when (monotonic clock)."""

    task_id: str
    pid: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A promise, whether it was kept, and the figures behind that."""

    promise: str
    kept: bool
    figures: str


def same_bytes(quiet: Mapping[str, str], chaos: Mapping[str, str]) -> Verdict:
    """Compare digests of all outputs by name."""
    missing, extra = sorted(quiet.keys() - chaos.keys()), sorted(chaos.keys() - quiet.keys())
    differing = sorted(key for key in quiet.keys() & chaos.keys() if quiet[key] != chaos[key])
    wrong = [f"missing {x}" for x in missing] + [f"left over {x}" for x in extra]
    wrong += [f"differs {x}" for x in differing]
    figures = (
        f"{len(quiet)} files compared" if not wrong else "; ".join(wrong[:8]) + f" ({len(wrong)} in all)"
    )
    return Verdict(
        "outputs are byte-identical to a quiet local run, none is left over",
        bool(quiet) and not wrong,
        figures,
    )


def one_receipt_each(
    planned: Mapping[str, str], stored: Sequence[tuple[str, str]], asked: Sequence[Asked]
) -> Verdict:
    """Compare the plan with the receipts in the bucket, and with how often each was created.

    Parameters
    ----------
    planned
        Step of each task id.
    stored
        Step and task id of each receipt in the bucket.
    asked
        Requests about receipts, as the storage answered them.
    """
    created = Counter((ask.step, ask.task_id) for ask in asked if ask.method == "PUT" and ask.status == 200)
    wanted = {(step, task_id) for task_id, step in planned.items()}
    wrong = [f"no receipt: {key}" for key in sorted(wanted - set(stored))]
    wrong += [f"receipt of no planned task: {key}" for key in sorted(set(stored) - wanted)]
    wrong += [f"created {created[key]} times: {key}" for key in sorted(wanted) if created[key] != 1]
    refused = sum(ask.method == "PUT" and ask.status != 200 for ask in asked)
    figures = f"{len(wanted)} tasks, {len(stored)} receipts, {refused} more attempts to create one refused"
    return Verdict(
        "every planned task has exactly one receipt, created once", not wrong, "; ".join(wrong[:5]) or figures
    )


def none_after_its_receipt(asked: Sequence[Asked], begun: Sequence[Begun]) -> Verdict:
    """Prove that no task was begun on a look at the bucket that came after its receipt.

    A process begins a task when the storage has told it that there is no receipt. So each beginning needs an answer
    of its own to that effect; and no such answer may be to a question that was put after the receipt was stored. A
    process that had asked before may begin a moment after another one has finished: these are counted.
    """
    stored_s: dict[str, float] = {}
    for ask in asked:
        if ask.method == "PUT" and ask.status == 200:
            stored_s[ask.task_id] = min(ask.answered_s, stored_s.get(ask.task_id, float("inf")))
    absent = defaultdict(list)
    for ask in asked:
        if ask.method == "GET" and ask.status == 404:
            absent[ask.task_id].append(ask.sent_s)
    n_begun = Counter(one.task_id for one in begun)
    wrong = [
        f"{task_id} was said to have no receipt {sent_s - stored_s[task_id]:.3f} s after it was stored"
        for task_id, times in absent.items()
        for sent_s in times
        if sent_s > stored_s.get(task_id, float("inf"))
    ]
    wrong += [
        f"{task_id} began {n} times, with {len(absent[task_id])} answers that it had no receipt"
        for task_id, n in n_begun.items()
        if n > len(absent[task_id])
    ]
    late = [one.at_s - stored_s[one.task_id] for one in begun if one.at_s > stored_s.get(one.task_id, 1e99)]
    again = sum(n - 1 for n in n_begun.values())
    figures = (
        f"{len(begun)} beginnings of {len(n_begun)} tasks, {again} of them again before there was a receipt; "
        f"{len(late)} while another one was just finishing it"
        + (f" (at most {1000 * max(late):.0f} ms later)" if late else "")
    )
    return Verdict(
        "no task was run after its receipt", not wrong and bool(begun), "; ".join(wrong[:5]) or figures
    )


def poison_is_buried(poisons: Sequence[Poison], dead: Sequence[tuple[str, str]]) -> Verdict:
    """Compare the poisoned messages with the dead letters ``(body, reason)``: all there, and no others."""
    wrong = []
    for poison in poisons:
        reasons = [reason for body, reason in dead if body == poison.body]
        if not reasons:
            wrong.append(f"not among the dead letters: {poison.name}")
        elif not any(re.search(poison.reason, reason, re.DOTALL) for reason in reasons):
            wrong.append(f"{poison.name}: the reason is {reasons[0][:200]!r}")
    ours = {poison.body for poison in poisons}
    wrong += [f"a healthy message is dead: {reason[:300]!r}" for body, reason in dead if body not in ours]
    return Verdict(
        "every poisoned message is among the dead letters with its reason, and nothing else",
        not wrong and bool(poisons),
        "; ".join(wrong[:5]) or f"{len(poisons)} poisoned messages, {len(dead)} dead letters",
    )


def nothing_is_left(*, ready: int, leased: int, stray: Sequence[str]) -> list[Verdict]:
    """Judge what lies in the queue, and files and processes that belong to nobody."""
    return [
        Verdict("nothing is left in the queue", ready + leased == 0, f"{ready} ready, {leased} leased"),
        Verdict(
            "no file and no process is orphaned",
            not stray,
            "; ".join(stray[:5]) or "none in bucket, disk, machine",
        ),
    ]


def none_ended_unasked(ended: Sequence[str]) -> Verdict:
    """Judge the workers and runs that ended although nobody had killed them or told them to stop."""
    return Verdict("no worker and no run ended unasked", not ended, "; ".join(ended[:5]) or "none")

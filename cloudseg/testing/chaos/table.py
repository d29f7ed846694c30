"""What a chaos run says at its end: the faults by kind and what absorbed them, and the promises that were kept."""

from __future__ import annotations

from collections import Counter

from cloudseg.testing.chaos.fronts import asked_again
from cloudseg.testing.chaos.plan import CLOCK, KINDS, SHORT_LEASE, STANDING
from cloudseg.testing.chaos.records import Records, n_full
from cloudseg.testing.chaos.run import CLOCK_SHIFTS_S, LEASE_S
from cloudseg.testing.runs import print_table

Row = tuple[str, int, str]


def fault_table(records: Records) -> list[Row]:
    """Return kind, how many were really injected, and what absorbed them."""
    happened = [*records.storage.happened, *records.queue.happened]
    counts = Counter(one.kind for one in happened) + records.done
    again = asked_again(happened, [*records.storage.seen, *records.queue.seen])
    ended = Counter(event["event"] for event in records.worker_events)
    rows: list[Row] = []
    for kind in KINDS:
        n, figures = counts[kind.name], ""
        if kind.place == "disk":
            n = n_full(records.worker_events)
        elif kind.place == "message":
            figures = f"{len(records.details.get(kind.name, ()))} ways to be wrong"
        elif kind.name.startswith("slow read"):
            figures = ""  # nobody need ask again
        elif kind.place in ("storage", "queue") and "message" not in kind.name:
            figures = f"{again[kind.name]} of {n}"
        elif kind.name.startswith("messages reordered"):
            figures = f"{n_out_of_order(records)} of {len(records.queue.sent)} messages came out of order"
        elif kind.name in records.details:
            figures = ", ".join(f"{n} {what}" for what, n in sorted(records.details[kind.name].items()))
        rows.append((kind.name, n, kind.absorbed_by + (f" ({figures})" if figures else "")))
    n_skewed = sum(shift != 0 for shift in CLOCK_SHIFTS_S)
    rows.append((CLOCK, n_skewed, f"{STANDING[CLOCK]} ({records.n_skewed} receipts with a wrong time)"))
    longest = [e for e in records.worker_events if e["event"] == "done" and e["seconds"] > LEASE_S]
    rows.append((SHORT_LEASE, len(longest), f"{STANDING[SHORT_LEASE]} (lease {LEASE_S} s)"))
    rows.append(
        (
            "**all**",
            sum(n for _, n, _ in rows),
            ", ".join(
                f"{ended[name]} {name}" for name in ("done", "skipped", "failed", "returned", "lost", "dead")
            ),
        )
    )
    return rows


def n_out_of_order(records: Records) -> int:
    """Count the messages that were first delivered after one that had been sent later."""
    place = {message: n for n, message in enumerate(records.queue.sent)}
    first = list(dict.fromkeys(m for m in records.queue.delivered if m in place))
    n, highest = 0, -1
    for message in first:
        n += place[message] < highest
        highest = max(highest, place[message])
    return n


def is_kept(records: Records) -> bool:
    """Whether every promise was kept."""
    return all(verdict.kept for verdict in records.verdicts())


def print_report(records: Records) -> None:
    """Write both tables to standard output."""
    title = f"chaos, {records.store} + sqs, seed {records.seed}: {len(records.planned)} tasks, {records.seconds:.0f} s"
    print_table(title, ("fault", "injected", "what absorbed it"), fault_table(records))
    print_table(
        f"promises, seed {records.seed}",
        ("promise", "kept", "figures"),
        [(v.promise, "yes" if v.kept else "**NO**", v.figures) for v in records.verdicts()],
    )

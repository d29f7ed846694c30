"""The one queueable function. Its address is on the wire of every queue in use: it never moves."""

from __future__ import annotations

from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.queue import queueable
from cloudseg.tasking.run_task import default_context, run_task


@queueable
def execute(message: str) -> None:
    """Run the task of an envelope and write its receipt, in the process of a stock task-queue worker.

    ``cloudseg worker`` does not come this way: it runs tasks in a child process that it watches.

    Parameters
    ----------
    message
        The JSON of a :class:`~cloudseg.tasking.envelope.Envelope`.
    """
    run_task(Envelope.load(message, where="envelope of a queue message"), default_context())

"""A worker's hold on the process that runs the networks of its tasks, and that process's main program.

``python -m cloudseg.tasking.network FD PARENT_PID THREADS GPU LISTENER`` listens at the socket LISTENER, which the
worker has made and keeps: who asks while the process is started again waits, and is not refused.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import socket
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

from cloudseg.errors import StorageError, TaskFailedError
from cloudseg.tasking.child import READY, begin, check_gpu
from cloudseg.tasking.process import ChildProcess, explain_exit

log = logging.getLogger(__name__)

# So many in a row without ever being ready, and it will not be ready the next time either.
MAX_VAIN_STARTS = 3
BACKLOG = 256


class NetworkProcess:
    """The process for one GPU, or for the processor. Use it from one thread: Linux ties its life to that thread.

    Parameters
    ----------
    n_threads
        How many threads it may compute with.
    gpu
        As for :class:`cloudseg.tasking.process.ChildProcess`.
    """

    def __init__(self, *, n_threads: int, gpu: str | None) -> None:
        self._n_threads, self._gpu = n_threads, gpu
        # Short: the address of a Unix socket has 108 bytes at most. Only this user may look inside.
        self._folder = tempfile.mkdtemp(prefix="cloudseg-")
        self._listener = socket.socket(socket.AF_UNIX)
        self._child: ChildProcess | None = None
        self._n_vain_starts = 0

    @property
    def path(self) -> str:
        """Where tasks find it."""
        return str(Path(self._folder, "network"))

    def start(self, wake: Connection) -> bool:
        """Begin to listen, start the process and wait until it works; False if ``wake`` came first.

        Raises
        ------
        TaskFailedError
            If it does not start.
        StorageError
            If no socket can be made in the folder for temporary files.
        """
        try:
            self._listener.bind(self.path)
        except OSError as error:
            raise StorageError(
                f"cannot make the socket {self.path} for the shared network: {error}; set TMPDIR to a folder with a "
                "short name that can be written to"
            ) from error
        self._listener.listen(BACKLOG)
        self._child = self._started()
        return self._child.await_ready(wake)

    def keep(self) -> None:
        """Start the process again if it has ended.

        Raises
        ------
        TaskFailedError
            If it ends each time before it can work: no task with a network could run.
        """
        if self._child is None or (code := self._child.exit_code()) is None:
            return
        self._n_vain_starts = 0 if self._child.was_ready() else self._n_vain_starts + 1
        self._child.kill()
        how = explain_exit(code)
        if self._n_vain_starts >= MAX_VAIN_STARTS:
            raise TaskFailedError(
                f"the process that runs networks did not start, {MAX_VAIN_STARTS} times: {how}; "
                "its own messages say why"
            )
        log.error("the process that runs networks ended and is started again: %s", how)
        self._child = self._started()

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _started(self) -> ChildProcess:
        return ChildProcess(
            n_threads=self._n_threads,
            gpu=self._gpu,
            module="cloudseg.tasking.network",
            purpose="runs networks",
            extra=[str(self._listener.fileno())],
            inherited=[self._listener.fileno()],
        )


def main(argv: list[str]) -> None:
    """Run networks until the supervisor goes away."""
    fd, parent_pid, _n_threads, wants_gpu, listener_fd = (int(arg) for arg in argv)
    connection = begin(fd, parent_pid)
    if wants_gpu:
        check_gpu()
    server = importlib.import_module("cloudseg.models.shared_server")
    with socket.socket(fileno=listener_fd) as listener:
        connection.send_bytes(READY)
        server.NetworkServer(listener, on_gpu=bool(wants_gpu)).serve()


if __name__ == "__main__":
    main(sys.argv[1:])

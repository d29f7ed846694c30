"""A real PostgreSQL on this machine, for tests: a fresh one in a folder, on a free port, ended by its own process."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudseg.errors import MissingExtraError
from cloudseg.testing.emulators import free_port

_START_S = 60


def postgres_programs() -> Path:
    """Return the folder of PostgreSQL's server programs: ``$CLOUDSEG_POSTGRES``, the path, or Debian's place.

    Raises
    ------
    MissingExtraError
        If there are none.
    """
    named = os.environ.get("CLOUDSEG_POSTGRES")
    if named:
        return Path(named)
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "initdb").exists() and (place / "pg_ctl").exists():
            return place
    raise MissingExtraError(
        "the tests of the database need PostgreSQL's server; install it with: bash tests/somas/install-postgres.sh, "
        "or name the folder of its programs in the variable CLOUDSEG_POSTGRES"
    )


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run PostgreSQL with its data in a folder of its own; give the URL of an empty database.

    As root it runs as the user ``postgres``: PostgreSQL refuses root.
    """
    programs = postgres_programs()
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    data = folder / "data"
    before: list[str] = []
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        before = ["runuser", "-u", "postgres", "--"]

    def program(name: str, *arguments: str) -> None:
        command = [*before, str(programs / name), *arguments]
        done = subprocess.run(  # noqa: S603  (a list of ours, no shell)
            command, cwd=folder, capture_output=True, text=True, timeout=2 * _START_S, check=False
        )
        assert done.returncode == 0, f"{name} failed: {done.stdout[-2000:]} {done.stderr[-2000:]}"

    program(
        "initdb",
        "-D",
        str(data),
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C.UTF-8",
        "--no-sync",
    )
    # The shell of pg_ctl splits these; the folder is one that we made, without spaces.
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c shared_buffers=64MB"
    program(
        "pg_ctl",
        "-D",
        str(data),
        "-w",
        "-t",
        str(_START_S),
        "-l",
        str(folder / "log"),
        "-o",
        options,
        "start",
    )
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        program("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)

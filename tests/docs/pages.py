"""Pages of docs/ as programs: their blocks of shell and Python run in order, and print what the page says."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# ([\w.-]+\.toml)\n")
MARK = "@@@ block"
LENIENT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One block of a page: ``sh``, ``python``, ``toml`` or ``text``, and what stands in it."""

    kind: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page, in order; those without a language are not for running."""
    return [Block(kind, text) for kind, text in FENCE.findall(page.read_text(encoding="utf-8"))]


def script_of(blocks: list[Block]) -> str:
    """Return one shell script that runs the blocks, and marks where the output of each begins."""
    lines = ["set -euo pipefail"]
    for n, block in enumerate(blocks):
        # On a line of its own in both streams, which are one here.
        lines.append(f"echo '{MARK} {n}'")
        if block.kind == "sh":
            lines.append(block.text)
        elif block.kind == "python":
            lines.append(f"python - <<'END_OF_PYTHON'\n{block.text}END_OF_PYTHON")
        elif block.kind == "toml" and (name := FILE_NAME.match(block.text)):
            lines.append(f"cat > {name[1]} <<'END_OF_FILE'\n{block.text}END_OF_FILE")
    return "\n".join(lines) + "\n"


def run_page(page: Path, *, folder: Path, swap: dict[str, str] | None = None, timeout_s: float = 500) -> str:
    """Run all blocks of a page in one shell, compare what they print with the page, and return all of it.

    Parameters
    ----------
    page
        A Markdown file. A block of ``text`` holds what the one before it prints; three dots stand for anything.
    folder
        Where the shell starts.
    swap
        Texts of the page that are others here, such as a port that may be taken.
    """
    blocks = blocks_of(page)
    script = script_of(blocks)
    for old, new in (swap or {}).items():
        assert old in script, f"{page.name} has no {old!r} any more"
        script = script.replace(old, new)
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "160"}
    shell = subprocess.Popen(
        ["bash", "-m", "-c", script],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(timeout=timeout_s)
    finally:
        stop_session(shell.pid)
        shell.kill()
        shell.wait()
    assert shell.returncode == 0, f"{page.name} ended with exit code {shell.returncode}:\n{output}"
    check(blocks, output, page=page)
    return output


def stop_session(leader: int) -> None:
    """End what a page has left running: all processes of the session that its shell began."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader:
                process.kill()


def check(blocks: list[Block], output: str, *, page: Path) -> None:
    """Compare what blocks printed with the ``text`` blocks that follow them."""
    printed: dict[int, str] = {}
    for part in output.split(f"{MARK} ")[1:]:
        number, _, text = part.partition("\n")
        printed[int(number)] = text
    for n, block in enumerate(blocks):
        if block.kind == "text" and n and blocks[n - 1].kind in ("sh", "python"):
            got = printed[n - 1]
            assert doctest.OutputChecker().check_output(block.text, got, LENIENT), (
                f"{page.name} says that its block {n - 1} prints\n{block.text}\nbut it printed\n{got}"
            )

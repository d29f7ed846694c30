"""The command turns errors into one sentence and a truthful exit code."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numba":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from cloudseg.cli.main import main
sys.argv = ["cloudseg", "phantom", "memory://x", "--shape", "16,16,16"]
main()
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_missing_extra_is_named_with_the_command_that_installs_it():
    done = run(BLOCKED)
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == "error: 'numba' is not installed; install it with: pip install 'cloudseg[tasks]'"
    )


def test_a_wrong_request_ends_with_2_and_one_sentence():
    code = BLOCKED.replace("sys.meta_path.insert(0, Refuse())", "").replace("16,16,16", "16,16,8")
    done = run(code)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: --shape needs at least 16 voxels on every axis, got 16,16,8"

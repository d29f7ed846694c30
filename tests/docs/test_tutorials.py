"""The tutorials run as they stand, in order, and print what they say. docs/query.md: tests/somas/test_tutorial.py."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from pages import Block, blocks_of, check, run_page

pytestmark = pytest.mark.timeout(900)  # some twenty seconds of computing, on a machine that may be busy


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def test_launching_and_then_browsing(repository, tmp_path):
    output = run_page(repository / "docs" / "launch.md", folder=tmp_path, timeout_s=600)
    assert "gave up" in output, "its failure is a failure"
    folder = tmp_path / "cloudseg-tutorial"
    assert (folder / "run" / "segmentation" / "mesh").is_dir()

    # A reader of receipts, written from the page on formats alone.
    told = run_page(repository / "docs" / "formats" / "run.md", folder=folder)
    steps = re.findall(r"^([\w.]+): (\d+) of (\d+)$", told, re.MULTILINE)
    assert sum(int(n) for _, _, n in steps) == 26
    assert all(done == n for _, done, n in steps)

    ports = {f"--port {port}": f"--port {free_port()}" for port in ("8642", "8643")}
    run_page(repository / "docs" / "browse.md", folder=folder, swap=ports, timeout_s=300)
    assert (folder / "sections.png").stat().st_size > 10_000
    # With tokens, links lead to names that nobody can guess.
    guessable = re.compile(r"/data/run-[0-9a-f]{8}/")
    assert guessable.search((folder / "serve.log").read_text())
    private = (folder / "private.log").read_text()
    assert re.search(r"/data/run-[0-9a-f]{8}\.[0-9a-f]{32}/", private)
    assert not guessable.search(private)


def test_every_block_of_a_tutorial_is_run_or_compared(repository):
    for name in ("launch", "browse"):
        blocks = blocks_of(repository / "docs" / f"{name}.md")
        assert {block.kind for block in blocks} <= {"sh", "python", "toml", "text"}
        n_fences = (repository / "docs" / f"{name}.md").read_text().count("```")
        assert n_fences == 2 * len(blocks), f"{name}.md has a block without a language, which nothing runs"


def test_a_page_that_says_something_else_is_noticed():
    blocks = [Block("sh", "echo a\necho b\n"), Block("text", "a\n...\nc\n")]
    with pytest.raises(AssertionError, match="but it printed"):
        check(blocks, "@@@ block 0\na\nb\n", page=Path("page.md"))
    check(blocks, "@@@ block 0\na\nb\nc\n@@@ block 1\n", page=Path("page.md"))


def test_a_page_that_fails_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```sh\nfalse\n```\n")
    with pytest.raises(AssertionError, match="exit code 1"):
        run_page(page, folder=tmp_path)

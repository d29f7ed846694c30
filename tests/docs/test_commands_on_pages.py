"""Every command line and every pipeline on a page is one that the program takes."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from cloudseg.cli.main import cli
from cloudseg_tasks.stages import stage_class

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "cloudseg/models/zoo/README.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "docs" / "formats").glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> list[str]:
    """Return the lines in blocks of shell that call cloudseg, continued lines joined, comments left out."""
    return [
        line.partition("  #")[0].partition(" # ")[0]
        for language, block in FENCE.findall(text)
        if language in ("", "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("cloudseg ")
    ]


def problem_with(line: str) -> str:
    """Say what the program would not take, as far as names of commands and options go."""
    words = shlex.split(re.split(r" (?:\||&|>|2>)", line)[0])[1:]
    command: click.Command = cli
    context = click.Context(cli)
    options: dict[str, click.Option] = {}
    while words:
        word, *words = words
        if isinstance(command, click.Group):
            if word in ("COMMAND", "--help"):
                return ""
            found = command.get_command(context, word)
            if found is None:
                return f"there is no command {word!r}"
            command = found
            options = {
                name: option
                for option in command.params
                if isinstance(option, click.Option)
                for name in (*option.opts, *option.secondary_opts)
            }
        elif word.startswith("--") and word != "--help":
            name, equals, _ = word.partition("=")
            if name not in options:
                return f"{command.name} has no option {name}"
            if not options[name].is_flag and not equals:
                if not words:
                    return f"{name} lacks its value"
                words = words[1:]
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_commands_on_a_page_exist(page):
    found = [(line, problem_with(line)) for line in command_lines(page.read_text())]
    wrong = [f"{line}: {problem}" for line, problem in found if problem]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_stages_on_a_page_have_the_options_that_they_are_given(page):
    for language, block in FENCE.findall(page.read_text()):
        if language == "toml" and "[[stage]]" in block:
            for stage in tomllib.loads(block)["stage"]:
                unknown = stage.keys() - stage_class(stage["kind"]).model_fields.keys()
                assert not unknown, f"{page.name}: stage {stage['kind']} has no {unknown}"


def test_the_search_finds_commands_and_what_is_wrong_with_them():
    text = "```\ncloudseg run a.toml \\\n  --workers 2   # both\n```\n```python\ncloudseg x\n```\n"
    (line,) = command_lines(text)
    assert problem_with(line) == ""
    assert "no option --worker" in problem_with("cloudseg run a.toml --worker 2")
    assert "no command" in problem_with("cloudseg queue burn x")
    assert problem_with("cloudseg queue status fq://x --json | head") == ""
    assert sum(len(command_lines(page.read_text())) for page in PAGES) > 60

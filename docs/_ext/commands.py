"""The page on the command line, read from its own parser."""

from __future__ import annotations

import re
from typing import Any

import click
from carried import DOCS, put
from sphinx.application import Sphinx

from cloudseg.cli.main import COMMANDS, cli


def inline(text: str) -> str:
    """Return help text as Markdown: words in capitals are arguments, ``<`` is no tag."""
    text = re.sub(r"(?<![\w`])'(cloudseg [^']+)'", r"`\1`", text)
    return (
        text.replace("\b", "")
        .replace("<", "&lt;")
        .replace("|", "\\|")
        .replace("*", "\\*")
        .replace("[", "\\[")
    )


def default_of(parameter: click.Option) -> str:
    """Say what holds where an option is not given."""
    if parameter.is_flag:
        return ""
    default = parameter.default
    # Absent: click has a marker of its own for it, which is none of the plain types.
    return f"`{default}`" if isinstance(default, str | int | float) and str(default) else ""


def section(path: list[str], command: click.Command, level: str) -> list[str]:
    """Return the section on one command, and those on its own subcommands."""
    context = click.Context(command, info_name=" ".join(path))
    usage = command.get_usage(context).removeprefix("Usage: ")
    lines = [f"{level} {' '.join(path[1:])}", "", "```text", " ".join(usage.split()), "```", ""]
    lines += [" ".join(inline(part).split()) + "\n" for part in (command.help or "").split("\n\n")]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    if options:
        lines += ["| option | meaning | default |", "|---|---|---|"]
    for option in options:
        names = ", ".join([*option.opts, *option.secondary_opts])
        value = "" if option.is_flag else f" {option.make_metavar(context)}"
        needed = "**needed**" if option.required else default_of(option)
        repeated = " May be repeated." if option.multiple and "repeated" not in (option.help or "") else ""
        lines.append(
            f"| `{names}{value.replace('|', '/')}` | {inline(option.help or '')}{repeated} | {needed} |"
        )
    lines.append("")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            lines += section([*path, name], child, level + "#")
    return lines


def make_pages(app: Sphinx) -> None:
    """Write docs/made/commands.md."""
    context = click.Context(cli, info_name="cloudseg")
    lines = [
        "# Commands",
        "",
        "`cloudseg COMMAND --help` says the same. Exit codes: 0 done, 1 something went wrong, ",
    ]
    lines += ["2 the request is wrong, 3 (`run`, `status`) not complete.", ""]
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        lines += section(["cloudseg", name], command, "##")
    put(DOCS / "made" / "commands.md", "\n".join(lines))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", make_pages)
    return {"parallel_read_safe": True}

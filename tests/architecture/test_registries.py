"""What is sent or written in a file is forever: names in registries, classes and commands agree."""

from __future__ import annotations

import importlib
import re

import click
import pytest
from click.testing import CliRunner

from cloudseg.cli.main import COMMANDS, cli
from cloudseg.tasking.steps import Stage
from cloudseg.tasking.task import Task
from cloudseg_tasks.registry import KINDS, task_class
from cloudseg_tasks.stages import STAGES, stage_class


@pytest.mark.parametrize("kind", KINDS)
def test_a_registered_kind_equals_its_classs_own(kind):
    cls = task_class(kind)
    assert issubclass(cls, Task)
    assert cls.model_fields["kind"].default == kind
    assert cls.model_config["frozen"]
    assert cls.model_config["extra"] == "forbid"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_a_version(kind):
    assert re.fullmatch(r"[a-z][a-z_]*/[1-9][0-9]*", kind)


@pytest.mark.parametrize("kind", STAGES)
def test_a_registered_stage_equals_its_classs_own(kind):
    cls = stage_class(kind)
    assert issubclass(cls, Stage)
    assert cls.model_fields["kind"].default == kind
    assert cls.model_config["extra"] == "forbid"


@pytest.mark.parametrize("address", [*KINDS.values(), *STAGES.values()])
def test_a_queued_class_is_documented_and_has_one_address(address):
    module, _, name = address.partition(":")
    cls = getattr(importlib.import_module(module), name)
    assert cls.__doc__, f"{address} has no docstring"
    assert cls.__module__.startswith("cloudseg_tasks."), "a class importable under two names is two classes"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself(name):
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    module, _, attribute = COMMANDS[name].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.get_short_help_str(limit=200), f"cloudseg {name} has no one-line description"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"cloudseg {name} {parameter.opts[0]} has no help text"
            if parameter.is_bool_flag and parameter.secondary_opts == [] and parameter.default is True:
                pytest.fail(f"cloudseg {name} {parameter.opts[0]} can only be set to what it already is")


def test_the_command_line_names_every_command():
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0, result.output
    for name in COMMANDS:
        assert re.search(rf"^  {name}\b", result.output, re.MULTILINE), name

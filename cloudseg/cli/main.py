"""The ``cloudseg`` command: each subcommand is one module, loaded when it is called."""

from __future__ import annotations

import importlib
import sys

import click

from cloudseg.errors import CloudsegError, MissingExtraError, SpecError

# Which extra brings a package that only some commands need.
EXTRA_OF = {"h5py": "ingest", "nibabel": "ingest", "tifffile": "ingest"}
TASKS = (
    "boto3",
    "botocore",
    "cloudvolume",
    "fastremap",
    "igneous",
    "kimimaro",
    "numba",
    "prometheus_client",
    "psutil",
    "safetensors",
    "scipy",
    "taskqueue",
    "torch",
)
EXTRA_OF |= dict.fromkeys(TASKS, "tasks")
EXTRA_OF |= dict.fromkeys(("adbc_driver_manager", "adbc_driver_postgresql"), "postgres")

COMMANDS: dict[str, str] = {
    "ingest": "cloudseg.cli.ingest:ingest",
    "export": "cloudseg.cli.export:export",
    "info": "cloudseg.cli.info:info",
    "plan": "cloudseg.cli.pipeline:plan",
    "run": "cloudseg.cli.pipeline:run",
    "status": "cloudseg.cli.pipeline:status",
    "retry": "cloudseg.cli.pipeline:retry",
    "cancel": "cloudseg.cli.pipeline:cancel",
    "verify": "cloudseg.cli.pipeline:verify",
    "queue": "cloudseg.cli.queue:queue",
    "worker": "cloudseg.cli.worker:worker",
    "doctor": "cloudseg.cli.doctor:doctor",
    "train": "cloudseg.cli.train:train",
    "import-model": "cloudseg.cli.import_model:import_model",
    "evaluate": "cloudseg.cli.evaluate:evaluate",
    "compare": "cloudseg.cli.compare:compare",
    "tune": "cloudseg.cli.tune:tune",
    "somas": "cloudseg.cli.somas:somas",
    "link": "cloudseg.cli.link:link",
    "serve": "cloudseg.cli.serve:serve",
    "token": "cloudseg.cli.token:token",
    "phantom": "cloudseg.cli.phantom:phantom",
    "demo": "cloudseg.cli.demo:demo",
}


class LazyGroup(click.Group):
    """A group whose subcommands are imported only when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click passes it
        """Return the names, in the order a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click passes it
        """Import and return one subcommand."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cloudseg")
def cli() -> None:
    """Segment volumes in buckets: launch tasks, look at results, ask questions."""


def main() -> None:
    """Run the command; turn our own errors into one sentence and exit code 1 (2 for a wrong request)."""
    try:
        try:
            cli(standalone_mode=True)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in EXTRA_OF:
                raise
            raise MissingExtraError.of(package, extra=EXTRA_OF[package]) from error
    except SpecError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except CloudsegError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)

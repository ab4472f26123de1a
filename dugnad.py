"""The `dugnad` command: puts the volunteer's and the organiser's commands under one name."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

from coordinator.cli import coordinator, demo, status
from peer import user_config
from peer.cli import doctor, pause, peer, resume
from peer.simulation.command import simulate
from protocols.host.command import run_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(coordinator, name="coordinator")
for command in (peer, pause, resume, doctor, status, demo, simulate):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    wanted: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print dugnad's version and exit.")
    ] = False,
) -> None:
    """Train one transformer together on the computers you already own."""
    if isinstance(context.command, TyperGroup) and context.invoked_subcommand in user_config.COMMANDS:
        context.default_map = user_config.defaults(context.command.commands)


@app.command()
def version() -> None:
    """Print dugnad's version."""
    print(importlib.metadata.version("dugnad"))


@app.command()
def env() -> None:
    """Print versions and devices for a bug report."""
    import torch

    packages = ["dugnad", "torch", "hivemind", "transformers", "grpcio", "protobuf", "pydantic", "numpy", "cryptography"]
    for package in packages:
        print(f"{package}: {importlib.metadata.version(package)}")
    print(f"python: {platform.python_version()} ({sys.executable})")
    print(f"system: {platform.platform()}")
    print(f"cpu threads: {torch.get_num_threads()}")
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"cuda: {', '.join(cuda) or 'none'}")
    print(f"mps: {'yes' if torch.backends.mps.is_available() else 'no'}")


def main() -> None:
    run_app(app)


if __name__ == "__main__":
    main()

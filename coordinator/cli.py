"""`dugnad coordinator` and `dugnad status`: the organiser's commands. Imports nothing heavy before the arguments are known
to be right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coordinator.config import DEFAULT_PORT, CoordinatorConfig
from protocols.host.child_process import end_with_parent
from protocols.ticket_source import HELP, read_ticket


def coordinator(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run spec.")],
    directory: Annotated[Path | None, typer.Option("--dir", help="The run's folder; runs/NAME when left out.")] = None,
    host: Annotated[str, typer.Option(help="IP address to listen on; :: for IPv6.")] = "0.0.0.0",
    announce: Annotated[
        list[str] | None, typer.Option(help="Host that volunteers reach this machine by; may be given several times.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65532, help="This port and the next three are used; 0 takes free ones.")
    ] = DEFAULT_PORT,
    json: Annotated[bool, typer.Option("--json", help="Print the ticket as a JSON object on standard output.")] = False,
    end_with_standard_input: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Start a run, or resume it.

    Prints the ticket and the line that volunteers paste, shows the swarm live, and writes checkpoints. The training goes on if
    this process stops; start it again with the same folder and port, and the same ticket holds.

    Example: dugnad coordinator examples/python_lm/run.toml
    """
    if end_with_standard_input:
        end_with_parent()
    from coordinator.app import run_coordinator  # torch takes seconds: a wrong option should not wait for it

    config = CoordinatorConfig(run_file=run, directory=directory, host=host, announce=tuple(announce or ()), port=port, json=json)
    raise typer.Exit(run_coordinator(config))


def status(
    ticket: Annotated[str | None, typer.Argument(metavar="TICKET", help=HELP)] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of a peer of yours: ask those it knows, without a ticket.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Show the swarm from outside.

    Epoch, loss, samples towards the batch, peers and their speed. While the coordinator is away, a computer that has taken part
    asks the peers that it knows.
    """
    found = read_ticket(ticket) if home is None else None
    from coordinator.status import show_status

    show_status(found, home, as_json=json)


def demo(
    directory: Annotated[Path | None, typer.Option("--dir", help="Folder for the run; runs/demo-TIME when left out.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a summary as one JSON object on the last line.")] = False,
) -> None:
    """See it all on this computer.

    Starts a coordinator and three peers as separate processes, lets a fourth join late, kills one without warning, and shows
    what came of it: a loss curve, a checkpoint, and a few lines that the model writes. Takes two to three minutes on two cores.
    """
    from coordinator.demo import run_demo

    run_demo(directory, as_json=json)

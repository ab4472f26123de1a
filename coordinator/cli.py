"""`dugnad coordinator` with its commands, and `dugnad status`: the organiser's. Imports nothing heavy before the arguments are
known to be right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from coordinator.config import DEFAULT_PORT, CoordinatorConfig
from protocols.host.child_process import end_with_parent
from protocols.ticket_source import HELP, read_ticket

_RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run spec.")]
_Directory = Annotated[Path | None, typer.Option("--dir", help="The run's folder; runs/NAME when left out.")]


class _StartsRuns(TyperGroup):
    """Where no command is named, a run is started: `dugnad coordinator RUN.toml`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        named = args and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named or not args else ["run", *args])


coordinator = typer.Typer(cls=_StartsRuns, no_args_is_help=True)


@coordinator.callback()
def _organise() -> None:
    """Start a run, or resume it: dugnad coordinator RUN.toml. The commands below work beside it.

    See dugnad coordinator run --help for its options.
    """


@coordinator.command()
def run(
    run: _RunFile,
    directory: _Directory = None,
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
    config = CoordinatorConfig(run_file=run, directory=directory, host=host, announce=tuple(announce or ()), port=port, json=json)
    config = config.checked()
    from coordinator.app import run_coordinator  # torch takes seconds: a wrong option should not wait for it

    raise typer.Exit(run_coordinator(config))


@coordinator.command()
def invite(
    run: _RunFile,
    name: Annotated[str, typer.Option(help="Whom it is for; peers' certificates carry it. `open` is the printed ticket.")],
    directory: _Directory = None,
    uses: Annotated[int | None, typer.Option(min=1, help="How many peers it admits; any number when left out.")] = None,
    expires: Annotated[str | None, typer.Option(help="How long it admits: 90m, 12h, 7d, 2w. Ever when left out.")] = None,
) -> None:
    """Print a line for somebody to join with.

    Works while the coordinator runs. Whoever was admitted stays admitted when the invite ends.

    Example: dugnad coordinator invite run.toml --name ann --uses 2 --expires 7d
    """
    from coordinator.organising import invite

    invite(run, directory, name=name, uses=uses, expires=expires)


@coordinator.command()
def peers(
    run: _RunFile,
    directory: _Directory = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """List the invites, and whom each has admitted."""
    from coordinator.organising import show_peers

    show_peers(run, directory, as_json=json)


_Peer = Annotated[str | None, typer.Argument(metavar="PEER", help="The beginning of a peer's id; `peers` lists them.")]
_OfInvite = Annotated[str | None, typer.Option("--invite", help="All whom this invite has admitted.")]


@coordinator.command()
def kick(run: _RunFile, peer: _Peer = None, of: _OfInvite = None, directory: _Directory = None) -> None:
    """Send a peer away for ten minutes.

    Example: dugnad coordinator kick run.toml 3fa2bb
    """
    from coordinator.organising import KICK_S, ban

    ban(run, directory, peer=peer, invite=of, lasts_s=KICK_S)


@coordinator.command()
def ban(run: _RunFile, peer: _Peer = None, of: _OfInvite = None, directory: _Directory = None) -> None:
    """Send a peer away for good, or all of an invite, which then admits nobody any more.

    The coordinator passes it on, at once or when it starts, and every peer heeds it within ten seconds, also when the coordinator
    is gone again. Whoever is banned can come again with another key, unless its invite is used up or ended.
    """
    from coordinator.organising import ban

    ban(run, directory, peer=peer, invite=of, lasts_s=None)


@coordinator.command()
def unban(run: _RunFile, peer: _Peer = None, of: _OfInvite = None, directory: _Directory = None) -> None:
    """Let a peer, or all of an invite, take part again."""
    from coordinator.organising import unban

    unban(run, directory, peer=peer, invite=of)


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

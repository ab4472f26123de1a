"""`dugnad status`: show the swarm to somebody who takes no part in it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console as Terminal

from coordinator.sinks.swarm_table import render_view
from coordinator.swarm_view import SwarmView
from coordinator.watching import look_once
from protocols.errors import UnreachableError, UsageError
from protocols.identity import Credentials, Ticket
from protocols.round.records import Candidate
from protocols.run_spec import RunSpec
from protocols.transport.enrolling import enrol
from protocols.transport.kept_enrolment import home_of, kept_in, key_for
from protocols.transport.network import NetworkTransport
from protocols.transport.network_thread import NetworkThread


def show_status(ticket: Ticket | None, home: Path | None, *, as_json: bool) -> None:
    """Print the view. `home`: of a peer that took part; without it, the ticket's own.

    Raises TicketError, UsageError, UnreachableError (coordinator, or no peer).
    """
    with NetworkThread() as network:
        view = network.call(_look(ticket, home))
    if as_json:
        print(json.dumps(asdict(view)))
    else:
        terminal = Terminal(highlight=False)
        terminal.print(render_view(view, terminal.width))


async def _look(ticket: Ticket | None, home: Path | None) -> SwarmView:
    credentials, spec, peers = await _way_there(ticket, home)
    transport = NetworkTransport(credentials, spec.digest)
    try:
        return await look_once(transport, peers, spec)
    finally:
        await transport.aclose()


async def _way_there(ticket: Ticket | None, home: Path | None) -> tuple[Credentials, RunSpec, tuple[Candidate, ...]]:
    """Through the coordinator; through peers that a peer of this computer knew when that is away, or a home is given."""
    if ticket is not None and home is None:
        try:
            enrolment = await enrol(ticket, key_for(ticket))
        except UnreachableError as error:
            kept = kept_in(home_of(ticket))
            if kept is None:
                raise
            print(f"{error}; asking the peers that this computer knows", file=sys.stderr)
        else:
            return enrolment.credentials, enrolment.spec, enrolment.peers
    else:
        assert home is not None
        kept = kept_in(home)
        if kept is None:
            raise UsageError(f"no peer has taken part from {home}", remedy="Give the folder of a peer, or a ticket.")
    return kept.credentials, kept.spec, kept.peers

"""`dugnad status`: show the swarm to somebody who takes no part in it."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console as Terminal

from coordinator.sinks.swarm_table import render_view
from coordinator.swarm_view import SwarmView
from coordinator.watching import look_once
from protocols.identity import Key, Ticket
from protocols.transport.enrolling import enrol
from protocols.transport.network import NetworkTransport
from protocols.transport.network_thread import NetworkThread


def show_status(ticket: Ticket, *, as_json: bool) -> None:
    """Print the view. Raises TicketError, UnreachableError (coordinator, or no peer)."""
    with NetworkThread() as network:
        view = network.call(_look(ticket))
    if as_json:
        print(json.dumps(asdict(view)))
    else:
        terminal = Terminal(highlight=False)
        terminal.print(render_view(view, terminal.width))


async def _look(ticket: Ticket) -> SwarmView:
    enrolment = await enrol(ticket, Key.generate())  # the identity is used this once
    transport = NetworkTransport(enrolment.credentials, enrolment.spec.digest)
    try:
        return await look_once(transport, enrolment.peers, enrolment.spec)
    finally:
        await transport.aclose()

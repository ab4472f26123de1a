"""Where a command's ticket comes from: its argument, a file, standard input or the environment.

Everybody on a machine can read the arguments of a process, and whoever has the ticket can join.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from protocols.errors import TicketError
from protocols.identity import Ticket

VARIABLE = "DUGNAD_TICKET"
HELP = f"The run's ticket: itself, @FILE, - for standard input, or nothing if ${VARIABLE} has it."
MAX_BYTES = 4096


def read_ticket(argument: str | None) -> Ticket:
    """The ticket that `argument` is or leads to. Raises TicketError."""
    if argument is None:
        argument = os.environ.get(VARIABLE, "")
        if not argument:
            raise TicketError("no ticket is given", remedy=f"Paste it behind the command, or put it into ${VARIABLE}.")
    if argument == "-":
        return Ticket.parse(_line())
    if argument.startswith("@"):
        path = Path(argument[1:]).expanduser()
        try:
            return Ticket.parse(path.read_bytes()[:MAX_BYTES].decode(errors="replace"))
        except OSError as error:
            raise TicketError(f"cannot read the ticket in {path}: {error.strerror}", remedy="Correct the path.") from error
    return Ticket.parse(argument)


def _line() -> str:
    """One line of standard input, and no byte more: what follows is for others."""
    line = bytearray()
    while len(line) < MAX_BYTES and (byte := os.read(sys.stdin.fileno(), 1)) not in (b"", b"\n"):
        line += byte
    return line.decode(errors="replace")

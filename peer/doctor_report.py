"""What `dugnad doctor` prints: a line for each check as soon as it is done, or one JSON object."""

from __future__ import annotations

import json

from rich.console import Console
from rich.text import Text

from peer.doctor import Check, Wishes, as_json, examine
from protocols.host.terminal import printable
from protocols.identity import Ticket

EXIT_ABLE, EXIT_UNABLE = 0, 1
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "bold red")}
_NAME_COLUMNS = 15


def run_doctor(ticket: Ticket | None, wishes: Wishes, *, to_json: bool) -> int:
    """The exit code."""
    checks: list[Check] = []
    terminal = Console(stderr=to_json, highlight=False)

    def report(check: Check) -> None:
        checks.append(check)
        terminal.print(line_of(check), soft_wrap=True)

    with terminal.status("examining this computer"):
        able = examine(ticket, wishes, report)
    verdict = "This computer can take part." if able else "This computer cannot take part yet: see ✗."
    terminal.print(f"\n{verdict}")
    if to_json:
        print(json.dumps(as_json(checks, able)))
    return EXIT_ABLE if able else EXIT_UNABLE


def line_of(check: Check) -> Text:
    """The check's line; its remedy, if there is one, on the next."""
    mark, style = _MARKS[check.state]
    line = Text.assemble((mark, style), " ", (check.name.ljust(_NAME_COLUMNS), "bold"), printable(check.found, 400))
    if check.remedy:
        line.append(f"\n{' ' * (_NAME_COLUMNS + 2)}→ {printable(check.remedy, 400)}", "cyan")
    return line

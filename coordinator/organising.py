"""`dugnad coordinator invite`, `peers`, `kick`, `ban` and `unban`: what an organiser does beside a run.

It does not matter whether the coordinator runs.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console as Terminal
from rich.table import Table

from coordinator.invites import FILE, OPEN, Invite, Invites
from protocols.errors import UsageError
from protocols.host.terminal import duration
from protocols.identity import Key, Ticket
from protocols.run_spec import RunSpec

KICK_S = 600.0
_UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


def invite(run_file: Path, directory: Path | None, *, name: str, uses: int | None, expires: str | None) -> None:
    """Print the line that the invited paste. Raises UsageError."""
    folder = _folder(run_file, directory)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for an invite", remedy="Use letters, digits, spaces, dots and dashes.")
    lasts_s = _seconds(expires) if expires is not None else None
    ticket = Ticket.parse((folder / "ticket.txt").read_text())
    with _invites(folder) as invites:
        if name == OPEN:
            if uses is None or expires is not None:
                raise UsageError(f"the invite {OPEN!r} is the coordinator's own ticket", remedy="Limit it with --uses alone.")
            invites.limit(OPEN, uses)
            secret = ticket.secret
        else:
            secret = invites.make(name, uses, lasts_s)
    print(f"dugnad peer {Ticket(ticket.hosts, ticket.port, ticket.fingerprint, secret)}")


def ban(run_file: Path, directory: Path | None, *, peer: str | None, invite: str | None, lasts_s: float | None) -> None:
    """Ban a peer, or all of an invite, for so long (None: for good). Raises UsageError."""
    folder = _folder(run_file, directory)
    own = Key.load_or_create(folder / "auxiliary" / "identity.key").peer_id
    with _invites(folder) as invites:
        peers = [each for each in _meant(invites, peer, invite) if each != own]
        if peer is not None and not peers:
            raise UsageError("that is the coordinator's own auxiliary peer", remedy="Stop the coordinator instead.")
        if invite is not None and lasts_s is None:
            invites.end(invite)
        invites.ban(peers, lasts_s)
    print("\n".join(peers) or "Nobody was admitted by it.")


def unban(run_file: Path, directory: Path | None, *, peer: str | None, invite: str | None) -> None:
    """Raises UsageError."""
    with _invites(_folder(run_file, directory)) as invites:
        peers = _meant(invites, peer, invite)
        invites.unban(peers)
    print("\n".join(peers) or "Nobody was admitted by it.")


def _meant(invites: Invites, peer: str | None, invite: str | None) -> list[str]:
    if (peer is None) == (invite is None):
        raise UsageError("say either which PEER, or whose --invite", remedy="dugnad coordinator peers lists both.")
    if peer is not None:
        return [invites.named(peer)]
    assert invite is not None
    if invite not in {each.name for each in invites.invites}:
        raise UsageError(f"there is no invite named {invite!r}", remedy="dugnad coordinator peers lists them.")
    return invites.admitted_by(invite)


def show_peers(run_file: Path, directory: Path | None, *, as_json: bool) -> None:
    """Print the invites, and whom they admitted. Raises UsageError."""
    with _invites(_folder(run_file, directory)) as found:
        invites, admissions, banned = found.invites, found.admissions, found.banned
    if as_json:
        lists = {"invites": [asdict(each) for each in invites], "admissions": [asdict(each) for each in admissions]}
        print(json.dumps({**lists, "banned": sorted(banned)}))
        return
    now, terminal = time.time(), Terminal(highlight=False)
    table = Table("invite", "admitted", "of at most", "ends")
    for each in invites:
        table.add_row(each.name, str(each.used), str(each.uses) if each.uses is not None else "any number", _ends(each, now))
    terminal.print(table)
    peers = Table()
    peers.add_column("peer", min_width=32)
    for column in ("invite", "admitted", "from", ""):
        peers.add_column(column)
    for admission in admissions:
        since, state = f"{duration(max(0.0, now - admission.at))} ago", "banned" if admission.peer in banned else ""
        peers.add_row(admission.peer, admission.invite, since, admission.address, state)
    terminal.print(peers if admissions else "Nobody was admitted yet.")


def _ends(invite: Invite, now: float) -> str:
    if invite.expires_at is None:
        return "never"
    left_s = invite.expires_at - now
    return f"in {duration(left_s)}" if left_s > 0 else "ended"


def _seconds(text: str) -> float:
    """Of a duration such as 90m, 12h, 7d or 2w."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS_S or not number.isdigit() or not int(number):
        raise UsageError(f"--expires is {text!r}, which is no duration", remedy="Write for example 90m, 12h, 7d or 2w.")
    return int(number) * _UNITS_S[unit]


def _folder(run_file: Path, directory: Path | None) -> Path:
    folder = directory or Path("runs") / RunSpec.load(run_file).run.name
    if not (folder / "ticket.txt").is_file() or not (folder / FILE).is_file():
        raise UsageError(
            f"no coordinator has run in {folder}", remedy="Start it once with dugnad coordinator, or name its folder with --dir."
        )
    return folder


@contextlib.contextmanager
def _invites(folder: Path) -> Iterator[Invites]:
    with contextlib.closing(Invites(folder)) as invites:
        yield invites

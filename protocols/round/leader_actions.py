"""What a leader wants its driver to do (pure values). Carried out in order, each before the next."""

from __future__ import annotations

from dataclasses import dataclass

from protocols.reasons import Reason
from protocols.round.absences import Absent
from protocols.round.plans import Plan
from protocols.round.records import Ballot, Commit


@dataclass(frozen=True)
class Ask:
    """Ask these members of the last commit where they stand and whom they follow; answer answered() or unreachable() for each."""

    peers: tuple[str, ...]


@dataclass(frozen=True)
class SendPlan:
    """To each its part of it."""

    to: tuple[str, ...]
    plan: Plan
    absent: Absent = ()  # who is connected or was a member of the last commit, and is not planned


@dataclass(frozen=True)
class SendAbort:
    to: tuple[str, ...]
    plan_digest: str
    reason: Reason


@dataclass(frozen=True)
class Announce:
    """Sign this commit and send it to everybody connected, this peer's own member included."""

    commit: Commit
    seconds: float
    attempts: int
    absent: Absent = ()  # who is connected or was a member of the last commit, and gave nothing


@dataclass(frozen=True)
class Reannounce:
    """Send the commit that led to this leader's tip to members that have not applied it: its own leader may have gone before."""

    to: tuple[str, ...]


@dataclass(frozen=True)
class NoteFailure:
    """For the log: this attempt ended without a commit; `peer` is who dropped out or was found at fault ('' if nobody was)."""

    ballot: Ballot
    reason: Reason
    peer: str


@dataclass(frozen=True)
class Yield:
    """Another leader works already: follow it."""

    to: str


LeaderAction = Ask | SendPlan | SendAbort | Announce | Reannounce | NoteFailure | Yield

"""The actions that a Leader returns, as pure values. The driver carries them out in order, each before the next."""

from __future__ import annotations

from dataclasses import dataclass

from protocols.reasons import Reason
from protocols.round.absences import Absent
from protocols.round.drift_votes import DriftVerdict
from protocols.round.plans import Plan
from protocols.round.records import Ballot, Commit, Vote


@dataclass(frozen=True)
class Ask:
    """Ask each of these members where it stands and whom it follows. The driver answers with answered() or unreachable()."""

    peers: tuple[str, ...]


@dataclass(frozen=True)
class SendPlan:
    """Send each of these members its own part of the plan (MemberPlan)."""

    to: tuple[str, ...]
    plan: Plan
    absent: Absent = ()  # peers outside of the plan that are connected or were members of the last commit


@dataclass(frozen=True)
class SendAbort:
    """Tell these members that the attempt is over."""

    to: tuple[str, ...]
    plan_digest: str
    reason: Reason
    peer: str = ""  # that dropped out or is at fault
    sound: tuple[str, ...] = ()  # as in Abort
    verdict: DriftVerdict | None = None  # as in Abort


@dataclass(frozen=True)
class Announce:
    """Sign this commit and send it to everybody connected, this peer's own Member included."""

    commit: Commit
    seconds: float  # since its leader first planned the epoch
    attempts: int  # of this epoch, the last included
    votes: tuple[Vote, ...] = ()
    absent: Absent = ()  # peers without a contribution in it that are connected or were members of the last commit


@dataclass(frozen=True)
class Reannounce:
    """Send the commit that led to this leader's tip to members that have not applied it. Its leader may have died too early."""

    to: tuple[str, ...]


@dataclass(frozen=True)
class NoteFailure:
    """Log that this attempt ended without a commit. `peer` dropped out or is at fault; '' if nobody is."""

    ballot: Ballot
    reason: Reason
    peer: str


@dataclass(frozen=True)
class Yield:
    """Stop leading and follow the peer `to`, which is the leader."""

    to: str


LeaderAction = Ask | SendPlan | SendAbort | Announce | Reannounce | NoteFailure | Yield

"""Where a peer's events go: every one into its log, with its numbers, and some on the volunteer's screen."""

from __future__ import annotations

from typing import Any

from peer.console import PeerConsole
from protocols.host.event_log import EventLog, commit_fields
from protocols.reasons import Reason
from protocols.round.records import Commit


class PeerEvents:
    def __init__(self, me: str, log: EventLog, console: PeerConsole) -> None:
        self._me = me
        self._log = log
        self._console = console
        self.contributions = 0
        self.contributed_samples = 0
        self.loss: float | None = None

    @property
    def thanks(self) -> str:
        return f"You contributed {self.contributed_samples:,} samples in {self.contributions:,} epochs. Thank you."

    def __call__(self, event: str, /, **fields: Any) -> None:
        fields = {name: value.value if isinstance(value, Reason) else value for name, value in fields.items()}
        if "absent" in fields:
            fields["absent"] = {peer: reason.value for peer, reason in fields["absent"]}
        if "ballot" in fields:
            ballot = fields.pop("ballot")
            fields = {"epoch": ballot.epoch, "attempt": ballot.attempt, **fields}
        signed = fields.pop("signed", None)
        if signed is not None:
            fields = {**commit_fields(signed.commit), **fields}
        self._log.record("committed" if event == "applied" else event, **fields)
        if event == "applied":
            self._applied(signed.commit)
        self._tell(event, fields)

    def _applied(self, commit: Commit) -> None:
        self.loss = commit.loss
        mine = sum(c.weight for c in commit.contributions if c.peer == self._me)
        if mine:
            self.contributions += 1
            self.contributed_samples += mine
            self._console.contributed(commit.ballot.epoch, mine)

    def _tell(self, event: str, fields: dict[str, Any]) -> None:
        if event == "given_up":
            self._console.event(f"{fields['samples']} samples given up: {fields['reason']}")
        elif event == "attempt_failed":
            culprit = f" ({fields['peer'][:8]})" if fields["peer"] else ""
            self._console.event(f"attempt {fields['attempt']} of epoch {fields['epoch']} failed: {fields['reason']}{culprit}")
        elif event == "leader_lost":
            self._console.event(f"leader {fields['peer'][:8]} lost: {fields['reason']}")
        elif event == "unreachable":
            self._console.event(f"others cannot reach this computer: {fields['problem']}")
            self._console.event("so it takes part in client mode, which is fine; README says how to forward a port")
        elif event == "reachable":
            self._console.event("others reach this computer now")
        elif event == "port_mapping":
            if problem := fields.get("problem"):
                self._console.event(f"asked the router to forward this computer's ports: {problem}")
            else:
                outside = f"{fields['port']} and {fields['bulk_port']} of {fields['host']}"
                self._console.event(f"the router forwards ports {outside} to this computer ({fields['by']}), until it leaves")
        elif event == "moved":
            self._console.event(
                f"this computer has another address now, {fields['address']}; asking others whether they reach it"
            )
        elif event == "blamed":
            self._console.event(f"an attempt at epoch {fields['epoch']} was lost: somebody could not reach this computer")
        elif event == "unreached":
            self._console.event(f"{fields['peer'][:8]} could not be reached, and reduces nothing for now: {fields['problem']}")
        elif event == "waiting":
            self._console.event(f"paused: {fields['why']}")
        elif event == "slept":
            self._console.event(fields["why"])
        elif event == "leading":
            self._console.event(f"this peer leads now, from epoch {fields['epoch']} on")
        elif event == "paused":
            self._console.event("paused: nobody is left who can be connected to; waiting for such a peer")
        elif event == "catching_up":
            joined = fields["reason"] == Reason.JOINED.value
            self._console.event("looking for the run's state" if joined else f"catching up: {fields['reason']}")
        elif event == "caught_up":
            self._console.event(f"caught up at epoch {fields['epoch']}")
        elif event == "donor_failed":
            self._console.event(fields["problem"])

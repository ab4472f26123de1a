"""Where a peer's events go: every one into its log, with its numbers, and some on the volunteer's screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from peer.console import PeerConsole
from protocols.errors import DiskError
from protocols.host.event_log import EventLog, commit_fields
from protocols.host.reason_words import in_words
from protocols.host.terminal import display_name, duration, plural
from protocols.reasons import Reason
from protocols.round.records import Commit


class PeerEvents:
    def __init__(self, me: str, log: EventLog, console: PeerConsole) -> None:
        self._me = me
        self._log = log
        self._console = console
        self._is_log_lost = False
        self.contributions = 0
        self._given: Counter[str] = Counter()  # samples of each contributor, in the commits that this peer applied
        self.loss: float | None = None
        self.names: Mapping[str, str] = {}
        """What peers call themselves, by their ids, as far as that is known."""

    @property
    def contributed_samples(self) -> int:
        return self._given[self._me]

    @property
    def share(self) -> float:
        """Of the samples that were committed while this peer took part."""
        return self.contributed_samples / (self._given.total() or 1)

    @property
    def rank(self) -> tuple[int, int]:
        """(this peer's place by samples, of how many contributors) since it takes part."""
        more = sum(samples > self.contributed_samples for samples in self._given.values())
        return more + 1, sum(1 for samples in self._given.values() if samples)

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
        self._record("committed" if event == "applied" else event, fields)
        if event == "applied":
            self._applied(signed.commit)
        self._tell(event, fields)

    def _record(self, event: str, fields: dict[str, Any]) -> None:
        """A full disk costs lines of the log, and nothing else."""
        try:
            self._log.record(event, **fields)
        except DiskError as error:
            if not self._is_log_lost:
                self._console.event(f"{error}; it trains on without")
            self._is_log_lost = True
        else:
            self._is_log_lost = False

    def _applied(self, commit: Commit) -> None:
        self.loss = commit.loss
        mine = 0
        for contribution in commit.contributions:
            self._given[contribution.peer] += contribution.weight
            mine += contribution.weight if contribution.peer == self._me else 0
        if mine:
            self.contributions += 1
            self._console.contributed(commit.ballot.epoch, mine)

    def name(self, peer: str) -> str:
        return display_name(self.names.get(peer, ""), peer)

    def _tell(self, event: str, fields: dict[str, Any]) -> None:
        if event == "given_up":
            self._console.event(f"{plural(fields['samples'], 'sample')} given up: {in_words(fields['reason'])}")
        elif event == "attempt_failed":
            culprit = f" ({self.name(fields['peer'])})" if fields["peer"] else ""
            what = f"attempt {fields['attempt']} of epoch {fields['epoch']} failed after {duration(fields['seconds'])}"
            self._console.event(f"{what}: {in_words(fields['reason'])}{culprit}")
        elif event == "leader_lost":
            self._console.event(f"leader {self.name(fields['peer'])} lost: {in_words(fields['reason'])}")
        elif event == "leader_idle":
            waited = f"leader {self.name(fields['peer'])} brought no commit for {duration(fields['seconds'])}"
            self._console.event(f"{waited}: another one is sought")
        elif event == "leader_lied":
            self._console.event(f"leader {self.name(fields['peer'])} kept a commit to itself: another one is sought")
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
            cost = f"cost an attempt at epoch {fields['epoch']}, {duration(fields['seconds'])}"
            self._console.event(f"somebody could not reach this computer, which {cost}; asking others whether they do")
        elif event == "unreached":
            whom = self.name(fields["peer"])
            self._console.event(f"{whom} could not be reached, and reduces nothing for now: {fields['problem']}")
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
            self._console.event("looking for the run's state" if joined else f"catching up: {in_words(fields['reason'])}")
        elif event == "strike":
            self._console.event(f"{self.name(fields['peer'])} sent what nobody foresaw: {fields['problem']}")
        elif event == "reinstated":
            self._console.event(f"nobody has the run's state, so the one given up at epoch {fields['epoch']} is taken back")
        elif event == "caught_up":
            self._console.event(f"caught up at epoch {fields['epoch']}")
        elif event == "donor_failed":
            self._console.event(fields["problem"])

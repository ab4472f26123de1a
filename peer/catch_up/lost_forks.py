"""What a fork cost: after this peer moved to a heavier lineage, which of its commits are not on it, and whose samples they
were."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from peer.catch_up.sources import Sources
from peer.environment import Environment
from protocols.errors import RemoteError
from protocols.reasons import Reason
from protocols.round.records import SignedCommit, Tip
from protocols.snapshot.commits import chain_to, fetch_records

# Forks are short: the whole record is asked for only when this many epochs do not reach back to where it began.
FIRST_EPOCHS = 64
_log = logging.getLogger(__name__)


def lost_commits(own: Iterable[SignedCommit], theirs: Iterable[SignedCommit], tip: Tip) -> list[SignedCommit]:
    """Those of `own` that are not on the lineage of `tip`, whose commits are `theirs`. What those do not tell counts as kept."""
    lineage_at = {tip.epoch: tip.lineage}
    for signed in theirs:
        lineage_at[signed.commit.ballot.epoch] = signed.commit.digest
        lineage_at[signed.commit.ballot.epoch - 1] = signed.commit.ballot.parent

    def is_lost(signed: SignedCommit) -> bool:
        epoch, digest = signed.commit.ballot.epoch, signed.commit.digest
        return epoch > tip.epoch or lineage_at.get(epoch, digest) != digest

    return [signed for signed in own if is_lost(signed)]


def forks_in(lost: Iterable[SignedCommit]) -> list[list[SignedCommit]]:
    """`lost` as unbroken chains, each oldest first. There are several if this peer left a second lineage meanwhile."""
    rest = {signed.commit.digest: signed for signed in lost}
    forks = []
    while rest:
        end = max(rest.values(), key=lambda signed: signed.commit.ballot.epoch)
        forks.append(chain_to(end.commit.digest, rest.values()))
        for signed in forks[-1]:
            del rest[signed.commit.digest]
    return forks


class LostForks:
    """Tells what a fork cost, after this peer has moved to a heavier lineage."""

    def __init__(
        self, environment: Environment, commits: deque[SignedCommit], sources: Sources, events: Callable[..., None]
    ) -> None:
        """`commits`: those that this peer has on record, oldest first. They are kept to the lineage that it is on."""
        self._environment = environment
        self._commits = commits
        self._sources = sources
        self._events = events
        self._doubtful: dict[str, SignedCommit] = {}  # by digest: applied here, and perhaps not on this peer's lineage any more
        self._moves = 0

    def moving(self) -> None:
        """This peer looks for a heavier lineage: `settle` is called when it has arrived, and answers for earlier moves too."""
        self._moves += 1

    async def settle(self, tip: Tip) -> None:
        """This peer's state is at `tip` now, perhaps after it left a lineage that lost: say which commits are lost.

        When this peer moves again while others are asked, nothing is said yet.
        """
        move = self._moves
        replayed = chain_to(tip.lineage, self._commits)  # after a snapshot, or all of it
        since = {signed.commit.digest for signed in replayed}
        self._doubtful |= {signed.commit.digest: signed for signed in self._commits if signed.commit.digest not in since}
        own = sorted(self._doubtful.values(), key=lambda signed: signed.commit.ballot.epoch)
        if not own:
            return
        self._commits.clear()
        self._commits.extend(replayed)  # commits that are applied while others are asked follow these
        theirs = await self._chain(own, tip)
        if move != self._moves:
            return
        self._doubtful = {}
        lost = lost_commits(own, theirs, tip)
        gone = {signed.commit.digest for signed in lost}
        record = {signed.commit.digest: signed for signed in (*own, *theirs, *self._commits) if signed.commit.digest not in gone}
        self._commits.clear()
        self._commits.extend(sorted(record.values(), key=lambda signed: signed.commit.ballot.epoch))
        for fork in forks_in(lost):
            self._tell(fork, tip)

    def _tell(self, lost: Sequence[SignedCommit], tip: Tip) -> None:
        lineage = lost[-1].commit.digest
        samples = sum(signed.commit.samples for signed in lost)
        epoch = lost[0].commit.ballot.epoch
        self._events(
            "fork_lost", reason=Reason.LOST_FORK, epoch=epoch, commits=len(lost), samples=samples, lineage=lineage, to=tip.lineage
        )
        mine = sum(c.weight for signed in lost for c in signed.commit.contributions if c.peer == self._environment.me)
        if mine:
            self._events("given_up", reason=Reason.LOST_FORK, samples=mine, lineage=lineage)

    async def _chain(self, own: Sequence[SignedCommit], tip: Tip) -> list[SignedCommit]:
        """As much of the lineage of `tip` as it takes to find where `own` left it, if anybody has it on record."""
        known = {signed.commit.digest for signed in own} | {own[0].commit.ballot.parent}
        first, last = own[0].commit.ballot.epoch, min(own[-1].commit.ballot.epoch, tip.epoch)
        longest: list[SignedCommit] = []
        environment = self._environment
        for after in sorted({max(first - 1, last - FIRST_EPOCHS), first - 1}, reverse=True):
            for peer in self._sources.reachable():
                try:
                    records = await fetch_records(environment.transport, peer, environment.signer, after, tip.lineage)
                except RemoteError as error:
                    _log.info("no records from %s: %s", peer.peer[:8], error)
                    continue
                chain = chain_to(tip.lineage, records)
                longest = max(longest, chain, key=len)
                if chain and chain[0].commit.ballot.parent in known:
                    return chain
        _log.warning("nobody has on record how this peer's lineage and %s are related", tip.lineage[:12])
        return longest

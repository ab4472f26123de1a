"""What this peer gives to those who catch up: a snapshot of its state, and the last commits with their averaged bytes.

A snapshot is captured on the training thread, once per lineage however many ask, and served from memory by the network's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from peer.handover import Handover
from peer.replica import Replica
from protocols.errors import RemoteError
from protocols.round.records import Candidate, SignedCommit
from protocols.state import Manifest, manifest_of
from protocols.transport.links import Links
from protocols.transport.state_transfer import give_snapshot

# Averaged vectors are kept for whoever misses a result or replays commits after a snapshot.
KEPT_COMMITS = 16
KEPT_BYTES = 256 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptCommit:
    signed: SignedCommit
    averaged: bytes


class Donor:
    def __init__(self, replica: Replica, handover: Handover) -> None:
        self._replica = replica
        self._handover = handover
        self._snapshot: tuple[Manifest, bytes] | None = None
        self._capturing = asyncio.Lock()
        self._commits: deque[KeptCommit] = deque()

    def keep(self, signed: SignedCommit, averaged: bytes) -> None:
        """The newest commit; older ones go when there are too many. At least the newest stays, however large."""
        self._commits.append(KeptCommit(signed, averaged))
        while len(self._commits) > KEPT_COMMITS or (
            len(self._commits) > 1 and sum(len(kept.averaged) for kept in self._commits) > KEPT_BYTES
        ):
            self._commits.popleft()

    def forget(self) -> None:
        """This peer moved to another lineage: what it kept does not lead there."""
        self._commits.clear()
        self._snapshot = None

    def commits_after(self, lineage: str) -> Iterator[KeptCommit] | None:
        """The kept commits that lead on from `lineage`, oldest first; None when the chain does not reach back to it."""
        kept = list(self._commits)
        if kept and kept[-1].signed.commit.digest == lineage:
            return iter(())
        for index, item in enumerate(kept):
            if item.signed.commit.ballot.parent == lineage:
                return iter(kept[index:])
        return None

    async def snapshot(self, digest: str, lineage: str) -> tuple[Manifest, bytes] | None:
        """The snapshot named `digest`, None if it is not here any more; with '' one of `lineage`, this peer's tip now."""
        if digest:
            return self._snapshot if self._snapshot is not None and self._snapshot[0].digest == digest else None
        async with self._capturing:
            if self._snapshot is None or self._snapshot[0].lineage != lineage:
                snapshot, header, _ = await self._handover.run(self._replica.capture)
                self._snapshot = (await asyncio.to_thread(manifest_of, snapshot, header), snapshot)
            return self._snapshot

    async def give(self, links: Links, to: Candidate, lineage: str) -> None:
        """Bring a snapshot of `lineage`, this peer's tip, to a peer that asked for it. What fails is asked for again."""
        try:
            found = await self.snapshot("", lineage)
            if found is not None:
                await give_snapshot(links, to, *found)
        except RemoteError as error:
            _log.warning("state could not be given to %s: %s", to.peer[:8], error)

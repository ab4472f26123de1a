"""Getting to where the others are: ask who is furthest, replay their commits if they reach back to here, else take a
snapshot first."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

from peer.donor import Donor
from peer.donors import Donors
from peer.handover import Handover
from peer.replica import Replica
from peer.uploads import most_snapshot_bytes
from protocols.errors import DriftError, DugnadError, RefusedError, RemoteError, UnreachableError
from protocols.reasons import Reason
from protocols.round.records import Candidate, SignedCommit, Tip
from protocols.signing import check_signed
from protocols.transport.links import Links
from protocols.transport.state_transfer import Progress, ask_all, fetch_commits, fetch_snapshot

# Tried this often, with a pause that doubles from the first to the longest: about two minutes in all.
TRIES, FIRST_PAUSE_S, LONGEST_PAUSE_S = 20, 0.25, 8.0
DONORS_A_TRY = 3

_log = logging.getLogger(__name__)
Advanced = Callable[[SignedCommit, Tip, bytes], None]


class CatchUp:
    def __init__(
        self,
        donor: Donor,
        replica: Replica,
        handover: Handover,
        links: Links,
        donors: Donors,
        events: Callable[..., None],
        progress: Progress,
    ) -> None:
        self._donor = donor
        self._replica = replica
        self._handover = handover
        self._links = links
        self._donors = donors
        self._events = events
        self._progress = progress

    async def run(self, reason: Reason, advanced: Advanced) -> Tip:
        """Bring the replica to the heaviest lineage among the peers known; its tip. `advanced` is told of each commit replayed.

        With nobody further than this replica, that is its own tip. Raises the last problem when all tries failed.
        """
        self._events("catching_up", reason=reason)
        if reason is Reason.DRIFT:
            await self._forget()
        pause_s = FIRST_PAUSE_S
        problem: DugnadError = UnreachableError(
            "no peer answers that holds the run's state", remedy="Check that the coordinator runs, then join again."
        )
        for _ in range(TRIES):
            found = await ask_all(self._links, self._donors.reachable())
            mine = self._replica.tip
            ahead = [there.peer for there in found if mine is None or there.standing.heavier_than(mine.standing)]
            hidden = [peer for peer, standing in self._donors.hidden() if mine is None or standing.heavier_than(mine.standing)]
            if mine is not None and not ahead and not hidden:
                self._events("caught_up", epoch=mine.epoch, lineage=mine.lineage)
                return mine
            ways = [(peer.peer, functools.partial(self._take_from, peer, advanced)) for peer in ahead[:DONORS_A_TRY]]
            ways += [(peer, functools.partial(self._be_brought, peer)) for peer in hidden[:DONORS_A_TRY]]
            for donor, take in ways:
                try:
                    await take()
                    pause_s = FIRST_PAUSE_S
                    break
                except RemoteError as error:
                    problem = error
                    self._events("donor_failed", peer=donor, problem=str(error))
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise problem

    async def _take_from(self, donor: Candidate, advanced: Advanced) -> None:
        if self._replica.tip is not None and await self._replay(donor, advanced):
            return
        await self._restore(await fetch_snapshot(self._links, donor, most_snapshot_bytes(self._replica.elements), self._progress))

    async def _be_brought(self, peer: str) -> None:
        await self._restore(await self._donors.brought_by(peer))

    async def _restore(self, snapshot: bytes) -> None:
        await self._handover.run(functools.partial(self._replica.restore, snapshot))
        self._donor.forget()

    async def _forget(self) -> None:
        """This peer's own state is off: nobody is to have it, this peer included."""
        await self._handover.run(self._replica.forget)
        self._donor.forget()

    async def _replay(self, donor: Candidate, advanced: Advanced) -> bool:
        """False when the donor's commits do not reach back to this replica's tip."""
        assert self._replica.tip is not None
        commits = fetch_commits(self._links, donor, self._replica.tip.lineage, self._replica.outcome)
        try:
            async for signed, averaged in commits:
                check_signed(signed, self._links.credentials.authority)
                tip: Any = await self._handover.run(functools.partial(self._replica.apply, signed, averaged))
                advanced(signed, tip, averaged)
        except DriftError as error:
            _log.warning("%s; taking a snapshot instead", error)
            await self._forget()
            return False
        except RefusedError as error:
            if error.reason == Reason.OTHER_LINEAGE.value:
                return False
            raise
        return True

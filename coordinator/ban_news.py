"""The ban list that this coordinator signs, and how the swarm hears of a new one within a moment."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from coordinator.invites import Invites
from protocols.ban_list import BanList, SignedBanList, ban_list_message
from protocols.errors import RemoteError
from protocols.identity import Authority
from protocols.round.records import Candidate
from protocols.transport.ban_exchange import exchange
from protocols.transport.interface import Transport

LOOK_S = 1.0  # the organiser's commands write into the same database
ANSWER_S = 3.0
MAX_AT_ONCE = 64
_log = logging.getLogger(__name__)


class BanNews:
    """Tells each reachable peer of each new list. Others hear of it from those, or in reply when they announce themselves."""

    def __init__(
        self,
        invites: Invites,
        authority: Authority,
        transport: Transport,
        candidates: Callable[[], list[Candidate]],
        heed: Callable[[frozenset[str]], None],
    ) -> None:
        """`candidates`: reachable peers. `heed` is told who is banned, whenever that changes."""
        self._invites = invites
        self._authority = authority
        self._transport = transport
        self._candidates = candidates
        self._heed = heed
        self._newest = self._signed(BanList(0, ()))
        self._told: dict[str, int] = {}  # peer -> the version that it has

    @property
    def newest(self) -> SignedBanList:
        bans = self._invites.ban_list
        if bans != self._newest.bans:
            self._newest = self._signed(bans)
            self._heed(frozenset(bans.peers))
        return self._newest

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                newest, there = self.newest, self._candidates()
                self._told = {peer.peer: self._told.get(peer.peer, 0) for peer in there}
                waiting = [peer for peer in there if self._told[peer.peer] < newest.bans.version]
                some = random.sample(waiting, min(len(waiting), MAX_AT_ONCE))  # some may be gone, and take all of ANSWER_S
                await asyncio.gather(*(self._tell(peer, newest) for peer in some))
            except Exception:  # noqa: BLE001  others may have caused it, or a full disk
                _log.warning("the ban list could not be passed on; it is tried again", exc_info=True)
            await asyncio.sleep(LOOK_S)

    async def _tell(self, peer: Candidate, newest: SignedBanList) -> None:
        try:
            await exchange(self._transport, peer, newest, ANSWER_S)
        except RemoteError as error:
            _log.info("%s was not told of ban list %d: %s", peer.peer[:8], newest.bans.version, error)
            return
        self._told[peer.peer] = newest.bans.version

    def _signed(self, bans: BanList) -> SignedBanList:
        return SignedBanList(bans, self._authority.sign(ban_list_message(bans)))

"""The ban list that this peer heeds: how it spreads from peer to peer, and who is let through the door."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from peer.environment import Environment
from protocols.ban_list import NO_BANS, KnownBans, SignedBanList
from protocols.errors import BadMessageError, RefusedError, RemoteError
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.round.strikes import Strikes
from protocols.transport.ban_exchange import answer, exchange
from protocols.transport.interface import Stream, refusal

# A list reaches n peers within about log3(n) of these spans when the coordinator is away. While it is there, it tells all whom it
# can reach at once, and the others ask two of those within a span: one may be gone, or the banned peer itself.
EXCHANGE_S = 2.0
ASKED_AT_ONCE = 2
ANSWER_S = 3.0
_SENTENCE = "the organiser does not let this peer take part now"


class Bans:
    """The newest list that this peer has heard of, from the coordinator or from any peer: only the authority's signature counts.

    Whoever sends one that is forged, or no newer than it was told that this peer has, is not heard on bans for a while.
    """

    def __init__(self, environment: Environment, reachable: Callable[[], list[Candidate]], events: Callable[..., None]) -> None:
        """`reachable`: peers that can be asked."""
        self.newest: SignedBanList = NO_BANS
        self.peers: frozenset[str] = frozenset()
        """Peers that the organiser does not let take part now."""
        self._environment = environment
        self._reachable = reachable
        self._events = events
        self._strikes = Strikes(free=0)
        self._inside: defaultdict[str, set[asyncio.Task[Any]]] = defaultdict(set)

    def hear(self, signed: SignedBanList, source: str) -> None:
        """Heed `signed` if it is newer than this peer's. Raises BadMessageError if the authority did not sign it."""
        if signed.bans.version <= self.newest.bans.version:
            return
        self._environment.signer.check_bans(signed)
        before, self.newest = self.peers, signed
        self.peers = frozenset(signed.bans.peers)
        self._environment.directory.bar(self.peers)
        self._events("bans", version=signed.bans.version, count=len(self.peers), source=source)
        for peer in self.peers - before:
            for task in tuple(self._inside.get(peer, ())):
                task.cancel()

    @contextlib.contextmanager
    def door(self, peer: str) -> Iterator[None]:
        """Around all that is done for `peer`; it ends as soon as that peer is banned. Raises RefusedError."""
        if peer in self.peers:
            raise refusal(Reason.BANNED, _SENTENCE)
        task = asyncio.current_task()
        assert task is not None
        self._inside[peer].add(task)
        try:
            yield
        except asyncio.CancelledError:
            if peer in self.peers:
                raise refusal(Reason.BANNED, _SENTENCE) from None
            raise
        finally:
            self._inside[peer].discard(task)
            if not self._inside[peer]:
                del self._inside[peer]

    def check_self(self) -> None:
        """Raises RefusedError when this peer is banned itself."""
        if self._environment.me in self.peers:
            raise RefusedError(_SENTENCE, reason=Reason.BANNED.value, remedy="Ask the organiser.")

    # -- from peer to peer -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled: compare lists with others."""
        environment = self._environment
        while True:
            now = environment.clock()
            others = [other for other in self._reachable() if other.address and not self._strikes.rests(other.peer, now)]
            some = environment.random.sample(others, min(len(others), ASKED_AT_ONCE))
            await asyncio.gather(*map(self._compare_with, some))
            await asyncio.sleep(EXCHANGE_S)

    async def _compare_with(self, peer: Candidate) -> None:
        with contextlib.suppress(RemoteError), self._striking(peer.peer):
            theirs = await exchange(self._environment.transport, peer, self.newest, ANSWER_S)
            if theirs is not None:
                self.hear(theirs, peer.peer)

    async def serve(self, stream: Stream, opening: KnownBans) -> None:
        """Also to peers that are banned: they may see the proof. Raises BadMessageError."""
        if self._strikes.rests(stream.peer, self._environment.clock()):
            raise refusal(Reason.BUSY, "ask again later")
        with self._striking(stream.peer):
            theirs = await answer(stream, opening, self.newest, ANSWER_S)
            if theirs is not None:
                self.hear(theirs, stream.peer)
                await stream.send(KnownBans(self.newest.bans.version))

    @contextlib.contextmanager
    def _striking(self, peer: str) -> Iterator[None]:
        try:
            yield
        except BadMessageError as error:
            self._strikes.strike(peer, self._environment.clock())
            self._events("bans_refused", peer=peer, problem=str(error)[:200])
            raise

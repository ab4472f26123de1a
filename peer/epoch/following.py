"""Which leader this peer follows, which may be this peer itself, and the loop that finds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from peer.epoch.leader_link import LeaderLink
from protocols.reasons import Reason
from protocols.round.records import Candidate, Hello
from protocols.round.succession import Succession
from protocols.transport.interface import Transport

LOOK_AGAIN_S = 0.05
PAUSE_S = 0.25  # between two leaders that are tried


class Participant(Protocol):
    """What the loop needs of the peer that it finds a leader for."""

    @property
    def has_state(self) -> bool:
        """It has held a state of the run."""

    @property
    def able_to_lead(self) -> bool: ...

    @property
    def leaves(self) -> bool:
        """It leaves, or the run is complete: a leader that goes now is no loss."""

    def take_over(self) -> None:
        """Lead from now on, unless it leads already."""

    def step_down(self) -> None:
        """Lead no more, if it leads."""

    def told(self, leader: Candidate, record: Any) -> None:
        """The leader sent this record. Raises BadMessageError."""

    def report(self) -> None:
        """Tell the leader how far this peer is."""

    def events(self, event: str, /, **fields: Any) -> None: ...


class Following:
    """`leader` is the peer whose stream is open, or this peer itself; None while there is none."""

    def __init__(
        self,
        me: str,
        participant: Participant,
        succession: Succession,
        transport: Transport,
        hello: Callable[[], Hello],
        clock: Callable[[], float],
    ) -> None:
        self.leader: Candidate | None = None
        self._me = me
        self._participant = participant
        self._succession = succession
        self._clock = clock
        self._link = LeaderLink(transport, hello, self._receive)

    async def run(self) -> None:
        """For ever: follow the peer that is to lead now, or lead."""
        participant, vain = self._participant, 0  # leaders dialled in vain since one was found
        while True:
            acting = self._succession.acting
            if acting is None or not participant.has_state:
                await asyncio.sleep(LOOK_AGAIN_S)
            elif acting.peer != self._me:
                self._step_down()
                vain = 0 if await self._follow(acting) else vain + 1
                if vain == len(self._succession.order) + 1:
                    participant.events("paused", reason=Reason.NO_REACHABLE_PEER)
            else:
                if participant.able_to_lead:
                    self.leader = acting
                    participant.take_over()
                await asyncio.sleep(LOOK_AGAIN_S)

    def send(self, record: Any, to: str = "") -> None:
        """To the leader at the other end. Dropped if there is none, or if it is not `to`."""
        self._link.send(record, to)

    def moved(self) -> None:
        """This machine has another address: follow the same leader anew if its stream breaks now."""
        self._link.moved()

    async def say_goodbye(self) -> None:
        await self._link.say_goodbye()

    def _receive(self, leader: Candidate, record: Any) -> None:
        self.leader = leader
        self._succession.led()
        self._participant.told(leader, record)

    def _step_down(self) -> None:
        self._participant.step_down()
        if self.leader is not None and self.leader.peer == self._me:
            self.leader = None

    async def _follow(self, leader: Candidate) -> bool:
        """Follow `leader` until its stream ends or somebody else leads; whether it did lead."""

        def goes_on() -> bool:
            acting = self._succession.acting
            return acting is not None and acting.peer == leader.peer

        departure = await self._link.follow(leader, self._participant.report, goes_on)
        self.leader = None
        if departure is None:
            return True
        follows, able = departure.follows, departure.able
        self._succession.passed_over(leader.peer, self._clock(), departure.reason, follows=follows, able=able)
        if departure.led and not self._participant.leaves:
            self._participant.events("leader_lost", peer=leader.peer, reason=departure.reason)
        await asyncio.sleep(PAUSE_S)
        return departure.led

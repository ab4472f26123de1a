"""Which lead this peer follows, this peer itself perhaps, and the loop that finds it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from peer.epoch.leader_link import LeaderLink
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.round.succession import Succession
from protocols.wire import dugnad_pb2 as pb

if TYPE_CHECKING:
    from peer.epoch.engine import Engine

LOOK_AGAIN_S = 0.05
PAUSE_S = 0.25  # between two leads that are tried


class Following:
    def __init__(self, averaging: Engine, succession: Succession) -> None:
        self.leader: Candidate | None = None  # whose stream is open, or this peer itself
        self.succession = succession
        self._engine = averaging
        self._link = LeaderLink(averaging.channels, averaging.hello, self._receive)

    async def run(self) -> None:
        """For ever: follow whoever is to lead now, or lead."""
        averaging, vain = self._engine, 0  # leads dialled in vain since one was found
        while True:
            acting = self.succession.acting
            if acting is None or averaging.member.tip is None:
                await asyncio.sleep(LOOK_AGAIN_S)
            elif acting.peer != averaging.me:
                self._step_down()
                vain = 0 if await self._sit_at(acting) else vain + 1
                if vain == len(self.succession.order) + 1:
                    averaging.events("paused", reason=Reason.NO_REACHABLE_PEER)
            else:
                if averaging.able_to_lead:
                    self._take_over(acting)
                await asyncio.sleep(LOOK_AGAIN_S)

    def send(self, message: pb.MemberMessage, to: str = "") -> None:
        """To the leader at the other end; dropped if there is none, or if it is not `to`."""
        self._link.send(message, to)

    async def say_goodbye(self) -> None:
        await self._link.say_goodbye()

    def _receive(self, leader: Candidate, message: pb.LeaderMessage) -> None:
        self.leader = leader
        self.succession.led()
        self._engine.from_leader(leader, message)

    def _take_over(self, me: Candidate) -> None:
        averaging = self._engine
        if averaging.leader.active:
            return
        now = time.monotonic()
        self.leader = me
        averaging.events("leading", epoch=averaging.member.tip.epoch if averaging.member.tip else 0)
        averaging.perform([*averaging.leader.take_over(now), *averaging.leader.joined(averaging.me, averaging.hello, now)])
        averaging.report()

    def _step_down(self) -> None:
        averaging = self._engine
        if averaging.leader.active:
            averaging.perform(averaging.leader.step_down())
        if self.leader is not None and self.leader.peer == averaging.me:
            self.leader = None
        averaging.desk.close_all()

    async def _sit_at(self, leader: Candidate) -> bool:
        """Follow `lead` until its stream ends or somebody else leads; whether it did lead."""

        def goes_on() -> bool:
            acting = self.succession.acting
            return acting is not None and acting.peer == leader.peer

        averaging = self._engine
        departure = await self._link.follow(leader, averaging.report, goes_on)
        self.leader = None
        if departure is None:
            return True
        follows, able = departure.follows, departure.able
        self.succession.passed_over(leader.peer, time.monotonic(), departure.reason, follows=follows, able=able)
        if departure.led and not averaging.over:
            averaging.events("leader_lost", peer=leader.peer, reason=departure.reason)
        await asyncio.sleep(PAUSE_S)
        return departure.led

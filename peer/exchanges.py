"""The exchanges that this peer has under way, by plan: what runs, what it reduces itself, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from peer.reducing import ReduceError, Reducing, exchange, give_locally
from protocols.codecs import Codec
from protocols.errors import BadMessageError
from protocols.reasons import Reason
from protocols.reduction import CHUNK_ELEMENTS
from protocols.round.lead import DETECTION_S
from protocols.round.records import Averages, Contribution, Plan
from protocols.transport.links import Links

# A member's bulk stream may overtake the lead's plan by at most this.
PLAN_ARRIVES_S = 3 * DETECTION_S
# The share of the newest exchange in the moving averages of this peer's rates.
RATE_SHARE = 0.3


class Exchanges:
    def __init__(self, links: Links, codec: Codec) -> None:
        self._links = links
        self._codec = codec
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._reducing: dict[tuple[str, int], Reducing] = {}
        self._planned = asyncio.Condition()
        self._held: tuple[Averages | None, bytearray] = (None, bytearray())  # of the last plan that came to averages
        self.sent_bytes = self.received_bytes = 0  # since the start
        self.upload_bytes_s = self.download_bytes_s = 0.0  # moving estimates; 0 before the first exchange

    @property
    def moved_bytes(self) -> int:
        """A round is alive while this grows."""
        return self.sent_bytes + self.received_bytes

    async def run(self, plan: Plan, contribution: Contribution | None, encoded: bytes) -> Averages:
        """Take part in `plan`, reducing this peer's own shards of it; what it averages. Raises ReduceError; cancelled by stop().

        `encoded` is the whole contribution, empty without one. Of a plan that finishes averages held here, nothing is fetched.
        """
        me = self._links.credentials.peer_id
        own = {index: Reducing(plan, index, self._codec) for index, shard in enumerate(plan.shards) if shard.reducer == me}
        async with self._planned:
            self._reducing.update({(plan.digest, index): reducing for index, reducing in own.items()})
            self._planned.notify_all()
        task = asyncio.current_task()
        assert task is not None
        self._tasks[plan.digest] = task
        averages, averaged = self._held
        gives: bytes | bytearray = encoded
        if plan.finishes is not None and plan.finishes == averages:
            if me not in plan.contributors:
                await self._pass_on(own, averaged)
                return averages
            gives = averaged
        elif plan.finishes is not None and own and not plan.contributors:
            raise ReduceError(Reason.REDUCER_LOST, me, me, "the averages that it should pass on are not here any more")
        began, sent, received = time.monotonic(), self.sent_bytes, self.received_bytes
        self._held = await exchange(
            plan, contribution, gives, own, codec=self._codec, links=self._links, sent=self.sent, received=self.received
        )
        self._measure(self.sent_bytes - sent, self.received_bytes - received, time.monotonic() - began)
        assert self._held[0] is not None
        return self._held[0]

    async def _pass_on(self, own: dict[int, Reducing], averaged: bytearray) -> None:
        """To whoever fetches: all is here already."""
        me, size = self._links.credentials.peer_id, self._codec.bytes_per_element
        for reducing in own.values():
            shard = reducing.reduction.shard
            up = memoryview(averaged)[shard.start * size : shard.stop * size]
            await give_locally(reducing, me, None, up, CHUNK_ELEMENTS * size)

    def _measure(self, sent_bytes: int, received_bytes: int, seconds: float) -> None:
        """What this peer's links carried, waiting for others included: a lead expects no more of it than this."""
        if sent_bytes and received_bytes and seconds:
            up, down = sent_bytes / seconds, received_bytes / seconds
            self.upload_bytes_s += RATE_SHARE * (up - self.upload_bytes_s) if self.upload_bytes_s else up
            self.download_bytes_s += RATE_SHARE * (down - self.download_bytes_s) if self.download_bytes_s else down

    def averaged(self, averages: Averages) -> bytearray:
        """The averaged vector, encoded, that this peer was last ready for."""
        held, averaged = self._held
        if held != averages:
            raise BadMessageError("the averages at hand are of another plan")
        return averaged

    async def reducing(self, plan_digest: str, shard_index: int) -> Reducing | None:
        """This peer's reduction of a shard; waits a moment, since a member's stream may overtake the lead's plan."""
        key = (plan_digest, shard_index)
        async with self._planned:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._planned.wait_for(lambda: key in self._reducing), PLAN_ARRIVES_S)
        return self._reducing.get(key)

    async def stop(self, plan_digest: str) -> None:
        """The attempt is over: end its streams, and tell those who wait for this peer's shards."""
        task = self._tasks.pop(plan_digest, None)
        if task is not None:
            task.cancel()
        for key in [key for key in self._reducing if key[0] == plan_digest]:
            await self._reducing.pop(key).fail(Reason.SUPERSEDED, self._links.credentials.peer_id, "the attempt is over")

    def committed(self, plan_digest: str) -> None:
        """Others may still be fetching this epoch's shards from here; what is older nobody needs."""
        self._reducing = {key: reducing for key, reducing in self._reducing.items() if key[0] == plan_digest}
        self._tasks.clear()

    def sent(self, size: int) -> None:
        self.sent_bytes += size

    def received(self, size: int) -> None:
        self.received_bytes += size

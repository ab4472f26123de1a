"""The exchanges that this peer has under way, by plan: what runs, what it reduces itself, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Mapping
from typing import Any

from peer.handover import Handover
from peer.reducing import ReduceError, Reducing, exchange, give_locally
from peer.replica import Replica
from protocols.errors import BadMessageError, DugnadError
from protocols.reasons import Reason
from protocols.reduction import CHUNK_ELEMENTS
from protocols.round.lead import DETECTION_S
from protocols.round.records import Averages, Contribution, Plan
from protocols.slices import Outcome
from protocols.transport.links import Links

# A member's bulk stream may overtake the lead's plan by at most this.
PLAN_ARRIVES_S = 3 * DETECTION_S
# The share of the newest exchange in the moving averages of this peer's rates.
RATE_SHARE = 0.3


class DriftedError(DugnadError):
    """All is here and sound, but this peer's state is further off the canonical values of these reducers than rounding allows."""

    def __init__(self, excess: Mapping[str, float]) -> None:
        """`excess`: how far off which reducer's, as a multiple of what is allowed."""
        super().__init__(", ".join(f"{value:.3g} times too far off {reducer[:8]}" for reducer, value in excess.items()))
        self.reducers = tuple(sorted(excess))


class Exchanges:
    def __init__(self, links: Links, replica: Replica, handover: Handover) -> None:
        self._links = links
        self._replica = replica
        self._handover = handover
        self._codec = replica.codec
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
        """Take part in `plan`, reducing this peer's own shards of it; what it averages. Raises ReduceError, or DriftedError;
        cancelled by stop(). The plan has been accepted, so that this peer's state stays at its parent.

        `encoded` is the whole contribution, empty without one. Of a plan that finishes averages held here, nothing is fetched.
        """
        task = asyncio.current_task()
        assert task is not None
        self._tasks[plan.digest] = task
        try:
            values = await self._handover.run(functools.partial(self._replica.slice_values, plan.ballot.parent))
        except BadMessageError as error:
            me = self._links.credentials.peer_id
            raise ReduceError(Reason.OTHER_LINEAGE, me, me, str(error)) from error
        outcome = self._replica.outcome(plan.ballot.epoch)
        averages = await self._come_to(plan, contribution, encoded, outcome, values)
        came_to = self._held[1]
        if memoryview(came_to)[outcome.averaged_bytes :] == values:
            return averages  # nothing has drifted
        excess = await self._handover.run(functools.partial(self._replica.refused, plan, came_to))
        if excess:
            raise DriftedError(excess)
        return averages

    async def _come_to(
        self, plan: Plan, contribution: Contribution | None, encoded: bytes, outcome: Outcome, values: bytes
    ) -> Averages:
        me = self._links.credentials.peer_id
        behind = outcome.averaged_bytes
        own = {}
        for index, shard in enumerate(plan.shards):
            if shard.reducer == me:
                at = outcome.parts(shard.start, shard.stop)[1]
                own[index] = Reducing(plan, index, self._codec, values[at.start - behind : at.stop - behind])
        async with self._planned:
            self._reducing.update({(plan.digest, index): reducing for index, reducing in own.items()})
            self._planned.notify_all()
        averages, averaged = self._held
        gives: bytes | bytearray = encoded
        if plan.finishes is not None and plan.finishes == averages:
            if not plan.contributors:
                await self._pass_on(own, averaged, outcome)
                return averages
            gives = averaged if me in plan.contributors else b""
        elif plan.finishes is not None and own and not plan.contributors:
            raise ReduceError(Reason.REDUCER_LOST, me, me, "the averages that it should pass on are not here any more")
        began, sent, received = time.monotonic(), self.sent_bytes, self.received_bytes
        self._held = await exchange(
            plan,
            contribution,
            gives,
            own,
            outcome=outcome,
            codec=self._codec,
            links=self._links,
            sent=self.sent,
            received=self.received,
        )
        self._measure(self.sent_bytes - sent, self.received_bytes - received, time.monotonic() - began)
        assert self._held[0] is not None
        return self._held[0]

    async def _pass_on(self, own: dict[int, Reducing], averaged: bytearray, outcome: Outcome) -> None:
        """To whoever fetches: all is here already."""
        for reducing in own.values():
            up = outcome.of(averaged, reducing.reduction.shard.start, reducing.reduction.shard.stop)
            chunk_bytes = outcome.codec.encoded_bytes(CHUNK_ELEMENTS)
            await give_locally(reducing, self._links.credentials.peer_id, None, up, chunk_bytes)

    def _measure(self, sent_bytes: int, received_bytes: int, seconds: float) -> None:
        """What this peer's links carried, waiting for others included: a lead expects no more of it than this."""
        if sent_bytes and received_bytes and seconds:
            up, down = sent_bytes / seconds, received_bytes / seconds
            self.upload_bytes_s += RATE_SHARE * (up - self.upload_bytes_s) if self.upload_bytes_s else up
            self.download_bytes_s += RATE_SHARE * (down - self.download_bytes_s) if self.download_bytes_s else down

    def averaged(self, averages: Averages) -> bytearray:
        """The averaged vector, encoded, and the canonical values that this peer was last ready for."""
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

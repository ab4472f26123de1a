"""The exchanges that this peer has under way, by plan: what runs, what it reduces itself, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from peer.reducing import Reducing, exchange
from protocols.codecs import Codec
from protocols.errors import BadMessageError
from protocols.reasons import Reason
from protocols.round.lead import DETECTION_S
from protocols.round.records import Contribution, Plan, Result
from protocols.transport.links import Links

# A member's bulk stream may overtake the lead's plan by at most this.
PLAN_ARRIVES_S = 3 * DETECTION_S


class Exchanges:
    def __init__(self, links: Links, codec: Codec) -> None:
        self._links = links
        self._codec = codec
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._reducing: dict[tuple[str, int], Reducing] = {}
        self._planned = asyncio.Condition()
        self._averaged: tuple[str, bytearray] = ("", bytearray())
        self.moved_bytes = 0  # sent and received since the start: a round is alive while this grows

    async def run(self, plan: Plan, contribution: Contribution | None, encoded: bytes) -> Result:
        """Take part in `plan`, reducing this peer's own shards of it. Raises ReduceError; cancelled by stop()."""
        me = self._links.credentials.peer_id
        own = {index: Reducing(plan, index, self._codec) for index, shard in enumerate(plan.shards) if shard.reducer == me}
        async with self._planned:
            self._reducing.update({(plan.digest, index): reducing for index, reducing in own.items()})
            self._planned.notify_all()
        task = asyncio.current_task()
        assert task is not None
        self._tasks[plan.digest] = task
        result, averaged = await exchange(
            plan, contribution, encoded, own, codec=self._codec, links=self._links, moved=self.moved
        )
        self._averaged = (plan.digest, averaged)
        return result

    def averaged(self, plan_digest: str) -> bytearray:
        """The averaged vector of a plan that this peer is ready for."""
        digest, averaged = self._averaged
        if digest != plan_digest:
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

    def moved(self, size: int) -> None:
        self.moved_bytes += size

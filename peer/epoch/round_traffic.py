"""The exchanges that this peer has under way, by plan: what runs, what it reduces itself, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Mapping
from typing import Any

from peer.epoch.all_reduce import all_reduce, give_locally
from peer.epoch.shard_server import AllReduceError, ServedShard
from peer.training.job_queue import JobQueue
from peer.training.replica import Replica
from protocols.errors import BadMessageError, DugnadError
from protocols.gradients.aggregation import Rule
from protocols.gradients.codecs import Bytes
from protocols.gradients.shard_average import chunk_elements_of
from protocols.gradients.slices import ResultLayout
from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.plans import MemberPlan
from protocols.round.records import Averages, Contribution
from protocols.transport.bulk import BulkConnections

# A member's bulk stream may overtake the leader's plan by at most this.
PLAN_ARRIVES_S = 3 * DETECTION_S
_NOTHING: tuple[Averages | None, memoryview] = (None, memoryview(b""))


class DriftedError(DugnadError):
    """All is here and sound, but this peer's state is further off the canonical values of these reducers than rounding allows."""

    def __init__(self, excess: Mapping[str, float]) -> None:
        """`excess`: how far off which reducer's, as a multiple of what is allowed."""
        super().__init__(", ".join(f"{value:.3g} times too far off {reducer[:8]}" for reducer, value in excess.items()))
        self.reducers = tuple(sorted(excess))


class RoundTraffic:
    def __init__(self, me: str, channels: BulkConnections, replica: Replica, jobs: JobQueue, rule: Rule) -> None:
        self._me = me
        self._channels = channels
        self._replica = replica
        self._jobs = jobs
        self._rule = rule
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._reducing: dict[tuple[str, int], ServedShard] = {}
        self._failed: list[ServedShard] = []  # of the attempt that ended last: some may still be told
        self._planned = asyncio.Condition()
        self._held = _NOTHING  # of the last plan that came to averages

    def began(self, plan_digest: str, task: asyncio.Task[Any]) -> None:
        """`task` takes part in that plan, until stop()."""
        self._tasks[plan_digest] = task

    async def run(self, plan: MemberPlan, contribution: Contribution | None, encoded: Bytes) -> Averages:
        """Take part in `plan`, reducing this peer's own shards of it; what it averages. Raises ReduceError, or DriftedError. The
        plan has been accepted, so that this peer's state stays at its parent.

        `encoded` is the whole contribution, empty without one. Of a plan that finishes averages held here, nothing is fetched.
        What an earlier attempt came to is held until this one has come to its end, since it may have to be finished yet.
        """
        try:
            values = await self._jobs.run(functools.partial(self._replica.slice_values, plan.ballot.parent))
        except BadMessageError as error:
            raise AllReduceError(Reason.OTHER_LINEAGE, self._me, self._me, str(error)) from error
        outcome = self._replica.layout(plan.ballot.epoch)
        averages, result = await self._come_to(plan, contribution, encoded, outcome, values)
        if result[outcome.averaged_bytes :] != values:
            excess = await self._jobs.run(functools.partial(self._replica.refused, plan, result))
            if excess:
                raise DriftedError(excess)
        self._held = averages, result
        return averages

    async def _come_to(
        self, plan: MemberPlan, contribution: Contribution | None, encoded: Bytes, outcome: ResultLayout, values: bytes
    ) -> tuple[Averages, memoryview]:
        me = self._me
        behind = outcome.averaged_bytes
        own = {}
        for index, shard in enumerate(plan.shards):
            if shard.reducer == me:
                at = outcome.parts(shard.start, shard.stop)[1]
                own[index] = ServedShard(plan, index, outcome.codec, self._rule, values[at.start - behind : at.stop - behind])
        async with self._planned:
            self._reducing.update({(plan.digest, index): reducing for index, reducing in own.items()})
            self._planned.notify_all()
        averages, averaged = self._held
        gives: Bytes = encoded
        if plan.finishes is not None and plan.finishes == averages:
            if not plan.is_given_to:
                await self._pass_on(own, averaged, outcome)
                return averages, averaged
            gives = averaged if plan.gives else b""
        elif plan.finishes is not None and own and not plan.is_given_to:
            raise AllReduceError(Reason.REDUCER_LOST, me, me, "the averages that it should pass on are not here any more")
        bandwidth = self._channels.bandwidth
        bandwidth.begin()
        try:
            result = await all_reduce(plan, me, contribution, gives, own, outcome=outcome, channels=self._channels)
            bandwidth.end(plan.planned_s, sends=contribution is not None or bool(own))
        finally:
            bandwidth.give_up()
        return result

    async def _pass_on(self, own: dict[int, ServedShard], averaged: memoryview, outcome: ResultLayout) -> None:
        """To whoever fetches: all is here already."""
        for reducing in own.values():
            shard = reducing.reduction.shard
            up = outcome.chunks(averaged, shard.start, shard.stop, chunk_elements_of(shard))
            await give_locally(reducing, self._me, None, up)

    def averaged(self, averages: Averages) -> memoryview:
        """The averaged vector, encoded, and the canonical values that this peer was last ready for."""
        held, averaged = self._held
        if held != averages:
            raise BadMessageError("the averages at hand are of another plan")
        return averaged

    async def reducing(self, plan_digest: str, shard_index: int) -> ServedShard | None:
        """This peer's reduction of a shard; waits a moment, since a member's stream may overtake the leader's plan."""
        key = (plan_digest, shard_index)
        async with self._planned:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._planned.wait_for(lambda: key in self._reducing), PLAN_ARRIVES_S)
        return self._reducing.get(key)

    def stop(self, plan_digest: str) -> None:
        """The attempt is over: end its streams, and tell those who wait for this peer's shards. Nothing more comes of it, not
        even in a task that has not begun."""
        task = self._tasks.pop(plan_digest, None)
        if task is not None:
            task.cancel()
        for reducing in self._failed:
            reducing.close()
        self._failed = []
        for key in [key for key in self._reducing if key[0] == plan_digest]:
            reducing = self._reducing.pop(key)
            reducing.fail(Reason.SUPERSEDED, self._me, "the attempt is over")
            self._failed.append(reducing)

    def committed(self, plan_digest: str) -> None:
        """Others may still be fetching this epoch's shards from here; what is older nobody needs, and the whole vector is the
        donor's now: here it would be a third beside the next round's two."""
        self._held = _NOTHING
        kept = {key: reducing for key, reducing in self._reducing.items() if key[0] == plan_digest}
        for reducing in (*self._failed, *(it for key, it in self._reducing.items() if key not in kept)):
            reducing.close()
        self._reducing, self._failed = kept, []
        self._tasks.clear()

"""The bulk traffic of this peer's rounds, by plan: the all-reduces under way, the shards it reduces, and the newest result."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Mapping
from typing import Any

from peer.environment import Environment
from peer.epoch.all_reduce import Participation, all_reduce, send_locally
from peer.epoch.shard_server import AllReduceError, ServedShard
from peer.settings import RunSettings
from peer.training.side import TrainingSide
from protocols.errors import BadMessageError, DugnadError
from protocols.gradients.aggregation import rule_named
from protocols.gradients.codecs import Bytes
from protocols.gradients.shard_average import shard_average_of
from protocols.gradients.slices import ResultLayout
from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.plans import MemberPlan
from protocols.round.records import Averages, Contribution

# A member's bulk stream may overtake the leader's plan by at most this.
PLAN_ARRIVES_S = 3 * DETECTION_S
_NOTHING: tuple[Averages | None, memoryview] = (None, memoryview(b""))


class DriftedError(DugnadError):
    """The result is whole, but this peer's state is further off these reducers' canonical values than rounding allows."""

    def __init__(self, excess: Mapping[str, float]) -> None:
        """`excess`: by reducer, how far off, as a multiple of what is allowed."""
        super().__init__(", ".join(f"{value:.3g} times too far off {reducer[:8]}" for reducer, value in excess.items()))
        self.reducers = tuple(sorted(excess))


class RoundTraffic:
    """All that this peer sends and receives for rounds."""

    def __init__(self, environment: Environment, training: TrainingSide, settings: RunSettings) -> None:
        self._environment = environment
        self._me = environment.me
        self._replica = training.replica
        self._jobs = training.jobs
        self._rule, self._max_share = rule_named(settings.rule), settings.max_share
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._served: dict[tuple[str, int], ServedShard] = {}
        self._failed: list[ServedShard] = []  # of the attempt that ended last: some members may still be told
        self._planned = asyncio.Condition()
        self._held = _NOTHING  # averages and result of the last plan that was completed

    def began(self, plan_digest: str, task: asyncio.Task[Any]) -> None:
        """`task` takes part in that plan, until `stop`."""
        self._tasks[plan_digest] = task

    async def run(self, plan: MemberPlan, contribution: Contribution | None, encoded: Bytes) -> Averages:
        """Take part in `plan` and reduce this peer's shards of it; what it averages. Raises AllReduceError or DriftedError.

        The plan has been accepted, so that this peer's state stays at the plan's parent. `encoded` is the whole contribution,
        empty without one. If the plan finishes averages that are held here, nothing is fetched. An earlier attempt's result is
        held until this attempt has a result, since it may have to be finished yet.
        """
        try:
            values = await self._jobs.run(functools.partial(self._replica.slice_values, plan.ballot.parent))
        except BadMessageError as error:
            raise AllReduceError(Reason.OTHER_LINEAGE, self._me, self._me, str(error)) from error
        layout = self._replica.layout(plan.ballot.epoch)
        averages, result = await self._completed(plan, contribution, encoded, layout, values)
        if result[layout.averaged_bytes :] != values:
            excess = await self._jobs.run(functools.partial(self._replica.refused, plan, result))
            if excess:
                raise DriftedError(excess)
        self._held = averages, result
        return averages

    async def _completed(
        self, plan: MemberPlan, contribution: Contribution | None, encoded: Bytes, layout: ResultLayout, values: bytes
    ) -> tuple[Averages, memoryview]:
        me, transport = self._me, self._environment.transport
        own = self._serve(plan, layout, values)
        async with self._planned:
            self._served.update({(plan.digest, index): shard for index, shard in own.items()})
            self._planned.notify_all()
        averages, result = self._held
        sends: Bytes = encoded
        if plan.finishes is not None and plan.finishes == averages:
            if not plan.has_senders:
                await self._pass_on(own, result, layout)
                return averages, result
            sends = result if plan.sends else b""
        elif plan.finishes is not None and own and not plan.has_senders:
            raise AllReduceError(Reason.REDUCER_LOST, me, me, "the averages that it should pass on are not here any more")
        transport.bandwidth.begin()
        try:
            participation = Participation(me, plan, contribution, sends, own, layout, self._environment.sizes.chunking)
            completed = await all_reduce(participation, transport)
            transport.bandwidth.end(plan.planned_s, sends=contribution is not None or bool(own))
        finally:
            transport.bandwidth.give_up()
        return completed

    def _serve(self, plan: MemberPlan, layout: ResultLayout, values: bytes) -> dict[int, ServedShard]:
        """This peer's shards of the plan, by index. `values`: its own of the epoch's slice."""
        chunking, own = self._environment.sizes.chunking, {}
        for index, shard in enumerate(plan.shards):
            if shard.reducer == self._me:
                at = layout.parts(shard.start, shard.stop)[1]
                canonical = values[at.start - layout.averaged_bytes : at.stop - layout.averaged_bytes]
                sizes = (layout.codec, self._rule, chunking.elements(shard), canonical)
                average = shard_average_of(plan, index, *sizes, max_share=self._max_share)
                own[index] = ServedShard(plan, average)
        return own

    async def _pass_on(self, own: dict[int, ServedShard], result: memoryview, layout: ResultLayout) -> None:
        """To the members that fetch: the whole result is here already."""
        for served in own.values():
            shard = served.average.shard
            chunks = layout.chunks(result, shard.start, shard.stop, self._environment.sizes.chunking.elements(shard))
            await send_locally(served, self._me, None, chunks)

    def result(self, averages: Averages) -> memoryview:
        """The result of the plan that averaged this: the encoded averages, then the canonical values. Raises BadMessageError."""
        held, result = self._held
        if held != averages:
            raise BadMessageError("the averages at hand are of another plan")
        return result

    async def served(self, plan_digest: str, shard_index: int) -> ServedShard | None:
        """A shard that this peer reduces. Waits a moment for it, since a member's stream may overtake the leader's plan."""
        key = (plan_digest, shard_index)
        async with self._planned:
            if key not in self._served:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._planned.wait_for(lambda: key in self._served), PLAN_ARRIVES_S)
        return self._served.get(key)

    def stop(self, plan_digest: str) -> None:
        """The attempt is over: its streams end, and members that wait for this peer's shards are told.

        Nothing more comes of it, not even from a task that has not begun.
        """
        task = self._tasks.pop(plan_digest, None)
        if task is not None:
            task.cancel()
        for shard in self._failed:
            shard.close()
        self._failed = []
        for key in [key for key in self._served if key[0] == plan_digest]:
            shard = self._served.pop(key)
            shard.fail(Reason.SUPERSEDED, self._me, "the attempt is over")
            self._failed.append(shard)

    def committed(self, plan_digest: str) -> None:
        """This plan's epoch is committed. Members may still be fetching its shards from here; nobody needs older ones.

        The whole vector belongs to KeptState now: here it would be a third beside the next round's two.
        """
        self._held = _NOTHING
        kept = {key: shard for key, shard in self._served.items() if key[0] == plan_digest}
        for shard in (*self._failed, *(it for key, it in self._served.items() if key not in kept)):
            shard.close()
        self._served, self._failed = kept, []
        self._tasks.clear()

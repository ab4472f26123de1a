"""A plan's bulk traffic between simulated processes: peer/epoch/round_traffic.py and peer/epoch/shard_server.py, without asyncio.

The averaging itself is production's ShardReduction, on real vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from peer.simulation.messages import Averaged, Chunk, ReduceOpen, Refused
from peer.simulation.network import Stream
from protocols.errors import BadMessageError
from protocols.gradients.aggregation import weighted_mean
from protocols.gradients.codecs import CODECS, Codec
from protocols.gradients.shard_average import shard_average_of
from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.planner import GRID
from protocols.round.plans import MemberPlan
from protocols.round.records import Averages, Contribution, ShardResult

if TYPE_CHECKING:
    from peer.simulation.process import SimulatedPeer

# Half a block, so that even the shortest shard has more than one chunk and an attempt can end between two.
CHUNK_ELEMENTS = GRID // 2
# A member's stream may overtake the leader's plan by at most this, as in peer/epoch/round_traffic.py.
PLAN_ARRIVES_S = 3 * DETECTION_S
# What a process takes its line's rates for, as multiples of what they are: after each exchange, and of so many when they start.
MEASURED = (0.6, 1.3)
PROBED = 0.8
Item = Averaged | Chunk | ShardResult | Refused


class ServedShard:
    """This process's own shard of a plan, with those who wait for its averages."""

    def __init__(self, plan: MemberPlan, index: int, codec: Codec, canonical: bytes) -> None:
        self.plan = plan
        self.reduction = shard_average_of(plan, index, codec, weighted_mean, canonical, CHUNK_ELEMENTS)
        self.error: Refused | None = None
        self._readers: list[tuple[Callable[[Item], None], list[int]]] = []

    def open(self, peer: str, contribution: Contribution | None) -> None:
        self._checked(peer, lambda: self.reduction.open(peer, contribution))

    def feed(self, peer: str, data: bytes) -> None:
        self._checked(peer, lambda: self.reduction.feed(peer, data))

    def fail(self, reason: Reason, whom: str) -> None:
        """The first failure stands; everybody who waits is told."""
        if self.error is None:
            self.error = Refused(reason, whom)
            self._grown()

    def read(self, give: Callable[[Item], None]) -> None:
        """The contributions, then each averaged chunk as it comes, then the result, or Refused."""
        self._readers.append((give, [0]))
        self._serve(*self._readers[-1])

    def _checked(self, peer: str, act: Callable[[], None]) -> None:
        if self.error is not None:
            return
        try:
            act()
        except BadMessageError:
            self.fail(Reason.BAD_CHUNK, peer)
            return
        self._grown()

    def _grown(self) -> None:
        for give, at in list(self._readers):
            self._serve(give, at)

    def _serve(self, give: Callable[[Item], None], at: list[int]) -> None:
        """`at`: how many items this reader has: the contributions count as one, the result as the last."""
        reduction = self.reduction
        if at[0] < 0:
            return
        if at[0] == 0 and reduction.contributions is not None:
            at[0] = 1
            give(Averaged(reduction.contributions))
        while 0 < at[0] <= len(reduction.averaged):
            at[0] += 1
            give(Chunk(reduction.averaged[at[0] - 2]))
        if reduction.result is not None and at[0] == len(reduction.averaged) + 1:
            at[0] = -1
            give(reduction.result)
        elif self.error is not None:
            at[0] = -1
            give(self.error)


class _Received:
    """A shard as it comes down, checked against what its reducer says at the end."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.contributions: tuple[Contribution, ...] = ()
        self.result: ShardResult | None = None


class Exchange:
    """One member's part in one plan."""

    def __init__(self, process: SimulatedPeer, plan: MemberPlan, contribution: Contribution | None, encoded: bytes) -> None:
        self.process, self.plan, self.contribution = process, plan, contribution
        self.over = False
        self.streams: list[Stream] = []
        self.received = [_Received() for _ in plan.shards]
        self._encoded = encoded
        self._outcome = process.replica.outcome(plan.ballot.epoch)

    def begin(self, own: dict[int, ServedShard]) -> None:
        for index, shard in enumerate(self.plan.shards):
            views = self._outcome.chunks(self._encoded, shard.start, shard.stop, CHUNK_ELEMENTS)
            chunks = [Chunk(bytes(view)) for view in views]
            if index in own:
                self._give_locally(own[index], index, chunks)
                continue
            stream = self.process.network.dial(
                self.process,
                shard.reducer,
                "reduce",
                ReduceOpen(self.plan.digest, index, self.contribution),
                lambda item, index=index: self._take(index, item),  # type: ignore[misc]
                lambda index=index: self._lost(index),  # type: ignore[misc]
            )
            self.streams.append(stream)
            for chunk in chunks:
                self.process.round_traffic.sent_bytes += len(chunk.data)
                stream.send(self.process, chunk, len(chunk.data))

    def _give_locally(self, reducing: ServedShard, index: int, chunks: list[Chunk]) -> None:
        if chunks:
            reducing.open(self.process.name, self.contribution)
            for chunk in chunks:
                reducing.feed(self.process.name, chunk.data)
        reducing.read(lambda item: self._take(index, item))

    def stop(self) -> None:
        self.over = True
        for stream in self.streams:
            stream.close(self.process)

    def _take(self, index: int, item: Item) -> None:
        received, shard = self.received[index], self.plan.shards[index]
        if self.over:
            return
        if isinstance(item, Averaged):
            received.contributions = item.contributions
        elif isinstance(item, Chunk):
            received.data += item.data
            self.process.round_traffic.received_bytes += len(item.data)
        elif isinstance(item, Refused):
            named = item.reason in (Reason.BAD_CHUNK, Reason.CONTRIBUTOR_LOST)
            self._fail(item.reason if named else Reason.REDUCER_LOST, item.whom if named else self.process.name, shard.reducer)
        elif blake3(received.data).hexdigest() != item.digest or (item.start, item.stop) != (shard.start, shard.stop):
            self._fail(Reason.REDUCER_LOST, self.process.name, shard.reducer)
        else:
            received.result = item
            self._finish_if_whole()

    def _lost(self, index: int) -> None:
        if self.received[index].result is None:
            self._fail(Reason.REDUCER_LOST, self.process.name, self.plan.shards[index].reducer)

    def _fail(self, reason: Reason, member: str, reducer: str) -> None:
        if not self.over:
            self.stop()
            self.process.exchange_failed(self.plan, reason, member, reducer)

    def _finish_if_whole(self) -> None:
        results = tuple(received.result for received in self.received if received.result is not None)
        if len(results) < len(self.plan.shards):
            return
        first, me = self.received[0].contributions, self.process.name
        for received, shard in zip(self.received, self.plan.shards, strict=True):
            if received.contributions != first:
                self._fail(Reason.RESULTS_DIFFER, me, shard.reducer)
                return
        if self.contribution is not None and self.contribution not in first:
            self._fail(Reason.RESULTS_DIFFER, me, self.plan.shards[0].reducer)
            return
        averages = Averages(first, results)
        if self.plan.finishes not in (None, averages):
            self._fail(Reason.RESULTS_DIFFER, me, self.plan.shards[0].reducer)
            return
        result = bytearray(self._outcome.total_bytes)
        for received, shard in zip(self.received, self.plan.shards, strict=True):
            averaged, canonical = self._outcome.parts(shard.start, shard.stop)
            split = averaged.stop - averaged.start
            result[averaged], result[canonical] = received.data[:split], received.data[split:]
        if len(result) != self._outcome.total_bytes:
            self._fail(Reason.RESULTS_DIFFER, me, self.plan.shards[0].reducer)
            return
        self.over = True
        self.process.round_traffic.finished(self, averages, bytes(result))


class RoundTraffic:
    """The exchanges that a process has under way, by plan, and the shards that it reduces."""

    def __init__(self, process: SimulatedPeer) -> None:
        self._process = process
        self._running: dict[str, Exchange] = {}
        self.reducing: dict[tuple[str, int], ServedShard] = {}
        self._early: dict[tuple[str, int], list[Callable[[], None]]] = {}
        self.held: tuple[Averages | None, bytes] = (None, b"")  # of the last plan that came to averages
        self.sent_bytes = self.received_bytes = 0
        self.upload_bytes_s = self.download_bytes_s = 0.0
        if process.world.random.random() < PROBED:
            self._measure()

    @property
    def moved_bytes(self) -> int:
        return self.sent_bytes + self.received_bytes

    def run(self, plan: MemberPlan, contribution: Contribution | None, encoded: bytes) -> None:
        me, replica = self._process.name, self._process.replica
        own = {
            index: ServedShard(plan, index, CODECS[plan.codec], replica.slice_values(plan.ballot.epoch, shard.start, shard.stop))
            for index, shard in enumerate(plan.shards)
            if shard.reducer == me
        }
        self.reducing.update({(plan.digest, index): reducing for index, reducing in own.items()})
        averages, averaged = self.held
        if plan.finishes is not None and plan.finishes == averages and not plan.gives:
            self._pass_on(own, averaged)
            self._process.world.at(0.0, self._process, lambda: self._process.exchanged(plan, averages))
        elif plan.finishes is not None and own and not plan.is_given_to:
            self._process.world.at(0.0, self._process, lambda: self._process.exchange_failed(plan, Reason.REDUCER_LOST, me, me))
        else:
            gives = averaged if plan.gives and plan.finishes is not None else encoded
            all_reduce = self._running[plan.digest] = Exchange(self._process, plan, contribution, gives)
            all_reduce.begin(own)
        for index in own:
            for serve in self._early.pop((plan.digest, index), []):
                serve()

    def _pass_on(self, own: dict[int, ServedShard], averaged: bytes) -> None:
        me = self._process.name
        for reducing in own.values():
            shard = reducing.reduction.shard
            outcome = self._process.replica.outcome(reducing.plan.ballot.epoch)
            reducing.open(me, None)
            for view in outcome.chunks(averaged, shard.start, shard.stop, CHUNK_ELEMENTS):
                reducing.feed(me, bytes(view))

    def finished(self, all_reduce: Exchange, averages: Averages, averaged: bytes) -> None:
        self.held = (averages, averaged)
        self._measure()
        self._process.exchanged(all_reduce.plan, averages)

    def _measure(self) -> None:
        machine, random = self._process.machine, self._process.world.random
        self.upload_bytes_s = machine.up_bytes_s * random.uniform(*MEASURED)
        self.download_bytes_s = machine.down_bytes_s * random.uniform(*MEASURED)

    def stop(self, plan_digest: str) -> None:
        all_reduce = self._running.pop(plan_digest, None)
        if all_reduce is not None:
            all_reduce.stop()
        for key in [key for key in self.reducing if key[0] == plan_digest]:
            self.reducing.pop(key).fail(Reason.SUPERSEDED, self._process.name)

    def committed(self, plan_digest: str) -> None:
        """Others may still be fetching this epoch's shards from here; what is older nobody needs. The donor has the vector."""
        self.held = (None, b"")
        self.reducing = {key: reducing for key, reducing in self.reducing.items() if key[0] == plan_digest}
        self._running.clear()

    def find(self, plan_digest: str, shard: int) -> ServedShard | None:
        return self.reducing.get((plan_digest, shard))

    def serve(self, stream: Stream, opening: ReduceOpen) -> None:
        """A member's stream, seen from the reducer; one that overtook the plan waits a moment."""
        waiting: list[Any] = []
        stream.serve(waiting.append, lambda: waiting.append(None))
        served: list[bool] = []

        def serve() -> None:
            if not served:
                served.append(True)
                self._serve(stream, opening, waiting)

        if self.find(opening.plan_digest, opening.shard) is not None:
            serve()
        else:
            self._early.setdefault((opening.plan_digest, opening.shard), []).append(serve)
            self._process.world.at(PLAN_ARRIVES_S, self._process, serve)

    def _serve(self, stream: Stream, opening: ReduceOpen, waiting: list[Any]) -> None:
        process, peer = self._process, stream.client.machine.name
        reducing = self.find(opening.plan_digest, opening.shard)
        if reducing is None or peer not in reducing.plan.members:
            stream.send(process, Refused(Reason.NOT_A_MEMBER))
            stream.close(process)
            return
        given = opening.contribution is not None or peer in reducing.plan.contributors
        received = [0]

        def receive(chunk: Chunk) -> None:
            reducing.feed(peer, chunk.data)
            received[0] += len(chunk.data)
            self.received_bytes += len(chunk.data)

        def ended() -> None:
            if given and received[0] < reducing.reduction.shard_bytes:
                reducing.fail(Reason.CONTRIBUTOR_LOST, peer)

        def give(item: Item) -> None:
            size = len(item.data) if isinstance(item, Chunk) else 200
            self.sent_bytes += size if isinstance(item, Chunk) else 0
            stream.send(process, item, size)

        if given:
            reducing.open(peer, opening.contribution)
        stream.serve(receive, ended)
        for message in waiting:
            if message is None:
                ended()
            else:
                receive(message)
        reducing.read(give)

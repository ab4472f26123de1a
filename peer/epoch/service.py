"""What a peer answers to others: every call and every request on a bulk connection."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from peer.catch_up.pushed_snapshots import chunk_at
from peer.catch_up.serving_rate import ServingRate
from peer.epoch.bandwidth_probe import ProbeServer
from peer.epoch.engine import HEARTBEAT_S, Engine
from peer.epoch.reachability import dial_back
from peer.epoch.shard_server import serve_shard
from peer.epoch.slots import Slots
from protocols.ban_list import KnownBans
from protocols.errors import BadMessageError, RefusedError, RemoteError
from protocols.messages import (
    NOBODY,
    AskReply,
    AskRequest,
    Chunk,
    CommitsRequest,
    DialBackRequest,
    Leave,
    Manifest,
    NotLeader,
    ObserveRequest,
    OfferRequest,
    ReduceOpen,
    SnapshotRequest,
)
from protocols.reasons import Reason
from protocols.round.drift_votes import Drifted, refusal_message
from protocols.round.member import Phase, Ready
from protocols.round.records import MAX_PEERS, Hello, Report, vote_message
from protocols.transport.frames import FrameStream, Kind, refuse
from protocols.transport.interface import Stream, refusal

_log = logging.getLogger(__name__)
_CHUNK_BYTES = 256 << 10  # of a commit's result
# A joiner takes from one donor what it is given to take, and asks for the rest then. Each holds a part of the state in memory.
MAX_GIFTS_OF_PEER, MAX_GIFTS = 4, 64
# A peer that finds its way in asks for one after another. Each dials up to two addresses that the caller names, for six seconds.
MAX_DIALS_OF_PEER, MAX_DIALS = 2, 16
MAX_FOLLOWERS = MAX_PEERS - 1  # the leader takes part, and no record lists more


class PeerService:
    """Checks what others ask of this peer, and passes it on to the engine."""

    def __init__(self, engine: Engine) -> None:
        environment, bandwidth = engine.environment, engine.bandwidth
        self._engine = engine
        self._clock = environment.clock
        in_round = lambda: engine.member.phase is Phase.REDUCING  # noqa: E731
        self._rate = ServingRate(in_round, bandwidth.up, environment.clock)
        self._gifts = Slots(MAX_GIFTS_OF_PEER, MAX_GIFTS)
        self._dials = Slots(MAX_DIALS_OF_PEER, MAX_DIALS)
        self._probes = ProbeServer(environment, in_round=lambda: bandwidth.up.began_at is not None)

    async def serve(self, stream: Stream, opening: Any) -> None:
        """One call, which `opening` began. Raises RefusedError to say no, BadMessageError for what breaks the protocol."""
        bans = self._engine.bans
        with self._engine.guarded(stream.peer):
            if isinstance(opening, KnownBans):
                await bans.serve(stream, opening)
                return
            with bans.door(stream.peer):
                await self._serve(stream, opening)

    async def _serve(self, stream: Stream, opening: Any) -> None:
        match opening:
            case Hello():
                await self._follow(stream, opening)
            case AskRequest():
                await stream.send(self._whereabouts())
            case DialBackRequest():
                with self._dials.taken(stream.peer, "dials"):
                    await stream.send(await dial_back(self._engine.environment.transport, stream.peer, opening))
            case OfferRequest():
                await stream.send(await self._offer(opening))
            case SnapshotRequest():
                with self._gifts.taken(stream.peer, "transfers"):
                    await self._send_chunks(stream, opening)
            case Manifest():
                await self._engine.pushed_snapshots.receive(stream, opening)
            case CommitsRequest():
                with self._gifts.taken(stream.peer, "transfers"):
                    await self._send_commits(stream, opening)
            case ObserveRequest():
                await self._observe(stream, opening)
            case _:
                raise BadMessageError(f"no call opens with {type(opening).__name__}")

    # -- a follower at this leader ---------------------------------------------------------------------------------------------

    async def _follow(self, stream: Stream, hello: Hello) -> None:
        engine, peer = self._engine, stream.peer
        if not engine.leader.active:
            follows = engine.following or NOBODY
            await stream.send(NotLeader(follows.peer, follows.address, engine.able_to_lead))
            return
        earlier = engine.leader.followers.get(peer)
        if earlier is not None and hello.incarnation < earlier.hello.incarnation:
            raise refusal(Reason.OTHER_INCARNATION, "a newer process of this peer takes part")
        if peer not in engine.followers.peers and len(engine.followers) >= MAX_FOLLOWERS:
            raise refusal(Reason.BUSY, f"{MAX_FOLLOWERS} peers follow this leader, as many as a run has")
        follower = engine.followers.open(stream)
        engine.perform(engine.leader.joined(peer, hello, self._clock()))
        engine.observers.joined(peer, hello)
        loop = asyncio.get_running_loop()
        listening, closed = loop.create_task(self._listen(stream)), loop.create_task(follower.closed.wait())
        try:
            await asyncio.wait([listening, closed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (listening, closed):
                task.cancel()
            await asyncio.gather(listening, closed, return_exceptions=True)
            said_goodbye = listening.done() and not listening.cancelled() and listening.result()
            if engine.followers.gone(follower):
                lost = Reason.UNREAD if follower.is_full else Reason.CONNECTION_LOST
                reason = Reason.LEFT if said_goodbye else lost
                engine.observers.left(peer, hello, reason)
                engine.perform(engine.leader.left(peer, reason, self._clock()))
            elif engine.leader.active and peer not in engine.leader.followers:
                engine.observers.left(peer, hello, Reason.SILENT)

    async def _listen(self, stream: Stream) -> bool:
        """Until the follower's stream ends; whether it said goodbye."""
        engine, peer = self._engine, stream.peer
        try:
            while (record := await stream.receive()) is not None:
                if isinstance(record, Leave):
                    return True
                with engine.guarded(peer):
                    self._hear(peer, record)
        except BadMessageError as error:
            _log.warning("%s breaks the protocol and is dropped: %s", peer[:8], error)
        except RemoteError:
            pass  # the link broke: the caller says what follows from that
        return False

    def _hear(self, peer: str, record: Any) -> None:
        engine, now = self._engine, self._clock()
        engine.leader.heard(peer, now)
        if isinstance(record, Report):
            engine.heard_standing(record.standing, peer)
            engine.perform(engine.leader.reported(peer, record, now))
        elif isinstance(record, Hello):
            engine.leader.introduced(peer, record)
        else:
            if isinstance(record, Ready | Drifted):
                if record.vote is None or record.vote.peer != peer:
                    raise BadMessageError("a member signs what it is ready with, and whose values it refuses")
                message = vote_message(record.result) if isinstance(record, Ready) else refusal_message(record)
                engine.environment.signer.check_vote(record.vote, message)
            engine.perform(engine.leader.answer(peer, record, now))

    # -- bulk ------------------------------------------------------------------------------------------------------------------

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        """One request on a bulk connection, whose frame has this kind and length."""
        try:
            with self._engine.guarded(stream.peer), self._engine.bans.door(stream.peer):
                await self._serve_bulk(stream, kind, length)
        except RefusedError as error:
            if error.reason != Reason.BANNED.value:
                raise
            await refuse(stream, Reason.BANNED, error.sentence)

    async def _serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        if kind is Kind.PROBE:
            await self._probes.serve(stream, length)
            return
        if kind is not Kind.OPEN:
            raise BadMessageError(f"{kind.name} is no request")
        opened = await stream.record(ReduceOpen, length)
        await stream.send(Kind.OPENED)  # before any waiting: the member tells by it whether it reaches this peer
        shard = await self._engine.round_traffic.served(opened.plan_digest, opened.shard)
        if shard is None:
            _log.info("a shard of %s comes too late and is refused: superseded", stream.peer[:8])
            await refuse(stream, Reason.SUPERSEDED, "the attempt is over, or was never planned here")
        elif stream.peer not in shard.plan.members:
            await refuse(stream, Reason.NOT_A_MEMBER, f"{stream.peer[:8]} is no member of that plan")
        elif not shard.admits(stream.peer):
            await refuse(stream, Reason.BUSY, f"{stream.peer[:8]} has this shard open already")
        else:
            await serve_shard(shard, opened, stream)

    # -- state -----------------------------------------------------------------------------------------------------------------

    def _whereabouts(self) -> AskReply:
        engine = self._engine
        tip = engine.member.tip
        if tip is None:
            raise refusal(Reason.NOT_CAUGHT_UP, "this peer has just started and holds no state yet")
        return AskReply(
            standing=tip.standing,
            caught_up=engine.member.phase is not Phase.CATCHING_UP,
            follows=engine.following or NOBODY,
            bulk_address=engine.hello.bulk_address,
        )

    async def _offer(self, request: OfferRequest) -> Manifest:
        member = self._engine.member
        if member.tip is None or member.phase is Phase.CATCHING_UP:
            raise refusal(Reason.NOT_CAUGHT_UP, "this peer looks for the run's state itself")
        try:
            manifest = await self._engine.kept_state.offer(request.digest, request.at_least, strictly=request.strictly)
        except BadMessageError as error:
            raise refusal(Reason.NOT_CAUGHT_UP, str(error)) from error
        if manifest is None:
            raise refusal(Reason.BEHIND, "this peer is not that far")
        return manifest

    async def _send_chunks(self, stream: Stream, request: SnapshotRequest) -> None:
        kept, peer = self._engine.kept_state, stream.peer
        held = kept.fetched(peer, request.digest)
        if held is None:
            raise refusal(Reason.SUPERSEDED, "this peer does not have that snapshot any more")
        manifest, snapshot = held.manifest, held.snapshot
        end = min(request.first_chunk + request.chunks, len(manifest.chunk_sha256))
        chunks = (chunk_at(manifest, snapshot, index) for index in range(request.first_chunk, end))
        async for chunk in self._rate.parts(chunks, manifest.chunk_bytes, waits_for_rounds=True):
            await stream.send(chunk)
            if kept.fetched(peer, request.digest) is None:  # who reads too slowly keeps no old snapshot in memory
                raise refusal(Reason.SUPERSEDED, "this peer does not have that snapshot any more")

    async def _send_commits(self, stream: Stream, request: CommitsRequest) -> None:
        kept = self._engine.kept_state.commits_after(request.after)
        if kept is None:
            raise refusal(Reason.OTHER_LINEAGE, "this peer's commits do not reach back to that lineage")
        for lineage in [item.signed.commit.digest for item in kept]:
            item = self._engine.kept_state.commit(lineage)
            if item is None:  # and no old result either
                raise refusal(Reason.OTHER_LINEAGE, "this peer does not have the next commit any more")
            await stream.send(item.signed)
            result = item.result
            chunks = (Chunk(at, bytes(result[at : at + _CHUNK_BYTES])) for at in range(0, len(result), _CHUNK_BYTES))
            async for chunk in self._rate.parts(chunks, min(_CHUNK_BYTES, len(result)), waits_for_rounds=False):
                await stream.send(chunk)

    # -- observing -------------------------------------------------------------------------------------------------------------

    async def _observe(self, stream: Stream, request: ObserveRequest) -> None:
        observers = self._engine.observers
        await stream.send(observers.swarm())
        if request.once:
            return
        with observers.subscribe(stream.peer) as observer:
            for committed in observers.committed_after(request.after_epoch):
                await stream.send(committed)
            while observer.ended is None:
                try:
                    await stream.send(await asyncio.wait_for(observer.inbox.get(), HEARTBEAT_S))
                except asyncio.TimeoutError:
                    await stream.send(observers.swarm())
            raise refusal(observer.ended, "this peer has others to tell; ask again")

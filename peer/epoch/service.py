"""The server side of a peer: every call of the `Peer` service, checked, then passed to Averaging."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from peer.catch_up.pacing import Pace
from peer.epoch.bandwidth_probe import Probed
from peer.epoch.engine import HEARTBEAT_S, Engine
from peer.epoch.follower_streams import Outbox
from peer.epoch.observers import Observers
from peer.epoch.shard_server import serve_shard
from protocols.errors import BadMessageError
from protocols.gradients.shard_average import CHUNK_ELEMENTS
from protocols.reasons import Reason
from protocols.round.member import Phase
from protocols.round.records import Candidate, Hello, Report, Standing
from protocols.transport.bulk import BulkStream, Kind
from protocols.transport.bulk import refuse as refuse_bulk
from protocols.transport.channels import END, admit, refuse
from protocols.transport.state_transfer import chunk_part
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import MEMBER_KINDS, from_wire, observation_to_wire, to_wire
from protocols.wire.dugnad_pb2_grpc import PeerServicer

_log = logging.getLogger(__name__)
_CHUNK_BYTES = CHUNK_ELEMENTS * 4


class PeerService(PeerServicer):  # type: ignore[misc]  # generated without types
    def __init__(self, averaging: Engine, observers: Observers) -> None:
        self._engine = averaging
        self._observers = observers
        self._pace = Pace(lambda: averaging.member.phase is Phase.REDUCING, max_bytes_s=averaging.bandwidth.up.max_bytes_s)
        self._probed = Probed(lambda: averaging.bandwidth.up.began_at is not None)
        self._left: set[str] = set()  # peers that said goodbye; their stream is about to end

    async def _admit(self, context: Any) -> str:
        return await admit(context, self._engine.settings.run_digest)

    # -- a member at this leader -------------------------------------------------------------------------------------------------

    async def Control(self, _requests: Any, context: Any) -> None:
        peer = await self._admit(context)
        averaging = self._engine
        opening = await context.read()
        if opening is END or opening.WhichOneof("kind") != "hello":
            await refuse(context, Reason.NOT_A_MEMBER, "a control stream opens with hello")
        if not averaging.leader.active:
            follows = averaging.following or Candidate("", "")
            await context.write(
                pb.LeaderMessage(
                    not_leader=pb.NotLeader(follows=follows.peer, address=follows.address, able=averaging.able_to_lead)
                )
            )
            return
        hello = await self._checked(context, Hello, opening.hello)
        seated = averaging.leader.followers.get(peer)
        if seated is not None and hello.incarnation < seated.hello.incarnation:
            await refuse(context, Reason.OTHER_INCARNATION, "a newer process of this peer takes part")
        outbox = averaging.desk.open(peer)
        averaging.perform(averaging.leader.joined(peer, hello, time.monotonic()))
        self._observers.joined(peer, hello)
        reading = asyncio.create_task(self._listen(peer, context, outbox))
        try:
            while (message := await outbox.get()) is not None:
                await context.write(message)
        except grpc.RpcError:
            pass  # the link broke; what that means is said below
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
            said_goodbye = peer in self._left
            self._left.discard(peer)
            if averaging.desk.gone(peer, outbox):
                reason = Reason.LEFT if said_goodbye else Reason.CONNECTION_LOST
                self._observers.left(peer, hello, reason)
                averaging.perform(averaging.leader.left(peer, reason, time.monotonic()))
            elif averaging.leader.active and peer not in averaging.leader.followers:
                self._observers.left(peer, hello, Reason.SILENT)

    async def _listen(self, peer: str, context: Any, outbox: Outbox) -> None:
        averaging = self._engine
        try:
            while (message := await context.read()) is not END:
                kind = message.WhichOneof("kind")
                now = time.monotonic()
                averaging.leader.heard(peer, now)
                if kind == "leave":
                    self._left.add(peer)
                    break
                record = from_wire(MEMBER_KINDS[kind], getattr(message, kind))
                if isinstance(record, Report):
                    averaging.heard_standing(record.standing)
                    averaging.perform(averaging.leader.reported(peer, record, now))
                elif not isinstance(record, Hello):
                    averaging.perform(averaging.leader.answer(peer, record, now))
        except (BadMessageError, KeyError) as error:
            _log.warning("%s broke the protocol and is dropped: %s", peer[:8], error)
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass
        finally:
            outbox.put_nowait(None)

    async def _checked(self, context: Any, kind: type[Hello], message: Any) -> Hello:
        try:
            return from_wire(kind, message)
        except BadMessageError as error:
            await refuse(context, Reason.NOT_A_MEMBER, str(error))

    # -- bulk ------------------------------------------------------------------------------------------------------------------

    async def bulk(self, stream: BulkStream, kind: Kind, length: int) -> None:
        """One request on a bulk connection."""
        if kind is Kind.PROBE:
            await self._probed.serve(stream, length)
            return
        if kind is not Kind.OPEN:
            raise BadMessageError(f"{kind.name} is no request")
        opened = await stream.record(pb.ReduceOpen, length)
        reducing = await self._engine.round_traffic.reducing(opened.plan_digest, opened.shard)
        if reducing is None:
            _log.info("a shard of %s comes too late and is refused: superseded", stream.peer[:8])
            await refuse_bulk(stream, Reason.SUPERSEDED, "the attempt is over, or was never planned here")
        elif stream.peer not in reducing.plan.members:
            await refuse_bulk(stream, Reason.NOT_A_MEMBER, f"{stream.peer[:8]} is no member of that plan")
        elif not reducing.admits(stream.peer):
            await refuse_bulk(stream, Reason.BUSY, f"{stream.peer[:8]} has this shard open already")
        else:
            await serve_shard(reducing, opened, stream)

    # -- state -----------------------------------------------------------------------------------------------------------------

    async def Ask(self, _request: pb.AskRequest, context: Any) -> pb.AskReply:
        await self._admit(context)
        averaging = self._engine
        tip = averaging.member.tip
        if tip is None:
            await refuse(context, Reason.NOT_CAUGHT_UP, "this peer has just started and holds no state yet")
        return pb.AskReply(
            standing=to_wire(tip.standing),
            caught_up=averaging.member.phase is not Phase.CATCHING_UP,
            follows=to_wire(averaging.following or Candidate("", "")),
            followers=len(averaging.desk),
            bulk_address=averaging.hello.bulk_address,
        )

    async def Offer(self, request: pb.OfferRequest, context: Any) -> pb.Manifest:
        await self._admit(context)
        member = self._engine.member
        if member.tip is None or member.phase is Phase.CATCHING_UP:
            await refuse(context, Reason.NOT_CAUGHT_UP, "this peer looks for the run's state itself")
        try:
            at_least = from_wire(Standing, request.at_least) if request.HasField("at_least") else None
            manifest = await self._engine.kept_state.offer(request.digest, at_least)
        except BadMessageError as error:
            await refuse(context, Reason.NOT_CAUGHT_UP, str(error))
        if manifest is None:
            await refuse(context, Reason.BEHIND, "this peer is not that far")
        offered: pb.Manifest = to_wire(manifest)
        return offered

    async def Snapshot(self, request: pb.SnapshotRequest, context: Any) -> AsyncIterator[pb.SnapshotPart]:
        peer = await self._admit(context)
        held = self._engine.kept_state.fetched(peer, request.digest)
        if held is None:
            await refuse(context, Reason.SUPERSEDED, "this peer does not have that snapshot any more")
        manifest, snapshot = held.manifest, held.snapshot
        end = min(request.first_chunk + request.chunks, len(manifest.chunk_sha256))
        parts = (chunk_part(manifest, snapshot, index) for index in range(request.first_chunk, end))
        async for part in self._pace.parts(parts, manifest.chunk_bytes, waits_for_rounds=True):
            yield part
            self._engine.kept_state.fetched(peer, request.digest)

    async def Give(self, requests: AsyncIterator[pb.SnapshotPart], context: Any) -> pb.GiveReply:
        peer = await self._admit(context)
        try:
            await self._engine.pushed_snapshots.receive(peer, requests)
        except BadMessageError as error:
            await refuse(context, Reason.NOT_A_MEMBER, str(error))
        return pb.GiveReply()

    async def Commits(self, request: pb.CommitsRequest, context: Any) -> AsyncIterator[pb.CommitPart]:
        await self._admit(context)
        kept = self._engine.kept_state.commits_after(request.after)
        if kept is None:
            await refuse(context, Reason.OTHER_LINEAGE, "this peer's commits do not reach back to that lineage")
        for item in kept:
            yield pb.CommitPart(signed_commit=to_wire(item.signed))
            chunks = (
                pb.Chunk(offset=at, data=bytes(item.averaged[at : at + _CHUNK_BYTES]))
                for at in range(0, len(item.averaged), _CHUNK_BYTES)
            )
            async for chunk in self._pace.parts(chunks, _CHUNK_BYTES, waits_for_rounds=False):
                yield pb.CommitPart(chunk=chunk)

    # -- observing -------------------------------------------------------------------------------------------------------------

    async def Observe(self, request: pb.ObserveRequest, context: Any) -> AsyncIterator[pb.Observation]:
        await self._admit(context)
        yield observation_to_wire(self._observers.swarm())
        if request.once:
            return
        with self._observers.subscribe() as inbox:
            for observation in self._observers.committed_after(request.after_epoch):
                yield observation_to_wire(observation)
            while True:
                try:
                    yield observation_to_wire(await asyncio.wait_for(inbox.get(), HEARTBEAT_S))
                except asyncio.TimeoutError:
                    yield observation_to_wire(self._observers.swarm())

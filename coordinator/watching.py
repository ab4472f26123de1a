"""Watch the swarm from outside, through the peer that leads it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from coordinator.swarm_view import SwarmView
from protocols.errors import BadMessageError, RemoteError, UnreachableError
from protocols.observations import Committed, Observation, Swarm
from protocols.round.records import Candidate
from protocols.run_spec import RunSpec
from protocols.transport.channels import Channels, parts
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import observation_from_wire
from protocols.wire.dugnad_pb2_grpc import PeerStub

# A leader says something twice a second. After this much silence we look for another.
SILENCE_S = 5.0
RETRY_S = 0.5
_log = logging.getLogger(__name__)


async def look_once(channels: Channels, peers: Iterable[Candidate], spec: RunSpec) -> SwarmView:
    """How the swarm stands now, from its leader. Raises UnreachableError when no peer answers."""
    problem: RemoteError = UnreachableError("nobody takes part in this run now", remedy="Start a peer with its ticket.")
    for peer in peers:
        try:
            swarm = await _standing_of(channels, peer)
            leader = swarm.follows
            if leader is not None and leader.peer != peer.peer and leader.address:
                swarm = await _standing_of(channels, leader)
            return SwarmView.of(swarm, spec)
        except RemoteError as error:
            problem = error
    raise problem


async def watch(
    channels: Channels, peers: Callable[[], list[Candidate]], epoch: Callable[[], int], lineage: str
) -> AsyncIterator[Observation]:
    """What the swarm's leader says, without end. When the leader is gone or another one leads, that one is found among `peers()`.

    Each leader first tells the commits after `epoch()`. `lineage` is the one that we know at the beginning. A commit that
    builds on an unknown parent means that another lineage has won: we ask again, for every commit on the leader's record.
    """
    leader: Candidate | None = None
    known = {lineage}
    stranger = ""  # a commit whose parent is unknown: we asked for its past, and take it as it is when it comes again
    while True:
        for peer in [leader] if leader is not None else peers():
            leader = None
            request = pb.ObserveRequest(after_epoch=0 if stranger else epoch())
            call = PeerStub(channels.to(peer.peer, peer.address)).Observe(request, metadata=channels.metadata)
            stream = aiter(_observations(call, peer))
            try:
                while True:
                    observation = await asyncio.wait_for(anext(stream), SILENCE_S)
                    if isinstance(observation, Swarm):
                        if observation.follows is None or observation.follows.peer != peer.peer:
                            leader = observation.follows if observation.follows and observation.follows.address else None
                            break
                    elif isinstance(observation, Committed):
                        commit = observation.signed_commit.commit
                        if commit.ballot.parent not in known and not stranger:
                            leader, stranger = peer, commit.digest
                            break
                        stranger = "" if commit.digest == stranger else stranger
                        known.add(commit.digest)
                    yield observation
            except (RemoteError, asyncio.TimeoutError, StopAsyncIteration):
                leader = None
            finally:
                call.cancel()
            if leader is not None:
                break
        else:
            await asyncio.sleep(RETRY_S)


async def _standing_of(channels: Channels, peer: Candidate) -> Swarm:
    request = pb.ObserveRequest(once=True)
    call = PeerStub(channels.to(peer.peer, peer.address)).Observe(request, metadata=channels.metadata, timeout=SILENCE_S)
    async for observation in _observations(call, peer):
        if isinstance(observation, Swarm):
            return observation
    raise BadMessageError(f"peer {peer.peer[:8]} did not say how the swarm stands")


async def _observations(call: Any, peer: Candidate) -> AsyncIterator[Observation]:
    """The records on an Observe stream. A damaged one is dropped with a warning: what comes after it may be sound."""
    whom = f"peer {peer.peer[:8]}"
    async for message in parts(call, whom):
        try:
            observation = observation_from_wire(message)
        except BadMessageError as error:
            _log.warning("an observation by %s was dropped: %s", whom, error)
            continue
        yield observation

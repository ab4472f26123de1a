"""Watching the swarm from outside, through whichever peer leads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from protocols.errors import BadMessageError, RemoteError, UnreachableError
from protocols.round.records import Candidate, SignedCommit, Standing
from protocols.run_spec import RunSpec
from protocols.transport.channels import Channels, parts
from protocols.view import PeerView, SwarmView
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_wire
from protocols.wire.dugnad_pb2_grpc import PeerStub

# The leader is looked up again when it says nothing for this long; it says something twice a second.
SILENCE_S = 5.0
RETRY_S = 0.5


async def look_once(channels: Channels, peers: Iterable[Candidate], spec: RunSpec) -> SwarmView:
    """How the swarm stands now, from its leader. Raises UnreachableError when no peer answers."""
    problem: RemoteError = UnreachableError("nobody takes part in this run now", remedy="Start a peer with its ticket.")
    for peer in peers:
        try:
            observation = await _first(channels, peer)
            follows = from_wire(Candidate, observation.swarm.follows)
            if follows.peer and follows.peer != peer.peer and follows.address:
                observation = await _first(channels, follows)
            return swarm_view(observation.swarm, spec)
        except RemoteError as error:
            problem = error
    raise problem


async def _first(channels: Channels, peer: Candidate) -> pb.Observation:
    whom = f"peer {peer.peer[:8]}"
    stub = PeerStub(channels.to(peer.peer, peer.address))
    async for observation in parts(
        stub.Observe(pb.ObserveRequest(once=True), metadata=channels.metadata, timeout=SILENCE_S), whom
    ):
        return observation  # type: ignore[no-any-return]
    raise BadMessageError(f"{whom} answered nothing")


async def watch(
    channels: Channels, peers: Callable[[], list[Candidate]], epoch: Callable[[], int], lineage: str
) -> AsyncIterator[pb.Observation]:
    """What the swarm's leader says, for ever: when the leader goes or changes, the next one is found among `peers()`.

    Commits after `epoch()` that happened meanwhile are told first. `lineage` is the one that is known at the beginning: when a
    commit follows none that is known, another lineage has won, and its commits are told from where the leader's record begins.
    """
    leader: Candidate | None = None
    known, strange = {lineage}, ""  # strange: the commit that follows none known; told again after what led to it, if anything
    while True:
        for peer in [leader] if leader is not None else peers():
            whom = f"peer {peer.peer[:8]}"
            leader = None
            request = pb.ObserveRequest(after_epoch=0 if strange else epoch())
            call = PeerStub(channels.to(peer.peer, peer.address)).Observe(request, metadata=channels.metadata)
            stream = aiter(parts(call, whom))
            try:
                while True:
                    observation = await asyncio.wait_for(anext(stream), SILENCE_S)
                    if observation.WhichOneof("kind") == "swarm":
                        follows = from_wire(Candidate, observation.swarm.follows)
                        if follows.peer != peer.peer:
                            leader = follows if follows.address else None
                            break
                    elif observation.WhichOneof("kind") == "committed":
                        commit = from_wire(SignedCommit, observation.committed.signed_commit).commit
                        if commit.ballot.parent not in known and not strange:
                            leader, strange = peer, commit.digest
                            break
                        strange = "" if commit.digest == strange else strange
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


def swarm_view(swarm: pb.Swarm, spec: RunSpec) -> SwarmView:
    standing = from_wire(Standing, swarm.standing) if swarm.HasField("standing") else Standing(0, "0" * 64, 0)
    return SwarmView(
        run=spec.run.name,
        run_digest=spec.digest,
        epoch=standing.epoch,
        lineage=standing.lineage,
        samples=swarm.samples,
        target_batch_size=spec.training.target_batch_size,
        total_samples=standing.total_samples,
        phase=swarm.phase,
        peers=tuple(from_wire(PeerView, peer) for peer in swarm.peers),
        max_epochs=spec.training.max_epochs,
    )

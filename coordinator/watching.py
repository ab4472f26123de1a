"""Watch the swarm from outside, through the peer that leads it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from coordinator.swarm_view import SwarmView
from protocols.committed_rate import RECENT_EPOCHS
from protocols.errors import BadMessageError, RemoteError, UnreachableError
from protocols.host.terminal import plural
from protocols.messages import ObserveRequest
from protocols.observations import Committed, Observation, Swarm
from protocols.round.records import Candidate, Commit
from protocols.run_spec import RunSpec
from protocols.transport.interface import Stream, Transport, call

# A leader says something twice a second. After this much silence we look for another.
SILENCE_S = 5.0
RETRY_S = 0.5
_log = logging.getLogger(__name__)


async def look_once(transport: Transport, peers: Sequence[Candidate], spec: RunSpec) -> SwarmView:
    """How the swarm stands now, from its leader. Raises UnreachableError when no peer answers, and what one answered with if that
    tells nothing."""
    problem: RemoteError | None = None
    for peer in peers:
        try:
            swarm = await _standing_of(transport, peer)
            leader = swarm.follows
            if leader is not None and leader.peer != peer.peer and leader.address:
                peer, swarm = leader, await _standing_of(transport, leader)
            return SwarmView.of(swarm, spec, await _recent_commits(transport, peer, swarm))
        except UnreachableError:
            continue
        except RemoteError as error:
            problem = error
    if problem is not None:
        raise problem
    raise UnreachableError(
        f"none of the {plural(len(peers), 'peer')} that could tell answers" if peers else "nobody takes part in this run now",
        remedy="The run may be over, or its peers away. Start one with the ticket, or ask the organiser.",
    )


async def _recent_commits(transport: Transport, peer: Candidate, swarm: Swarm) -> list[Committed]:
    """The commits up to where `swarm` stands, oldest first, as far as `peer` tells them."""
    epoch = swarm.standing.epoch if swarm.standing is not None else 0
    return await _on_record(transport, peer, max(0, epoch - RECENT_EPOCHS - 1), epoch) if epoch else []


async def _on_record(transport: Transport, peer: Candidate, after: int, until: int) -> list[Committed]:
    """The commits of epochs after `after`, up to `until`, that `peer` has on record, oldest first."""
    found = list[Committed]()
    with contextlib.suppress(RemoteError, asyncio.TimeoutError):
        async with transport.open(peer, ObserveRequest(after, once=False)) as stream:
            await asyncio.wait_for(_next(stream), SILENCE_S)  # how the swarm stands; then come the commits on record
            while isinstance(told := await asyncio.wait_for(_next(stream), SILENCE_S), Committed):
                if told.signed_commit.commit.ballot.epoch <= until:
                    found.append(told)
                if told.signed_commit.commit.ballot.epoch >= until:
                    break
    return found


async def _past_of(transport: Transport, peers: Iterable[Candidate], commit: Commit, known: set[str]) -> list[Committed]:
    """The commits that lead from a known one to `commit`, oldest first, as far as any of `peers` has them on record.

    One peer may not have them all: who fetched a snapshot has no record of the commits before it.
    """
    record, past, parent = dict[str, Committed](), list[Committed](), commit.ballot.parent
    for peer in peers:
        for told in await _on_record(transport, peer, 0, commit.ballot.epoch - 1):
            record.setdefault(told.signed_commit.commit.digest, told)
        while (before := record.get(parent)) is not None and parent not in known:
            past.insert(0, before)
            parent = before.signed_commit.commit.ballot.parent
        if parent in known:
            break
    return past


async def watch(
    transport: Transport, peers: Callable[[], list[Candidate]], epoch: Callable[[], int], lineage: str
) -> AsyncIterator[Observation]:
    """What the swarm's leader says, without end. When the leader is gone or another one leads, that one is found among `peers()`.

    Each leader first tells the commits after `epoch()`. `lineage` is the one that we know at the beginning. A commit that
    builds on an unknown parent means that another lineage has won, or that the leader has a gap in its record: the leader, then
    the others are asked for the commits in between.
    """
    leader: Candidate | None = None
    known = {lineage}
    while True:
        for peer in [leader] if leader is not None else peers():
            leader = None
            try:
                async with transport.open(peer, ObserveRequest(epoch(), once=False)) as stream:
                    while (observation := await asyncio.wait_for(_next(stream), SILENCE_S)) is not None:
                        if isinstance(observation, Swarm):
                            if observation.follows is None or observation.follows.peer != peer.peer:
                                leader = observation.follows if observation.follows and observation.follows.address else None
                                break
                        elif isinstance(observation, Committed):
                            commit = observation.signed_commit.commit
                            others = [other for other in peers() if other.peer != peer.peer]
                            if commit.ballot.parent not in known:
                                for earlier in await _past_of(transport, [peer, *others], commit, known):
                                    known.add(earlier.signed_commit.commit.digest)
                                    yield earlier
                            known.add(commit.digest)
                        yield observation
            except (RemoteError, asyncio.TimeoutError):
                leader = None
            if leader is not None:
                break
        else:
            await asyncio.sleep(RETRY_S)


async def _standing_of(transport: Transport, peer: Candidate) -> Swarm:
    observation = await call(transport, peer, ObserveRequest(0, once=True), SILENCE_S)
    if not isinstance(observation, Swarm):
        raise BadMessageError(f"peer {peer.peer[:8]} did not say how the swarm stands")
    return observation


async def _next(stream: Stream) -> Observation | None:
    """The next record; None when the stream has ended. A damaged one is dropped with a warning: the next may be sound."""
    while True:
        try:
            observation: Observation | None = await stream.receive()
            return observation
        except BadMessageError as error:
            _log.warning("an observation by peer %s was dropped: %s", stream.peer[:8], error)

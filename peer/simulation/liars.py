"""Hostile peers: production's own, of which one thing is changed, namely what they send. Each lie is a small class.

A lie is one of what docs/SECURITY.md lists. LIES are those that the product stops: a swarm of an honest majority keeps the
observer's rules among its honest peers, and commits. UNSTOPPED are those that it does not stop yet, or not always.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors.torch import load, save

from peer.simulation.faults import damaged
from peer.simulation.made_up import MadeUp
from peer.simulation.transport import STRANGER, ban_list_by_the_organiser
from peer.training.gradient_norm import gradient_norm
from peer.training.replica import Frozen
from protocols.ban_list import BanList, KnownBans, SignedBanList
from protocols.errors import BadMessageError
from protocols.gradients.codecs import Codec
from protocols.messages import Abort, AskReply, Chunk, DialBackReply, Heartbeat, Manifest, NotLeader
from protocols.observations import Swarm
from protocols.reasons import Reason
from protocols.round.drift_votes import Drifted, DriftVerdict, refusal_message
from protocols.round.leader import MAX_LEAP
from protocols.round.member import Accept, Failed, Ready, Refuse
from protocols.round.plans import MemberPlan
from protocols.round.records import (
    MAX_COUNT,
    MAX_EPOCHS,
    MAX_INCARNATION,
    MAX_SAMPLES,
    Averages,
    Ballot,
    Candidate,
    Contribution,
    Hello,
    ReadyFor,
    Report,
    Result,
    ShardResult,
    SignedCommit,
    Standing,
    Vote,
    vote_message,
)
from protocols.snapshot.format import manifest_of, read_header
from protocols.transport.interface import refusal
from protocols.wire.convert import from_wire, to_wire

if TYPE_CHECKING:
    from peer.simulation.observer import Observer
    from peer.simulation.process import SimulatedPeer


class Lie:
    """What a liar sends in place of the truth. This one tells the truth."""

    def __init__(self, process: SimulatedPeer, random: Random) -> None:
        self.process, self.random = process, random

    def says(self, record: Any) -> Any | None:
        """What is sent instead of `record`; None: nothing. Raises RefusedError to refuse the call."""
        return record

    def gives(self, frozen: Frozen, codec: Codec) -> Frozen:
        """What this peer contributes instead of `frozen`."""
        return frozen

    def writes(self, data: bytes) -> bytes:
        """What this peer sends, as a reducer, instead of these averages; as many bytes."""
        return data

    def ready_with(self, result: Result) -> Ready:
        """It signs what it says."""
        return Ready(result, self.process.engine.environment.signer.vote(vote_message(result)))


# -- in reports ------------------------------------------------------------------------------------------------------------------


class FalseSamples(Lie):
    """Each sample counts many times, in reports and in contributions."""

    def __init__(self, process: SimulatedPeer, random: Random) -> None:
        super().__init__(process, random)
        self._factor = random.choice((4, 1000, 1 << 20))
        self._end = 0  # counters that it claimed so far: none is claimed twice

    def _times(self, samples: int) -> int:
        return min(MAX_SAMPLES, samples * self._factor)

    def says(self, record: Any) -> Any | None:
        return replace(record, samples=self._times(record.samples)) if isinstance(record, Report) else record

    def gives(self, frozen: Frozen, codec: Codec) -> Frozen:
        first, self._end = self._end, self._end + self._times(frozen.end - frozen.first)
        return replace(frozen, first=first, end=self._end)


class PromisesAtTheBound(Lie):
    """It promised an attempt so high that none is left above."""

    def says(self, record: Any) -> Any | None:
        return replace(record, promised_attempt=MAX_COUNT) if isinstance(record, Report | Refuse) else record


class CreepingPromises(Lie):
    """It promised an attempt just as far above the others as is believed, more with each report."""

    def __init__(self, process: SimulatedPeer, random: Random) -> None:
        super().__init__(process, random)
        self._at, self._promised = "", 0

    def says(self, record: Any) -> Any | None:
        if not isinstance(record, Report):
            return record
        if record.standing.lineage != self._at:
            self._at, self._promised = record.standing.lineage, 0
        self._promised += MAX_LEAP
        return replace(record, promised_attempt=self._promised)


class FalseBytes(Lie):
    """It is never ready, and claims to move bytes all the time."""

    def __init__(self, process: SimulatedPeer, random: Random) -> None:
        super().__init__(process, random)
        self._moved, self._step = 0, random.choice((10, 10_000, 1 << 30))

    def says(self, record: Any) -> Any | None:
        if isinstance(record, Report):
            self._moved += self._step
            return replace(record, moved_bytes=self._moved)
        return None if isinstance(record, Ready) else record


class InventedMembers(Lie):
    """It was planned with peers that nobody knows, others in each report."""

    def says(self, record: Any) -> Any | None:
        ghosts = tuple(f"ghost{self.random.getrandbits(40)}" for _ in range(3))
        return replace(record, planned_with=ghosts) if isinstance(record, Report) else record


class ReachesNobody(Lie):
    """It cannot reach anybody who reduces."""

    def says(self, record: Any) -> Any | None:
        others = tuple(name for name in self.process.swarm.names if name != self.process.name)
        return replace(record, unreached=others) if isinstance(record, Report) else record


class SlowSteps(Lie):
    """A micro-batch takes it an hour."""

    def says(self, record: Any) -> Any | None:
        return replace(record, step_s=3599.0) if isinstance(record, Report) else record


class FastLine(Lie):
    """Its line and its computer are faster than any."""

    def says(self, record: Any) -> Any | None:
        if not isinstance(record, Report):
            return record
        return replace(record, upload_bytes_s=9e11, download_bytes_s=9e11, samples_per_second=9e11)


class ReadyForNobodysSamples(Lie):
    """It holds averages of a contributor that does not exist."""

    def says(self, record: Any) -> Any | None:
        tip = self.process.engine.member.tip
        if not isinstance(record, Report) or tip is None or record.standing.lineage != tip.lineage:
            return record
        ghost = Contribution("ghost", 1, 0, self.random.choice((1, 10**9)), tip.lineage, 0.1, 1.0)
        shard = ShardResult(0, self.process.swarm.problem.elements, "ab" * 32, 1.0)
        ballot = Ballot(tip.epoch + 1, tip.lineage, 1, self.process.name)
        return replace(record, ready_for=ReadyFor(ballot, Averages((ghost,), (shard,))), promised_attempt=1)


# -- in answers to a plan --------------------------------------------------------------------------------------------------------


class RefusesPlans(Lie):
    """It refuses every plan."""

    def says(self, record: Any) -> Any | None:
        if not isinstance(record, Accept):
            return record
        reason = self.random.choice((Reason.NOTHING_TO_GIVE, Reason.PROMISED_HIGHER, Reason.RESULTS_DIFFER, Reason.NOT_CAUGHT_UP))
        return Refuse(record.plan_digest, reason, 0)


class BlamesOthers(Lie):
    """In every attempt something broke between two others, or between itself and an honest reducer."""

    def says(self, record: Any) -> Any | None:
        plan = self.process.engine.member.plan
        if not isinstance(record, Accept | Ready) or plan is None:
            return record
        names, reducers = self.process.swarm.names, [shard.reducer for shard in plan.shards]
        member = self.random.choice((self.process.name, self.random.choice(names)))
        reason = self.random.choice((Reason.BAD_CHUNK, Reason.CONTRIBUTOR_LOST, Reason.REDUCER_LOST, Reason.RESULTS_DIFFER))
        return Failed(plan.digest, reason, member, self.random.choice(reducers))


class CriesDrift(Lie):
    """The state of every reducer is damaged, it says."""

    def says(self, record: Any) -> Any | None:
        plan = self.process.engine.member.plan
        if not isinstance(record, Ready) or plan is None:
            return record
        drifted = Drifted(plan.digest, tuple(sorted({shard.reducer for shard in plan.shards})))
        return replace(drifted, vote=self.process.engine.environment.signer.vote(refusal_message(drifted)))


class OtherResults(Lie):
    """It is ready with other averages than all others."""

    def says(self, record: Any) -> Any | None:
        if not isinstance(record, Ready):
            return record
        shards = tuple(replace(shard, digest="ab" * 32) for shard in record.result.shards)
        return self.ready_with(replace(record.result, shards=shards))


# -- in an all-reduce ------------------------------------------------------------------------------------------------------------


class SteepGradient(Lie):
    """Its gradient points the other way and is ten times too long, as it says, or as it does not say."""

    def __init__(self, process: SimulatedPeer, random: Random) -> None:
        super().__init__(process, random)
        self._factor, self._names_norm = random.choice((-10.0, -1e4)), random.random() < 0.5

    def gives(self, frozen: Frozen, codec: Codec) -> Frozen:
        elements = self.process.swarm.problem.elements
        values = codec.decode(frozen.encoded, elements)
        with np.errstate(over="ignore"):
            encoded = codec.encode(values * values.dtype.type(self._factor))
        try:
            steep = codec.decode(encoded, elements).astype(np.float64)
        except BadMessageError:  # too long for this codec
            return frozen
        norm = gradient_norm(torch.from_numpy(steep)) if self._names_norm else frozen.norm
        return replace(frozen, encoded=memoryview(encoded), norm=norm)


class DamagedAverages(Lie):
    """Averages that it sends are not those that it names, to some of the members."""

    def writes(self, data: bytes) -> bytes:
        return data if self.random.random() < 0.3 else bytes([data[0] ^ 1]) + data[1:]


class FalseSumOfSquares(Lie):
    """The averages that it reduces are of any length, or of none."""

    def __init__(self, process: SimulatedPeer, random: Random) -> None:
        super().__init__(process, random)
        self._sum = random.choice((0.0, 1e30, 1e100))

    def says(self, record: Any) -> Any | None:
        if isinstance(record, ShardResult):
            return replace(record, sum_of_squares=self._sum)
        plan = self.process.engine.member.plan
        if not isinstance(record, Ready) or plan is None:
            return record
        mine = {shard.start for shard in plan.shards if shard.reducer == self.process.name}
        shards = record.result.shards
        lied = tuple(replace(shard, sum_of_squares=self._sum) if shard.start in mine else shard for shard in shards)
        return self.ready_with(replace(record.result, shards=lied))


# -- of standings and state ------------------------------------------------------------------------------------------------------


class ClaimsAndGivesNothing(Lie):
    """Its lineage is heavier than any, and it gives nobody a state or a commit of it."""

    def __init__(self, process: SimulatedPeer, random: Random) -> None:
        super().__init__(process, random)
        self._changes = random.random() < 0.5  # another lineage each time
        self._lineage = f"{random.getrandbits(256):064x}"

    def says(self, record: Any) -> Any | None:
        if isinstance(record, Manifest | Chunk):
            raise refusal(Reason.BUSY, "not now")
        if isinstance(record, SignedCommit | MemberPlan):
            return None
        if isinstance(record, Report | AskReply | Heartbeat | Swarm):
            if self._changes:
                self._lineage = f"{self.random.getrandbits(256):064x}"
            return replace(record, standing=Standing(MAX_EPOCHS, self._lineage, 10**12))
        return record


class DamagedState(Lie):
    """Snapshots and commits that it gives are damaged."""

    def says(self, record: Any) -> Any | None:
        return damaged(record)


class OtherChunks(Lie):
    """Its snapshot has other chunks than it serves."""

    def says(self, record: Any) -> Any | None:
        if not isinstance(record, Manifest):
            return record
        names = [self.random.randbytes(32) if self.random.random() < 0.5 else name for name in record.chunk_sha256]
        return replace(record, chunk_sha256=tuple(names))


class OtherWeights(Lie):
    """Its snapshots have other weights under the true lineage. Its chunks are those that it promises.

    A newcomer that finds the organiser's peer, or donors with more than half of the votes, is not deceived. One that finds fewer
    donors may be: so not every seed stands this lie.
    """

    def __init__(self, process: SimulatedPeer, random: Random) -> None:
        super().__init__(process, random)
        self._told = set[str]()

    def says(self, record: Any) -> Any | None:
        if not isinstance(record, Manifest) or record.digest in self._told:
            return record
        for held in self.process.engine.kept_state._held:
            if held.manifest.digest == record.digest:
                held.snapshot = other_weights(held.snapshot)
                held.manifest = manifest_of(held.snapshot, read_header(held.snapshot), record.chunk_bytes)
                self._told.add(held.manifest.digest)
                return held.manifest
        return record


def other_weights(snapshot: bytes) -> bytes:
    """The same in every other respect."""
    header = json.loads(snapshot[8 : 8 + int.from_bytes(snapshot[:8], "little")])
    tensors = {name: 1 - tensor if name.startswith("parameters.") else tensor for name, tensor in load(snapshot).items()}
    changed: bytes = save(tensors, metadata=header["__metadata__"])
    return changed


class ReachedNobody(Lie):
    """It could not dial back whoever asks."""

    def says(self, record: Any) -> Any | None:
        return DialBackReply("no route to you") if isinstance(record, DialBackReply) else record


# -- of bans ---------------------------------------------------------------------------------------------------------------------


class MakesBans(Lie):
    """It bans everybody with a list that it made up, or sends the organiser's first list again."""

    def __init__(self, process: SimulatedPeer, random: Random) -> None:
        super().__init__(process, random)
        others = tuple(name for name in process.swarm.names if name != process.name)
        self._forged = SignedBanList(BanList(MAX_INCARNATION, others), random.randbytes(16))
        self._first = ban_list_by_the_organiser(BanList(1, (STRANGER,)))

    def says(self, record: Any) -> Any | None:
        signed = self._first if self.random.random() < 0.5 else self._forged
        if isinstance(record, KnownBans):
            self.process.engine.bans.newest = self._forged  # so that it goes on to give a list, whoever has called
            return self.random.choice((signed, KnownBans(MAX_INCARNATION)))
        return signed if isinstance(record, SignedBanList) else record


# -- as a leader -----------------------------------------------------------------------------------------------------------------


class SilentLeader(Lie):
    """As the leader it sends heartbeats, and never a plan."""

    def says(self, record: Any) -> Any | None:
        return None if isinstance(record, MemberPlan | Abort) else record


class FalseLeader(Lie):
    """It leads, it says to leaders, whomever it follows; to its followers, if there are any, it sends no plan."""

    def says(self, record: Any) -> Any | None:
        if isinstance(record, AskReply):
            name = self.process.name
            return replace(record, follows=Candidate(name, f"{name}:1"))
        return None if isinstance(record, MemberPlan) else record


class TellsOfDrift(Lie):
    """As the leader it tells the members, in place of a commit, that their states are damaged: that all said so, or just so."""

    def says(self, record: Any) -> Any | None:
        if not isinstance(record, SignedCommit):
            return record
        commit, verdict = record.commit, None
        if self.random.random() < 0.5:
            reducers = tuple(sorted({commit.leader.peer}))
            refusals = (Drifted(commit.plan_digest, reducers, Vote(peer, b"", b"forged")) for peer in commit.members)
            verdict = DriftVerdict(commit.members, tuple(refusals))
        return Abort(commit.plan_digest, Reason.DRIFT, verdict=verdict)


class EndsEveryAttempt(Lie):
    """As the leader it ends every attempt in place of the commit, and plans again."""

    def says(self, record: Any) -> Any | None:
        return Abort(record.commit.plan_digest, Reason.RESULTS_DIFFER) if isinstance(record, SignedCommit) else record


# -- of history ----------------------------------------------------------------------------------------------------------------


class CommitsAlone(FalseSamples):
    """It follows nobody, lets nobody follow, and commits alone, each time as many samples as fit."""

    def __init__(self, process: SimulatedPeer, random: Random) -> None:
        super().__init__(process, random)
        self._factor = 1 << 20

    def says(self, record: Any) -> Any | None:
        if isinstance(record, Hello | Heartbeat | NotLeader):
            raise refusal(Reason.BUSY, "not now")
        return super().says(record)


# -- anything --------------------------------------------------------------------------------------------------------------------


class AnythingAtAll(Lie):
    """Some of the values of some of its records are made up."""

    def __init__(self, process: SimulatedPeer, random: Random) -> None:
        super().__init__(process, random)
        self._made_up = MadeUp(str(random.getrandbits(64)))

    def says(self, record: Any) -> Any | None:
        if self.random.random() < 0.5:
            return record
        lied = self._made_up.lie(record)
        try:
            return from_wire(type(lied), to_wire(lied))  # as it comes out of the wire at the other end
        except (BadMessageError, ValueError, TypeError):  # the wire takes no such value
            return record


LIES: dict[str, type[Lie]] = {
    "samples": FalseSamples,
    "promises": PromisesAtTheBound,
    "creeping promises": CreepingPromises,
    "moved bytes": FalseBytes,
    "invented members": InventedMembers,
    "unreached": ReachesNobody,
    "slow steps": SlowSteps,
    "fast line": FastLine,
    "nobody's samples": ReadyForNobodysSamples,
    "refusals": RefusesPlans,
    "blame": BlamesOthers,
    "cried drift": CriesDrift,
    "other results": OtherResults,
    "steep gradient": SteepGradient,
    "damaged averages": DamagedAverages,
    "sum of squares": FalseSumOfSquares,
    "claims": ClaimsAndGivesNothing,
    "damaged state": DamagedState,
    "other chunks": OtherChunks,
    "dial-back": ReachedNobody,
    "bans": MakesBans,
    "silent leader": SilentLeader,
    "false leader": FalseLeader,
    "told drift": TellsOfDrift,
    "ended attempts": EndsEveryAttempt,
    "anything": AnythingAtAll,
}
UNSTOPPED: dict[str, type[Lie]] = {"other weights": OtherWeights, "commits alone": CommitsAlone}


def draw_liars(seed: int, names: Sequence[str], share: float, lies: Iterable[str] = tuple(LIES)) -> dict[str, str]:
    """Peer -> lie: `share` of the peers, one at least, each with one of `lies`. The first peer, the organiser's, is honest."""
    random, kinds = Random(f"liars of seed {seed}"), sorted(lies)
    count = max(1, math.floor(share * len(names) + 1e-9)) if share else 0
    return {name: random.choice(kinds) for name in sorted(random.sample(list(names[1:]), count))}


def lie_of(process: SimulatedPeer, liars: Mapping[str, str]) -> Lie | None:
    """What this process tells; None if it is honest."""
    kind = liars.get(process.name)
    if kind is None:
        return None
    return {**LIES, **UNSTOPPED}[kind](process, Random(f"{process.name} {process.incarnation} {kind}"))


class Forgiving:
    """The observer, to a liar: it notes what the liar does, and holds it to no rule."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._observer, name)

        def noted(*args: Any, **fields: Any) -> Any:
            with self._observer.world.forgiving():
                return method(*args, **fields)

        return noted


def forgiving(observer: Observer) -> Observer:
    return cast("Observer", Forgiving(observer))

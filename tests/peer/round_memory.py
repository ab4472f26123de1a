"""A process of its own: two whole peers (benchmarks/engines/dugnad.py) that average and apply epoch after epoch. Says by how much
their memory grew at most over what they held before the first round, in bytes, as JSON; and by how much with one more encoded
vector held.

`python -m tests.peer.round_memory CODEC ELEMENTS FOLDER`
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.engines.base import Seat
from benchmarks.engines.dugnad import INCARNATION, PATIENCE_S, RUN, Member, accumulate
from benchmarks.links import Link
from benchmarks.worker import Family
from protocols.gradients.codecs import CODECS
from protocols.round import planner
from protocols.round.plans import Plan, member_plan_of
from protocols.round.records import Averages, Ballot, Candidate, Commit, Contribution, SignedCommit
from protocols.signing import sign_commit

PEERS, EPOCHS = 2, 3


class Swarm:
    def __init__(self, codec: str, elements: int, folder: Path, peers: int = PEERS) -> None:
        links = tuple(Link() for _ in range(peers))
        seats = [Seat(rank, links, "127.0.0.1", "lo", elements, codec, "ours", folder) for rank in range(peers)]
        self.members = [Member(seat) for seat in seats]
        greetings = [member.listen() for member in self.members]
        for member in self.members:
            member.meet(greetings)
        present = {it["peer"]: planner.Present(it["bulk_address"], 1) for it in greetings}
        layout = planner.fresh(present, greetings[0]["peer"], planner.Round(1, elements, elements, 1))
        assert layout is not None and len({shard.reducer for shard in layout.shards}) == peers
        self.codec, self.layout = codec, layout

    def accumulate(self) -> None:
        for member in self.members:
            member.jobs.put(functools.partial(_accumulate, member)).result()

    def epoch(self) -> None:
        """Everybody freezes, exchanges, and applies the same commit."""
        leader, layout, tip = self.members[0], self.layout, self.members[0].replica.tip
        assert tip is not None
        me = leader.credentials.peer_id
        ballot = Ballot(tip.epoch + 1, tip.lineage, 1, me)
        plan = Plan(RUN, ballot, layout.contributors, layout.members, layout.shards, self.codec, PATIENCE_S, INCARNATION)
        running = [member.network.start(_exchanged(member, plan)) for member in self.members]
        averages, *_ = [future.result() for future in running]
        commit = Commit(
            ballot,
            plan.digest,
            averages.contributions,
            layout.members,
            averages.shards,
            self.codec,
            tip.total_samples + averages.samples,
            Candidate(me, leader.address),
            (),
            self.codec,
        )
        signed = sign_commit(commit, leader.credentials)
        for member in self.members:
            member.network.call(_applied(member, signed))


def _accumulate(member: Member) -> None:
    accumulate(member.replica, torch.arange(member.replica.elements).remainder_(1000).sub_(500), samples=4)


async def _exchanged(member: Member, plan: Plan) -> Averages:
    frozen = await member.jobs.run(member.trainer.freeze)
    assert frozen is not None and member.averaging is not None
    me = member.credentials.peer_id
    contribution = Contribution(me, INCARNATION, frozen.first, frozen.end, frozen.base, frozen.loss)
    return await member.averaging.round_traffic.run(member_plan_of(plan, me), contribution, frozen.encoded)


async def _applied(member: Member, signed: SignedCommit) -> None:
    assert member.averaging is not None
    averaged = member.averaging.round_traffic.averaged(signed.commit.averages)
    await member.jobs.run(functools.partial(member.replica.apply, signed, averaged))
    member.averaging.round_traffic.committed(signed.commit.plan_digest)


def main(codec: str, elements: int, folder: Path) -> dict[str, Any]:
    small = Swarm(codec, 1 << 20, folder)  # so that what a first round takes once and for all has been taken
    small.accumulate()
    small.epoch()
    swarm = Swarm(codec, elements, folder)
    swarm.accumulate()
    family = Family()
    family.settle()
    vector_bytes = CODECS[codec].encoded_bytes(elements)
    grew_bytes = []
    for epoch in range(EPOCHS + 1):
        swarm.accumulate()
        one_more = bytes([epoch]) * vector_bytes if epoch == EPOCHS else b""  # to see that it would show
        family.begin()
        swarm.epoch()
        family.end()
        grew_bytes.append(family.peak_bytes)
        del one_more
    return {"grew_bytes": max(grew_bytes[:-1]), "with_one_more_bytes": grew_bytes[-1], "vector_bytes": vector_bytes}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))

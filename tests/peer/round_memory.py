"""Two whole peers in a process of their own, which average and apply epoch after epoch: `python -m tests.peer.round_memory CODEC
ELEMENTS FOLDER`.

Prints as JSON, in bytes, by how much their memory grew at most over what they held before the first round; and by how much with
one more encoded vector held.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.worker import Family
from protocols.gradients.codecs import CODECS
from protocols.round import planner
from protocols.round.plans import Plan, member_plan_of
from protocols.round.records import Averages, Ballot, Commit, Contribution, SignedCommit
from protocols.transport.network_thread import NetworkThread
from tests.factories import RUN
from tests.peer.local_peers import LocalPeer, local_peers
from tests.replicas import gradient_of

PEERS, EPOCHS = 2, 3
PATIENCE_S = 30.0
TENSOR_ELEMENTS = 1 << 20


def make_model(elements: int) -> nn.Module:
    """`elements` zeros, in tensors of at most a million."""
    sizes = [*[TENSOR_ELEMENTS] * (elements // TENSOR_ELEMENTS), elements % TENSOR_ELEMENTS]
    return nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in sizes if size])


class Swarm:
    """Peers whose rounds this process drives, in the engine's place."""

    def __init__(self, network: NetworkThread, codec: str, elements: int, folder: Path) -> None:
        make = functools.partial(make_model, elements)
        self.peers = network.call(local_peers(folder, make, codec, count=PEERS))
        leader = self.peers[0].engine
        present = {peer.engine.me: planner.Present(peer.engine.hello.bulk_address, 1) for peer in self.peers}
        layout = planner.fresh(present, leader.me, planner.Round(1, elements, elements, 1))
        assert layout is not None and len({shard.reducer for shard in layout.shards}) == PEERS
        self._network, self._codec, self._layout = network, codec, layout

    def accumulate(self) -> None:
        """As if every peer had drawn four samples."""
        for peer in self.peers:
            peer.trainer.jobs.put(functools.partial(_accumulate, peer)).result()

    def epoch(self) -> None:
        """Everybody freezes, averages, and applies the same commit."""
        leader, layout, tip = self.peers[0], self._layout, self.peers[0].trainer.replica.tip
        assert tip is not None
        ballot = Ballot(tip.epoch + 1, tip.lineage, 1, leader.engine.me)
        plan = Plan(RUN, ballot, layout.contributors, layout.members, layout.shards, self._codec, PATIENCE_S, 1)
        running = [self._network.start(_averaged(peer, plan)) for peer in self.peers]
        averages, *_ = [future.result() for future in running]
        commit = Commit(
            ballot,
            plan.digest,
            averages.contributions,
            layout.members,
            averages.shards,
            self._codec,
            tip.total_samples + averages.samples,
            tip.leader,
            (),
            self._codec,
        )
        signed = leader.signer.sign(commit)
        for peer in self.peers:
            self._network.call(_applied(peer, signed))


def _accumulate(peer: LocalPeer) -> None:
    replica = peer.trainer.replica
    torch.arange(replica.elements, out=gradient_of(replica)).remainder_(1000).sub_(500)
    replica.strategy.after_backward(4, 1.0)


async def _averaged(peer: LocalPeer, plan: Plan) -> Averages:
    frozen = await peer.trainer.jobs.run(peer.trainer.freeze)
    assert frozen is not None
    me = peer.engine.me
    given = (frozen.first, frozen.end, frozen.base, frozen.loss, frozen.norm)
    contribution = Contribution(me, peer.engine.hello.incarnation, *given)
    return await peer.engine.round_traffic.run(member_plan_of(plan, me), contribution, frozen.encoded)


async def _applied(peer: LocalPeer, signed: SignedCommit) -> None:
    traffic = peer.engine.round_traffic
    result = traffic.result(signed.commit.averages)
    await peer.trainer.jobs.run(functools.partial(peer.trainer.replica.apply, signed, result))
    traffic.committed(signed.commit.plan_digest)


def main(codec: str, elements: int, folder: Path) -> dict[str, Any]:
    with NetworkThread() as network:
        small = Swarm(network, codec, TENSOR_ELEMENTS, folder)  # what only the first round of a process takes is taken here
        small.accumulate()
        small.epoch()
        swarm = Swarm(network, codec, elements, folder)
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

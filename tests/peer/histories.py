"""Lineages of the simulator's regression, worked out by a real replica: commits with their results, and snapshots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from blake3 import blake3

from peer.settings import RunSettings
from peer.simulation.problem import ELEMENTS, MAX_NORM, REGRESSION, SLICES
from peer.simulation.transport import SimulatedSigner
from peer.training.replica import Replica
from protocols.gradients.codecs import CODECS
from protocols.gradients.error_feedback import ErrorFeedback
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult, SignedCommit, Tip
from protocols.snapshot.format import StateHeader, capture, parameters_sha256

RUN, CODEC, LEADER = "ab" * 32, "fp64", Candidate("ann", "ann:1")
SAMPLES = 8  # of each commit


def genesis_snapshot(lineage: str) -> bytes:
    device = REGRESSION.device()
    header = StateHeader(RUN, 0, lineage, 0, "", device.schedule.state_dict())
    return capture(device.model, device.optimizer, header)


PARAMETERS = parameters_sha256(genesis_snapshot(""))
GENESIS = Tip.genesis(RUN, PARAMETERS, LEADER, CODEC)
SETTINGS = RunSettings(
    run_digest=RUN,
    target_batch_size=SAMPLES,
    max_epochs=None,
    codecs=(CODEC,),
    genesis=GENESIS,
    genesis_sha256=PARAMETERS,
    max_grad_norm=MAX_NORM,
)


class Stand:
    """A device with its replica. It has no state before the first restore."""

    def __init__(self, name: str, **change: Any) -> None:
        self.device, settings = REGRESSION.device(), replace(SETTINGS, **change)
        strategy = self.device.strategy(settings)
        verify = SimulatedSigner(name).verify
        self.replica = Replica(self.device.model, strategy, settings, error_feedback=ErrorFeedback(name, 1), verify=verify)
        self.replica.slices = SLICES

    @property
    def weights(self) -> bytes:
        return bytes(next(self.device.model.parameters()).detach().numpy().tobytes())


class History:
    """One lineage, from genesis on. Index 0 is genesis; index e is the state after the commit of epoch e."""

    def __init__(self, epochs: int, *, seed: int = 0) -> None:
        print(f"history seed {seed}")
        draw, stand = np.random.default_rng(seed), Stand("ann")
        replica = stand.replica
        replica.restore(genesis_snapshot(GENESIS.lineage))
        self.tips, self.snapshots, self.weights = [GENESIS], [replica.capture()[0]], [stand.weights]
        self.commits: list[SignedCommit] = []
        self.results: list[bytes] = []
        for epoch in range(1, epochs + 1):
            tip, layout = self.tips[-1], replica.layout(epoch)
            gradient = draw.standard_normal(ELEMENTS) / 8
            result = CODECS[CODEC].encode(gradient) + replica.slice_values(tip.lineage)
            signed = _commit_after(tip, bytes(result), float(gradient @ gradient))
            assert len(result) == layout.total_bytes
            self.tips.append(replica.apply(signed, result))
            self.commits.append(signed)
            self.results.append(bytes(result))
            self.snapshots.append(replica.capture()[0])
            self.weights.append(stand.weights)

    def stand(self, name: str, epoch: int) -> Stand:
        """A peer that has come to this epoch."""
        stand = Stand(name)
        stand.replica.restore(self.snapshots[epoch])
        return stand

    def after(self, lineage: str, until: int) -> list[tuple[SignedCommit, bytes]] | None:
        """Commits with results from `lineage` to epoch `until`; None if it is none of this history."""
        epochs = {tip.lineage: tip.epoch for tip in self.tips[: until + 1]}
        if lineage not in epochs:
            return None
        return list(zip(self.commits, self.results, strict=True))[epochs[lineage] : until]


def _commit_after(tip: Tip, result: bytes, sum_of_squares: float) -> SignedCommit:
    first = tip.total_samples
    commit = Commit(
        ballot=Ballot(tip.epoch + 1, tip.lineage, 1, LEADER.peer),
        plan_digest="d" * 64,
        contributions=(Contribution("ann", 1, first, first + SAMPLES, tip.lineage, 1.0),),
        members=("ann",),
        shards=(ShardResult(0, ELEMENTS, blake3(result).hexdigest(), sum_of_squares),),
        codec=CODEC,
        next_codec=CODEC,
        total_samples=first + SAMPLES,
        leader=LEADER,
        succession=(),
    )
    return SimulatedSigner(LEADER.peer).sign(commit)

"""Real replicas that drift apart, in real rounds: what rounds is put right on the way, what is off is outvoted and catches up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peer.training.replica import Replica
from protocols.gradients.codecs import CODECS
from protocols.gradients.slices import Slices
from protocols.reasons import Reason
from protocols.round.member import CatchUp
from protocols.round.records import SignedCommit
from protocols.snapshot.format import StateHeader, capture, restore
from tests.peer.test_equivalence import ADAMW, Data, Learner, replica_of, swarm_of, uneven
from tests.protocols.round.fakes import Swarm

EPS = torch.finfo(torch.float32).eps
PERIOD = 3
ROUNDING = 2.0  # epsilons, one way or the other, of every value after each step


class Machine(Learner):
    """Rounds in a way of its own."""

    way = 0

    def apply(self, signed: SignedCommit, averaged: bytes) -> None:
        super().apply(signed, averaged)
        if self.way:
            self.disturb(ROUNDING * EPS)

    def disturb(self, relative: float) -> None:
        draw = torch.Generator().manual_seed(self.way)
        with torch.no_grad():
            for parameter in self.replica.strategy.parameters:
                for tensor in (
                    parameter,
                    *(v for k, v in self.replica.strategy.optimizer.state[parameter].items() if k != "step"),
                ):
                    tensor *= 1 + relative * (torch.randint(0, 2, tensor.shape, generator=draw) * 2 - 1)

    def adopt(self, other: Any) -> None:
        """A snapshot, without its checks: the fakes sign nothing."""
        theirs: Replica = other.replica
        header = StateHeader("", 0, "", 0, "", {})
        restore(capture(theirs.model, theirs.strategy.optimizer, header), self.replica.model, self.replica.strategy.optimizer)
        self.replica.strategy.resume(theirs.strategy.schedule.epoch)
        self.replica.tip = theirs.tip


def machines(*, rounding: bool) -> Swarm:
    """Five of them; dag only opens connections, eve only reduces, ann leads."""
    swarm = swarm_of(CODECS["fp32"], torch.float32, ADAMW, 0.0, Data.make(torch.float32))
    for at, node in enumerate(swarm.nodes.values()):
        node.work.__class__ = Machine
        node.work.way = at if rounding else 0  # type: ignore[attr-defined]
        replica_of(node).slices = Slices(replica_of(node).elements, PERIOD)
    return swarm


def distance(swarm: Swarm) -> float:
    """The largest difference of a value between two of them, in epsilons of the largest magnitude of its kind."""
    worst = 0.0
    replicas = [replica_of(node) for node in swarm.alive]
    rows = [
        lambda r, p: p,
        lambda r, p: r.strategy.optimizer.state[p]["exp_avg"],
        lambda r, p: r.strategy.optimizer.state[p]["exp_avg_sq"],
    ]
    for row in rows:
        values = torch.stack(
            [torch.cat([row(r, p).detach().flatten() for p in r.strategy.parameters]).double() for r in replicas]
        )
        worst = max(worst, float((values.amax(0) - values.amin(0)).max() / values[0].abs().max() / EPS))
    return worst


def drifted(swarm: Swarm) -> set[str]:
    return {node.name for node in swarm.nodes.values() if Reason.DRIFT in node.reasons(CatchUp)}


def test_rounds_hold_unlike_machines_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound: what an epoch brings two machines apart, times the rotation's period."""
    bound = 1.25 * 2 * ROUNDING * PERIOD
    swarm = machines(rounding=True)
    held = []
    for epoch in range(8 * PERIOD):
        swarm.epoch(uneven(epoch))
        held.append(distance(swarm))
    print("held", [round(value, 1) for value in held])
    assert max(held) <= bound
    assert drifted(swarm) == set()
    assert swarm.failures == []


@pytest.mark.parametrize("off", ["ann", "bob", "dag", "eve"])
def test_one_that_is_off_is_outvoted_and_takes_the_others_state(off: str) -> None:
    swarm = machines(rounding=False)
    for epoch in range(3):
        swarm.epoch(uneven(epoch))
    before = replica_of(swarm.nodes["cid"])
    learner = swarm.nodes[off].work
    assert isinstance(learner, Machine)
    learner.disturb(1e-2)
    assert distance(swarm) > 1000
    for epoch in range(3, 3 + PERIOD):
        swarm.epoch(uneven(epoch))
    assert drifted(swarm) == {off}
    assert distance(swarm) == 0
    assert replica_of(swarm.nodes["cid"]) is before
    reasons = {failure.reason for failure in swarm.failures}
    assert reasons <= {Reason.DRIFT}, "nothing else went wrong"
    print(off, swarm.failures)

"""Replicas that drift apart, in whole peers: what rounds is put right on the way, what is off is outvoted and catches up."""

from __future__ import annotations

import pytest
import torch

from peer.simulation.problem import Device
from protocols.gradients.slices import Slices
from protocols.reasons import Reason
from tests.replicas import ADAMW, make_model, small_job, spec_of
from tests.swarms import QuietSwarm, Recorder, Volunteer

EPS = torch.finfo(torch.float32).eps
PERIOD = 3
ROUNDING = 2.0  # epsilons, one way or the other, of every value after each step
# ann leads at first, dag only opens connections, eve only reduces.
VOLUNTEERS = (
    Volunteer("ann"),
    Volunteer("bob", 2),
    Volunteer("cid", 2, 0.6),
    Volunteer("dag", 1, reachable=False),
    Volunteer("eve", 0),
)


class Machine(Device):
    """Rounds in a way of its own."""

    way = 0
    """0: as everybody does."""

    def _maybe_step(self) -> None:
        super()._maybe_step()
        if self.way:
            self.disturb(ROUNDING * EPS)

    def disturb(self, relative: float) -> None:
        """Every value by this share of itself, up or down."""
        draw = torch.Generator().manual_seed(self.way)
        with torch.no_grad():
            for parameter in self.model.parameters():
                slots = (value for name, value in self.optimizer.state[parameter].items() if name != "step")
                for tensor in (parameter, *slots):
                    tensor *= 1 + relative * (torch.randint(0, 2, tensor.shape, generator=draw) * 2 - 1)


class UnlikeMachines(Recorder):
    unlike_machines = True


def machines(seed: int = 0) -> QuietSwarm:
    elements = sum(parameter.numel() for parameter in make_model(torch.float32).parameters())
    spec = spec_of(ADAMW)
    job = small_job(
        torch.float32,
        ADAMW,
        device=lambda: Machine(make_model(torch.float32), spec),
        slices=Slices(elements, PERIOD),
    )
    return QuietSwarm(*VOLUNTEERS, problem=job, codec="fp32", max_grad_norm=0.0, recorder=UnlikeMachines, seed=seed)


def machine(swarm: QuietSwarm, name: str) -> Machine:
    device = swarm.processes[name].device
    assert isinstance(device, Machine)
    return device


def distance(swarm: QuietSwarm) -> float:
    """The largest difference of a value between two of them, in epsilons of the largest magnitude of its kind."""
    worst = 0.0
    devices = [process.device for process in swarm.alive]
    rows = [
        lambda device, p: p,
        lambda device, p: device.optimizer.state[p]["exp_avg"],
        lambda device, p: device.optimizer.state[p]["exp_avg_sq"],
    ]
    for row in rows:
        of_each = [torch.cat([row(it, p).detach().flatten() for p in it.model.parameters()]).double() for it in devices]
        values = torch.stack(of_each)
        worst = max(worst, float((values.amax(0) - values.amin(0)).max() / values[0].abs().max() / EPS))
    return worst


def drifted(swarm: QuietSwarm) -> set[str]:
    return {peer for peer, reason in swarm.observer.catch_ups if reason is Reason.DRIFT}


def test_rounds_hold_unlike_machines_together() -> None:
    """Bound: what an epoch brings two machines apart, times the rotation's period."""
    bound = 1.25 * 2 * ROUNDING * PERIOD
    with machines() as swarm:
        for way, name in enumerate(swarm.names):
            machine(swarm, name).way = way
        held = []
        for _ in range(8 * PERIOD):
            swarm.epochs()
            held.append(distance(swarm))
        print("held", [round(value, 1) for value in held])
        assert 0 < max(held) <= bound
        assert drifted(swarm) == set()
        assert swarm.observer.failures == []


@pytest.mark.parametrize("off", ["ann", "bob", "dag", "eve"])
def test_one_that_is_off_is_outvoted_and_takes_the_others_state(off: str) -> None:
    with machines() as swarm:
        swarm.epochs(3)
        machine(swarm, off).disturb(1e-2)
        swarm.observer.drifted(swarm.processes[off])
        assert distance(swarm) > 1000
        swarm.epochs(PERIOD)
        assert drifted(swarm) == {off}
        assert distance(swarm) == 0
        assert {failure.reason for failure in swarm.observer.failures} <= {Reason.DRIFT}, "nothing else went wrong"

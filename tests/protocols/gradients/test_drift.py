"""Replicas that take the same steps on unlike machines, emulated: after every step each is disturbed in its own way."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from protocols.errors import BadMessageError
from protocols.gradients.drift import SLACK, SlicedState
from protocols.gradients.slices import Slices
from protocols.optimization import build_optimizer
from protocols.round.planner import GRID
from protocols.run_spec import RunSpec

PERIOD = 6
ROUNDING = 2.0  # epsilons of its magnitude by which a machine disturbs every value after each step, one way or the other
EPS = torch.finfo(torch.float32).eps
OPTIMIZERS = {
    "adamw": {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
    "lamb": {"name": "lamb", "learning_rate": 0.01, "weight_decay": 0.1},
    "sgd": {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.0},
    "plain": {"name": "sgd", "learning_rate": 0.01, "momentum": 0.0, "weight_decay": 0.0},
}


def make_model() -> nn.Module:
    """12,330 elements: blocks with a piece of one tensor and with pieces of several, a number alone, and a tied weight."""
    torch.manual_seed(5)
    last = nn.Linear(60, 11)
    model = nn.Sequential(nn.Linear(60, 90), nn.LayerNorm(90), nn.Linear(90, 60), last)
    model.register_parameter("temperature", nn.Parameter(torch.tensor(0.3)))
    model.register_module("tied", nn.Linear(60, 11, bias=False))
    model.get_submodule("tied").weight = last.weight
    return model


class Machine:
    """One replica. After each step every value is off by `rounding` epsilons of its magnitude, always the same way: the worst
    case, since rounding proper goes either way."""

    def __init__(self, seed: int, rounding: float, optimizer: str = "adamw") -> None:
        self.model = make_model()
        self.parameters = list(self.model.parameters())
        spec = {"run": {"name": "x"}, "optimizer": OPTIMIZERS[optimizer]}
        self.optimizer = build_optimizer(RunSpec.model_validate(spec), self.model)
        self.state = SlicedState(self.parameters, self.optimizer)
        self.slices = Slices(sum(p.numel() for p in self.parameters), PERIOD)
        self.draw = torch.Generator().manual_seed(seed)
        self.rounding = rounding
        self.epoch = 0

    def step(self) -> None:
        """The same gradient for all at an epoch."""
        draw = torch.Generator().manual_seed(self.epoch)
        for parameter in self.parameters:
            parameter.grad = (torch.randn(parameter.shape, generator=draw) / 100).to(parameter.dtype)
        self.optimizer.step()
        self.epoch += 1
        if self.rounding:
            whole = ((0, self.slices.elements),)
            values = torch.frombuffer(bytearray(self.state.read(whole)), dtype=torch.float32)
            way = torch.randint(0, 2, values.shape, generator=torch.Generator().manual_seed(self.draw.initial_seed())) * 2 - 1
            self.state.write(whole, (values * (1 + self.rounding * EPS * way)).numpy().tobytes())

    def cast(self, dtype: torch.dtype) -> None:
        for parameter in self.parameters:
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)
            slots = self.optimizer.state.get(parameter, {})
            for slot, value in slots.items():
                if slot != "step" and isinstance(value, torch.Tensor):
                    slots[slot] = value.to(dtype)

    def everything(self) -> bytes:
        return self.state.read(((0, self.slices.elements),))

    def values(self) -> torch.Tensor:
        """(rows, elements) float64."""
        values = torch.frombuffer(bytearray(self.everything()), dtype=torch.float32)
        return values.view(-1, self.slices.elements).double()


def distance(machines: list[Machine]) -> float:
    """The largest difference between two of them, in epsilons of the largest magnitude of its kind (parameter, slot)."""
    values = torch.stack([machine.values() for machine in machines])
    scale = values[0].abs().amax(dim=1, keepdim=True)
    return float(((values.amax(0) - values.amin(0)) / scale / EPS).max())


def run(optimizer: str, epochs: int, *, controlled: bool) -> tuple[list[float], float]:
    """(distance after each epoch, largest excess that a check found) of machines that round in ways of their own."""
    machines = [Machine(seed, ROUNDING if seed else 0.0, optimizer) for seed in range(4)]
    distances, worst = [], 0.0
    for epoch in range(1, epochs + 1):
        ranges, age = machines[0].slices.at(epoch), machines[0].slices.age(epoch)
        canonical = machines[epoch % 4].state.read(ranges)
        for machine in machines:
            if controlled:
                worst = max(worst, machine.state.excess(ranges, canonical, age))
                machine.state.write(ranges, canonical)
            machine.step()
        distances.append(distance(machines))
    return distances, worst


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_drift_is_bounded_by_the_rotation_and_grows_without_end_otherwise(optimizer: str) -> None:
    """The bound: what one epoch can bring two machines apart, times the period. A quarter more for what a slot's difference adds
    to the parameter in its steps."""
    epochs = 12 * PERIOD
    free, _ = run(optimizer, epochs, controlled=False)
    bounded, worst = run(optimizer, epochs, controlled=True)
    bound = 1.25 * 2 * ROUNDING * PERIOD
    print(f"{optimizer}: free {free[-1]:.1f}, controlled {max(bounded):.1f}, bound {bound:.1f}, check {worst:.3f}")
    assert free[-1] > 5 * bound, "the disturbance is large enough to tell"
    assert max(bounded) <= bound
    assert 0 < worst <= 1, "what rounds is never refused"


def test_like_machines_stay_bit_identical() -> None:
    machines = [Machine(seed, rounding=0.0) for seed in range(2)]
    for epoch in range(1, 2 * PERIOD):
        ranges = machines[0].slices.at(epoch)
        canonical = machines[0].state.read(ranges)
        assert machines[1].state.excess(ranges, canonical, 0) == 0
        machines[1].state.write(ranges, canonical)
        for machine in machines:
            machine.step()
    assert machines[0].everything() == machines[1].everything()


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_a_step_in_other_arithmetic_is_within_rounding(optimizer: str) -> None:
    """Float64, rounded after each step, against float32: the real thing, not a disturbance made up."""
    plain, other = Machine(0, 0.0, optimizer), Machine(0, 0.0, optimizer)
    worst = 0.0
    for epoch in range(1, 60):
        ranges = plain.slices.at(epoch)
        canonical = plain.state.read(ranges)
        worst = max(worst, other.state.excess(ranges, canonical, plain.slices.age(epoch)))
        other.state.write(ranges, canonical)
        plain.step()
        other.cast(torch.float64)
        other.step()
        other.cast(torch.float32)
    print("worst", worst)
    assert 0 < worst <= 1


@pytest.mark.parametrize("row", [0, 1, 2])
def test_more_than_rounding_is_told_from_rounding(row: int) -> None:
    machine = Machine(0, 0.0)
    for _ in range(3):
        machine.step()
    ranges, age = ((0, GRID), (3 * GRID, 4 * GRID)), 2
    values = torch.frombuffer(bytearray(machine.state.read(ranges)), dtype=torch.float32).view(2, 3, GRID)
    at = int(values[1, row].abs().argmax())
    allowed = SLACK * EPS * age * (values[1, row, at].abs() + values[1, row].double().square().mean().sqrt())
    for factor, expected in ((0.5, 0.5), (2.0, 2.0)):
        theirs = values.clone()
        theirs[1, row, at] += factor * allowed
        assert machine.state.excess(ranges, theirs.numpy().tobytes(), age) == pytest.approx(expected, rel=0.02)
    for bad in (math.nan, math.inf):
        theirs = values.clone()
        theirs[0, row, 0] = bad
        assert machine.state.excess(ranges, theirs.numpy().tobytes(), age) == math.inf


def test_before_the_first_step_nothing_may_differ_and_there_are_no_slots_yet() -> None:
    machine = Machine(0, 0.0)
    assert machine.slices.at(1) == (), "what builds on the genesis needs no correction"
    ranges = machine.slices.at(2)
    values = torch.frombuffer(bytearray(machine.state.read(ranges)), dtype=torch.float32).clone()
    assert len(values) == sum(stop - start for start, stop in ranges)
    assert machine.state.slots == ()
    assert machine.state.excess(ranges, values.numpy().tobytes(), machine.slices.age(1)) == 0
    values[0] *= 1 + 2 * EPS
    assert machine.state.excess(ranges, values.numpy().tobytes(), machine.slices.age(1)) > 1


def test_what_is_written_is_what_was_read_and_nothing_else_changes() -> None:
    here, there = Machine(0, 0.0), Machine(1, 3.0)
    for machine in (here, there):
        machine.step()
    before, ranges = here.values().clone(), here.slices.at(3)
    rows = there.state.read(ranges)
    assert len(rows) == here.state.bytes_in(ranges)
    here.state.write(ranges, rows)
    assert here.state.read(ranges) == rows
    inside = torch.zeros(here.slices.elements, dtype=torch.bool)
    for start, stop in ranges:
        inside[start:stop] = True
    after, theirs = here.values(), there.values()
    assert torch.equal(after[:, ~inside], before[:, ~inside])
    assert torch.equal(after[:, inside], theirs[:, inside])
    assert not torch.equal(after[:, inside], before[:, inside])


@pytest.mark.parametrize("change", [-4, 4, -1])
def test_a_slice_of_another_size_is_refused_unwritten(change: int) -> None:
    machine = Machine(0, 0.0)
    machine.step()
    before, ranges = machine.everything(), machine.slices.at(2)
    data = (machine.state.read(ranges) + bytes(8))[: machine.state.bytes_in(ranges) + change]
    for use in (machine.state.write, lambda r, d: machine.state.excess(r, d, 1)):
        with pytest.raises(BadMessageError):
            use(ranges, data)
    assert machine.everything() == before


def test_a_layout_in_memory_other_than_contiguous_is_the_same_slice() -> None:
    plain, strided = Machine(0, 0.0), Machine(0, 0.0)
    weight = strided.parameters[1]  # temperature is the first
    assert weight.dim() == 2
    weight.data = copy.deepcopy(weight.data).t().contiguous().t()
    assert not weight.is_contiguous()
    whole = ((0, plain.slices.elements),)
    assert strided.everything() == plain.everything()
    plain.step()
    strided.optimizer.state.clear()
    strided.step()
    strided.state.write(whole, plain.everything())
    assert strided.everything() == plain.everything()

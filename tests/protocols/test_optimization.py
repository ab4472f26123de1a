from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from protocols.errors import SpecError
from protocols.optimization import build_optimizer, build_scheduler
from protocols.run_spec import RunSpec

NAMES = ["adamw", "lamb", "sgd"]


def spec(optimizer: dict[str, object] | None = None, schedule: dict[str, object] | None = None) -> RunSpec:
    return RunSpec.model_validate(
        {
            "run": {"name": "x"},
            "optimizer": optimizer or {},
            "schedule": {"name": "linear", "warmup_steps": 5, "total_steps": 50} if schedule is None else schedule,
        }
    )


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 1))


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_lowers_a_loss(name: str) -> None:
    net = model()
    optimizer = build_optimizer(spec({"name": name, "learning_rate": 0.01}), net)
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(30):
        loss = (net(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_equal_gradients_give_bit_identical_steps(name: str) -> None:
    nets = [model(), model()]
    for net in nets:
        optimizer = build_optimizer(spec({"name": name}), net)
        draw = torch.Generator().manual_seed(1)
        for _ in range(5):
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=draw)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_spares_biases_and_normalisation(name: str) -> None:
    net = model()
    groups = build_optimizer(spec({"name": name, "weight_decay": 0.1}), net).param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] > 0 for parameter in group["params"]}
    assert decayed == {id(net[0].weight), id(net[2].weight)}  # type: ignore[index]
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))


def test_frozen_parameters_are_left_alone() -> None:
    net = model()
    net.requires_grad_(False)
    net[2].requires_grad_(True)  # type: ignore[index]
    assert sum(len(group["params"]) for group in build_optimizer(spec(), net).param_groups) == 2


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "constant"},
        {"name": "constant_with_warmup", "warmup_steps": 4},
        {"name": "linear", "warmup_steps": 4, "total_steps": 40},
        {"name": "cosine", "warmup_steps": 4, "total_steps": 40},
        {"name": "cosine_with_restarts", "warmup_steps": 4, "total_steps": 40, "options": {"num_cycles": 2}},
        {"name": "cosine_with_min_lr", "warmup_steps": 4, "total_steps": 40, "options": {"min_lr_rate": 0.1}},
        {"name": "cosine_warmup_with_min_lr", "warmup_steps": 4, "total_steps": 40, "options": {"min_lr_rate": 0.1}},
        {"name": "polynomial", "warmup_steps": 4, "total_steps": 40},
        {"name": "inverse_sqrt", "warmup_steps": 4},
        {"name": "warmup_stable_decay", "warmup_steps": 4, "options": {"num_stable_steps": 20, "num_decay_steps": 10}},
    ],
    ids=lambda schedule: str(schedule["name"]),
)
def test_the_rate_is_that_of_transformers_and_a_late_joiner_has_it_too(schedule: dict[str, object]) -> None:
    run = spec(schedule=schedule)
    optimizer = build_optimizer(run, model())
    scheduler = build_scheduler(run, optimizer)
    theirs_optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=run.optimizer.learning_rate)
    theirs = get_scheduler(
        run.schedule.name,
        theirs_optimizer,
        num_warmup_steps=run.schedule.warmup_steps,
        num_training_steps=run.total_steps,
        scheduler_specific_kwargs=dict(run.schedule.options),
    )
    for epoch in range(45):
        rate = theirs_optimizer.param_groups[0]["lr"]
        assert {group["lr"] for group in optimizer.param_groups} == {rate}
        assert scheduler.learning_rate_at(epoch) == rate

        late = build_optimizer(run, model())
        late_scheduler = build_scheduler(run, late)
        late_scheduler.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
        assert {group["lr"] for group in late.param_groups} == {rate}
        assert late_scheduler.epoch == epoch

        theirs_optimizer.step()
        theirs.step()
        scheduler.set_epoch(epoch + 1)


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "linear", "total_steps": 9, "options": {"num_cycles": 2}},
        {"name": "cosine_with_min_lr", "total_steps": 9},
        {"name": "warmup_stable_decay", "total_steps": 9},
        {"name": "cosine", "total_steps": 9, "options": {"num_cycles": "two"}},
    ],
)
def test_options_that_do_not_fit_the_schedule_are_refused(schedule: dict[str, object]) -> None:
    run = spec(schedule=schedule)
    with pytest.raises(SpecError, match=str(schedule["name"])) as caught:
        build_scheduler(run, build_optimizer(run, model()))
    assert caught.value.remedy


@pytest.mark.parametrize("state", [{}, {"epoch": -1}, {"epoch": "3"}, {"epoch": True}, {"epoch": 1.5}])
def test_a_foreign_schedule_state_is_refused_and_changes_nothing(state: dict[str, object]) -> None:
    run = spec()
    optimizer = build_optimizer(run, model())
    scheduler = build_scheduler(run, optimizer)
    scheduler.set_epoch(7)
    with pytest.raises(ValueError, match="schedule"):
        scheduler.load_state_dict(state)
    assert scheduler.epoch == 7
    assert optimizer.param_groups[0]["lr"] == scheduler.learning_rate_at(7)

"""What every training algorithm must keep, and a second one, which only tests know, through the same path as the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from peer.simulation.feedback import Feedback
from peer.simulation.observer import Source
from peer.training.replica import Replica
from peer.training.strategies import STRATEGIES
from protocols.errors import SpecError
from protocols.gradients.aggregation import RULES
from protocols.gradients.codecs import FloatArray
from protocols.run_spec import RunSpec, StrategyName
from tests.peer.other_algorithms import OUTER_LEARNING_RATE, OUTER_MOMENTUM, LocalSteps, largest, registered
from tests.peer.training.test_overlap import DATA, PEERS, at_tip, draw, frozen_of, replica_of, replicas, round_of, state
from tests.replicas import LEARNING_RATE, SGD, WARMUP, make_model, parameters, small_job, spec_of
from tests.swarms import QuietSwarm, Recorder, Volunteer

NAMES = [*STRATEGIES, "test-local-steps"]
EVERY_STRATEGY = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    with registered():
        yield


def epoch(everybody: list[Replica], *followers: Replica) -> None:
    for index, it in enumerate(everybody):
        draw(it, PEERS[index], 3 + index)
        draw(it, PEERS[index], 2)
    signed, result = round_of([frozen_of(it) for it in everybody], everybody[0])
    for it in (*everybody, *followers):
        it.apply(signed, result)


# -- names -----------------------------------------------------------------------------------------------------------------------


def test_the_spec_accepts_exactly_the_strategies_that_there_are() -> None:
    assert {*get_args(StrategyName), "test-local-steps"} == set(STRATEGIES)


@pytest.mark.parametrize(
    ("section", "given", "nearest"),
    [("training", 'strategy = "acumulate"', "accumulate"), ("averaging", 'rule = "meen"', "mean")],
)
def test_the_spec_refuses_an_unknown_name_with_the_nearest_valid_one(section: str, given: str, nearest: str) -> None:
    with pytest.raises(SpecError, match=rf"{section}\.{given.split()[0]} is") as caught:
        RunSpec.from_toml(f'[run]\nname = "x"\n[{section}]\n{given}\n')
    assert f'Did you mean "{nearest}"?' in caught.value.remedy


def test_settings_with_an_unknown_name_are_refused_with_the_nearest_valid_one() -> None:
    with pytest.raises(SpecError, match=r"training\.strategy is 'test-local-step'") as caught:
        replicas(strategy="test-local-step")
    assert 'Did you mean "test-local-steps"?' in caught.value.remedy


# -- what every strategy keeps -------------------------------------------------------------------------------------------------


@EVERY_STRATEGY
def test_peers_that_apply_the_same_commits_are_bit_identical_whatever_they_drew_meanwhile(name: str) -> None:
    everybody, (follower,) = replicas(overlap=False, strategy=name), replicas(1, overlap=False, strategy=name)
    start = parameters(follower.model)
    for _ in range(4):
        draw(follower, "cid", 5)
        epoch(everybody, follower)
    assert {state(it) for it in everybody} == {state(follower)}
    assert (at_tip(follower) - start).abs().max() > 1e-4, "the parameters moved"


@EVERY_STRATEGY
def test_a_snapshot_holds_all_state(name: str) -> None:
    everybody = replicas(overlap=False, strategy=name)
    (joiner,) = replicas(1, overlap=False, strategy=name, verify=lambda signed: signed)
    for _ in range(3):
        epoch(everybody)
    draw(everybody[0], "ann", 4)  # what is drawn is no state
    snapshot, _, tip = everybody[0].capture()
    assert joiner.restore(snapshot) == tip
    for _ in range(3):
        epoch(everybody, joiner)
    assert state(joiner) == state(everybody[0]) == state(everybody[1])


@EVERY_STRATEGY
def test_counters_never_go_back_and_a_restart_returns_to_the_tip(name: str) -> None:
    (it,) = replicas(1, overlap=False, strategy=name)
    seen = []
    tip = parameters(it.model)
    for count in (3, 1, 4):
        draw(it, "ann", count)
        seen.append(range(it.strategy.first, it.strategy.end))
        it.strategy.restart()
        assert it.strategy.samples == it.strategy.loss_sum == 0
        assert torch.equal(parameters(it.model), tip)
    assert [counter for counters in seen for counter in counters] == list(range(8))


@EVERY_STRATEGY
def test_a_contribution_does_not_depend_on_the_pieces_in_which_it_is_read(name: str) -> None:
    (it,) = replicas(1, overlap=False, strategy=name)
    epoch([it])  # the learning rate of the first is zero
    draw(it, "ann", 5)
    whole = it.strategy.mean(0, it.elements)
    cuts = [0, 1, 700, it.elements]
    assert torch.equal(torch.cat([it.strategy.mean(at, stop) for at, stop in pairwise(cuts)]), whole)
    whole.zero_()
    assert it.strategy.mean(0, it.elements).any(), "it is a copy"


# -- a second strategy and a second rule ---------------------------------------------------------------------------------------


def test_local_steps_with_an_outer_optimizer_are_what_torch_alone_computes() -> None:
    everybody = [
        replica_of(make_model(torch.float64), spec_of(SGD), "fp64", strategy="test-local-steps", rule="test-largest")
        for _ in PEERS
    ]
    base = make_model(torch.float64)
    outer = torch.optim.SGD(base.parameters(), lr=OUTER_LEARNING_RATE, momentum=OUTER_MOMENTUM, nesterov=True)
    local = [make_model(torch.float64) for _ in PEERS]
    groups = [
        [{"params": [p for p in it.parameters() if p.dim() >= 2]}, {"params": [p for p in it.parameters() if p.dim() < 2]}]
        for it in local
    ]
    inner = [torch.optim.SGD(group, lr=1.0, momentum=SGD["momentum"]) for group in groups]
    counters = [0, 0]
    for number in range(5):
        epoch(everybody)
        moved = []
        for index, model in enumerate(local):
            model.load_state_dict(base.state_dict())
            for group in inner[index].param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, number / WARMUP)
            for count in (3 + index, 2):
                rows = slice(counters[index], counters[index] + count)
                counters[index] += count
                inner[index].zero_grad()
                (DATA.loss_sum(model, PEERS[index], rows) / count).backward()  # type: ignore[no-untyped-call]
                inner[index].step()
            moved.append(parameters(base) - parameters(model))
        nn.utils.vector_to_parameters(parameters(base), base.parameters())
        at, average = 0, torch.from_numpy(np.maximum.reduce([it.numpy() for it in moved]))
        for parameter in base.parameters():
            parameter.grad = average[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        outer.step()
    assert (at_tip(everybody[0]) - parameters(base)).abs().max() <= 1e-12
    assert (parameters(base) - parameters(make_model(torch.float64))).abs().max() > 0.01, "the parameters moved"


class LocalStepsObserver(Recorder):
    def after_event(self, process: Source) -> None:
        """Local steps write to parameters between commits, though not to the state's own."""


def test_whole_peers_train_with_the_strategy_and_the_rule_that_their_settings_name(monkeypatch: pytest.MonkeyPatch) -> None:
    combined: list[int] = []

    def counted(parts: Sequence[FloatArray], weights: Sequence[int], norms: Sequence[float]) -> FloatArray:
        combined.append(len(parts))
        return largest(parts, weights, norms)

    monkeypatch.setitem(RULES, "test-largest", counted)
    monkeypatch.setattr(Feedback, "check_mean", lambda *_: None)  # it is no mean
    options: dict[str, Any] = {"strategy": "test-local-steps", "rule": "test-largest", "recorder": LocalStepsObserver}
    start = parameters(make_model(torch.float64))
    with QuietSwarm(Volunteer("ann"), Volunteer("bob", 2), problem=small_job(torch.float64, SGD), **options) as swarm:
        swarm.epochs(4)  # the observer holds their states against each other at every lineage
        kinds = {type(process.replica.strategy) for process in swarm.alive}
        (end,) = {process.state.weights.tobytes() for process in swarm.alive}
    assert kinds == {LocalSteps}
    assert combined.count(2) >= 3
    assert (torch.frombuffer(bytearray(end), dtype=torch.float64) - start).abs().max() > 0.01, "the parameters moved"

"""What every training algorithm must keep, and an aggregation rule that only this file knows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch

from peer.simulation.feedback import Feedback
from peer.training.replica import Replica
from peer.training.strategies import STRATEGIES
from peer.training.strategies.local_steps import LocalSteps
from protocols.errors import SpecError
from protocols.gradients.aggregation import RULES
from protocols.gradients.codecs import FloatArray
from protocols.run_spec import RunSpec, StrategyName
from tests.peer.training.test_overlap import PEERS, at_tip, draw, frozen_of, replicas, round_of, state
from tests.replicas import SGD, make_model, parameters, small_job
from tests.swarms import QuietSwarm, Volunteer

NAMES = list(STRATEGIES)
EVERY_STRATEGY = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "test-largest", largest)


def largest(parts: Sequence[FloatArray], weights: Sequence[int], norms: Sequence[float]) -> FloatArray:
    """Element by element, whatever the weights."""
    result: FloatArray = np.maximum.reduce(parts)
    return result


def epoch(everybody: list[Replica], *followers: Replica) -> None:
    for index, it in enumerate(everybody):
        draw(it, PEERS[index], 3 + index)
        draw(it, PEERS[index], 2)
    signed, result = round_of([frozen_of(it) for it in everybody], everybody[0])
    for it in (*everybody, *followers):
        it.apply(signed, result)


# -- names -----------------------------------------------------------------------------------------------------------------------


def test_the_spec_accepts_exactly_the_strategies_that_there_are() -> None:
    assert set(get_args(StrategyName)) == set(STRATEGIES)


@pytest.mark.parametrize(
    ("section", "given", "nearest"),
    [("training", 'strategy = "acumulate"', "accumulate"), ("averaging", 'rule = "meen"', "mean")],
)
def test_the_spec_refuses_an_unknown_name_with_the_nearest_valid_one(section: str, given: str, nearest: str) -> None:
    with pytest.raises(SpecError, match=rf"{section}\.{given.split()[0]} is") as caught:
        RunSpec.from_toml(f'[run]\nname = "x"\n[{section}]\n{given}\n')
    assert f'Did you mean "{nearest}"?' in caught.value.remedy


def test_settings_with_an_unknown_name_are_refused_with_the_nearest_valid_one() -> None:
    with pytest.raises(SpecError, match=r"training\.strategy is 'local-step'") as caught:
        replicas(strategy="local-step")
    assert 'Did you mean "local-steps"?' in caught.value.remedy


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


# -- in whole peers ------------------------------------------------------------------------------------------------------------


def test_whole_peers_train_with_the_strategy_and_the_rule_that_their_settings_name(monkeypatch: pytest.MonkeyPatch) -> None:
    combined: list[int] = []

    def counted(parts: Sequence[FloatArray], weights: Sequence[int], norms: Sequence[float]) -> FloatArray:
        combined.append(len(parts))
        return largest(parts, weights, norms)

    monkeypatch.setitem(RULES, "test-largest", counted)
    monkeypatch.setattr(Feedback, "check_mean", lambda *_: None)  # it is no mean
    options: dict[str, Any] = {"strategy": "local-steps", "outer_momentum": 0.5, "rule": "test-largest"}
    start = parameters(make_model(torch.float64))
    with QuietSwarm(Volunteer("ann"), Volunteer("bob", 2), problem=small_job(torch.float64, SGD), **options) as swarm:
        swarm.epochs(4)  # the observer holds their states against each other at every lineage
        kinds = {type(process.replica.strategy) for process in swarm.alive}
        (end,) = {process.state.weights.tobytes() for process in swarm.alive}
    assert kinds == {LocalSteps}
    assert combined.count(2) >= 3
    assert (torch.frombuffer(bytearray(end), dtype=torch.float64) - start).abs().max() > 0.01, "the parameters moved"

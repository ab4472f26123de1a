"""Local steps: what they come to, what is state and what is private, and what does not go with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from peer.training.replica import Replica
from peer.training.strategies.local_steps import LocalSteps
from protocols.errors import DriftError, SpecError
from protocols.gradients.aggregation import RULES
from protocols.gradients.codecs import CODECS
from protocols.optimization import build_optimizer, build_scheduler, build_state_optimizer
from protocols.run_spec import RunSpec
from protocols.snapshot.format import StateHeader, capture
from tests.peer.training.test_overlap import CLIP, DATA, PEERS, at_tip, draw, frozen_of, replica_of, round_of, state
from tests.replicas import ADAMW, LEARNING_RATE, WARMUP, make_model, parameters, spec_of

BATCH, OUTER_LEARNING_RATE, OUTER_MOMENTUM = 4, 0.7, 0.9
DRAWS = ((3, 2, 6, 1), (4, 2))  # micro-batches of an epoch, by peer


def local(codec: str = "fp64", **change: Any) -> Replica:
    options = {"strategy": "local-steps", "local_batch_size": BATCH, "overlap": False, **change}
    return replica_of(make_model(torch.float64), spec_of(ADAMW), codec, **options)


def strategy_of(it: Replica) -> LocalSteps:
    assert isinstance(it.strategy, LocalSteps)
    return it.strategy


def inner_slots(it: Replica) -> torch.Tensor:
    slots = strategy_of(it).inner.state
    return torch.cat([value.flatten().double() for p in it.strategy.parameters for _, value in sorted(slots[p].items())])


def epoch(everybody: list[Replica], *followers: Replica) -> None:
    for it, peer, draws in zip(everybody, PEERS, DRAWS, strict=False):
        for count in draws:
            draw(it, peer, count)
    signed, result = round_of([frozen_of(it) for it in everybody], everybody[0])
    for it in (*everybody, *followers):
        it.apply(signed, result)


def test_a_run_is_what_torch_alone_computes() -> None:
    outer_options = {"outer_learning_rate": OUTER_LEARNING_RATE, "outer_momentum": OUTER_MOMENTUM}
    everybody = [local(**outer_options) for _ in PEERS]
    base, models = make_model(torch.float64), [make_model(torch.float64) for _ in PEERS]
    outer = torch.optim.SGD(base.parameters(), lr=OUTER_LEARNING_RATE, momentum=OUTER_MOMENTUM, nesterov=True)
    inner = [build_optimizer(spec_of(ADAMW), model) for model in models]
    counters = [0, 0]
    for number in range(5):
        epoch(everybody)
        moved = []
        for index, model in enumerate(models):
            model.load_state_dict(base.state_dict())
            for group in inner[index].param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (number + 0.5) / WARMUP)
            # Steps of at least BATCH samples, the last one of what is there: 3 + 2, 6, 1 and 4, 2.
            for count in ((5, 6, 1), (4, 2))[index]:
                rows = slice(counters[index], counters[index] + count)
                counters[index] += count
                inner[index].zero_grad()
                (DATA.loss_sum(model, PEERS[index], rows) / count).backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                inner[index].step()
            moved.append(parameters(base) - parameters(model))
        average = (12 * moved[0] + 6 * moved[1]) / 18  # by samples
        at = 0
        for parameter in base.parameters():
            parameter.grad = average[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        outer.step()
    assert (at_tip(everybody[0]) - parameters(base)).abs().max() <= 1e-6  # torch adds 1e-6 to the norm by which it clips
    assert (parameters(base) - parameters(make_model(torch.float64))).abs().max() > 0.01, "the parameters moved"


def test_by_default_an_epoch_takes_the_mean_of_where_the_peers_have_come_to() -> None:
    everybody = [local() for _ in PEERS]
    epoch(everybody)
    start = at_tip(everybody[0])
    for it, peer in zip(everybody, PEERS, strict=True):
        draw(it, peer, BATCH)
    ends = [parameters(it.model) for it in everybody]
    assert not torch.equal(ends[0], start)
    signed, result = round_of([frozen_of(it) for it in everybody], everybody[0])
    everybody[0].apply(signed, result)
    assert (at_tip(everybody[0]) - (ends[0] + ends[1]) / 2).abs().max() < 1e-12


def test_the_first_epoch_of_a_warm_up_moves_the_parameters() -> None:
    it = local()
    start = at_tip(it)
    epoch([it])
    assert (at_tip(it) - start).abs().max() > LEARNING_RATE / WARMUP / 4


def test_inner_slots_are_private_and_stay_through_commits_lost_steps_and_snapshots() -> None:
    ann, bob, cid = local(), local(), local(verify=lambda signed: signed)
    epoch([ann, bob], cid)
    assert state(ann) == state(bob) == state(cid)
    assert not torch.equal(inner_slots(ann), inner_slots(bob)) and not strategy_of(cid).inner.state
    draw(ann, "ann", BATCH)
    kept = inner_slots(ann)
    ann.strategy.restart()  # no commit took it
    assert torch.equal(inner_slots(ann), kept)
    for _ in range(2):
        draw(cid, "cid", BATCH)
    kept = inner_slots(cid)
    cid.restore(ann.capture()[0])
    assert torch.equal(inner_slots(cid), kept)


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_costs_the_contribution_and_no_more(broken: float) -> None:
    it = local()
    epoch([it])
    start, kept = at_tip(it), inner_slots(it)
    next(it.model.parameters()).grad[0, 0] = broken  # type: ignore[index]
    draw(it, "ann", BATCH)
    assert it.freeze() is None
    assert torch.equal(at_tip(it), start) and torch.equal(inner_slots(it), kept)
    epoch([it])
    assert not torch.equal(at_tip(it), start)


def test_peers_of_unequal_speed_are_averaged_whole_by_the_default_rule() -> None:
    """Whoever takes more steps moves further. Up to a ratio of 4, the cap of norm-capped takes nothing from anybody."""
    frozen = []
    for number, peer in enumerate(("ann", "bob", "cid", "dag"), 1):
        it = local()
        it.strategy.schedule.set_epoch(WARMUP)
        for _ in range(4 * number):
            draw(it, peer, BATCH)
        frozen.append(frozen_of(it))
    parts = [CODECS["fp64"].decode(it.encoded, len(it.encoded) // 8) for it in frozen]
    weights, norms = [it.end - it.first for it in frozen], [it.norm for it in frozen]
    assert max(norms) > 1.5 * min(norms)
    capped, mean = (RULES[name]([part.copy() for part in parts], weights, norms) for name in ("norm-capped", "mean"))
    assert np.array_equal(capped, mean)


def test_what_int4_loses_of_a_movement_comes_with_the_next() -> None:
    exact, coarse = local(), local("int4")
    for it in (exact, coarse):
        it.strategy.schedule.set_epoch(WARMUP)
    given = torch.zeros(exact.elements, dtype=torch.float64)
    wanted = given.clone()
    for _ in range(6):
        for it, total in ((exact, wanted), (coarse, given)):
            draw(it, "ann", BATCH)
            frozen = frozen_of(it)
            total += torch.from_numpy(it.codec.decode(frozen.encoded, it.elements)).double()
            signed, _ = round_of([frozen], it)
            it._error_feedback.settle(signed.commit.contributions)  # committed, though the state stays: both draw the same
    last = torch.from_numpy(coarse.codec.decode(frozen.encoded, coarse.elements)).double()
    bound = torch.from_numpy(coarse.codec.max_error(last.numpy())).max() * 2
    assert (given - wanted).abs().max() < bound


def test_a_state_that_drifted_is_noticed() -> None:
    ann, bob = local(), local()
    epoch([ann], bob)
    with bob.strategy.at_tip(), torch.no_grad():
        for parameter in bob.strategy.parameters:
            parameter.mul_(1.001)
    with pytest.raises(DriftError):
        epoch([ann], bob)


def test_the_organisers_first_snapshot_is_one_that_peers_take() -> None:
    text = '[run]\nname = "x"\n[training]\nstrategy = "local-steps"\nouter_momentum = 0.5\n[optimizer]\nlearning_rate = 0.01\n'
    spec, model = RunSpec.from_toml(text), make_model(torch.float64)
    it = local(outer_momentum=0.5)
    tip = it.settings.genesis
    header = StateHeader(
        it.settings.run_digest, 0, tip.lineage, 0, "", build_scheduler(spec, build_optimizer(spec, model)).state_dict()
    )
    snapshot = capture(model, build_state_optimizer(spec, model), header)
    from protocols.snapshot.format import parameters_sha256

    it.settings = replace(it.settings, genesis_sha256=parameters_sha256(snapshot))
    assert it.restore(snapshot) == tip


@pytest.mark.parametrize(
    ("tables", "what"),
    [
        ('[training]\nstrategy = "local-steps"\n[averaging]\noverlap = true', r"averaging\.overlap does not go with"),
        ("[training]\nouter_momentum = 0.9", r'training\.outer_momentum is for strategy "local-steps"'),
        ("[training]\nlocal_batch_size = 8", r'training\.local_batch_size is for strategy "local-steps"'),
        (
            '[training]\nstrategy = "local-steps"\nlocal_batch_size = 512',
            r"local_batch_size \(512\) is above target_batch_size \(256\)",
        ),
        ('[training]\nstrategy = "local-steps"\nouter_momentum = 1.0', r"training\.outer_momentum"),
    ],
)
def test_the_spec_refuses_what_does_not_go_together(tables: str, what: str) -> None:
    with pytest.raises(SpecError, match=what):
        RunSpec.from_toml(f'[run]\nname = "x"\n{tables}\n')


def test_a_micro_batch_is_no_larger_than_a_step() -> None:
    assert RunSpec.from_toml('[run]\nname = "x"\n[training]\nstrategy = "local-steps"\n').training.largest_micro_batch == 16
    assert RunSpec.from_toml('[run]\nname = "x"\n').training.largest_micro_batch == 256

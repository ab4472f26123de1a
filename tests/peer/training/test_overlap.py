"""A replica in a run that overlaps: gradients at the base, the state a commit ahead of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from torch import nn

from peer.training.replica import Frozen, Replica
from peer.training.strategies.accumulate import Accumulate
from peer.training.trainer import Trainer
from protocols.errors import BadMessageError
from protocols.gradients.aggregation import rule_named
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult, SignedCommit, Tip
from protocols.run_spec import RunSpec
from protocols.tasks.base import Batches, Task
from tests.factories import RUN, commit
from tests.replicas import ADAMW, LEARNING_RATE, WARMUP, Data, language_job, make_model, make_replica, parameters, spec_of

PEERS = ("ann", "bob")
LEADER = Candidate("ann", "a:1")
CLIP = 0.4
EPOCHS = 6
GENESIS = Tip.genesis(RUN, "00" * 32, LEADER, "fp64")


def replica_of(model: nn.Module, spec: RunSpec, codec: str, **change: Any) -> Replica:
    return make_replica(model, spec, replace(GENESIS, codec=codec), **{"max_grad_norm": CLIP, **change})


def replicas(count: int = 2, *, overlap: bool = True, **change: Any) -> list[Replica]:
    return [replica_of(make_model(torch.float64), spec_of(ADAMW), "fp64", overlap=overlap, **change) for _ in range(count)]


DATA = Data.make(torch.float64)


def draw(it: Replica, peer: str, count: int) -> None:
    at = it.strategy.end
    loss = DATA.loss_sum(it.model, peer, slice(at, at + count))
    loss.backward()  # type: ignore[no-untyped-call]
    it.strategy.after_backward(count, loss.item())


def round_of(frozen: Sequence[Frozen], it: Replica) -> tuple[SignedCommit, bytes]:
    """The commit on `it`'s tip that averages these contributions, of PEERS in turn, and what it comes to."""
    assert it.tip is not None
    given = tuple(Contribution(peer, 1, f.first, f.end, f.base, f.loss, f.norm) for peer, f in zip(PEERS, frozen, strict=False))
    combine = rule_named(it.settings.rule)
    parts = [it.codec.decode(f.encoded, it.elements) for f in frozen]
    averaged = it.codec.encode(combine(parts, [c.weight for c in given], [c.norm for c in given]))
    values = it.codec.decode(averaged, it.elements).astype(np.float64)
    result = averaged + it.slice_values(it.tip.lineage)
    follows = commit(
        LEADER.peer,
        ballot=Ballot(it.tip.epoch + 1, it.tip.lineage, 1, LEADER.peer),
        contributions=given,
        members=PEERS,
        shards=(ShardResult(0, it.elements, blake3(result).hexdigest(), float(values @ values)),),
        codec=it.codec.name,
        next_codec=it.codec.name,
        total_samples=it.tip.total_samples + sum(c.weight for c in given),
    )
    return SignedCommit(follows, b"", b""), result


def frozen_of(it: Replica) -> Frozen:
    frozen = it.freeze()
    assert frozen is not None
    return frozen


def train(*everybody: Replica, followers: Sequence[Replica] = ()) -> list[Commit]:
    """EPOCHS epochs. Each peer draws before the freeze, and behind it, before the commit is applied."""
    commits = []
    for epoch in range(EPOCHS):
        for index, it in enumerate(everybody):
            draw(it, PEERS[index], 3 + 2 * index + epoch)
        frozen = [frozen_of(it) for it in everybody]
        for index, it in enumerate(everybody):
            draw(it, PEERS[index], 4 + index)
        signed, result = round_of(frozen, everybody[0])
        for it in (*everybody, *followers):
            it.apply(signed, result)
        commits.append(signed.commit)
    return commits


def reference(commits: Sequence[Commit]) -> torch.Tensor:
    """torch alone: each contribution's gradient at the parameters of the lineage that it names, one step a commit."""
    model, at_base = make_model(torch.float64), make_model(torch.float64)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": ADAMW["weight_decay"]},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=ADAMW["betas"], eps=ADAMW["epsilon"])
    state_at = {GENESIS.lineage: {name: value.clone() for name, value in model.state_dict().items()}}
    for epoch, closed in enumerate(commits):
        at_base.zero_grad()
        for c in closed.contributions:
            at_base.load_state_dict(state_at[c.base])
            (DATA.loss_sum(at_base, c.peer, slice(c.first, c.end)) / closed.samples).backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in at_base.parameters() if p.grad is not None]
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient * min(1.0, CLIP / norm)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, epoch / WARMUP)
        optimizer.step()
        state_at[closed.digest] = {name: value.clone() for name, value in model.state_dict().items()}
    return parameters(model)


def state(it: Replica) -> str:
    return hashlib.sha256(it.capture()[0]).hexdigest()


def at_tip(it: Replica) -> torch.Tensor:
    it.strategy.restart()
    return parameters(it.model)


def test_each_gradient_is_of_its_base_and_the_state_steps_with_each_commit() -> None:
    everybody, (follower,) = replicas(), replicas(1)
    commits = train(*everybody, followers=[follower])
    lineages = [GENESIS.lineage, *(closed.digest for closed in commits)]
    for epoch, closed in enumerate(commits):  # frozen at the parent; drawn from the freeze before that on, one step earlier
        assert {c.base for c in closed.contributions} == {lineages[max(0, epoch - 1)]}
    assert {state(it) for it in everybody} == {state(follower)}, "what is kept behind the state is in no snapshot"
    expected = reference(commits)
    assert (at_tip(everybody[0]) - expected).abs().max().item() <= 1e-10
    assert (expected - parameters(make_model(torch.float64))).abs().max().item() > 0.01, "the parameters moved"


def test_without_overlap_each_gradient_is_of_the_parent_and_what_accumulates_behind_a_freeze_is_forgotten() -> None:
    everybody = replicas(overlap=False)
    commits = train(*everybody)
    assert all({c.base for c in closed.contributions} == {closed.ballot.parent} for closed in commits)
    assert (parameters(everybody[0].model) - reference(commits)).abs().max().item() <= 1e-10
    assert everybody[0].strategy.samples == 0
    assert copies(everybody[0]) == 0


def copies_in(it: Replica) -> list[torch.Tensor]:
    """What is kept beside the state."""
    assert isinstance(it.strategy, Accumulate)
    return it.strategy._base._copy


def copies(it: Replica) -> int:
    """Elements of it."""
    return sum(tensor.numel() for tensor in copies_in(it))


def test_a_copy_of_the_parameters_is_made_once_and_only_where_samples_accumulate_while_a_commit_is_applied() -> None:
    (ann, bob), (follower,) = replicas(), replicas(1)
    train(ann, bob, followers=[follower])
    kept = [tensor.data_ptr() for tensor in copies_in(ann)]
    assert copies(ann) == ann.elements and copies(follower) == 0
    frozen = [frozen_of(it) for it in (ann, bob)]
    draw(ann, "ann", 2)
    ann.apply(*round_of(frozen, ann))
    assert [tensor.data_ptr() for tensor in copies_in(ann)] == kept


def lagging() -> tuple[Replica, Replica]:
    """ann, who accumulates at the genesis, with the state a commit ahead; and one who has that state too."""
    ann, other = replicas()
    for it in (ann, other):
        it.strategy.schedule.learning_rate_at = lambda epoch: LEARNING_RATE  # type: ignore[method-assign]  # no warm-up: the first step counts
    draw(ann, "ann", 5)
    frozen = [frozen_of(ann)]
    draw(ann, "ann", 4)
    signed, result = round_of(frozen, ann)
    for it in (ann, other):
        it.apply(signed, result)
    assert ann.base == GENESIS.lineage and other.base == signed.commit.digest
    return ann, other


def test_the_sum_that_accumulates_outlives_a_step() -> None:
    ann, _ = lagging()
    (alone,) = replicas(1)
    alone.strategy.end = alone.strategy.first = 5
    draw(alone, "ann", 4)
    draw(alone, "ann", 3)
    draw(ann, "ann", 3)
    assert frozen_of(ann).encoded == frozen_of(alone).encoded


def test_after_the_freeze_gradients_are_of_the_tip() -> None:
    ann, other = lagging()
    frozen_of(ann)
    other.strategy.end = other.strategy.first = ann.strategy.end
    for it in (ann, other):
        draw(it, "ann", 3)
    assert frozen_of(ann) == frozen_of(other)


def test_slices_drift_and_snapshots_are_of_the_tip() -> None:
    ann, other = lagging()
    assert ann.tip is not None
    lineage = ann.tip.lineage
    before = parameters(ann.model)
    values = ann.slice_values(lineage)
    assert values == other.slice_values(lineage)
    assert ann.drift(lineage, 0, ann.elements, values) == 0
    assert state(ann) == state(other)
    assert torch.equal(parameters(ann.model), before), "and the model is where it was"
    assert not torch.equal(before, parameters(other.model))


def test_a_snapshot_that_is_refused_leaves_base_and_sum_as_they_are() -> None:
    ann, other = lagging()
    draw(other, "bob", 3)
    other.apply(*round_of([frozen_of(other)], other))
    before = parameters(ann.model)
    with pytest.raises(BadMessageError):
        ann.restore(other.capture()[0])  # nobody signed its commit
    assert (ann.base, ann.strategy.samples) == (GENESIS.lineage, 4)
    assert torch.equal(parameters(ann.model), before)


def test_a_restart_takes_the_state_of_the_tip() -> None:
    ann, other = lagging()
    ann.strategy.restart()
    assert (ann.base, ann.strategy.samples) == (other.base, 0)
    assert torch.equal(parameters(ann.model), parameters(other.model))


def test_a_commit_is_refused_whose_contributions_are_of_another_base() -> None:
    ann, other = lagging()
    frozen = frozen_of(ann)
    draw(ann, "ann", 3)
    signed, result = round_of([frozen], ann)
    other.settings = replace(other.settings, overlap=False)
    with pytest.raises(BadMessageError, match="follow"):
        other.apply(signed, result)
    ann.apply(signed, result)


def test_after_a_step_that_failed_writes_reach_the_states_own_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    _, other = lagging()
    own = [parameter.data_ptr() for parameter in other.model.parameters()]
    draw(other, "bob", 3)
    signed, result = round_of([frozen_of(other)], other)
    draw(other, "bob", 2)

    def broken() -> None:
        raise RuntimeError("the device failed")

    monkeypatch.setattr(other.strategy.optimizer, "step", broken)
    with pytest.raises(RuntimeError):
        other.apply(signed, result)
    assert other.tip is None
    other.strategy.restart()
    assert other.base == "" and [parameter.data_ptr() for parameter in other.model.parameters()] == own


class Nothing(Batches):
    def __next__(self) -> Any:
        raise AssertionError("nothing is drawn in this test")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("overlap", [True, False])
def test_a_trainer_goes_on_drawing_after_a_freeze_only_in_a_run_that_overlaps(overlap: bool) -> None:
    (it,) = replicas(1, overlap=overlap)
    jobs: Any = None
    trainer = Trainer(it, jobs, gradient_pass=None, batches=Nothing(), progressed=lambda first, end, rate, step_s: None)
    trainer.freeze()
    assert not trainer.is_drawing, "it had not begun"
    trainer.resume()
    trainer.freeze()
    assert trainer.is_drawing is overlap
    trainer.pause()
    assert not trainer.is_drawing


# -- what staleness costs --------------------------------------------------------------------------------------------------------

STEPS = 150
# nats. Measured at this learning rate: 0.11. Staleness bounds the rate that a job bears: at six times this one, such a job learns
# faster without overlap and far slower with it, as torch alone does with gradients one step stale.
MARGIN = 0.15


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, Task]:
    folder = tmp_path_factory.mktemp("job")
    return language_job(folder, seed=7, width=48, learning_rate=5e-4, warmup_steps=20)


def held_out_loss(job: tuple[RunSpec, Task], *, overlap: bool) -> tuple[float, float]:
    """Before and after STEPS epochs of two peers, 16 samples each: with overlap, half of them are drawn behind the freeze."""
    spec, task = job
    everybody = []
    for _ in PEERS:
        torch.manual_seed(spec.run.seed)
        everybody.append(replica_of(task.build_model(), spec, "fp32", overlap=overlap, max_grad_norm=1.0))
    sources = [task.batches(seed=spec.run.seed, peer=peer, micro_batch=8) for peer in PEERS]
    before = task.evaluate(everybody[0].model, 64)

    def micro_batch(index: int) -> None:
        it, batch = everybody[index], next(sources[index])
        loss = task.loss(it.model.train(), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        it.strategy.after_backward(task.samples_in(batch), loss.item())

    for epoch in range(STEPS):
        for index in range(len(PEERS)):
            for _ in range(1 if overlap and epoch else 2):
                micro_batch(index)
        frozen = [frozen_of(it) for it in everybody]
        if overlap:
            for index in range(len(PEERS)):
                micro_batch(index)
        signed, result = round_of(frozen, everybody[0])
        for it in everybody:
            it.apply(signed, result)
    for source in sources:
        source.close()
    assert everybody[0].tip is not None and everybody[0].tip.total_samples == STEPS * 32
    assert state(everybody[0]) == state(everybody[1])
    everybody[0].strategy.restart()
    return before, task.evaluate(everybody[0].model, 64)


def test_a_small_job_reaches_with_overlap_the_loss_without_within_a_margin(job: tuple[RunSpec, Task]) -> None:
    """As many samples, as many steps, each gradient one step stale."""
    before, without = held_out_loss(job, overlap=False)
    _, with_overlap = held_out_loss(job, overlap=True)
    print(f"held-out loss {before:.3f}; after {STEPS} steps {without:.3f} without overlap, {with_overlap:.3f} with")
    assert without < before - 1.0
    assert with_overlap < without + MARGIN

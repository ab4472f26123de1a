"""N peers that average are one process that trains on the large batch: the issue's own test of the arithmetic.

The peers are production's, whole, on a simulated network. The one process they are held against is written here from scratch,
with torch's optimizers and nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from peer.simulation.feedback import Feedback
from protocols.gradients.aggregation import RULES, weighted_mean
from protocols.gradients.codecs import FloatArray
from protocols.reasons import Reason
from protocols.round.records import Commit
from tests.replicas import ADAMW, LEARNING_RATE, SGD, WARMUP, Data, make_model, parameters, small_job
from tests.swarms import QuietSwarm, Volunteer

EPOCHS = 6
# eve only reduces and leads; dag only opens connections, and is too slow to give anything from some epoch on.
VOLUNTEERS = (
    Volunteer("eve", 0),
    Volunteer("ann", 3, 0.3),
    Volunteer("bob", 1, 2.0),
    Volunteer("cid", 2, 0.6),
    Volunteer("dag", 5, 1.7, reachable=False),
)


def one_process(
    commits: Sequence[Commit], dtype: torch.dtype, optimizer: dict[str, Any], max_grad_norm: float
) -> tuple[torch.Tensor, int]:
    """Parameters after training in one process on each commit's samples as one batch; how often the gradient was clipped."""
    model, data = make_model(dtype), Data.make(dtype)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": optimizer["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
    opt: torch.optim.Optimizer
    if optimizer["name"] == "adamw":
        opt = torch.optim.AdamW(groups, lr=1.0, betas=optimizer["betas"], eps=optimizer["epsilon"])
    else:
        opt = torch.optim.SGD(groups, lr=1.0, momentum=optimizer["momentum"])
    clipped = 0
    for epoch, commit in enumerate(commits):
        for group in opt.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, epoch / WARMUP)
        opt.zero_grad()
        total = sum(c.end - c.first for c in commit.contributions)
        batch = sum(data.loss_sum(model, c.peer, slice(c.first, c.end)) for c in commit.contributions)
        assert isinstance(batch, torch.Tensor)
        (batch / total).backward()  # type: ignore[no-untyped-call]
        norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double().norm().item()
        if max_grad_norm and norm > max_grad_norm:
            clipped += 1
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad *= max_grad_norm / norm
        opt.step()
    return parameters(model), clipped


def difference(
    codec: str,
    dtype: torch.dtype,
    optimizer: dict[str, Any],
    max_grad_norm: float,
    *,
    disturb: Callable[[QuietSwarm], None] = lambda swarm: None,
) -> float:
    """Largest difference of any parameter between the swarm and one process, after EPOCHS epochs."""
    start = parameters(make_model(dtype))
    options: dict[str, Any] = {"target": 30, "codec": codec, "max_epochs": EPOCHS, "max_grad_norm": max_grad_norm}
    with QuietSwarm(*VOLUNTEERS, problem=small_job(dtype, optimizer), seed=4, **options) as swarm:
        disturb(swarm)
        swarm.until(lambda: swarm.epoch_of("ann") >= 4)
        swarm.processes["dag"].thread.step_s = 10.0
        swarm.until(lambda: swarm.is_together and swarm.epoch_of("ann") == EPOCHS)
        commits = swarm.history()
        ends = [parameters(process.replica.model) for process in swarm.alive]
    assert max(len(commit.shards) for commit in commits) >= 2, "several shards, or the test shows nothing"
    assert len({c.weight for commit in commits for c in commit.contributions}) > 3, "contributions are uneven"
    assert len({len(commit.contributions) for commit in commits}) > 1, "somebody has nothing to give in the end"
    assert all(torch.equal(ends[0], end) for end in ends), "peers at one lineage are bit-identical"
    expected, clipped = one_process(commits, dtype, optimizer, max_grad_norm)
    assert bool(clipped) == bool(max_grad_norm), "clipping was put to the test exactly when it was asked for"
    assert (expected - start).abs().max().item() > 0.01, "the parameters moved"
    return (ends[0] - expected).abs().max().item()


def equal_weights(parts: Sequence[FloatArray], weights: Sequence[int], norms: Sequence[float]) -> FloatArray:
    return weighted_mean(parts, [1] * len(weights), norms)


CASES = [
    pytest.param("fp64", torch.float64, ADAMW, 0.0, 1e-10, id="adamw-fp64"),
    pytest.param("fp64", torch.float64, ADAMW, 0.4, 1e-10, id="adamw-fp64-clipped"),
    pytest.param("fp64", torch.float64, SGD, 0.0, 1e-10, id="sgd-fp64"),
    pytest.param("fp64", torch.float64, SGD, 0.4, 1e-10, id="sgd-fp64-clipped"),
    pytest.param("fp32", torch.float32, SGD, 0.0, 1e-6, id="sgd-fp32"),
    pytest.param("fp32", torch.float32, SGD, 0.4, 1e-6, id="sgd-fp32-clipped"),
]


@pytest.mark.parametrize(("codec", "dtype", "optimizer", "max_grad_norm", "tolerance"), CASES)
def test_peers_that_average_equal_one_process_on_the_large_batch(
    codec: str, dtype: torch.dtype, optimizer: dict[str, Any], max_grad_norm: float, tolerance: float
) -> None:
    found = difference(codec, dtype, optimizer, max_grad_norm)
    print(f"off by {found:.3g}, allowed {tolerance:g}")
    assert found <= tolerance


@pytest.mark.parametrize(("codec", "dtype", "optimizer", "max_grad_norm", "tolerance"), CASES)
def test_equal_weights_instead_of_sample_counts_are_noticed(
    codec: str,
    dtype: torch.dtype,
    optimizer: dict[str, Any],
    max_grad_norm: float,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RULES, "mean", equal_weights)
    monkeypatch.setattr(Feedback, "check_mean", lambda *_: None)  # the observer would notice first
    found = difference(codec, dtype, optimizer, max_grad_norm)
    print(f"off by {found:.3g}, noticed above {tolerance:g}")
    assert found > 100 * tolerance


def test_the_equivalence_holds_through_attempts_that_fail() -> None:
    """In one epoch a line breaks, in another a contributor dies while it reduces: what is committed is what was trained on."""
    seen: list[QuietSwarm] = []

    def disturb(swarm: QuietSwarm) -> None:
        seen.append(swarm)
        swarm.until(lambda: swarm.epoch_of("ann") == 2)
        broken = {("ann", "bob"), ("cid", "bob"), ("ann", "cid"), ("bob", "cid"), ("bob", "ann"), ("cid", "ann")}
        swarm.broken = broken
        swarm.until(lambda: swarm.epoch_of("ann") == 3)
        swarm.broken = set()
        swarm.strike("crash", "cid", "reducing")
        swarm.until(lambda: not swarm.processes["cid"].alive)

    assert difference("fp64", torch.float64, ADAMW, 0.4, disturb=disturb) <= 1e-10
    (swarm,) = seen
    reasons = {(failure.ballot.epoch, failure.reason) for failure in swarm.observer.failures if failure.ballot.epoch in (3, 4)}
    assert {epoch for epoch, _ in reasons} == {3, 4}
    assert {reason for _, reason in reasons} <= {Reason.REDUCER_LOST, Reason.CONTRIBUTOR_LOST, Reason.CONNECTION_LOST}


def test_samples_of_a_peer_that_died_are_in_no_commit() -> None:
    job = small_job(torch.float64, SGD)
    with QuietSwarm(*VOLUNTEERS, problem=job, target=90, max_epochs=2, max_grad_norm=0.0) as swarm:
        swarm.epochs()
        swarm.run(1)
        lost = swarm.processes["cid"].replica.strategy
        assert lost.samples > 0
        swarm.end("cid")
        swarm.epochs()
        commits = swarm.history()
        ends = parameters(swarm.processes["ann"].replica.model)
    assert "cid" in {c.peer for c in commits[0].contributions}
    assert "cid" not in {c.peer for c in commits[1].contributions}
    expected, _ = one_process(commits, torch.float64, SGD, 0.0)
    assert (ends - expected).abs().max().item() <= 1e-10

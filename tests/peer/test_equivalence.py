"""N peers that average are one process that trains on the large batch: the issue's own test of the arithmetic.

Everything between backward() and the step is the product's: accumulators, frozen contributions, plans, shards, weighted means,
commits, replicas. The one process it is held against is written here from scratch, with torch's optimizers and nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from peer.training.replica import Replica
from protocols.gradients.aggregation import RULES, weighted_mean
from protocols.gradients.codecs import CODECS, Codec, FloatArray
from protocols.gradients.slices import ResultLayout
from protocols.reasons import Reason
from protocols.round.member import Phase
from protocols.round.planner import GRID
from protocols.round.plans import MemberPlan
from protocols.round.records import Candidate, Commit, SignedCommit, Tip
from protocols.run_spec import RunSpec
from tests.peer.replicas import make_replica
from tests.protocols.round.fakes import RUN, Node, Swarm, address_of

SEED = 20210614
EPOCHS = 6
LEARNING_RATE, WARMUP = 0.05, 2
PEERS = ("ann", "bob", "cid", "dag")
SAMPLES_EACH, INPUTS, OUTPUTS = 160, 20, 6
ADAMW = {"name": "adamw", "learning_rate": LEARNING_RATE, "betas": (0.9, 0.95), "epsilon": 1e-8, "weight_decay": 0.02}
SGD = {"name": "sgd", "learning_rate": LEARNING_RATE, "momentum": 0.9, "weight_decay": 0.0}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(SEED)
    model = nn.Sequential(
        nn.Linear(INPUTS, 64), nn.Tanh(), nn.LayerNorm(64), nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, OUTPUTS, bias=False)
    )
    return model.to(dtype)


@dataclass(frozen=True)
class Data:
    """Sample number `counter` of a peer is row `counter` of its own inputs and targets."""

    inputs: dict[str, torch.Tensor]  # (SAMPLES_EACH, INPUTS)
    targets: dict[str, torch.Tensor]  # (SAMPLES_EACH, OUTPUTS)

    @classmethod
    def make(cls, dtype: torch.dtype) -> Data:
        draw = torch.Generator().manual_seed(SEED + 1)
        # Each peer's samples pull another way and are of another scale: whoever weighs them wrongly ends up elsewhere.
        inputs = {peer: torch.randn(SAMPLES_EACH, INPUTS, generator=draw, dtype=torch.float64) for peer in PEERS}
        targets = {
            peer: (1 + index) * torch.randn(SAMPLES_EACH, OUTPUTS, generator=draw, dtype=torch.float64) + index
            for index, peer in enumerate(PEERS)
        }
        return cls({p: x.to(dtype) for p, x in inputs.items()}, {p: y.to(dtype) for p, y in targets.items()})

    def loss_sum(self, model: nn.Module, peer: str, rows: slice) -> torch.Tensor:
        return (model(self.inputs[peer][rows]) - self.targets[peer][rows]).square().mean(dim=1).sum()


class Learner:
    """A Replica as the fakes' Work: micro-batches of three samples."""

    def __init__(self, peer: str, replica: Replica, data: Data) -> None:
        self.peer, self.replica, self.data = peer, replica, data

    @property
    def samples(self) -> int:
        return self.replica.strategy.samples

    def draw(self, count: int) -> None:
        at = self.replica.strategy.end
        for start in range(at, at + count, 3):
            rows = slice(start, min(start + 3, at + count))
            loss = self.data.loss_sum(self.replica.model, self.peer, rows)
            loss.backward()  # type: ignore[no-untyped-call]
            self.replica.strategy.after_backward(rows.stop - rows.start, loss.item())

    def freeze(self) -> tuple[int, int, float, bytes] | None:
        frozen = self.replica.freeze()
        return None if frozen is None else (frozen.first, frozen.end, frozen.loss, frozen.encoded)

    def restart(self) -> None:
        self.replica.strategy.restart()

    def layout(self, epoch: int) -> ResultLayout:
        return self.replica.layout(epoch)

    def slice_values(self, parent: str) -> bytes:
        return self.replica.slice_values(parent)

    def refused(self, plan: MemberPlan, result: bytes) -> tuple[str, ...]:
        return tuple(self.replica.refused(plan, result))

    def apply(self, signed: SignedCommit, averaged: bytes) -> None:
        self.replica.apply(signed, averaged)

    def adopt(self, other: Any) -> None:
        raise AssertionError("nobody needs to catch up in these tests")


def spec_of(optimizer: dict[str, Any]) -> RunSpec:
    schedule = {"name": "constant_with_warmup", "warmup_steps": WARMUP}
    document = {"run": {"name": "x"}, "model": {"model_type": "gpt2"}, "optimizer": optimizer, "schedule": schedule}
    return RunSpec.model_validate(document)


def swarm_of(codec: Codec, dtype: torch.dtype, optimizer: dict[str, Any], max_grad_norm: float, data: Data) -> Swarm:
    """dag only opens connections; aux only reduces."""
    spec = spec_of(optimizer)
    elements = sum(parameter.numel() for parameter in make_model(dtype).parameters())
    swarm = Swarm(target=24, elements=elements, codec=codec.name, seed=SEED)
    for name in (*PEERS, "eve"):
        genesis = swarm.genesis or Tip.genesis(RUN, "00" * 32, Candidate("ann", address_of("ann")), codec.name)
        replica = make_replica(make_model(dtype), spec, genesis, peer=name, max_grad_norm=max_grad_norm)
        swarm.add(name, Learner(name, replica, data), reachable=name != "dag", auxiliary=name == "eve")
    return swarm


def uneven(epoch: int) -> dict[str, int]:
    """29 samples and more, differently shared each time; one peer has nothing to give now and then."""
    return {"ann": 17 + epoch, "bob": 1, "cid": 7, "dag": 5 * (epoch % 2)}


def parameters(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).double()


def one_process(
    commits: Sequence[Commit], dtype: torch.dtype, optimizer: dict[str, Any], max_grad_norm: float, data: Data
) -> tuple[torch.Tensor, int]:
    """Parameters after training in one process on each commit's samples as one batch; how often the gradient was clipped."""
    model = make_model(dtype)
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


def replica_of(node: Node) -> Replica:
    assert isinstance(node.work, Learner)
    return node.work.replica


def difference(
    codec: str,
    dtype: torch.dtype,
    optimizer: dict[str, Any],
    max_grad_norm: float,
    *,
    disturb: Callable[[Swarm, int], None] = lambda swarm, epoch: None,
) -> float:
    """Largest difference of any parameter between the swarm and one process, after EPOCHS epochs."""
    data = Data.make(dtype)
    swarm = swarm_of(CODECS[codec], dtype, optimizer, max_grad_norm, data)
    start = parameters(make_model(dtype))
    for epoch in range(EPOCHS):
        disturb(swarm, epoch)
        swarm.epoch(uneven(epoch))
    node = swarm.alive[0]
    assert node.epoch == EPOCHS
    assert min(len(commit.shards) for commit in node.commits) >= 2, "several shards, or the test shows nothing"
    assert len({c.weight for commit in node.commits for c in commit.contributions}) > 3, "contributions are uneven"
    ends = [parameters(replica_of(other).model) for other in swarm.alive]
    assert all(torch.equal(ends[0], end) for end in ends), "peers at one lineage are bit-identical"
    expected, clipped = one_process(node.commits, dtype, optimizer, max_grad_norm, data)
    assert bool(clipped) == bool(max_grad_norm), "clipping was put to the test exactly when it was asked for"
    assert (expected - start).abs().max().item() > 0.01, "the parameters moved"
    return (ends[0] - expected).abs().max().item()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks a shard."""
    monkeypatch.setattr("protocols.gradients.shard_average.CHUNK_ELEMENTS", GRID)
    monkeypatch.setattr("tests.protocols.round.fakes.CHUNK_ELEMENTS", GRID)


def equal_weights(parts: Sequence[FloatArray], weights: Sequence[int]) -> FloatArray:
    return weighted_mean(parts, [1] * len(weights))


CASES = [
    pytest.param("fp64", torch.float64, ADAMW, 0.0, 1e-10, id="adamw-fp64"),
    pytest.param("fp64", torch.float64, ADAMW, 0.4, 1e-10, id="adamw-fp64-clipped"),
    pytest.param("fp64", torch.float64, SGD, 0.0, 1e-10, id="sgd-fp64"),
    pytest.param("fp64", torch.float64, SGD, 0.4, 1e-10, id="sgd-fp64-clipped"),
    pytest.param("fp32", torch.float32, SGD, 0.0, 1e-6, id="sgd-fp32"),
    pytest.param("fp32", torch.float32, SGD, 0.4, 1e-6, id="sgd-fp32-clipped"),
]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("codec", "dtype", "optimizer", "max_grad_norm", "tolerance"), CASES)
def test_peers_that_average_equal_one_process_on_the_large_batch(
    codec: str, dtype: torch.dtype, optimizer: dict[str, Any], max_grad_norm: float, tolerance: float
) -> None:
    assert difference(codec, dtype, optimizer, max_grad_norm) <= tolerance


@pytest.mark.usefixtures("small_chunks")
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
    assert difference(codec, dtype, optimizer, max_grad_norm) > 100 * tolerance


def test_the_equivalence_holds_through_attempts_that_fail() -> None:
    """In one epoch a link breaks, in another a contributor dies while it reduces: what is committed is what was trained on."""
    seen: list[Swarm] = []

    def disturb(swarm: Swarm, epoch: int) -> None:
        seen.append(swarm)
        swarm.broken = {("cid", "bob")} if epoch == 2 else set()

        def kill(node: Node) -> None:
            if epoch == 3 and node.name == "dag" and node.member.phase is Phase.REDUCING and node.alive:
                swarm.kill("dag")

        swarm.watch = kill

    assert difference("fp64", torch.float64, ADAMW, 0.4, disturb=disturb) <= 1e-10
    swarm = seen[-1]
    assert not swarm.nodes["dag"].alive
    assert {(failure.ballot.epoch, failure.reason) for failure in swarm.failures} >= {
        (3, Reason.REDUCER_LOST),
        (4, Reason.CONNECTION_LOST),
    }


def test_samples_of_a_peer_that_died_are_in_no_commit() -> None:
    data = Data.make(torch.float64)
    swarm = swarm_of(CODECS["fp64"], torch.float64, SGD, 0.0, data)
    swarm.epoch({"ann": 8, "bob": 8, "cid": 8})
    swarm.follower()
    swarm.draw({"ann": 8, "bob": 7, "cid": 8})
    swarm.tick()
    swarm.kill("cid")
    swarm.epoch({"ann": 9})
    (last,) = swarm.announced[1:]
    assert {c.peer for c in last.contributions} == {"ann", "bob"}
    expected, _ = one_process(swarm.announced, torch.float64, SGD, 0.0, data)
    assert (parameters(replica_of(swarm.nodes["ann"]).model) - expected).abs().max().item() <= 1e-10

"""What each codec costs a small real job: contributors' real replicas, codecs and reductions, without a network between them."""

from __future__ import annotations

import pytest
import torch

from peer.training.replica import Replica
from protocols.gradients.aggregation import rule_named
from protocols.gradients.shard_average import Chunking, ShardAverage
from protocols.round.plans import Plan, member_plan_of
from protocols.round.records import Ballot, Candidate, Commit, Contribution, Shard, SignedCommit, Tip
from protocols.run_spec import RunSpec
from protocols.tasks.base import Task
from tests.factories import RUN
from tests.replicas import language_job, make_replica

STEPS = 80
LEADER = Candidate("ann", "a:1")
PEERS = {"ann": 6, "bob": 8, "cid": 10}  # samples an epoch


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, Task]:
    print("seed 1")
    folder = tmp_path_factory.mktemp("job")
    return language_job(folder, seed=1, width=32, learning_rate=3e-3, warmup_steps=10)


def replica_of(peer: str, spec: RunSpec, task: Task, codec: str) -> Replica:
    torch.manual_seed(spec.run.seed)
    return make_replica(task.build_model(), spec, Tip.genesis(RUN, "00" * 32, LEADER, codec), peer=peer)


def epoch(everybody: dict[str, Replica]) -> None:
    """Freeze, reduce, apply: what every peer gave is averaged once, and everybody steps by it."""
    first = everybody["ann"]
    assert first.tip is not None
    ballot = Ballot(first.tip.epoch + 1, first.tip.lineage, 1, LEADER.peer)
    shards, codec = (Shard(LEADER.peer, LEADER.address, 0, first.elements),), first.codec
    plan = Plan(RUN, ballot, tuple(PEERS), tuple(PEERS), shards, codec.name, 4.0, 1)
    values = first.slice_values(ballot.parent)
    chunk_elements = Chunking().elements(shards[0])
    reduction = ShardAverage(member_plan_of(plan, LEADER.peer), 0, codec, rule_named(first.settings.rule), chunk_elements, values)
    given = {}
    for peer, it in everybody.items():
        frozen = it.freeze()
        assert frozen is not None
        given[peer] = frozen.encoded
        reduction.open(peer, Contribution(peer, 1, frozen.first, frozen.end, frozen.base, frozen.loss, frozen.norm))
    step = codec.encoded_bytes(chunk_elements)
    for at in range(0, codec.encoded_bytes(first.elements), step):
        for peer, encoded in given.items():
            reduction.feed(peer, encoded[at : at + step])
    result, contributions = reduction.result, reduction.contributions
    assert result is not None and contributions is not None
    total = first.tip.total_samples + sum(PEERS.values())
    commit = Commit(ballot, plan.digest, contributions, plan.members, (result,), codec.name, total, LEADER, (), codec.name)
    for it in everybody.values():
        it.apply(SignedCommit(commit, b"", b""), b"".join(reduction.averaged))


def held_out_loss(job: tuple[RunSpec, Task], codec: str) -> float:
    spec, task = job
    everybody = {peer: replica_of(peer, spec, task, codec) for peer in PEERS}
    sources = {peer: task.batches(seed=spec.run.seed, peer=peer, micro_batch=count) for peer, count in PEERS.items()}
    for _ in range(STEPS):
        for peer, it in everybody.items():
            batch = next(sources[peer])
            loss = task.loss(it.model.train(), batch)
            loss.backward()  # type: ignore[no-untyped-call]
            it.strategy.after_backward(task.samples_in(batch), loss.item())
        epoch(everybody)
    for source in sources.values():
        source.close()
    first, *others = everybody.values()
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), other.model.parameters(), strict=True))
    return task.evaluate(first.model, 64)


@pytest.fixture(scope="module")
def exact_loss(job: tuple[RunSpec, Task]) -> float:
    spec, task = job
    before = task.evaluate(replica_of("ann", spec, task, "fp32").model, 64)
    after = held_out_loss(job, "fp32")
    assert after < before - 1.0, "it learns"
    return after


# Measured over seeds 1 to 3 of such a job: benchmarks/README.md.
@pytest.mark.parametrize(("codec", "margin"), [("fp16", 0.001), ("bf16", 0.001), ("int8", 0.003), ("int4", 0.02)])
def test_each_codec_reaches_the_held_out_loss_of_fp32_within_its_margin(
    job: tuple[RunSpec, Task], exact_loss: float, codec: str, margin: float
) -> None:
    loss = held_out_loss(job, codec)
    print(f"{codec}: {loss:.4f}, fp32 {exact_loss:.4f}: {loss / exact_loss - 1:+.3%}")
    assert loss != exact_loss, "it is another codec"
    assert abs(loss - exact_loss) <= margin * exact_loss

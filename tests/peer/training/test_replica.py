from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from torch import nn

from peer.training.gradient_norm import gradient_norm
from peer.training.replica import Replica
from protocols.errors import BadMessageError, DriftError
from protocols.gradients.codecs import CODECS, Codec
from protocols.identity import Authority, Credentials, Key
from protocols.optimization import build_optimizer
from protocols.round.records import Ballot, Candidate, ShardResult, SignedCommit, Tip
from protocols.run_spec import RunSpec
from protocols.signing import CertificateSigner, check_signed
from protocols.snapshot.format import StateHeader, capture, parameters_sha256
from protocols.wire.convert import from_bytes, to_bytes
from tests.factories import RUN, admitted, commit, contribution, run_spec
from tests.replicas import gradient_of, make_replica

PEAK = 0.01


@pytest.fixture(scope="module")
def leader(authority: Authority) -> Credentials:
    return admitted(authority)


def spec() -> RunSpec:
    optimizer = {"name": "adamw", "learning_rate": PEAK, "weight_decay": 0.1}
    schedule = {"name": "linear", "warmup_steps": 3, "total_steps": 20}
    return run_spec(optimizer=optimizer, schedule=schedule)


def make_model(seed: int = 0, width: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def genesis_sha256() -> str:
    model = make_model()
    return parameters_sha256(capture(model, build_optimizer(spec(), model), StateHeader(RUN, 0, "", 0, "", {})))


def replica(
    leader: Credentials,
    *,
    seed: int = 0,
    width: int = 5,
    max_grad_norm: float = 1.0,
    at_genesis: bool = True,
    codec: str = "fp32",
    **change: Any,
) -> Replica:
    genesis = Tip.genesis(RUN, genesis_sha256(), Candidate(leader.peer_id, ""), codec)
    return make_replica(
        make_model(seed, width),
        spec(),
        genesis,
        at_genesis=at_genesis,
        verify=partial(check_signed, authority=leader.authority),
        genesis_sha256=genesis_sha256(),
        max_grad_norm=max_grad_norm,
        **change,
    )


def averaged_of(it: Replica, seed: int, codec: Codec = CODECS["fp32"]) -> bytes:
    return codec.encode(np.random.default_rng(seed).standard_normal(it.elements).astype(codec.working))


def commit_for(it: Replica, averaged: bytes, leader: Credentials, **change: Any) -> SignedCommit:
    assert it.tip is not None
    values = it.codec.decode(averaged, it.elements).astype(np.float64)
    result = averaged + it.slice_values(it.tip.lineage)
    shard = ShardResult(0, it.elements, blake3(result).hexdigest(), float(values @ values))
    follows = commit(
        leader.peer_id,
        ballot=Ballot(it.tip.epoch + 1, it.tip.lineage, 1, leader.peer_id),
        contributions=(contribution(base=it.tip.lineage),),
        members=("ann",),
        shards=(shard,),
        codec=it.codec.name,
        next_codec=it.codec.name,
        total_samples=it.tip.total_samples + 8,
    )
    return CertificateSigner(leader).sign(replace(follows, **change))


def advance(it: Replica, leader: Credentials, seed: int, **change: Any) -> tuple[SignedCommit, bytes]:
    """Its own values are the canonical ones. Returns the commit and what its round came to."""
    averaged = averaged_of(it, seed)
    signed = commit_for(it, averaged, leader, **change)
    assert it.tip is not None
    result = averaged + it.slice_values(it.tip.lineage)
    it.apply(signed, result)
    return signed, result


def everything(it: Replica) -> bytes:
    """All that a restore could change, bit by bit."""
    state = [tensor.detach().clone().numpy().tobytes() for tensor in it.model.state_dict().values()]
    for group in it.strategy.optimizer.param_groups:
        state.append(repr({key: value for key, value in group.items() if key != "params"}).encode())
        for parameter in group["params"]:
            slots = it.strategy.optimizer.state.get(parameter, {})
            state += [f"{name}".encode() + torch.as_tensor(value).numpy().tobytes() for name, value in sorted(slots.items())]
    state.append(repr((it.tip, it.commit, it.strategy.schedule.epoch, it.strategy.first, it.strategy.end)).encode())
    return b"|".join(state)


def parameters(it: Replica) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in it.model.parameters()])


# -- applying --------------------------------------------------------------------------------------------------------------------


def test_a_commit_is_one_step_with_its_epochs_learning_rate(leader: Credentials) -> None:
    it = replica(leader, max_grad_norm=0.0)
    reference = make_model()
    optimizer = build_optimizer(spec(), reference)
    for epoch in range(4):
        signed, averaged = advance(it, leader, epoch)
        at = 0
        values = torch.from_numpy(np.frombuffer(averaged, "<f4", it.elements).copy())
        for parameter in reference.parameters():
            parameter.grad = values[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min(epoch / 3, (20 - epoch) / 17 if epoch >= 3 else 1.0)
        optimizer.step()
        assert torch.equal(parameters(it), torch.cat([p.detach().flatten() for p in reference.parameters()]))
        assert it.tip == Tip.after(signed.commit)
        assert it.commit is signed
    assert it.strategy.schedule.epoch == 4
    assert it.strategy.optimizer.param_groups[0]["lr"] == pytest.approx(PEAK * 16 / 17)


def test_peers_that_apply_the_same_commits_are_bit_identical(leader: Credentials) -> None:
    a, b = replica(leader), replica(leader)
    gradient_of(b).fill_(7)  # whatever b had accumulated meanwhile
    b.strategy.after_backward(3, 1.0)
    for seed in range(3):
        signed, averaged = advance(a, leader, seed)
        b.apply(signed, bytearray(averaged))
    assert torch.equal(parameters(a), parameters(b))
    assert not gradient_of(b).any()
    assert b.strategy.samples == 0
    assert b.strategy.first == 3, "its counter goes on"


@pytest.mark.parametrize("said", [0.0, 1.0, 1e100])
@pytest.mark.parametrize("share", [0.25, 1.0, 2.0])
def test_clipping_goes_by_the_averages_whatever_reducers_say_of_them(leader: Credentials, said: float, share: float) -> None:
    clipped, plain = replica(leader), replica(leader, max_grad_norm=0.0)
    averaged = averaged_of(clipped, 1)
    half, values = clipped.elements // 2, CODECS["fp32"].decode(averaged, clipped.elements)
    norm = gradient_norm(torch.from_numpy(values))
    clipped, factor = replica(leader, max_grad_norm=norm * share), min(1.0, share)
    shards = (ShardResult(0, half, "c" * 64, said / 2), ShardResult(half, clipped.elements, "d" * 64, said / 2))
    clipped.apply(commit_for(clipped, averaged, leader, shards=shards), averaged)
    scaled = (values * np.float32(factor)).astype("<f4").tobytes()
    plain.apply(commit_for(plain, averaged, leader), scaled)
    for mine, theirs in zip(clipped.strategy.optimizer.state.values(), plain.strategy.optimizer.state.values(), strict=True):
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"])


def test_a_commit_that_does_not_follow_is_refused_and_changes_nothing(leader: Credentials) -> None:
    it = replica(leader)
    first, averaged = advance(it, leader, 1)
    before = everything(it)
    with pytest.raises(BadMessageError, match="follow"):
        it.apply(first, averaged)  # twice
    assert everything(it) == before


def test_a_commit_that_names_a_codec_which_the_run_does_not_use_is_refused_and_changes_nothing(leader: Credentials) -> None:
    it = replica(leader, codecs=("fp32", "fp16"))
    averaged, before = averaged_of(it, 1), everything(it)
    with pytest.raises(BadMessageError, match="names int4"):
        it.apply(commit_for(it, averaged, leader, next_codec="int4"), averaged)
    assert everything(it) == before
    it.apply(commit_for(it, averaged, leader, next_codec="fp16"), averaged)
    assert it.codec is CODECS["fp16"]


def test_after_a_step_that_failed_the_state_is_of_no_lineage(leader: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    it = replica(leader)
    averaged = averaged_of(it, 1)
    signed = commit_for(it, averaged, leader)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(it.strategy.optimizer, "step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        it.apply(signed, averaged)
    monkeypatch.undo()
    assert it.tip is None
    with pytest.raises(BadMessageError, match="follow"):
        it.apply(signed, averaged)  # never stepped again
    with pytest.raises(BadMessageError, match="no lineage"):
        it.capture()


# -- drift -----------------------------------------------------------------------------------------------------------------------


def test_whoever_is_off_by_rounding_takes_the_canonical_values_before_the_step(leader: Credentials) -> None:
    it, other = replica(leader), replica(leader)
    for seed in range(3):
        signed, result = advance(it, leader, seed)
        other.apply(signed, result)
        with torch.no_grad():
            for tensor in [*other.model.parameters(), *(s["exp_avg"] for s in other.strategy.optimizer.state.values())]:
                tensor *= 1 + 2e-7
    assert not torch.equal(parameters(it), parameters(other))
    assert it.tip is not None and it.slices.period == 1, "so small a model is carried whole"
    assert 0 < other.drift(it.tip.lineage, 0, it.elements, it.slice_values(it.tip.lineage)) < 1
    signed, result = advance(it, leader, 3)
    other.apply(signed, result)
    assert torch.equal(parameters(it), parameters(other))
    assert it.capture()[0] == other.capture()[0]


@pytest.mark.parametrize("where", ["parameter", "exp_avg", "exp_avg_sq"])
def test_whoever_is_off_by_more_refuses_the_commit_and_is_left_as_it_is(leader: Credentials, where: str) -> None:
    it, other = replica(leader), replica(leader)
    for seed in range(2):
        signed, result = advance(it, leader, seed)
        other.apply(signed, result)
    weight = next(iter(other.model.parameters()))
    tensor = weight.detach() if where == "parameter" else other.strategy.optimizer.state[weight][where]
    tensor[0, 0] += 1e-3 * tensor.abs().max()
    before = everything(other)
    signed, result = advance(it, leader, 2)
    with pytest.raises(DriftError):
        other.apply(signed, result)
    assert everything(other) == before
    other.forget()
    with pytest.raises(BadMessageError):
        other.capture()
    other.restore(it.capture()[0])
    assert torch.equal(parameters(it), parameters(other))


def test_a_slice_of_another_size_is_refused_and_changes_nothing(leader: Credentials) -> None:
    it, other = replica(leader), replica(leader)
    signed, result = advance(it, leader, 1)
    other.apply(signed, result)
    before = everything(other)
    signed, result = advance(it, leader, 2)
    for bad in (result[:-4], result + bytes(4), result[: 4 * it.elements]):
        with pytest.raises(BadMessageError):
            other.apply(signed, bad)
        assert everything(other) == before


# -- freezing --------------------------------------------------------------------------------------------------------------------


def test_what_is_frozen_is_the_mean_with_its_range_and_loss(leader: Credentials) -> None:
    it = replica(leader)
    gradient_of(it).copy_(torch.arange(it.elements))
    it.strategy.after_backward(4, 10.0)
    frozen = it.freeze()
    assert frozen is not None
    assert (frozen.first, frozen.end, frozen.loss) == (0, 4, 2.5)
    assert CODECS["fp32"].decode(frozen.encoded, it.elements).tolist() == (np.arange(it.elements) / 4).tolist()
    assert it.freeze() is None, "it is frozen once"
    assert (it.strategy.first, it.strategy.end, it.strategy.loss_sum) == (4, 4, 0.0)
    assert not gradient_of(it).any()


def sends(it: Replica, seed: int) -> bytes:
    """Freezes the next 8 samples, with a gradient of this seed."""
    it.strategy.restart()
    gradient_of(it).copy_(torch.randn(it.elements, generator=torch.Generator().manual_seed(seed)))
    it.strategy.after_backward(8, 8.0)
    frozen = it.freeze()
    assert frozen is not None
    return bytes(frozen.encoded)


@pytest.mark.parametrize("named", [True, False], ids=["named", "not named"])
def test_what_an_encoding_lost_is_given_once_a_commit_names_it(leader: Credentials, named: bool) -> None:
    it, fresh = replica(leader, codec="int8"), replica(leader, codec="int8")
    for one in (it, fresh):
        one.strategy.end = 0 if one is it else 8
    sends(it, 1)
    averaged = averaged_of(it, 3, it.codec)
    change = {} if named else {"contributions": (contribution("bob", base=it.settings.genesis.lineage),), "members": ("bob",)}
    signed = commit_for(it, averaged, leader, **change)
    it.apply(signed, averaged + it.slice_values(it.settings.genesis.lineage))
    assert (sends(it, 2) == sends(fresh, 2)) is not named


def test_whoever_restores_gives_nothing_of_what_was_lost_before(leader: Credentials) -> None:
    it, fresh = replica(leader, codec="int8"), replica(leader, codec="int8")
    sends(it, 1)
    averaged = averaged_of(it, 3, it.codec)
    it.apply(commit_for(it, averaged, leader), averaged + it.slice_values(it.settings.genesis.lineage))
    sends(it, 2)
    it.restore(it.capture()[0])
    assert sends(it, 3) == sends(fresh, 3)


@pytest.mark.parametrize(
    ("gradient", "loss"),
    [(float("nan"), 1.0), (float("inf"), 1.0), (0.5, float("nan")), (0.5, float("inf"))],
)
def test_what_overflowed_is_not_sent(leader: Credentials, gradient: float, loss: float) -> None:
    it = replica(leader)
    gradient_of(it)[3] = gradient
    it.strategy.after_backward(4, loss)
    assert it.freeze() is None


def test_nothing_accumulated_is_nothing_to_freeze(leader: Credentials) -> None:
    assert replica(leader).freeze() is None


# -- capture and restore ----------------------------------------------


def test_whoever_restores_is_bit_identical_and_stays_so(leader: Credentials) -> None:
    old, new = replica(leader), replica(leader, seed=9, at_genesis=False)
    for seed in range(3):
        advance(old, leader, seed)
    snapshot, header, tip = old.capture()
    assert (header.epoch, header.lineage, header.samples) == (3, tip.lineage, 24)
    assert new.restore(snapshot) == old.tip == new.tip
    assert new.strategy.optimizer.param_groups[0]["lr"] == old.strategy.optimizer.param_groups[0]["lr"]
    assert new.capture()[0] == snapshot
    for seed in range(3, 6):
        signed, averaged = advance(old, leader, seed)
        new.apply(signed, averaged)
        assert new.capture()[0] == old.capture()[0]


def test_the_genesis_restores_too(leader: Credentials) -> None:
    old, new = replica(leader), replica(leader, seed=9, at_genesis=False)
    assert new.restore(old.capture()[0]) == old.settings.genesis
    assert torch.equal(parameters(new), parameters(old))


def test_restoring_never_reuses_a_counter(leader: Credentials) -> None:
    old, new = replica(leader), replica(leader)
    advance(old, leader, 1)
    new.strategy.after_backward(5, 1.0)
    new.restore(old.capture()[0])
    assert (new.strategy.first, new.strategy.end) == (5, 5)
    assert not gradient_of(new).any()


def snapshot_with(old: Replica, **change: Any) -> bytes:
    _, header, _ = old.capture()
    return capture(old.model, old.strategy.optimizer, replace(header, **change))


def resigned(old: Replica, leader: Credentials, change: Callable[[SignedCommit], SignedCommit]) -> bytes:
    assert old.commit is not None
    forged = change(old.commit)
    told = forged.commit
    return snapshot_with(
        old,
        commit=to_bytes(forged).hex(),
        lineage=told.digest,
        epoch=told.ballot.epoch,
        samples=told.total_samples,
    )


def another_signer(leader: Credentials, old: SignedCommit) -> SignedCommit:
    key = Key.generate()
    impostor = Credentials(key, leader.certificate, leader.authority)
    return CertificateSigner(impostor).sign(replace(old.commit, total_samples=10**6))


BAD: dict[str, Callable[[Replica, Credentials], bytes]] = {
    "another run": lambda old, leader: snapshot_with(old, run_digest="cd" * 32),
    "no commit, not the genesis": lambda old, leader: snapshot_with(
        old, commit="", lineage=old.settings.genesis.lineage, epoch=0
    ),
    "a commit that is no commit": lambda old, leader: snapshot_with(old, commit="00ff"),
    "a commit that is no hex": lambda old, leader: snapshot_with(old, commit="zz"),
    "another lineage than its commit": lambda old, leader: snapshot_with(old, lineage="f" * 64),
    "another epoch than its commit": lambda old, leader: snapshot_with(old, epoch=7),
    "a commit changed after signing": lambda old, leader: resigned(
        old, leader, lambda s: replace(s, commit=replace(s.commit, total_samples=10**6))
    ),
    "a commit signed by somebody else": lambda old, leader: resigned(old, leader, lambda s: another_signer(leader, s)),
    "a commit that names a codec which the run does not use": lambda old, leader: resigned(
        old, leader, lambda s: CertificateSigner(leader).sign(replace(s.commit, next_codec="int4"))
    ),
    "truncated": lambda old, leader: old.capture()[0][:-1],
    "cut in the header": lambda old, leader: old.capture()[0][:40],
    "empty": lambda old, leader: b"",
    "noise": lambda old, leader: bytes(range(256)) * 40,
}


@pytest.mark.parametrize("kind", BAD)
def test_a_snapshot_that_cannot_be_trusted_is_refused_and_changes_nothing(leader: Credentials, kind: str) -> None:
    old, new = replica(leader), replica(leader)
    advance(old, leader, 1)
    advance(old, leader, 2)
    advance(new, leader, 5)
    gradient_of(new).fill_(0.5)
    new.strategy.after_backward(5, 1.0)
    before = everything(new)
    snapshot = BAD[kind](old, leader)
    with pytest.raises(BadMessageError):
        new.restore(snapshot)
    assert everything(new) == before
    assert gradient_of(new).eq(0.5).all()


def test_the_snapshots_above_are_refused_for_what_was_changed_in_them(leader: Credentials) -> None:
    old, new = replica(leader), replica(leader)
    advance(old, leader, 1)
    new.restore(snapshot_with(old))
    new.restore(resigned(old, leader, lambda signed: signed))


def test_a_snapshot_of_a_model_of_another_size_is_refused(leader: Credentials) -> None:
    wide, new = replica(leader, width=6), replica(leader)
    advance(wide, leader, 1)
    before = everything(new)
    with pytest.raises(BadMessageError):
        new.restore(wide.capture()[0])
    assert everything(new) == before


def test_a_commit_travels_in_a_snapshot_unchanged(leader: Credentials) -> None:
    old = replica(leader)
    signed, _ = advance(old, leader, 1)
    assert from_bytes(SignedCommit, bytes.fromhex(old.capture()[1].commit)) == signed

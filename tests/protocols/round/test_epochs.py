"""Whole epochs: the real machines of several nodes against each other, over the fakes' link and clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.member import Accept, CatchUp, GiveUp, Phase
from protocols.round.records import Ballot, Contribution, SignedCommit
from tests.protocols.round.fakes import TICK_S, Arithmetic, Node, Swarm

NAMES = ("ann", "bob", "cid", "dag")
DRAWS = {"ann": 4, "bob": 9, "cid": 6, "dag": 5}
SEEDS = range(6)


def swarm_of(*names: str, seed: int = 0, client_mode: tuple[str, ...] = (), **options: Any) -> Swarm:
    """ann leads at first."""
    swarm = Swarm(target=20, seed=seed)
    for name in names or NAMES:
        swarm.add(name, reachable=name not in client_mode, **options)
    return swarm


def contributors(swarm: Swarm, epoch: int) -> set[str]:
    (commit,) = [commit for commit in swarm.announced if commit.ballot.epoch == epoch]
    return {contribution.peer for contribution in commit.contributions}


def leader_of(swarm: Swarm) -> str:
    (leader,) = swarm.leading
    return leader.name


def kill_at(swarm: Swarm, name: str, phase: Phase, *, epoch: int = 2, silently: bool = False) -> None:
    def watch(node: Node) -> None:
        if node.name == name and node.alive and node.member.phase is phase and node.epoch == epoch - 1:
            swarm.kill(name, silently=silently)

    swarm.watch = watch


@pytest.mark.parametrize("seed", SEEDS)
def test_epochs_follow_each_other_and_everybody_applies_the_same(seed: int) -> None:
    swarm = swarm_of(seed=seed, client_mode=("dag",))
    for _ in range(5):
        swarm.epoch(DRAWS)
    assert {node.epoch for node in swarm.alive} == {5}
    assert len({node.lineage for node in swarm.alive}) == 1
    assert len({node.work.applied for node in swarm.alive if isinstance(node.work, Arithmetic)}) == 1
    assert swarm.failures == []
    assert leader_of(swarm) == "ann"
    assert [commit.samples for commit in swarm.announced] == [24] * 5
    assert swarm.announced[-1].total_samples == 120
    assert all(contributors(swarm, epoch) == set(NAMES) for epoch in range(1, 6))


def test_what_is_applied_is_the_mean_over_all_samples_of_the_commit() -> None:
    swarm = swarm_of()
    swarm.epoch(DRAWS)
    ranges = [(c.peer, counter) for c in swarm.announced[0].contributions for counter in range(c.first, c.end)]
    assert len(ranges) == 24
    exact = sum(Arithmetic.gradient(peer, counter, swarm.elements) for peer, counter in ranges) / len(ranges)
    work = swarm.nodes["dag"].work
    assert isinstance(work, Arithmetic)
    assert np.abs(work.state - exact).max() < 1e-14


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("silently", [False, True])
@pytest.mark.parametrize("phase", [Phase.FROZEN, Phase.REDUCING, Phase.READY, Phase.APPLYING])
def test_a_contributor_that_dies_costs_one_attempt(phase: Phase, silently: bool, seed: int) -> None:
    swarm = swarm_of(seed=seed)
    swarm.epoch(DRAWS)
    kill_at(swarm, "cid", phase, silently=silently)
    swarm.epoch(DRAWS)
    assert not swarm.nodes["cid"].alive
    assert {node.epoch for node in swarm.alive} == {2}
    assert len(swarm.failures) <= 1
    survivors = contributors(swarm, 2)
    assert survivors >= {"ann", "bob", "dag"}
    if "cid" not in survivors:
        assert [failure.peer for failure in swarm.failures] == ["cid"]
        assert swarm.failures[0].reason in (Reason.SILENT if silently else Reason.CONNECTION_LOST, Reason.STALLED)
    swarm.epoch(DRAWS)
    assert contributors(swarm, 3) == {"ann", "bob", "dag"}


@pytest.mark.parametrize("silently", [False, True])
def test_a_peer_that_dies_before_the_plan_costs_nothing_but_its_samples(silently: bool) -> None:
    swarm = swarm_of()
    swarm.epoch(DRAWS)
    swarm.follower()
    swarm.draw({"ann": 4, "cid": 9})
    swarm.tick()
    swarm.kill("cid", silently=silently)
    swarm.tick(round(3 * DETECTION_S / TICK_S))
    swarm.epoch({"ann": 4, "bob": 9, "dag": 5})
    assert contributors(swarm, 2) == {"ann", "bob", "dag"}
    assert swarm.failures == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("silently", [False, True])
@pytest.mark.parametrize("phase", [Phase.TRAINING, Phase.FROZEN, Phase.REDUCING, Phase.READY, Phase.APPLYING])
def test_the_next_in_order_replaces_a_leader_that_dies(phase: Phase, silently: bool, seed: int) -> None:
    swarm = swarm_of(seed=seed)
    swarm.epoch(DRAWS)
    successor = swarm.announced[-1].succession[0].peer
    if phase is Phase.TRAINING:
        swarm.follower()
        swarm.kill("ann", silently=silently)
    else:
        kill_at(swarm, "ann", phase, silently=silently)
    swarm.epoch({**DRAWS, "bob": 12, "cid": 12})
    assert not swarm.nodes["ann"].alive
    swarm.epoch({**DRAWS, "bob": 12, "cid": 12})
    # A commit that reaches one survivor alone makes that one the first to look for a leader.
    assert leader_of(swarm) in ((successor, "cid") if phase is Phase.APPLYING else (successor,))
    assert swarm.announced[-1].leader.peer == leader_of(swarm)
    assert contributors(swarm, 3) == {"bob", "cid", "dag"}
    assert len({node.lineage for node in swarm.alive}) == 1


def test_every_survivor_commits_within_detection_and_one_attempt_after_the_leads_death() -> None:
    swarm = swarm_of()
    swarm.epoch(DRAWS)
    kill_at(swarm, "ann", Phase.REDUCING, silently=True)
    swarm.follower()
    swarm.draw(DRAWS)
    swarm.tick()
    assert not swarm.nodes["ann"].alive
    died_at = swarm.now
    while {node.epoch for node in swarm.alive} != {2}:
        swarm.tick()
        assert swarm.now - died_at < 4 * DETECTION_S


@pytest.mark.parametrize("seed", SEEDS)
def test_the_leader_and_a_contributor_die_together(seed: int) -> None:
    swarm = swarm_of(seed=seed)
    swarm.epoch(DRAWS)
    swarm.follower()
    swarm.draw({**DRAWS, "cid": 12, "dag": 12})
    swarm.kill("ann")
    swarm.kill("bob", silently=True)
    swarm.epoch({"cid": 12, "dag": 12})
    assert contributors(swarm, 2) == {"cid", "dag"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_contribution_is_encoded_once_and_the_same_bytes_go_into_every_attempt(seed: int) -> None:
    swarm = swarm_of(seed=seed)
    swarm.broken = {("bob", "cid"), ("dag", "bob")}
    swarm.epoch(DRAWS)
    assert len(swarm.failures) >= 2, "several attempts were made"
    for node in swarm.alive:
        assert len(node.frozen_as) == 1, "frozen once"
        assert {encoded for _, _, encoded in node.sent} == {node.frozen_as[0][1]}
        assert len({contribution for _, contribution, _ in node.sent}) == 1, "its id and weight never change"
    assert max(len(node.sent) for node in swarm.alive) >= 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pair_that_failed_never_meets_again_in_the_epoch(seed: int) -> None:
    swarm = swarm_of(seed=seed, client_mode=("dag",))
    swarm.broken = {("bob", "ann"), ("dag", "bob"), ("cid", "bob")}
    swarm.epoch(DRAWS)
    assert swarm.failed_pairs, "the broken links were tried"
    for plan in swarm.plans:
        met = {(contributor, shard.reducer) for contributor in plan.contributors for shard in plan.shards}
        assert not met & {(m, r) for attempt, m, r in swarm.failed_pairs if attempt < plan.ballot.attempt}
    assert len(swarm.plans) <= len(swarm.broken) + 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_newcomer_catches_up_contributes_and_does_not_displace_the_leader(seed: int) -> None:
    swarm = swarm_of("bob", "cid", "dag", seed=seed)
    for _ in range(2):
        swarm.epoch({"bob": 9, "cid": 6, "dag": 6})
    swarm.add("aaa")
    swarm.tick(4)
    swarm.epoch({"aaa": 5, "bob": 9, "cid": 6, "dag": 6})
    swarm.epoch({"aaa": 5, "bob": 9, "cid": 6, "dag": 6})
    assert leader_of(swarm) == "bob"
    assert swarm.announced[-1].leader.peer == "bob"
    assert contributors(swarm, 4) == {"aaa", "bob", "cid", "dag"}
    assert [candidate.peer for candidate in swarm.announced[-1].succession] == ["cid", "dag", "aaa"]


def test_counter_ranges_are_disjoint_over_a_run_with_every_kind_of_trouble() -> None:
    for seed in SEEDS:
        swarm = swarm_of(seed=seed, client_mode=("dag",))
        swarm.epoch(DRAWS)
        swarm.broken = {("bob", "ann")}
        swarm.epoch(DRAWS)
        swarm.broken = set()
        kill_at(swarm, "ann", Phase.READY, epoch=3)
        swarm.epoch({**DRAWS, "bob": 14})
        swarm.watch = lambda node: None
        swarm.add("ann", incarnation=2)  # it starts again: its counters begin anew under another incarnation
        swarm.tick(4)
        for _ in range(2):
            swarm.epoch(DRAWS)
        commits = swarm.alive[0].commits
        ranges = [(c.peer, c.incarnation, n) for commit in commits for c in commit.contributions for n in range(c.first, c.end)]
        assert len(ranges) == len(set(ranges)) == swarm.alive[0].member.tip.total_samples if swarm.alive[0].member.tip else False
        assert {c.incarnation for commit in commits for c in commit.contributions if c.peer == "ann"} == {1, 2}


def test_a_contribution_that_misses_its_epoch_is_given_up_with_a_reason_and_never_comes_back() -> None:
    """cid gets a result too few: the others commit without waiting for it, and it catches up."""
    swarm = swarm_of()
    swarm.epoch(DRAWS)
    swarm.lost_kinds = {("cid", "plan")}
    swarm.epoch(DRAWS)
    swarm.lost_kinds = set()
    cid = swarm.nodes["cid"]
    assert "cid" not in contributors(swarm, 2)
    assert set(cid.reasons(GiveUp)) == {Reason.MISSED}
    swarm.epoch(DRAWS)
    ranges = {(c.first, c.end) for commit in cid.commits for c in commit.contributions if c.peer == "cid"}
    assert ranges == {(0, 6), (12, 18)}, "the six samples in between were given up"


def test_a_member_that_gets_no_results_in_time_is_left_behind_and_catches_up() -> None:
    swarm = swarm_of()
    swarm.epoch(DRAWS)
    swarm.lost_kinds = {("cid", "down")}
    swarm.follower()
    swarm.batch(DRAWS)
    swarm.tick(6)
    cid = swarm.nodes["cid"]
    assert {node.epoch for node in swarm.alive if node is not cid} == {2}, "three of four are a majority; the grace has an end"
    assert cid.epoch == 1
    assert contributors(swarm, 2) == set(NAMES), "its contribution counts all the same"
    swarm.lost_kinds = set()
    swarm.fill(18)
    swarm.draw({"ann": 4, "bob": 9, "dag": 5})
    swarm.tick(8)
    assert contributors(swarm, 3) == {"ann", "bob", "dag"}
    assert cid.lineage == swarm.nodes["ann"].lineage
    swarm.epoch(DRAWS)
    assert contributors(swarm, 4) == set(NAMES)


def test_a_peer_whose_device_fails_in_the_step_catches_up_and_never_steps_twice() -> None:
    swarm = swarm_of()
    swarm.epoch(DRAWS)
    cid = swarm.nodes["cid"]
    assert isinstance(cid.work, Arithmetic)
    cid.work.fails_to_apply = True
    swarm.epoch(DRAWS)
    assert cid.reasons(CatchUp) == [Reason.APPLY_FAILED]
    swarm.check()
    assert len(cid.work.applied) == 2


@pytest.mark.parametrize("max_epochs", [1, 3])
def test_a_run_ends_after_its_last_epoch(max_epochs: int) -> None:
    swarm = swarm_of(max_epochs=max_epochs)
    for _ in range(max_epochs):
        swarm.epoch(DRAWS)
    swarm.draw(dict.fromkeys(NAMES, 50))
    swarm.tick(20)
    assert {node.epoch for node in swarm.alive} == {max_epochs}
    assert len(swarm.plans) == max_epochs


def test_client_mode_peers_train_through_one_that_only_reduces() -> None:
    swarm = Swarm(target=20)
    swarm.add("aux", auxiliary=True)
    for name in NAMES:
        swarm.add(name, reachable=False)
    for _ in range(3):
        swarm.epoch(DRAWS)
    assert {shard.reducer for plan in swarm.plans for shard in plan.shards} == {"aux"}
    assert contributors(swarm, 3) == set(NAMES)


def test_without_a_reachable_peer_the_swarm_pauses_and_goes_on_when_one_comes_back() -> None:
    swarm = Swarm(target=20)
    swarm.add("aux", auxiliary=True)
    for name in NAMES:
        swarm.add(name, reachable=False)
    swarm.epoch(DRAWS)
    swarm.kill("aux")
    swarm.draw(DRAWS)
    swarm.tick(30)
    assert {node.epoch for node in swarm.alive} == {1}
    assert len(swarm.announced) == 1
    kept = swarm.nodes["aux"]
    again = swarm.nodes["aux"] = swarm.add("aux", auxiliary=True, incarnation=2)
    again.work, again.commits = kept.work, kept.commits  # its folder is still there
    assert kept.member.tip is not None
    again.leader.follow(kept.member.tip)
    again.succession.follow(kept.member.tip)
    again.perform(again.member.adopted(kept.member.tip))
    swarm.epoch({})
    assert contributors(swarm, 2) == set(NAMES), "what was gathered meanwhile counts"


@pytest.mark.parametrize("seed", SEEDS)
def test_of_two_leads_one_yields_and_the_swarm_is_whole_again(seed: int) -> None:
    """A wrong suspicion splits the followers; safety does not suffer, and the split ends."""
    swarm = swarm_of(seed=seed)
    swarm.epoch(DRAWS)
    swarm.follower()
    for name in ("bob", "dag"):
        swarm.nodes[name].lose_leader()  # they believe that ann is silent
        swarm.leave(name, "ann")
    swarm.tick(2)
    for _ in range(40):
        swarm.draw(dict.fromkeys(NAMES, 2))
        swarm.tick()
        swarm.check()
    assert len(swarm.leading) == 1
    assert len({node.lineage for node in swarm.alive}) == 1
    assert swarm.alive[0].epoch >= 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_higher_ballot_of_another_leader_wins_and_the_lower_ones_late_commit_is_ignored(seed: int) -> None:
    """cid is ready for ann's plan, whose commit is held up; it promises itself away to bob's; then ann's commit arrives."""
    swarm = swarm_of("ann", "bob", "cid", seed=seed)
    swarm.epoch({"ann": 8, "bob": 8, "cid": 8})
    tip = swarm.nodes["cid"].member.tip
    assert tip is not None
    swarm.lost_kinds = {(name, "commit") for name in ("ann", "bob", "cid")}
    swarm.follower()
    swarm.draw({"ann": 8, "bob": 8, "cid": 8})
    swarm.tick(4)
    (late,) = swarm.announced[1:]
    cid = swarm.nodes["cid"]
    assert cid.member.phase is Phase.READY
    old = cid.member.plan
    assert old is not None
    higher = replace(old, ballot=Ballot(old.ballot.epoch, old.ballot.parent, 2, "bob"))
    cid.perform(cid.member.on_plan(higher))
    assert cid.member.plan == higher
    assert cid.member.on_commit(SignedCommit(late, b"", b"")) == []
    assert cid.member.tip == tip


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(
            lambda c: Contribution(c.peer, c.incarnation, c.first, c.end + 1, c.base, c.loss), id="more weight than reported"
        ),
        pytest.param(lambda c: Contribution(c.peer, c.incarnation, c.first, c.end, "f" * 64, c.loss), id="another base"),
    ],
)
def test_a_peer_that_always_claims_what_is_not_so_keeps_nobody_from_training(
    forge: Callable[[Contribution], Contribution],
) -> None:
    swarm = swarm_of()
    liar = swarm.nodes["cid"]
    honest = liar._act

    def act(action: Any) -> None:
        if getattr(action, "answer", None).__class__ is Accept and action.answer.contribution is not None:
            action = type(action)(action.to, Accept(action.answer.plan_digest, forge(action.answer.contribution)))
        honest(action)

    liar._act = act  # type: ignore[method-assign]
    swarm.epoch(DRAWS)
    assert contributors(swarm, 1) == {"ann", "bob", "dag"}
    assert [failure.peer for failure in swarm.failures] == ["cid"]


@pytest.mark.parametrize("seed", range(40))
def test_safety_holds_under_random_trouble(seed: int) -> None:
    """Links break and heal, peers die, come back and stall: one history and honest sums at every step; then all is well again."""
    draw = random.Random(seed)
    swarm = swarm_of(*NAMES, "eve", seed=seed, client_mode=("dag",))
    incarnation = 1
    for _ in range(30):
        names = [node.name for node in swarm.alive]
        match draw.randrange(8):
            case 0 if len(names) > 3:
                swarm.kill(draw.choice(names), silently=draw.random() < 0.5)
            case 1:
                swarm.broken = {(draw.choice(names), draw.choice(names))}
            case 2:
                swarm.broken = set()
            case 3:
                swarm.held = {(draw.choice(names), draw.choice(names)) for _ in range(2)}
            case 4:
                swarm.held = set()
            case 5:
                dead = sorted(node.name for node in swarm.nodes.values() if not node.alive)
                if dead and any(node.hello.reachable for node in swarm.alive):
                    incarnation += 1
                    swarm.held = set()
                    swarm.add(draw.choice(dead), incarnation=incarnation, reachable=True)
        for _ in range(draw.randrange(1, 8)):
            swarm.draw({name: draw.randrange(6) for name in names})
            swarm.tick()
            swarm.check()
    swarm.held, swarm.broken = set(), set()
    before = max(node.epoch for node in swarm.alive)
    for _ in range(200):
        swarm.draw({node.name: 3 for node in swarm.alive})
        swarm.tick()
        if min(node.epoch for node in swarm.alive) > before + 1 and len({node.lineage for node in swarm.alive}) == 1:
            break
    swarm.check()
    assert min(node.epoch for node in swarm.alive) > before + 1, "the survivors commit again"
    assert len({node.lineage for node in swarm.alive}) == 1


def test_the_fakes_themselves_notice_a_history_that_is_not_one() -> None:
    swarm = swarm_of()
    swarm.epoch(DRAWS)
    work = swarm.nodes["cid"].work
    assert isinstance(work, Arithmetic)
    work.applied = ("something else",)
    with pytest.raises(AssertionError, match="one lineage"):
        swarm.check()

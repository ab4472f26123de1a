"""Whole epochs of whole peers: the engine, the state machines and the trainer, over the simulated network and clock."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from peer.simulation.observer import Source
from peer.simulation.problem import ELEMENTS, LEARNING_RATE, MAX_NORM, target
from peer.simulation.process import SimulatedPeer
from peer.simulation.world import ViolationError
from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.member import Accept, Answer, Failed
from protocols.round.plans import MemberPlan, Plan
from protocols.round.records import Ballot, Contribution
from tests.swarms import QuietSwarm, Volunteer

ANN, BOB, CID = Volunteer("ann"), Volunteer("bob", 3, 0.3), Volunteer("cid", 2, 0.3)
DAG = Volunteer("dag", 2, 0.4)
HIDDEN_DAG = replace(DAG, reachable=False)
FOUR = (ANN, BOB, CID, DAG)
NAMES = {volunteer.name for volunteer in FOUR}
SEEDS = range(6)
# A silent leader: detection, and as long again until the next has heard of all. An attempt begun with the dead ends in twice
# that. Then those who are left draw a batch and exchange it.
TAKES_OVER_S = 8 * DETECTION_S
ROUND_PHASES = ("frozen", "reducing", "ready", "applying")
HOW = pytest.mark.parametrize("kind", ["crash", "power cut"])


def is_dead(swarm: QuietSwarm, name: str) -> Callable[[], bool]:
    return lambda: not swarm.processes[name].alive


@pytest.mark.parametrize("seed", SEEDS)
def test_epochs_follow_each_other_and_everybody_applies_the_same(seed: int) -> None:
    with QuietSwarm(ANN, BOB, CID, HIDDEN_DAG, seed=seed) as swarm:
        swarm.until(lambda: swarm.is_together and swarm.epoch_of("ann") == 5)
        assert swarm.observer.failures == []
        assert swarm.leader == "ann"
        history = swarm.history()
        assert [commit.total_samples for commit in history] == list(np.cumsum([commit.samples for commit in history]))
        assert min(commit.samples for commit in history) >= 24
        assert all(swarm.contributors(epoch) == NAMES for epoch in range(2, 6))
        assert len({process.state.weights.tobytes() for process in swarm.alive}) == 1


def test_what_is_applied_is_the_mean_over_all_samples_of_the_commit() -> None:
    """Worked out here once more, without the observer."""
    with QuietSwarm(*FOUR) as swarm:
        swarm.until(lambda: swarm.epoch_of("dag") == 1)
        (commit,) = swarm.history()
        contributions = commit.contributions
        drawn = [target(c.peer, c.incarnation, counter) for c in contributions for counter in range(c.first, c.end)]
        assert len(drawn) == commit.samples >= 24
        gradient = -np.sum(drawn, axis=0) / len(drawn)  # every weight is zero at genesis
        clipped = gradient * min(1.0, MAX_NORM / np.linalg.norm(gradient))
        assert gradient.shape == (ELEMENTS,)
        assert np.abs(swarm.processes["dag"].state.weights + LEARNING_RATE * clipped).max() < 1e-14


@HOW
@pytest.mark.parametrize("phase", ["training", *ROUND_PHASES])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_contributor_that_dies_costs_one_attempt(phase: str, kind: str, seed: int) -> None:
    with QuietSwarm(*FOUR, seed=seed) as swarm:
        swarm.epochs(2)
        swarm.strike(kind, "cid", phase, seed)
        swarm.until(is_dead(swarm, "cid"))
        died_at = swarm.world.now
        swarm.epochs(2)
        assert swarm.world.now - died_at < TAKES_OVER_S + 6
        last = swarm.history()[-1]
        assert {c.peer for c in last.contributions} == NAMES - {"cid"}
        earlier = [failure.reason for failure in swarm.observer.failures[:-1]]
        assert earlier in ([], [Reason.REDUCER_LOST]), "a member may notice a moment before the leader"
        for failure in swarm.observer.failures:
            assert failure.peer == "cid"
            assert failure.reason in (Reason.SILENT, Reason.STALLED, Reason.CONNECTION_LOST, Reason.REDUCER_LOST)


@pytest.mark.parametrize("silently", [False, True])
def test_a_peer_that_dies_before_the_plan_costs_nothing_but_its_samples(silently: bool) -> None:
    with QuietSwarm(*FOUR, target=120) as swarm:  # a batch takes longer than detection
        swarm.epochs()
        swarm.end("cid", silently=silently)
        swarm.epochs()
        assert swarm.contributors(2) == NAMES - {"cid"}
        assert swarm.observer.failures == []


@HOW
@pytest.mark.parametrize("phase", ["training", "planning", "majority", "announcing", *ROUND_PHASES])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_next_in_order_replaces_a_leader_that_dies(phase: str, kind: str, seed: int) -> None:
    with QuietSwarm(*FOUR, seed=seed) as swarm:
        swarm.epochs(2)
        successor = swarm.history()[-1].succession[0].peer
        swarm.strike(kind, "ann", phase, seed)
        swarm.until(is_dead(swarm, "ann"))
        died_at = swarm.world.now
        ends = {process.name: swarm.epoch_of(process.name) for process in swarm.alive}
        swarm.until(lambda: all(swarm.epoch_of(name) > epoch for name, epoch in ends.items()))
        assert swarm.world.now - died_at < TAKES_OVER_S, "each survivor commits within detection and one attempt"
        swarm.epochs(2)
        # A commit that reaches one survivor alone makes that one the first to look for a leader.
        assert swarm.leader == successor or phase in ("applying", "announcing", "majority", "ready")
        last = swarm.history()[-1]
        assert last.leader.peer == swarm.leader != "ann"
        assert {c.peer for c in last.contributions} == NAMES - {"ann"}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_leader_and_a_contributor_die_together(seed: int) -> None:
    with QuietSwarm(*FOUR, seed=seed) as swarm:
        swarm.epochs()
        swarm.run(0.2 * seed)
        swarm.end("ann")
        swarm.end("bob", silently=True)
        swarm.epochs(2)
        assert {c.peer for c in swarm.history()[-1].contributions} == {"cid", "dag"}


# -- attempts --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_contribution_is_encoded_once_and_the_same_bytes_go_into_every_attempt(seed: int) -> None:
    """That their samples enter one commit at most, the observer checks."""
    with QuietSwarm(ANN, BOB, CID, HIDDEN_DAG, seed=seed) as swarm:
        swarm.epochs()
        sent: dict[tuple[str, int], set[tuple[Contribution, bytes]]] = defaultdict(set)
        attempts: dict[tuple[str, int], int] = defaultdict(int)
        for name in NAMES:
            _note_what_is_sent(swarm.processes[name], sent, attempts)
        _break_lines_of_attempts(swarm, "dag")
        swarm.epochs()
        assert len({plan.ballot.attempt for plan in swarm.observer.plans if plan.ballot.epoch == 2}) >= 2
        assert max(attempts.values()) >= 2, "somebody gave to several attempts"
        assert {len(given) for given in sent.values()} == {1}
        for name in NAMES:
            frozen = [c for peer, c in swarm.observer.frozen if peer == name]
            assert len(frozen) == len(set(frozen)), "each was frozen once"


def _break_lines_of_attempts(swarm: QuietSwarm, contributor: str) -> None:
    """From now on: in the first two attempts of an epoch, to the first of the reducers."""
    planned = swarm.observer.planned

    def planning(leader: Source, plan: Plan, absent: dict[str, Reason]) -> None:
        planned(leader, plan, absent)
        if plan.ballot.attempt <= 2:
            swarm.broken.add((contributor, plan.shards[0].reducer))

    swarm.observer.planned = planning  # type: ignore[method-assign]


def _note_what_is_sent(process: SimulatedPeer, sent: Any, attempts: Any) -> None:
    traffic = process.engine.round_traffic
    run = traffic.run

    async def running(plan: MemberPlan, contribution: Contribution | None, encoded: Any) -> Any:
        if contribution is not None:
            sent[process.name, plan.ballot.epoch].add((contribution, bytes(encoded)))
            attempts[process.name, plan.ballot.epoch] += 1
        return await run(plan, contribution, encoded)

    traffic.run = running  # type: ignore[method-assign]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pair_that_failed_never_meets_again_in_the_epoch(seed: int) -> None:
    with QuietSwarm(ANN, BOB, CID, HIDDEN_DAG, seed=seed) as swarm:
        swarm.epochs()
        _break_lines_of_attempts(swarm, "dag")
        failed = _failures_that_end_an_attempt(swarm.processes["ann"])
        swarm.epochs()
        plans = [plan for plan in swarm.observer.plans if plan.ballot.epoch == 2]
        assert failed, "the broken links were tried"
        for plan in plans:
            met = {(contributor, shard.reducer) for contributor in plan.contributors for shard in plan.shards}
            assert not met & {(member, reducer) for ballot, member, reducer in failed if ballot.rank < plan.ballot.rank}
        assert len(plans) == 3


def _failures_that_end_an_attempt(process: SimulatedPeer) -> list[tuple[Ballot, str, str]]:
    """(ballot, member, reducer) of those that this leader hears of while the attempt goes on; grows with time."""
    leader, failed = process.engine.leader, list[tuple[Ballot, str, str]]()
    answer = leader.answer

    def answering(peer: str, what: Answer, now: float) -> Any:
        attempt = leader.attempt
        if isinstance(what, Failed) and attempt is not None and attempt.plan.digest == what.plan_digest:
            failed.append((attempt.plan.ballot, what.member, what.reducer))
        return answer(peer, what, now)

    leader.answer = answering  # type: ignore[method-assign]
    return failed


# -- who comes, goes, and falls behind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_newcomer_catches_up_contributes_and_does_not_displace_the_leader(seed: int) -> None:
    with QuietSwarm(BOB, CID, DAG, seed=seed) as swarm:
        swarm.epochs(2)
        swarm.join(Volunteer("aaa"))
        swarm.epochs(3)
        last = swarm.history()[-1]
        assert swarm.leader == last.leader.peer == "bob"
        assert {c.peer for c in last.contributions} == {"aaa", "bob", "cid", "dag"}
        assert last.succession[-1].peer == "aaa"
        assert {candidate.peer for candidate in last.succession} == {"aaa", "cid", "dag"}


def test_counter_ranges_are_disjoint_over_a_run_with_every_kind_of_trouble() -> None:
    for seed in SEEDS:
        with QuietSwarm(ANN, BOB, CID, HIDDEN_DAG, seed=seed) as swarm:
            swarm.epochs()
            swarm.broken = {("bob", "ann")}
            swarm.epochs()
            swarm.broken = set()
            swarm.strike("crash", "ann", "ready", seed)
            swarm.until(is_dead(swarm, "ann"))
            swarm.epochs()
            swarm.start("ann")  # its counters begin anew under another incarnation
            swarm.epochs(3)
            commits = swarm.history()
            named = [c for commit in commits for c in commit.contributions]
            ranges = [(c.peer, c.incarnation, counter) for c in named for counter in range(c.first, c.end)]
            assert len(ranges) == len(set(ranges)) == commits[-1].total_samples
            assert len({c.incarnation for c in named if c.peer == "ann"}) == 2


def _misses_plans(process: SimulatedPeer) -> Callable[[], None]:
    """It hears of no plan, until the function that is returned is called."""
    told = process.engine.told

    def deaf(leader: Any, record: Any) -> None:
        if not isinstance(record, MemberPlan):
            told(leader, record)

    def hears() -> None:
        process.engine.told = told  # type: ignore[method-assign]

    process.engine.told = deaf  # type: ignore[method-assign]
    return hears


def test_what_misses_its_epoch_is_given_up_with_a_reason_and_never_comes_back() -> None:
    """cid hears of no plan: the others commit without it, and it catches up."""
    with QuietSwarm(*FOUR) as swarm:
        swarm.epochs()
        hears = _misses_plans(swarm.processes["cid"])
        swarm.until(lambda: swarm.epoch_of("ann") == 2)
        hears()
        swarm.epochs(2)
        assert "cid" not in swarm.contributors(2)
        assert "cid" in swarm.contributors(4)
        assert [reason for peer, reason, _ in swarm.observer.given_up if peer == "cid"] == [Reason.MISSED]
        (lost,) = [samples for peer, _, samples in swarm.observer.given_up if peer == "cid"]
        ranges = [(c.first, c.end) for commit in swarm.history() for c in commit.contributions if c.peer == "cid"]
        gaps = [first - end for (_, end), (first, _) in pairwise(ranges) if first != end]
        assert sum(gaps) >= lost > 0, "what was given up is in no commit"


def test_a_member_that_gets_no_results_in_time_is_left_behind_and_catches_up() -> None:
    with QuietSwarm(*FOUR) as swarm:
        swarm.epochs()
        traffic = swarm.processes["cid"].engine.round_traffic
        run = traffic.run

        async def hanging(*arguments: Any) -> Any:
            await run(*arguments)
            traffic.run = run  # type: ignore[method-assign]
            await asyncio.sleep(3600)

        traffic.run = hanging  # type: ignore[method-assign]
        swarm.until(lambda: swarm.epoch_of("ann") == 2)
        assert swarm.contributors(2) == NAMES, "three of four are a majority; its contribution counts all the same"
        assert swarm.observer.failures == []
        swarm.epochs(2)
        assert swarm.reasons("cid") == [Reason.BEHIND]
        assert swarm.contributors(4) == NAMES


def test_a_peer_whose_device_fails_in_the_step_catches_up_and_never_steps_twice() -> None:
    with QuietSwarm(*FOUR) as swarm:
        swarm.epochs()
        swarm.processes["cid"].device.fails_next_step = True
        swarm.epochs(2)
        assert swarm.reasons("cid") == [Reason.APPLY_FAILED]
        states = [process.state for process in swarm.alive]
        assert all(state.equals(states[0]) for state in states)


@pytest.mark.parametrize("max_epochs", [1, 3])
def test_a_run_ends_after_its_last_epoch(max_epochs: int) -> None:
    with QuietSwarm(*FOUR, max_epochs=max_epochs) as swarm:
        swarm.until(lambda: swarm.is_together and swarm.epoch_of("ann") == max_epochs)
        swarm.run(20)
        assert {swarm.epoch_of(name) for name in NAMES} == {max_epochs}
        assert len(swarm.observer.plans) == max_epochs


AUX = Volunteer("aux", 0)
HIDDEN = tuple(replace(volunteer, reachable=False) for volunteer in FOUR)


def test_client_mode_peers_train_through_one_that_only_reduces() -> None:
    with QuietSwarm(AUX, *HIDDEN) as swarm:
        swarm.epochs(3)
        assert {shard.reducer for plan in swarm.observer.plans for shard in plan.shards} == {"aux"}
        assert swarm.contributors(3) == NAMES


def test_without_a_reachable_peer_the_swarm_pauses_and_goes_on_when_one_comes_back() -> None:
    with QuietSwarm(AUX, *HIDDEN) as swarm:
        swarm.epochs(2)
        epoch = swarm.epoch_of("ann")
        swarm.end("aux")
        swarm.run(20)
        paused = {swarm.epoch_of(name) for name in NAMES}
        assert max(paused) <= epoch + 1
        commits = len(swarm.observer.commits)
        swarm.run(20)
        assert len(swarm.observer.commits) == commits
        swarm.start("aux")
        swarm.epochs(1)
        gathered = swarm.history()[commits]
        assert {c.peer for c in gathered.contributions} == NAMES
        assert gathered.samples > 200, "what was gathered meanwhile counts"


# -- splits and liars ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_of_two_leads_one_yields_and_the_swarm_is_whole_again(seed: int) -> None:
    """A wrong suspicion splits the followers; safety does not suffer, and the split ends."""
    with QuietSwarm(*FOUR, seed=seed) as swarm:
        swarm.epochs()
        ways = [(one, other) for one in ("ann", "cid") for other in ("bob", "dag")]
        swarm.block(ways, both=True, seconds=4 * DETECTION_S)
        leading = lambda: [process.name for process in swarm.alive if process.engine.leader.active]  # noqa: E731
        swarm.until(lambda: len(leading()) == 2)
        swarm.until(lambda: len(leading()) == 1 and swarm.is_together)
        swarm.epochs(2)
        assert {c.peer for c in swarm.history()[-1].contributions} == NAMES


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda c: replace(c, end=c.end + 100), id="more weight than reported"),
        pytest.param(lambda c: replace(c, base="f" * 64), id="another base"),
    ],
)
def test_a_peer_that_always_claims_what_is_not_so_keeps_nobody_from_training(
    forge: Callable[[Contribution], Contribution],
) -> None:
    with QuietSwarm(*FOUR) as swarm:
        liar = swarm.processes["cid"].engine
        honest = liar._answer

        def lying(to: str, answer: Answer) -> None:
            if isinstance(answer, Accept) and answer.contribution is not None:
                answer = Accept(answer.plan_digest, forge(answer.contribution))
            honest(to, answer)

        liar._answer = lying  # type: ignore[method-assign]
        swarm.until(lambda: swarm.epoch_of("ann") == 4)
        assert all(swarm.contributors(epoch) == NAMES - {"cid"} for epoch in range(1, 5))
        assert {failure.peer for failure in swarm.observer.failures} == {"cid"}


def test_the_observer_of_a_quiet_swarm_notices_a_state_that_is_not_that_of_its_lineage() -> None:
    """So the tests above hold more than they say."""
    with QuietSwarm(*FOUR) as swarm:
        swarm.epochs()
        swarm.processes["cid"].device.drift(1e-3)
        with pytest.raises(ViolationError, match="cid's state changed outside any commit"):
            swarm.epochs()

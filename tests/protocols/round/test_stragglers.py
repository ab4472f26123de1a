"""A leader with a full batch now and then waits for peers one commit behind, and never for long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from protocols.round.leader_actions import Announce, SendPlan
from protocols.round.plans import Plan
from protocols.round.records import Contribution, Report, Tip
from protocols.round.stragglers import MAX_WAIT_S, WAITS_EVERY, Stragglers
from tests.protocols.round.table import Table, of, result_of, the_plan

EPOCH_S = 3.0


def at_epoch(epoch: int, *, overlap: bool = False, took_s: tuple[float, float] = (EPOCH_S, EPOCH_S)) -> tuple[Table, Tip]:
    """(table, cid's tip): the leader and bob have committed `epoch`, and cid stands one commit behind.

    `took_s` has the durations of the last two epochs.
    """
    before = replace(Table("bob").tip, epoch=epoch - 1, lineage="a" * 64, total_samples=100, members=("bob", "cid", "lea"))
    it = Table("bob", "cid", tip=replace(before, epoch=epoch - 2, lineage="c" * 64), overlap=overlap)
    it.reports(lea=0, bob=0, cid=0)
    it.wait(took_s[0])
    it.leader.follow(before)
    it.tip = before
    it.reports(lea=0, bob=0, cid=0)
    it.report("cid", standing=replace(before.standing, lineage="b" * 64), caught_up=False)
    it.wait(took_s[1])
    planned = the_plan(it.report("bob", 20))
    it.accept(planned, "lea")
    it.accept(planned, "bob", 20)
    result = result_of(planned, Contribution("bob", 1, 0, 20, before.lineage, 1.0))
    (announced,) = of(Announce, it.ready(result, "lea", "bob"))
    it.tip = Tip.after(announced.commit)
    it.leader.follow(it.tip, announced.commit)
    it.report("lea")
    return it, before


def plans(actions: list[Any]) -> list[Plan]:
    return [action.plan for action in of(SendPlan, actions)]


def fetches(it: Table, at: Tip) -> list[Any]:
    return it.report("cid", standing=at.standing, caught_up=False, phase="catching up")


@pytest.mark.parametrize("overlap", [False, True])
def test_who_fetches_the_last_commit_is_let_come_level_in_one_of_so_many_epochs(overlap: bool) -> None:
    it, before = at_epoch(2 * WAITS_EVERY - 1, overlap=overlap)
    assert not plans(fetches(it, before))
    assert not plans(it.report("bob", 30)), "the batch is full"
    assert not plans(it.wait(EPOCH_S / 2))
    assert not plans(fetches(it, it.tip)), "it has the commit, and is not back yet"
    (planned,) = plans(it.report("cid", 0))
    assert planned.members == ("bob", "cid", "lea")


@pytest.mark.parametrize("took_s", [(EPOCH_S, EPOCH_S), (100.0, EPOCH_S), (EPOCH_S, 100.0)])
def test_who_never_comes_level_is_waited_for_as_long_as_an_epoch_took_that_was_no_pause(took_s: tuple[float, float]) -> None:
    it, before = at_epoch(2 * WAITS_EVERY - 1, took_s=took_s)
    fetches(it, before)
    it.wait(2 * EPOCH_S)  # before the batch is full, the leader waits for nobody
    assert not plans(it.report("bob", 30))
    assert not plans(it.wait(EPOCH_S - 0.5))
    (planned,) = plans(it.wait(1.0))
    assert planned.members == ("bob", "lea")


def test_in_the_other_epochs_nobody_is_waited_for() -> None:
    epochs = range(WAITS_EVERY, 2 * WAITS_EVERY - 1)
    assert epochs
    for epoch in epochs:
        it, before = at_epoch(epoch)
        fetches(it, before)
        assert plans(it.report("bob", 30)), epoch


@pytest.mark.parametrize("where", ["b" * 64, "c" * 64])
def test_who_is_further_away_is_not_waited_for(where: str) -> None:
    it, before = at_epoch(2 * WAITS_EVERY - 1)
    it.report("cid", standing=replace(before.standing, lineage=where), caught_up=False, phase="catching up")
    assert plans(it.report("bob", 30))


def test_who_is_gone_is_not_waited_for() -> None:
    it, before = at_epoch(2 * WAITS_EVERY - 1)
    fetches(it, before)
    assert not plans(it.report("bob", 30))
    assert plans(it.wait(2.5, silent=("cid",)))


def test_who_has_not_begun_to_fetch_the_last_commit_is_waited_for_too() -> None:
    it, before = at_epoch(2 * WAITS_EVERY - 1)
    it.report("cid", standing=before.standing)
    assert not plans(it.report("bob", 30))
    assert plans(it.report("cid", 4))


@pytest.mark.parametrize("level", [False, True])
def test_who_leaves_is_not_waited_for(level: bool) -> None:
    it, before = at_epoch(2 * WAITS_EVERY - 1)
    it.report("cid", standing=(it.tip if level else before).standing, caught_up=False)
    assert plans(it.report("bob", 30))


def test_an_attempt_that_failed_is_followed_at_once() -> None:
    it, before = at_epoch(2 * WAITS_EVERY - 1)
    planned = the_plan(it.report("bob", 30))
    fetches(it, before)
    again = it.leader.joined("bob", it.leader.followers["bob"].hello, it.now)
    (second,) = plans([*again, *it.report("bob", 30)])
    assert (second.ballot.attempt, second.ballot.parent) == (2, planned.ballot.parent)


def test_a_leader_that_has_just_taken_over_waits_for_nobody() -> None:
    it, before = at_epoch(2 * WAITS_EVERY - 1)
    it.leader.step_down()
    it.leader.take_over(it.now)
    for peer in ("lea", "bob", "cid"):
        it.join(peer)
    it.report("lea")
    fetches(it, before)
    it.wait(2.5)
    assert plans(it.report("bob", 30))


def waits_of(
    close_for_s: Callable[[int], float], epochs: int = 200, epoch_s: float = EPOCH_S, *, stragglers: int = 1
) -> dict[int, float]:
    """Epoch -> seconds that the leader waited before it. Two peers are at its tip, and `stragglers` always one commit behind,
    for `close_for_s(epoch)`."""
    behind, tip, now = Stragglers(1.0, 0.0, overlap=False), Table("bob").tip, 0.0
    waited = {}
    for epoch in range(1, epochs):
        tip = replace(tip, epoch=epoch)
        behind.advanced(now)
        now += epoch_s
        full_at, level_at = now, now + close_for_s(epoch + 1)
        level = [Report(tip.standing, 0, 0.0, 0.0, 0, 0, caught_up=True, phase="training")] * 2
        one_behind = Report(replace(tip.standing, lineage="b" * 64), 0, 0.0, 0.0, 0, 0, caught_up=False, phase="catching up")
        while behind.awaited(tip, "b" * 64, [*level, *[one_behind] * stragglers] if now < level_at else level, now):
            now += epoch_s / 16
        if now > full_at:
            waited[epoch + 1] = now - full_at
    return waited


def test_stragglers_that_outnumber_the_round_are_waited_for_more_often() -> None:
    assert list(waits_of(lambda epoch: EPOCH_S / 8, 12, stragglers=2)) == [4, 8, 12]
    assert list(waits_of(lambda epoch: EPOCH_S / 8, 6, stragglers=3)) == [4, 5, 6], "at first it does not know how long"
    assert list(waits_of(lambda epoch: 1e9, 70, stragglers=3)) == [4, 6, 8, 16, 32, 48, 64]


def test_long_waits_become_rare_and_are_usual_again_after_a_short_one() -> None:
    waited = waits_of(lambda epoch: EPOCH_S / 8 if epoch > 180 else 1e9)
    assert list(waited) == [4, 8, 16, 32, 64, 128, 192, 196, 200]
    assert all(waited[epoch] == EPOCH_S for epoch in (4, 8, 128))


def test_who_gives_up_just_before_the_wait_ends_costs_no_more_than_who_never_comes() -> None:
    assert list(waits_of(lambda epoch: 0.95 * EPOCH_S)) == list(waits_of(lambda epoch: 1e9))


def test_after_epochs_of_hours_nobody_is_waited_for_longer_than_minutes() -> None:
    assert max(waits_of(lambda epoch: 1e9, epoch_s=10_800.0).values()) <= MAX_WAIT_S + 10_800 / 16

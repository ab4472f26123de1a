"""Leaders that do not plan are left; those that have reasons to wait are not."""

from __future__ import annotations

from protocols.round.idle_leaders import ANY_EPOCHS, ANY_S, FULL_EPOCHS, FULL_S, MOST_ATTEMPTS, IdleLeaders

TICK_S = 0.25


def left_after(it: IdleLeaders, now: float, leader: str = "lea", *, is_full: bool, most_s: float = 10_000.0) -> float | None:
    """Seconds until the leader is left; None if it is not within `most_s`."""
    at = now
    while at - now < most_s:
        at += TICK_S
        if it.idle(leader, is_full=is_full, now=at):
            return at - now
    return None


def after_epochs(epoch_s: float, count: int = 10) -> tuple[IdleLeaders, float]:
    it, now = IdleLeaders(), 100.0
    it.idle("lea", is_full=False, now=now)
    for _ in range(count):
        now += epoch_s
        it.committed("lea", now)
    return it, now


def test_a_full_batch_waits_for_three_epochs_and_any_batch_for_ten() -> None:
    for is_full, epochs in ((True, FULL_EPOCHS), (False, ANY_EPOCHS)):
        it, now = after_epochs(30.0)
        left_s = left_after(it, now, is_full=is_full)
        assert left_s is not None and abs(left_s - 30.0 * epochs) <= 2 * TICK_S
        assert it.rests("lea", now + left_s) and not it.rests("bob", now + left_s)


def test_short_epochs_do_not_make_it_impatient() -> None:
    for is_full, least_s in ((True, FULL_S), (False, ANY_S)):
        it, now = after_epochs(0.5)
        left_s = left_after(it, now, is_full=is_full)
        assert left_s is not None and abs(left_s - least_s) <= 2 * TICK_S


def test_before_the_first_commits_only_a_full_batch_tells_anything() -> None:
    assert left_after(IdleLeaders(), 100.0, is_full=False) is None
    assert left_after(IdleLeaders(), 100.0, is_full=True) is not None


def test_plans_and_commits_begin_the_time_anew() -> None:
    it, now = after_epochs(30.0)
    for epoch in range(20):
        assert left_after(it, now, is_full=True, most_s=80.0) is None
        now += 80.0
        it.committed("lea", now) if epoch % 5 == 4 else it.planned(now)


def test_a_leader_of_many_attempts_and_no_commit_is_left() -> None:
    it, now = after_epochs(30.0)
    for _ in range(MOST_ATTEMPTS):
        it.planned(now)
        assert not it.idle("lea", is_full=True, now=now + 1.0)
        now += 2.0
    it.planned(now)
    assert it.idle("lea", is_full=True, now=now) == 2.0 * MOST_ATTEMPTS
    assert it.rests("lea", now) and not it.rests("bob", now)


def test_each_time_it_rests_longer_and_its_commits_take_that_back() -> None:
    it, now = after_epochs(1.0)
    rests = list[float]()
    for _ in range(4):
        left_s = left_after(it, now, is_full=True)
        assert left_s is not None
        now += left_s
        began = now
        while it.rests("lea", now):
            now += TICK_S
        rests.append(now - began)
    assert rests == [2.0, 4.0, 8.0, 16.0]
    for _ in range(4):
        it.committed("lea", now)
    left_s = left_after(it, now, is_full=True)
    assert left_s is not None and not it.rests("lea", now + left_s + 2.0)


def test_another_leader_gets_its_full_time() -> None:
    it, now = after_epochs(30.0)
    assert left_after(it, now, is_full=True, most_s=80.0) is None
    assert left_after(it, now + 80.0, "bob", is_full=True, most_s=80.0) is None

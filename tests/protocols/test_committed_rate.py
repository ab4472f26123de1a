"""The pace that people are shown is that of commits, by the clock on the wall."""

from __future__ import annotations

import pytest

from protocols.committed_rate import RECENT_EPOCHS, CommittedRate


class Wall:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def after(*epochs_s: float, samples: int = 60) -> tuple[CommittedRate, Wall]:
    """A run whose second and later epochs took so long."""
    wall = Wall()
    rate = CommittedRate(wall)
    rate.reached(0, 0)
    wall.now += 1000.0  # the wait for the first volunteer
    rate.reached(1, samples)
    for number, seconds in enumerate(epochs_s, start=2):
        wall.now += seconds
        rate.reached(number, number * samples)
    return rate, wall


def test_it_is_unknown_before_the_second_commit() -> None:
    rate, _ = after()
    assert rate.samples_per_second is None and rate.epoch_s is None and rate.seconds_left(80) is None


def test_a_retried_epoch_counts_with_its_whole_time() -> None:
    rate, _ = after(2.0, 10.0)
    assert rate.samples_per_second == pytest.approx(2 * 60 / 12)
    assert rate.epoch_s == pytest.approx(6.0)


def test_the_time_left_comes_from_the_same_pace_and_not_from_the_wait_for_the_first_volunteer() -> None:
    rate, wall = after(3.0, 3.0)
    assert rate.seconds_left(13) == pytest.approx(30.0)
    wall.now += 2.0
    assert rate.seconds_left(13) == pytest.approx(28.0)
    assert rate.seconds_left(None) is None and rate.seconds_left(3) is None


def test_it_falls_while_nothing_is_committed() -> None:
    rate, wall = after(3.0, 3.0)
    before = rate.samples_per_second
    wall.now += 3.0
    assert rate.samples_per_second == before, "the next epoch is not due yet"
    wall.now += 14.0
    assert rate.samples_per_second == pytest.approx(120 / 20)


def test_only_recent_epochs_count() -> None:
    rate, _ = after(*([100.0] * 5), *([2.0] * RECENT_EPOCHS))
    assert rate.samples_per_second == pytest.approx(30.0)


def test_another_lineage_begins_anew() -> None:
    rate, wall = after(3.0, 3.0)
    wall.now += 1.0
    rate.reached(2, 90)
    assert rate.samples_per_second is None

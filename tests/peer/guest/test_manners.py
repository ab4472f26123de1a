"""When a peer may work, and until when not."""

from __future__ import annotations

from datetime import datetime, time

import pytest

from peer.guest.manners import Manners, Moment, Pause, Span, hours, pause_at
from protocols.errors import UsageError

NOON = datetime(2026, 11, 25, 12, 0)
NIGHT = Manners(hours=hours("22:00-07:00, 12:30-13:00"))


def at(hour: int, minute: int = 0, day: int = 25) -> datetime:
    return datetime(2026, 11, day, hour, minute)


def test_hours_are_parts_of_a_day() -> None:
    assert hours("22:00-07:00, 9:30 - 10:00") == (Span(time(22), time(7)), Span(time(9, 30), time(10)))


@pytest.mark.parametrize("text", ["", "22-7", "25:00-07:00", "22:00-07:60", "22:00", "22:00-07:00,"])
def test_hours_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--hours"):
        hours(text)


@pytest.mark.parametrize(
    ("now", "until"),
    [
        (at(21, 59), at(22)),
        (at(22), None),
        (at(3), None),
        (at(7), at(12, 30)),
        (at(12, 45), None),
        (at(13), at(22)),
    ],
)
def test_it_works_in_its_hours_also_over_midnight(now: datetime, until: datetime | None) -> None:
    pause = pause_at(Moment(at=now), NIGHT)
    assert (pause is None) == (until is None)
    if pause is not None:
        assert pause.until == until and "hours" in str(pause)


def test_equal_ends_are_the_whole_day() -> None:
    assert all(pause_at(Moment(at=at(hour)), Manners(hours=hours("8:00-8:00"))) is None for hour in range(24))


def test_the_days_transfer_is_used_up_until_midnight() -> None:
    manners = Manners(max_transfer_bytes=5e9)
    assert pause_at(Moment(at=NOON, transferred_bytes=4_999_999_999), manners) is None
    pause = pause_at(Moment(at=NOON, transferred_bytes=5_000_000_000), manners)
    assert pause is not None and pause.until == at(0, day=26)


def test_on_battery_it_works_only_if_it_was_told_to() -> None:
    assert pause_at(Moment(at=NOON, on_battery=True), Manners()) == Pause("this computer runs on its battery")
    assert pause_at(Moment(at=NOON, on_battery=True), Manners(on_battery=True)) is None


def test_a_pause_of_the_owners_ends_when_it_was_to_end_or_when_told() -> None:
    for_ever = pause_at(Moment(at=NOON, paused=True), Manners())
    assert for_ever is not None and for_ever.until is None and "dugnad resume" in str(for_ever)
    an_hour = pause_at(Moment(at=NOON, paused=True, paused_until=at(13)), Manners())
    assert str(an_hour).endswith("until 13:00")
    assert pause_at(Moment(at=at(13), paused=True, paused_until=at(13)), Manners()) is None


def test_the_owners_word_comes_first_and_without_limits_nothing_stops_it() -> None:
    everything = Moment(at=NOON, paused=True, on_battery=True, transferred_bytes=10**12)
    assert "you paused it" in str(pause_at(everything, NIGHT))
    assert pause_at(Moment(at=NOON, transferred_bytes=10**12), Manners()) is None

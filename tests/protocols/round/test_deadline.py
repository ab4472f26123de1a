from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.round.deadline import Deadline

ROOM, LONG_S = {"ann": 1e15, "bob": 1e15}, 1e9


def test_nothing_moves_and_the_patience_runs_out() -> None:
    deadline = Deadline(["ann", "bob"], 100.0, 4.0, {}, ROOM, LONG_S)
    assert not deadline.passed(104.0)
    assert deadline.passed(104.1)


def test_without_measured_rates_any_byte_will_do() -> None:
    deadline = Deadline(["ann"], 0.0, 4.0, {}, ROOM, LONG_S)
    for second in range(60):
        deadline.moved("ann", 1, float(second))
        assert not deadline.passed(second + 3.9)


@given(pace=st.floats(1, 1e9), factor=st.floats(1.01, 10), step_s=st.floats(0.05, 2))
def test_whoever_moves_at_the_slowest_pace_or_faster_is_never_given_up(pace: float, factor: float, step_s: float) -> None:
    deadline, now = Deadline(["ann"], 0.0, 4.0, {"ann": pace}, ROOM, LONG_S), 0.0
    for _ in range(200):
        now += step_s
        assert not deadline.passed(now)
        deadline.moved("ann", int(pace * factor * step_s) + 1, now)


@given(share=st.floats(0.05, 0.8))
def test_whoever_moves_at_less_than_the_slowest_pace_is_given_up_in_time(share: float) -> None:
    deadline, now = Deadline(["ann"], 0.0, 4.0, {"ann": 1e6}, ROOM, LONG_S), 0.0
    while not deadline.passed(now) and now < 100:
        now += 0.25
        deadline.moved("ann", int(1e6 * share * 0.25), now)
    assert 4.0 < now <= 4.0 / (1 - share) + 0.5


def test_whoever_waited_for_others_starts_afresh_when_it_moves() -> None:
    deadline = Deadline(["ann", "bob"], 0.0, 4.0, {"ann": 10.0, "bob": 10.0}, ROOM, LONG_S)
    for second in range(1, 31):
        deadline.moved("bob", 11, float(second))
    deadline.moved("ann", 1, 31.0)
    assert not deadline.passed(34.9)


def test_it_lasts_while_one_member_is_alive_for_the_others_may_be_waiting_for_it() -> None:
    deadline = Deadline(["ann", "bob"], 0.0, 4.0, {"ann": 10.0, "bob": 10.0}, ROOM, LONG_S)
    for second in range(30):
        deadline.moved("bob", 11, float(second))
    assert not deadline.passed(32.9)
    assert deadline.passed(34.0)


def test_bytes_of_strangers_and_counters_that_go_back_buy_nothing() -> None:
    deadline = Deadline(["ann"], 0.0, 4.0, {}, ROOM, LONG_S)
    deadline.moved("eve", 10**9, 3.0)
    deadline.moved("ann", -5, 3.0)
    deadline.moved("ann", 0, 3.0)
    assert deadline.passed(4.1)
    deadline.answered("ann", 3.0)
    assert not deadline.passed(6.9)


def test_only_as_many_bytes_count_as_a_member_has_to_move() -> None:
    deadline, now = Deadline(["ann", "bob"], 0.0, 4.0, {"ann": 10.0, "bob": 10.0}, {"ann": 1e15, "bob": 100.0}, LONG_S), 0.0
    while not deadline.passed(now) and now < 100:
        now += 0.25
        deadline.moved("bob", 3, now)
    assert now == pytest.approx(100 / 12 + 4, abs=0.5)
    assert deadline.exaggerators == {"bob"}


def test_it_ends_whatever_moves() -> None:
    deadline = Deadline(["ann"], 100.0, 4.0, {}, ROOM, 60.0)
    for second in range(100, 160):
        deadline.moved("ann", 1, float(second))
        assert not deadline.passed(float(second))
    deadline.moved("ann", 1, 160.0)
    assert deadline.passed(160.1)

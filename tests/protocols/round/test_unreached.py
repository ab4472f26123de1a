"""Whom a member names as unreached, when it dials again, and what it forgets."""

from __future__ import annotations

from protocols.round.unreached import FIRST_REST_S, LONGEST_REST_S, MAX_REMEMBERED, Unreached


def test_a_reducer_that_failed_is_named_until_a_dial_succeeds() -> None:
    it = Unreached()
    assert it.failed("bob", 10.0) == 0.0, "the first dial follows at once"
    assert it.names == ("bob",)
    assert it.due(10.0) == ("bob",)
    assert it.due(10.0) == (), "each dial is asked for once"
    it.reached("bob")
    assert it.names == ()


def test_rests_double_with_each_failure_up_to_the_longest() -> None:
    it = Unreached()
    rests = [it.failed("bob", 0.0) for _ in range(14)]
    assert rests[:4] == [0.0, FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S]
    assert rests[-1] == LONGEST_REST_S
    assert it.due(LONGEST_REST_S - 0.1) == ()
    assert it.due(LONGEST_REST_S) == ("bob",)


def test_a_reducer_that_takes_the_dial_and_fails_again_rests_longer() -> None:
    it = Unreached()
    it.failed("bob", 0.0)
    it.reached("bob")
    assert it.failed("bob", 1.0) == FIRST_REST_S


def test_a_round_that_it_served_makes_all_good() -> None:
    it = Unreached()
    it.failed("bob", 0.0)
    it.served("bob")
    assert it.names == ("bob",), "a plan from before it failed"
    it.reached("bob")
    it.served("bob")
    assert it.failed("bob", 5.0) == 0.0


def test_no_more_than_so_many_are_remembered() -> None:
    it = Unreached()
    for number in range(MAX_REMEMBERED + 5):
        it.failed(f"peer-{number:03d}", 0.0)
    assert len(it.names) == MAX_REMEMBERED and "peer-000" not in it.names


def test_a_dial_that_told_nothing_is_repeated_soon_and_counts_as_no_failure() -> None:
    it = Unreached()
    it.failed("bob", 10.0)
    assert it.due(10.0) == ("bob",)
    for at in (10.0, 12.0, 14.0):
        it.postpone("bob", at)
        assert it.due(at + FIRST_REST_S - 0.1) == () and it.names == ("bob",)
        assert it.due(at + FIRST_REST_S) == ("bob",)
    assert it.failed("bob", 20.0) == FIRST_REST_S, "the second failure"
    it.postpone("ann", 20.0)
    assert it.names == ("bob",)

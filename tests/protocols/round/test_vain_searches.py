from __future__ import annotations

from protocols.round.records import Standing
from protocols.round.vain_searches import FIRST_REST_S, LONGEST_REST_S, MAX_REMEMBERED, VainSearches

MINE = Standing(3, "a" * 64, 30)
HEAVIER = Standing(4, "b" * 64, 40)


def test_a_lineage_that_was_sought_in_vain_is_left_alone_for_twice_as_long_each_time() -> None:
    it, now = VainSearches(), 100.0
    rests = []
    for _ in range(12):
        assert it.worth(HEAVIER, now)
        vain = it.ended(MINE, now)
        assert vain is not None and vain[0] == HEAVIER
        rests.append(vain[1])
        assert not it.worth(HEAVIER, now + 0.99 * vain[1])
        now += vain[1]
    assert rests[:4] == [FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S, 8 * FIRST_REST_S]
    assert rests[-1] == LONGEST_REST_S


def test_another_lineage_is_looked_for_at_once() -> None:
    it = VainSearches()
    it.worth(HEAVIER, 0.0)
    it.ended(MINE, 0.0)
    assert it.worth(Standing(5, "c" * 64, 50), 0.0)


def test_a_search_that_got_there_or_further_was_not_in_vain() -> None:
    it = VainSearches()
    for there in (HEAVIER, Standing(9, "d" * 64, 90)):
        assert it.worth(HEAVIER, 0.0)
        assert it.ended(there, 1.0) is None
    assert it.worth(HEAVIER, 1.0)


def test_a_search_for_no_lineage_in_particular_leaves_none_alone() -> None:
    it = VainSearches()
    assert it.ended(MINE, 0.0) is None
    it.worth(HEAVIER, 0.0)
    it.ended(MINE, 0.0)
    assert it.ended(MINE, 0.0) is None, "one vain search counts once"


def test_only_so_many_are_remembered() -> None:
    it = VainSearches()
    for number in range(MAX_REMEMBERED + 1):
        it.worth(Standing(4, f"{number:064x}", 40), 0.0)
        it.ended(MINE, 0.0)
    assert it.worth(Standing(4, f"{0:064x}", 40), 0.0)
    assert not it.worth(Standing(4, f"{1:064x}", 40), 0.0)

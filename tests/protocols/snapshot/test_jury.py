"""Whose word on a state counts, and for how much."""

from __future__ import annotations

from hashlib import sha256

import pytest

from protocols.messages import Manifest
from protocols.snapshot.jury import Jury

VOTES = {"ann": 0.3, "bob": 0.25, "cid": 0.25, "dan": 0.2}


def offer(name: str, epoch: int = 3, lineage: str = "c") -> Manifest:
    return Manifest(epoch, lineage * 64, 5, 5, (sha256(name.encode()).digest(),))


@pytest.mark.parametrize(
    ("agree", "disagree", "verdict", "in_the_end"),
    [
        ({"ann", "bob"}, set(), True, True),
        ({"cid"}, {"ann", "bob"}, False, False),
        ({"ann"}, {"bob"}, None, True),
        ({"bob"}, {"ann"}, None, False),
        ({"zoe", "yan", "xis"}, {"dan"}, None, False),
    ],
)
def test_more_than_half_of_the_votes_decide_and_most_where_they_are_away(
    agree: set[str], disagree: set[str], verdict: bool | None, in_the_end: bool
) -> None:
    jury = Jury("org", VOTES, {*agree, *disagree})
    assert jury.verdict(agree, disagree, waits=True) is verdict
    assert jury.verdict(agree, disagree, waits=False) is in_the_end


def test_where_nobody_asked_has_votes_each_counts_the_same() -> None:
    jury = Jury("org", {"gone": 1.0}, {"ann", "bob", "cid"})
    assert jury.verdict({"ann", "bob"}, {"cid"}, waits=True) is True


def test_the_organisers_peer_is_waited_for_and_without_it_a_majority() -> None:
    offers = {"ann": offer("x"), "bob": offer("x")}
    assert not Jury("org", VOTES, {"org", "ann", "bob", "cid"}).is_enough(offers)
    assert Jury("org", VOTES, {"ann", "bob", "cid"}).is_enough(offers)
    assert not Jury("org", VOTES, {"ann", "bob", "cid"}).is_enough({"ann": offer("x"), "bob": offer("y")})


def test_what_has_most_votes_is_looked_at_first_whatever_the_crowd_offers() -> None:
    crowd = {f"sybil {number}": offer("false", 9) for number in range(5)}
    offers = {"ann": offer("x"), "bob": offer("y"), **crowd}
    assert Jury("org", VOTES, set(offers)).favourite(offers, set(crowd), None) == offer("x")
    assert Jury("org", VOTES, set(offers)).favourite(offers, set(), offer("y")) == offer("y"), "its download is under way"


def test_only_the_lineage_of_the_organisers_peer_is_looked_at() -> None:
    offers = {"org": offer("x", lineage="a"), "ann": offer("y"), "bob": offer("y")}
    assert Jury("org", VOTES, set(offers)).favourite(offers, {"ann", "bob"}, offer("y")) == offers["org"]

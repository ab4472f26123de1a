from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from protocols.round.plans import MemberPlan, Plan, member_plan_of
from protocols.round.records import Averages, Ballot, Contribution, Shard, ShardResult

PARENT = "a" * 64
CONTRIBUTORS, MEMBERS = ("ann", "bob", "cid"), ("ann", "bob", "cid", "dot", "lea")
SHARDS = (Shard("ann", "ann:1", 0, 1024), Shard("dot", "dot:1", 1024, 1500))


def plan() -> Plan:
    return Plan("ab" * 32, Ballot(1, PARENT, 1, "lea"), CONTRIBUTORS, MEMBERS, SHARDS, "fp32", 4.0, 7)


@pytest.mark.parametrize("member", MEMBERS)
def test_every_part_has_the_plans_digest_and_says_whether_its_member_gives(member: str) -> None:
    part = member_plan_of(plan(), member)
    assert part.digest == plan().digest
    assert part.sends == (member in CONTRIBUTORS)
    assert part.is_for(member)
    assert (part.shards, part.ballot) == (plan().shards, plan().ballot)


def test_only_reducers_and_the_leader_are_told_who_takes_part() -> None:
    told = {member for member in MEMBERS if member_plan_of(plan(), member).members}
    assert told == {"ann", "dot", "lea"}
    assert "cid" not in str(asdict(member_plan_of(plan(), "bob")))
    assert member_plan_of(plan(), "bob").known_members == ("ann", "dot", "lea")
    assert member_plan_of(plan(), "ann").known_members == MEMBERS


def test_the_digest_is_of_the_lists_too() -> None:
    assert replace(plan(), contributors=("ann", "bob")).digest != plan().digest
    assert replace(plan(), members=(*MEMBERS, "new")).digest != plan().digest


@pytest.mark.parametrize("lie", [{"members": (*MEMBERS, "new")}, {"contributors": ("ann", "bob")}, {"members": ()}])
def test_lists_that_are_not_those_of_the_digest_are_no_part(lie: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match=r"part|knows"):
        replace(member_plan_of(plan(), "ann"), **lie)


def test_who_needs_nobody_to_bring_the_averages_is_told_so() -> None:
    averages = Averages(
        (Contribution("ann", 1, 0, 8, PARENT, 1.0),),
        tuple(ShardResult(shard.start, shard.stop, "d" * 64, 1.0) for shard in SHARDS),
    )
    passed_on = replace(plan(), contributors=(), finishes=averages)
    brought = replace(plan(), contributors=("bob",), finishes=averages)
    parts: list[MemberPlan] = [member_plan_of(it, "cid") for it in (passed_on, brought)]
    assert [part.has_senders for part in parts] == [False, True]

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from protocols.round.plans import Plan
from protocols.round.records import (
    MAX_COUNT,
    MAX_PEERS,
    MAX_REDUCERS,
    MAX_SAMPLES,
    Averages,
    Ballot,
    Candidate,
    Commit,
    Contribution,
    Report,
    Shard,
    ShardResult,
    Standing,
    Tip,
    contributions_digest,
)
from tests import factories

HEX = "c" * 64


def ballot(**change: Any) -> Ballot:
    return replace(Ballot(epoch=3, parent=HEX, attempt=1, leader="ann"), **change)


def contribution(peer: str = "ann", **change: Any) -> Contribution:
    return factories.contribution(peer, **{"incarnation": 7, "first": 10, "end": 14, "base": HEX, "loss": 2.0, **change})


def plan(**change: Any) -> Plan:
    shards = (Shard("ann", "a:1", 0, 1024), Shard("bob", "b:1", 1024, 1500))
    return replace(Plan("ab" * 32, ballot(), ("ann", "bob"), ("ann", "bob", "cid"), shards, "fp32", 4.0, 7), **change)


def commit(**change: Any) -> Commit:
    whole: dict[str, Any] = {
        "ballot": ballot(),
        "contributions": (contribution("ann"), contribution("bob", first=0, end=12, loss=6.0)),
        "members": ("ann", "bob", "cid"),
        "shards": (ShardResult(0, 1024, "d" * 64, 9.0), ShardResult(1024, 1500, "e" * 64, 16.0)),
        "plan_digest": HEX,
        "total_samples": 100,
        "leader": Candidate("ann", "a:1"),
        "succession": (Candidate("bob", "b:1"),),
    }
    return factories.commit(**{**whole, **change})


def test_ballots_of_an_epoch_are_ordered_by_attempt_then_leader() -> None:
    ranked = [
        ballot(attempt=a, leader=leader).rank for a, leader in ((1, "ann"), (1, "bob"), (2, "aaa"), (2, "zoe"), (10, "ann"))
    ]
    assert ranked == sorted(ranked)
    assert len(set(ranked)) == 5


@pytest.mark.parametrize("change", [{"epoch": 0}, {"attempt": 0}, {"parent": "c" * 63}, {"parent": "C" * 64}, {"parent": ""}])
def test_a_ballot_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ballot|count"):
        ballot(**change)


@pytest.mark.parametrize(
    "change", [{"first": 14}, {"first": -1}, {"end": 3}, {"loss": math.nan}, {"loss": math.inf}, {"base": "no digest"}]
)
def test_a_contribution_covers_samples_with_a_finite_loss(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="contribution"):
        contribution(**change)
    assert contribution().weight == 4


@pytest.mark.parametrize(
    "change",
    [
        {"contributors": ()},
        {"contributors": ("bob", "ann")},
        {"contributors": ("ann", "ann")},
        {"contributors": ("ann", "zoe")},
        {"members": ("ann", "bob", "bob")},
        {"members": ("bob", "ann")},
        {"members": ("ann",)},
        {"shards": ()},
        {"shards": (Shard("ann", "a:1", 1, 1024),)},
        {"shards": (Shard("ann", "a:1", 0, 1024), Shard("bob", "b:1", 1025, 1500))},
        {"shards": (Shard("ann", "a:1", 0, 1024), Shard("bob", "b:1", 1000, 1500))},
        {"shards": (Shard("zoe", "z:1", 0, 1500),)},
        {"shards": tuple(Shard("ann", "a:1", at, at + 1) for at in range(MAX_REDUCERS + 1))},
        {"patience_s": 0.0},
        {"patience_s": math.nan},
        {"patience_s": math.inf},
    ],
)
def test_a_plan_that_does_not_cover_the_vector_once_or_names_strangers_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"plan|shard"):
        plan(**change)


def test_an_empty_shard_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Shard("ann", "a:1", 5, 5)


@pytest.mark.parametrize("squares", [-1.0, math.nan, math.inf])
def test_a_sum_of_squares_is_a_number_from_zero_on(squares: float) -> None:
    with pytest.raises(ValueError, match="squares"):
        ShardResult(0, 1, HEX, squares)


@pytest.mark.parametrize(
    "change",
    [
        {"contributions": ()},
        {"shards": ()},
        {"leader": Candidate("bob", "b:1")},
        {"plan_digest": "no digest"},
        {"total_samples": 15},
    ],
)
def test_a_commit_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"commit|lineage|averages|averaged"):
        commit(**change)


@pytest.mark.parametrize(
    "contributions",
    [
        pytest.param((contribution("ann"), contribution("ann", first=12, end=20)), id="one peer twice, samples overlap"),
        pytest.param((contribution("ann"), contribution("ann")), id="one contribution twice"),
    ],
)
def test_a_commit_whose_contributions_cannot_be_of_one_plan_is_refused(contributions: tuple[Contribution, ...]) -> None:
    """Invariants 2 and 6: a sample enters a commit once."""
    with pytest.raises(ValueError, match="contribut"):
        commit(contributions=contributions)


@pytest.mark.parametrize(
    "shards",
    [
        pytest.param((ShardResult(0, 1024, HEX, 1.0), ShardResult(1030, 1500, HEX, 1.0)), id="gap"),
        pytest.param((ShardResult(4, 1500, HEX, 1.0),), id="does not start at 0"),
        pytest.param((ShardResult(0, 1024, HEX, 1.0), ShardResult(0, 1500, HEX, 1.0)), id="overlap: squares counted twice"),
    ],
)
def test_a_commit_whose_shards_do_not_cover_the_vector_once_is_refused(shards: tuple[ShardResult, ...]) -> None:
    """The digests of a commit with a gap would say nothing about the bytes in the gap."""
    with pytest.raises(ValueError, match="shard"):
        commit(shards=shards)


def test_a_commit_knows_its_weight_loss_and_gradient_norm() -> None:
    assert commit().samples == 16
    assert commit().loss == pytest.approx((4 * 2.0 + 12 * 6.0) / 16)
    assert commit().gradient_norm == pytest.approx(5.0)


CHANGES_TO_A_COMMIT: list[dict[str, Any]] = [
    {"ballot": ballot(epoch=4)},
    {"ballot": ballot(parent="b" * 64), "contributions": tuple(replace(c, base="b" * 64) for c in commit().contributions)},
    {"ballot": ballot(attempt=2)},
    {"plan_digest": "b" * 64},
    {"contributions": (contribution("ann"), contribution("bob", first=0, end=13, loss=6.0))},
    {"contributions": (contribution("ann", incarnation=8), contribution("bob", first=0, end=12, loss=6.0))},
    {"members": ("ann", "bob")},
    {"shards": (ShardResult(0, 1024, "d" * 64, 9.0), ShardResult(1024, 1500, "f" * 64, 16.0))},
    {"shards": (ShardResult(0, 1024, "d" * 64, 9.0), ShardResult(1024, 1500, "e" * 64, math.nextafter(16.0, 17.0)))},
    {"codec": "fp16"},
    {"total_samples": 101},
    {"leader": Candidate("ann", "a:2")},
    {"succession": ()},
]


def test_whatever_changes_in_a_commit_changes_its_lineage() -> None:
    digests = {commit(**change).digest for change in [{}, *CHANGES_TO_A_COMMIT]}
    assert len(digests) == len(CHANGES_TO_A_COMMIT) + 1


def test_equal_records_have_one_digest() -> None:
    assert commit().digest == commit().digest
    assert plan(patience_s=4.0) == plan(patience_s=4)
    assert plan(patience_s=4.0).digest == plan(patience_s=4).digest, "two encodings of one record must not be two identities"


def test_whatever_changes_in_a_plan_changes_its_digest() -> None:
    changed = [
        plan(),
        plan(run_digest="cd" * 32),
        plan(ballot=ballot(attempt=2)),
        plan(contributors=("ann",)),
        plan(members=("ann", "bob")),
        plan(shards=(Shard("ann", "a:1", 0, 1500),)),
        plan(codec="fp16"),
        plan(patience_s=8.0),
    ]
    assert len({each.digest for each in changed}) == len(changed)


def test_a_set_of_contributions_has_one_digest_in_any_order() -> None:
    a, b = contribution("ann"), contribution("bob")
    assert contributions_digest((a, b)) == contributions_digest((b, a))
    assert contributions_digest((a, b)) != contributions_digest((a,))
    assert contributions_digest((a, b)) != contributions_digest((a, replace(b, end=15)))


def test_the_heavier_lineage_wins_and_at_a_tie_the_smaller_digest() -> None:
    light, heavy = Standing(9, "a" * 64, 10), Standing(2, "b" * 64, 11)
    assert heavy.heavier_than(light)
    assert not light.heavier_than(heavy)
    low, high = Standing(1, "a" * 64, 10), Standing(1, "b" * 64, 10)
    assert low.heavier_than(high)
    assert not high.heavier_than(low)
    assert not low.heavier_than(low)


def test_a_tip_after_a_commit_is_that_commit() -> None:
    tip = Tip.after(commit())
    assert (tip.epoch, tip.lineage, tip.total_samples) == (3, commit().digest, 100)
    assert (tip.leader, tip.succession, tip.members) == (
        Candidate("ann", "a:1"),
        (Candidate("bob", "b:1"),),
        ("ann", "bob", "cid"),
    )


def test_a_genesis_differs_with_run_parameters_and_first_leader() -> None:
    first = Candidate("ann", "")
    tips = [
        Tip.genesis("ab" * 32, "00" * 32, first, "fp32"),
        Tip.genesis("cd" * 32, "00" * 32, first, "fp32"),
        Tip.genesis("ab" * 32, "11" * 32, first, "fp32"),
        Tip.genesis("ab" * 32, "00" * 32, Candidate("bob", ""), "fp32"),
    ]
    assert len({tip.lineage for tip in tips}) == 4
    assert Tip.genesis("ab" * 32, "00" * 32, Candidate("ann", "moved:1"), "fp32").lineage == tips[0].lineage


@pytest.mark.parametrize(
    "change",
    [
        {"samples": -1},
        {"samples_per_second": math.nan},
        {"samples_per_second": -1.0},
        {"step_s": math.inf},
        {"promised_attempt": -1},
        {"moved_bytes": -1},
        {"samples": MAX_SAMPLES + 1},
        {"promised_attempt": MAX_COUNT + 1},
        {"unreached": ("p",) * (MAX_PEERS + 1)},
    ],
)
def test_a_report_with_impossible_numbers_is_refused(change: dict[str, Any]) -> None:
    sound = Report(Standing(1, HEX, 5), 3, 1.0, 0.1, 0, 0, True, "training")
    with pytest.raises(ValueError, match="report"):
        replace(sound, **change)


@pytest.mark.parametrize(
    ("epoch", "total", "leads"), [(1, 16, True), (2, 16, False), (1, 17, False)], ids=["next", "an epoch left out", "too heavy"]
)
def test_a_tip_leads_to_the_next_commit_with_the_right_weight_alone(epoch: int, total: int, leads: bool) -> None:
    it = commit()
    tip = Tip(it.ballot.epoch - epoch, it.ballot.parent, it.total_samples - it.samples + 16 - total, it.leader, it.codec)
    for overlap in (False, True):
        assert tip.leads_to(it, overlap=overlap) is leads


@pytest.mark.parametrize(("base", "leads"), [("c", (True, True)), ("b", (False, True)), ("a", (False, False))])
def test_contributions_build_on_the_parent_or_with_overlap_on_that_ones_parent(base: str, leads: tuple[bool, bool]) -> None:
    """ann's base is the commit's parent c, bob's is `base`; lineage a comes before b, and b before c."""
    it = commit(
        ballot=ballot(parent="c" * 64), contributions=(contribution("ann", base="c" * 64), contribution("bob", base=base * 64))
    )
    tip = Tip(it.ballot.epoch - 1, "c" * 64, it.total_samples - it.samples, it.leader, it.codec, parent="b" * 64)
    assert (tip.leads_to(it, overlap=False), tip.leads_to(it, overlap=True)) == leads


def test_contributions_to_the_first_commit_build_on_the_genesis() -> None:
    tip = Tip.genesis("ab" * 32, "00" * 32, Candidate("ann", ""), "fp32")
    assert tip.bases(True) == tip.bases(False) == (tip.lineage,)


def test_averages_of_more_shards_than_a_plan_may_have_are_refused() -> None:
    shards = tuple(ShardResult(at, at + 1, HEX, 1.0) for at in range(MAX_REDUCERS + 1))
    with pytest.raises(ValueError, match="shards"):
        Averages((contribution("ann"),), shards)

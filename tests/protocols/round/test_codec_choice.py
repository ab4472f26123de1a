from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.gradients.codecs import CODECS
from protocols.reasons import Reason
from protocols.round.codec_choice import MAX_SHARE, SHARE_TO_RETURN, next_codec
from protocols.round.leader_actions import Announce
from protocols.round.member import Member, Refuse, Send
from protocols.round.plans import Plan, member_plan_of
from protocols.round.records import CODEC_NAMES, Candidate, Commit, Contribution, Tip
from protocols.run_spec import AveragingSpec
from tests.protocols.round.table import ELEMENTS, Table, address, of, result_of, the_plan

AUTO = AveragingSpec(codec="auto").codecs
BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}


def chosen(now: str, fp32_s: float, gathering_s: float = 100.0) -> str:
    return next_codec(now, AUTO, {codec: fp32_s * size / 4 for codec, size in BYTES.items()}, gathering_s)


def test_the_round_knows_the_names_of_all_codecs() -> None:
    assert CODECS.keys() == CODEC_NAMES
    assert set(AUTO) < CODEC_NAMES


def test_int4_is_never_chosen() -> None:
    assert AUTO == ("fp32", "fp16", "int8")
    assert chosen("fp16", 1e9) == "int8"


@pytest.mark.parametrize(
    ("now", "fp32_s", "then"),
    [
        ("fp16", 1.0, "fp32"),
        ("fp16", 6.3, "fp32"),  # 6.3 of 106.3 s
        ("fp16", 6.5, "fp16"),
        ("fp16", 22.0, "fp16"),  # 11 of 111 s
        ("fp16", 22.5, "int8"),
        ("fp32", 11.0, "fp32"),  # 11 of 111 s
        ("fp32", 11.2, "fp16"),
        ("fp32", 23.0, "int8"),
        ("int8", 13.0, "int8"),  # 6.5 of 106.5 s for fp16
        ("int8", 12.7, "fp16"),
        ("int8", 5.0, "fp32"),
        ("int8", 1000.0, "int8"),
    ],
)
def test_the_least_lossy_codec_that_averages_fast_enough_is_taken(now: str, fp32_s: float, then: str) -> None:
    assert chosen(now, fp32_s) == then


@given(fp32_s=st.floats(0.1, 1000), waver=st.floats(1.0, 1.5), now=st.sampled_from(AUTO))
def test_rates_that_waver_by_half_change_the_codec_once_at_most(fp32_s: float, waver: float, now: str) -> None:
    first = chosen(now, fp32_s)
    seen = []
    for seconds in (fp32_s * waver, fp32_s, fp32_s * waver, fp32_s):
        first = chosen(first, seconds)
        seen.append(first)
    assert seen[0] == seen[1] == seen[2] == seen[3] or len(set(seen[1:])) == 1
    assert MAX_SHARE / SHARE_TO_RETURN > 1.5


@pytest.mark.parametrize(
    ("averaging_s", "gathering_s"), [({"fp32": 0.0, "fp16": 0.0, "int8": 0.0}, 10.0), ({"fp32": 4, "fp16": 2, "int8": 1}, 0.0)]
)
@pytest.mark.parametrize("now", AUTO)
def test_without_measured_rates_it_stays(now: str, averaging_s: dict[str, float], gathering_s: float) -> None:
    assert next_codec(now, AUTO, averaging_s, gathering_s) == now


@pytest.mark.parametrize("name", sorted({"fp32", "fp16", "bf16", "int8", "int4"}))
def test_a_run_with_a_fixed_codec_names_that_one_always(name: str) -> None:
    codecs = AveragingSpec.model_validate({"codec": name}).codecs
    assert codecs == (name,)
    for seconds in (0.0, 1e-3, 1e6):
        assert next_codec(name, codecs, {name: seconds}, 10.0) == name
    assert next_codec("int8" if name != "int8" else "fp32", codecs, {name: 1.0}, 10.0) == name, "back to the run's own"


# -- the leader and its members --------------------------------------------------------------------------------------------------

TIP = Tip(1, "d" * 64, 100, Candidate("lea", address("lea")), "int8")


def committed(tip: Tip, rate: float, codecs: tuple[str, ...] = AUTO) -> tuple[Plan, Commit]:
    """The plan and the commit of three peers with links of `rate` bytes/s. At 15 samples/s a batch of 20 takes 1.33 s."""
    table = Table("bob", "cid", tip=tip, codecs={name: CODECS[name].encoded_bytes(ELEMENTS) for name in codecs})
    for peer in ("bob", "cid", "lea"):
        actions = table.report(peer, 7, upload_bytes_s=rate, download_bytes_s=rate)
    plan = the_plan(actions)
    made = [Contribution(peer, 1, 0, 7, tip.lineage, 1.0) for peer in plan.contributors]
    for peer in plan.contributors:
        table.accept(plan, peer, 7)
    (announced,) = of(Announce, table.ready(result_of(plan, *made), *plan.members))
    commit: Commit = announced.commit
    return plan, commit


@pytest.mark.parametrize(
    ("codec", "rate", "then"),
    [("int8", 1e9, "fp32"), ("int8", 1e4, "int8"), ("fp32", 1e4, "int8"), ("fp32", 1e9, "fp32"), ("fp16", 0.0, "fp16")],
)
def test_the_leader_plans_with_the_tips_codec_and_its_commit_names_the_next(codec: str, rate: float, then: str) -> None:
    tip = replace(TIP, codec=codec)
    plan, commit = committed(tip, rate)
    assert (plan.codec, commit.codec, commit.next_codec) == (codec, codec, then)
    assert tip.leads_to(commit, overlap=False)
    assert Tip.after(commit).codec == then


def test_a_leader_whose_tip_names_a_codec_that_the_run_does_not_have_goes_back_to_the_runs_own() -> None:
    plan, commit = committed(replace(TIP, codec="int4"), 1e4, ("bf16",))
    assert (plan.codec, commit.next_codec) == ("int4", "bf16")


def test_a_commit_whose_averages_are_in_another_codec_than_the_tips_does_not_follow() -> None:
    _, commit = committed(TIP, 1e4)
    assert not replace(TIP, codec="fp16").leads_to(commit, overlap=False)


def test_a_member_refuses_a_plan_with_another_codec_than_its_tips() -> None:
    plan, _ = committed(TIP, 1e4)
    member, part = Member("bob", 1), member_plan_of(plan, "bob")
    member.adopted(replace(TIP, codec="fp16"))
    (refused,) = member.on_plan(part)
    assert refused == Send("lea", Refuse(part.digest, Reason.OTHER_LINEAGE, 0))
    member.adopted(TIP)
    assert not any(isinstance(action, Send) and isinstance(action.answer, Refuse) for action in member.on_plan(part))

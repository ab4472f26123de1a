from __future__ import annotations

from peer.absences import absences
from protocols.reasons import Reason
from protocols.round.attempt import Seat
from protocols.round.records import (
    Ballot,
    Candidate,
    Commit,
    Contribution,
    Hello,
    Report,
    ShardResult,
    Standing,
)

PARENT, DIGEST = "a" * 64, "b" * 64


def commit_of(*contributors: str, members: tuple[str, ...]) -> Commit:
    lead = Candidate("lea", "lea:1")
    return Commit(
        ballot=Ballot(4, PARENT, 1, "lea"),
        plan_digest=DIGEST,
        contributions=tuple(Contribution(peer, 1, 0, 4, PARENT, 1.0) for peer in contributors),
        members=members,
        shards=(ShardResult(0, 1024, DIGEST, 1.0),),
        codec="fp32",
        total_samples=100,
        lead=lead,
        succession=(),
    )


def seat(*, auxiliary: bool = False, lineage: str = PARENT, caught_up: bool = True) -> Seat:
    report = Report(
        standing=Standing(3, lineage, 96),
        samples=4,
        samples_per_second=1.0,
        step_s=1.0,
        promised_attempt=0,
        moved_bytes=0,
        caught_up=caught_up,
        phase="training",
    )
    return Seat(Hello(1, auxiliary, "host:1", "name"), 0.0, report)


def test_everybody_who_gave_nothing_to_a_commit_is_named_with_a_reason() -> None:
    commit = commit_of("abe", "lea", members=("abe", "aux", "idle", "lea"))
    seats = {
        "abe": seat(),
        "aux": seat(auxiliary=True),
        "idle": seat(),
        "late": seat(caught_up=False),
        "lea": seat(),
        "new": seat(),
        "odd": seat(lineage="c" * 64),
    }
    told = absences(commit, seats, ("abe", "away", "lea", "lost"), {"lost": "contributor-lost", "abe": "silent"})
    assert told == {
        "aux": Reason.AUXILIARY.value,
        "away": Reason.SILENT.value,
        "idle": Reason.NOTHING_TO_GIVE.value,
        "late": Reason.NOT_CAUGHT_UP.value,
        "lost": Reason.CONTRIBUTOR_LOST.value,
        "new": Reason.NOT_PLANNED.value,
        "odd": Reason.OTHER_LINEAGE.value,
    }

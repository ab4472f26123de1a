from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import protocols.wire
from protocols import observations
from protocols.errors import BadMessageError
from protocols.observations import Absence, Committed, Failure, PeerView, Seen, Swarm
from protocols.reasons import Reason
from protocols.round import member, records
from protocols.round import plans as round_plans
from protocols.round.plans import MemberPlan, Plan, member_plan_of, peers_digest
from protocols.round.records import (
    CODEC_NAMES,
    Averages,
    Ballot,
    Candidate,
    Commit,
    Contribution,
    Hello,
    ReadyFor,
    Report,
    Shard,
    ShardResult,
    SignedCommit,
    Standing,
)
from protocols.snapshot.chunks import Manifest
from protocols.wire import convert
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import (
    MAX_REPEATED,
    MAX_TEXT,
    MEMBER_KINDS,
    answer_to_wire,
    from_wire,
    signed_commit_from_bytes,
    signed_commit_to_bytes,
    to_wire,
)

WIRE = Path(protocols.wire.__path__[0])
FIELDS = Path(__file__).with_name("wire_fields.json")

digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
texts = st.text(max_size=20)
peers = st.from_regex(r"[0-9a-f]{32}", fullmatch=True)
counts = st.integers(0, 2**63)
rates = st.floats(0, 1e5)
finite = st.floats(allow_nan=False, allow_infinity=False)

ballots = st.builds(Ballot, epoch=st.integers(1, 2**40), parent=digests, attempt=st.integers(1, 2**20), leader=peers)
codecs = st.sampled_from(sorted(CODEC_NAMES))
candidates = st.builds(Candidate, peer=peers, address=texts)
contributions = st.integers(0, 2**40).flatmap(
    lambda first: st.builds(
        Contribution,
        peer=peers,
        incarnation=counts,
        first=st.just(first),
        end=st.integers(first + 1, first + 2**40),
        base=digests,
        loss=finite,
    )
)
results = st.builds(
    lambda start, size, sha, squares: ShardResult(start, start + size, sha, squares),
    counts,
    st.integers(1, 2**40),
    digests,
    st.floats(0, 1e300),
)
standings = st.builds(Standing, epoch=counts, lineage=digests, total_samples=counts)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    members = tuple(sorted(draw(st.sets(peers, min_size=1, max_size=5))))
    cuts = sorted(draw(st.sets(st.integers(1, 2**40), min_size=1, max_size=5)))
    shards = tuple(Shard(draw(st.sampled_from(members)), draw(texts), a, b) for a, b in zip([0, *cuts], cuts, strict=False))
    contributors = tuple(sorted(draw(st.sets(st.sampled_from(members), min_size=1))))
    return Plan(
        draw(digests), draw(ballots), contributors, members, shards, draw(codecs), draw(st.floats(0.1, 1e5)), draw(counts)
    )


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    plan = draw(plans())
    made = tuple(dataclasses.replace(draw(contributions), peer=peer, base=plan.ballot.parent) for peer in plan.contributors)
    shards = tuple(ShardResult(s.start, s.stop, draw(digests), draw(st.floats(0, 1e300))) for s in plan.shards)
    total = sum(c.weight for c in made) + draw(st.integers(0, 2**60))
    leader = Candidate(plan.ballot.leader, draw(texts))
    succession = tuple(draw(st.lists(candidates, max_size=3)))
    return Commit(plan.ballot, plan.digest, made, plan.members, shards, plan.codec, total, leader, succession, draw(codecs))


signed_commits = st.builds(SignedCommit, commit=commits(), signature=st.binary(max_size=80), certificate=st.binary(max_size=300))
averages = commits().map(lambda commit: commit.averages)
ready_fors = st.builds(ReadyFor, ballot=ballots, averages=averages)
round_results = st.builds(
    lambda digest, held: held.result(digest),
    digests,
    averages,
)


@st.composite
def finishing_plans(draw: st.DrawFn) -> Plan:
    """Of the averages of an earlier attempt."""
    plan, held = draw(plans()), draw(averages)
    contributions = tuple(dataclasses.replace(c, base=plan.ballot.parent) for c in held.contributions)
    shards = tuple(Shard(plan.members[0], draw(texts), result.start, result.stop) for result in held.shards)
    return dataclasses.replace(plan, contributors=(), shards=shards, finishes=Averages(contributions, held.shards))


def whole_part(plan: Plan) -> MemberPlan:
    return member_plan_of(plan, plan.shards[0].reducer)


reasons = st.sampled_from(Reason)
peer_views = st.builds(
    PeerView,
    peer=peers,
    name=texts,
    role=st.sampled_from(("contributor", "auxiliary")),
    reachable=st.booleans(),
    epoch=counts,
    samples=counts,
    samples_per_second=rates,
    state=texts,
    is_leader=st.booleans(),
)
EVERY_RECORD: dict[type[Any], st.SearchStrategy[Any]] = {
    Ballot: ballots,
    Candidate: candidates,
    Contribution: contributions,
    Shard: plans().map(lambda plan: plan.shards[-1]),
    MemberPlan: st.builds(member_plan_of, plans() | finishing_plans(), peers) | (plans() | finishing_plans()).map(whole_part),
    Averages: averages,
    ReadyFor: ready_fors,
    ShardResult: results,
    records.Result: round_results,
    Commit: commits(),
    SignedCommit: signed_commits,
    Standing: standings,
    Report: st.builds(
        Report,
        standing=standings,
        samples=counts,
        samples_per_second=rates,
        step_s=st.floats(0, 3599),
        promised_attempt=st.integers(0, 2**20),
        moved_bytes=counts,
        caught_up=st.booleans(),
        phase=texts,
        upload_bytes_s=rates,
        download_bytes_s=rates,
        ready_for=st.none() | ready_fors,
        planned_with=st.lists(peers, max_size=3).map(tuple),
    ),
    Hello: (texts.filter(bool) | st.just("")).flatmap(
        lambda at: st.builds(
            Hello, incarnation=counts, auxiliary=st.booleans(), address=st.just(at), bulk_address=st.just(at), name=texts
        )
    ),
    member.Accept: st.builds(member.Accept, plan_digest=digests, contribution=st.none() | contributions),
    member.Refuse: st.builds(member.Refuse, plan_digest=digests, reason=reasons, promised_attempt=st.integers(0, 2**20)),
    member.Ready: st.builds(member.Ready, result=round_results),
    member.Drifted: st.builds(member.Drifted, plan_digest=digests, reducers=st.lists(peers, min_size=1, max_size=4).map(tuple)),
    member.Failed: st.builds(member.Failed, plan_digest=digests, reason=reasons, member=peers, reducer=peers),
    PeerView: peer_views,
    Swarm: st.builds(
        Swarm,
        standing=st.none() | standings,
        samples=counts,
        phase=texts.filter(bool),
        peers=st.lists(peer_views, max_size=3).map(tuple),
        follows=st.none() | candidates,
    ),
    Absence: st.builds(Absence, peer=peers, reason=reasons),
    Committed: st.builds(
        Committed,
        signed_commit=signed_commits,
        seconds=rates,
        attempts=counts,
        absent=st.lists(st.builds(Absence, peer=peers, reason=reasons), max_size=3).map(tuple),
    ),
    Failure: st.builds(Failure, ballot=ballots, reason=reasons, peer=st.just("") | peers),
    Seen: st.builds(Seen, peer=peer_views, present=st.just(True))
    | st.builds(Seen, peer=peer_views, present=st.just(False), reason=reasons.map(lambda reason: reason.value)),
    Manifest: st.builds(
        lambda epoch, lineage, chunk_bytes, chunks: Manifest(epoch, lineage, chunk_bytes * len(chunks), chunk_bytes, chunks),
        epoch=counts,
        lineage=digests,
        chunk_bytes=st.integers(1, 2**22),
        chunks=st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=5).map(tuple),
    ),
}


@pytest.mark.parametrize("kind", EVERY_RECORD, ids=lambda kind: kind.__name__)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=30, deadline=None)
@given(data=st.data())
def test_a_record_comes_back_from_the_wire_as_it_went_with_the_same_digest(kind: type[Any], data: st.DataObject) -> None:
    record = data.draw(EVERY_RECORD[kind])
    message = to_wire(record)
    back = from_wire(kind, type(message).FromString(message.SerializeToString()))
    assert back == record
    assert records.digest_of(back) == records.digest_of(record) if kind not in (SignedCommit, Committed, Manifest) else True


def test_every_record_that_has_a_message_is_put_to_the_test() -> None:
    here = {
        name
        for module in (records, round_plans, member, observations)
        for name, kind in vars(module).items()
        if dataclasses.is_dataclass(kind) and name in pb.DESCRIPTOR.message_types_by_name
    }
    assert here <= {kind.__name__ for kind in EVERY_RECORD}
    assert {kind.__name__ for kind in MEMBER_KINDS.values()} <= {kind.__name__ for kind in EVERY_RECORD}


@pytest.mark.parametrize("kind", EVERY_RECORD, ids=lambda kind: kind.__name__)
def test_record_and_message_have_the_same_fields(kind: type[Any]) -> None:
    described = {field.name for field in pb.DESCRIPTOR.message_types_by_name[kind.__name__].fields}
    assert {field.name for field in dataclasses.fields(kind)} == described


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(signed=signed_commits)
def test_a_signed_commit_has_one_encoding(signed: SignedCommit) -> None:
    data = signed_commit_to_bytes(signed)
    assert signed_commit_from_bytes(data) == signed
    assert signed_commit_to_bytes(signed_commit_from_bytes(data)) == data


@settings(deadline=None)
@given(noise=st.binary(max_size=200))
def test_noise_is_a_bad_message_and_nothing_else(noise: bytes) -> None:
    with pytest.raises(BadMessageError):
        signed_commit_from_bytes(noise)


@pytest.mark.parametrize("kind", [kind for kind in EVERY_RECORD if kind not in (Hello, Candidate, member.Accept, records.Result)])
def test_an_empty_message_is_no_record(kind: type[Any]) -> None:
    """A missing part is not quietly zero."""
    with pytest.raises(BadMessageError):
        from_wire(kind, getattr(pb, kind.__name__)())


def sound() -> pb.MemberPlan:
    shards = [pb.Shard(reducer="ann", address="a:1", start=0, stop=10)]
    ballot = pb.Ballot(epoch=1, parent="a" * 64, attempt=1, leader="ann")
    return pb.MemberPlan(
        run_digest="ab" * 32,
        ballot=ballot,
        contributors=["ann"],
        members=["ann"],
        contributors_digest=peers_digest(("ann",)),
        members_digest=peers_digest(("ann",)),
        shards=shards,
        codec="fp32",
        patience_s=4.0,
    )


def test_a_sound_part_is_accepted() -> None:
    assert from_wire(MemberPlan, sound()).members == ("ann",)


@pytest.mark.parametrize(
    "change",
    [
        {"codec": "x" * (MAX_TEXT + 1)},
        {"codec": "fp8"},
        {"codec": ""},
        {"members": [*(f"a{n:08d}" for n in range(MAX_REPEATED)), "ann"]},
        {"members": ["x" * (MAX_TEXT + 1)], "contributors": ["x" * (MAX_TEXT + 1)]},
        {"patience_s": float("nan")},
        {"patience_s": -1.0},
        {"shards": [pb.Shard(reducer="ann", start=0, stop=0)]},
        {"contributors": ["bob"]},
        {"contributors": []},
        {"members": ["ann", "bob"]},
        {"members": []},
        {"members_digest": ""},
        {"contributors_digest": "x" * 64},
        {"ballot": None},
    ],
)
def test_what_breaks_a_bound_or_a_records_own_checks_is_a_bad_message(change: dict[str, Any]) -> None:
    message = sound()
    for name, value in change.items():
        message.ClearField(name)
        if isinstance(value, list):
            getattr(message, name).extend(value)
        elif value is not None:
            setattr(message, name, value)
    with pytest.raises(BadMessageError):
        from_wire(MemberPlan, message)


@pytest.mark.parametrize("name", ["", "fp8", "auto"])
def test_a_commit_that_names_an_unknown_codec_is_a_bad_message(name: str) -> None:
    held = Averages((Contribution("ann", 1, 0, 4, "a" * 64, 1.0),), (ShardResult(0, 9, "c" * 64, 1.0),))
    commit = Commit(
        Ballot(1, "a" * 64, 1, "ann"),
        "b" * 64,
        held.contributions,
        ("ann",),
        held.shards,
        "fp32",
        4,
        Candidate("ann", "a:1"),
        (),
        "int8",
    )
    message = to_wire(commit)
    assert from_wire(Commit, message).next_codec == "int8"
    message.next_codec = name
    with pytest.raises(BadMessageError):
        from_wire(Commit, message)
    message.next_codec, message.codec = "fp32", name
    with pytest.raises(BadMessageError):
        from_wire(Commit, message)


def test_a_reason_that_nobody_knows_is_a_bad_message() -> None:
    with pytest.raises(BadMessageError):
        from_wire(member.Refuse, pb.Refuse(plan_digest="a" * 64, reason="because", promised_attempt=0))


def test_long_bytes_are_bounded_too() -> None:
    contribution = Contribution("ann", 1, 0, 4, "a" * 64, 1.0)
    shard, leader = ShardResult(0, 10, "c" * 64, 1.0), Candidate("ann", "a:1")
    commit = Commit(Ballot(1, "a" * 64, 1, "ann"), "b" * 64, (contribution,), ("ann",), (shard,), "fp32", 4, leader, (), "fp16")
    longest = to_wire(SignedCommit(commit, b"x" * MAX_TEXT, b""))
    assert from_wire(SignedCommit, longest).commit == commit
    with pytest.raises(BadMessageError):
        from_wire(SignedCommit, to_wire(SignedCommit(commit, b"x" * (MAX_TEXT + 1), b"")))


@pytest.mark.parametrize("answer", [member.Accept("a" * 64, None), member.Refuse("a" * 64, Reason.SILENT, 3)])
def test_answers_travel_in_the_field_that_is_read_for_them(answer: Any) -> None:
    message = pb.MemberMessage.FromString(answer_to_wire(answer).SerializeToString())
    kind = message.WhichOneof("kind")
    assert from_wire(MEMBER_KINDS[kind], getattr(message, kind)) == answer


def test_every_answer_and_report_can_be_told_apart() -> None:
    (kinds,) = (oneof for oneof in pb.MemberMessage.DESCRIPTOR.oneofs)
    assert {field.name for field in kinds.fields} - {"leave"} == MEMBER_KINDS.keys()
    for name, kind in MEMBER_KINDS.items():
        assert kind.__name__.lower() == name
    assert set(typing.get_args(member.Answer)) <= set(MEMBER_KINDS.values())


# -- the file that all versions of dugnad share ----------------------------------------------------------------------------------


def test_the_generated_code_is_that_of_the_proto_file(tmp_path: Path) -> None:
    """Run protocols/wire/generate.sh after changing dugnad.proto."""
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{WIRE}", *outputs, "dugnad.proto"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    stub = (tmp_path / "dugnad_pb2_grpc.py").read_text()
    (tmp_path / "dugnad_pb2_grpc.py").write_text(
        stub.replace("\nimport dugnad_pb2 as", "\nfrom protocols.wire import dugnad_pb2 as")
    )
    for name in ("dugnad_pb2.py", "dugnad_pb2.pyi", "dugnad_pb2_grpc.py"):
        assert (WIRE / name).read_text() == (tmp_path / name).read_text(), name


def described() -> dict[str, dict[str, str]]:
    """Message -> field number -> 'name: type', and service -> method -> signature."""
    whole: dict[str, dict[str, str]] = {}

    def describe(kind: Descriptor) -> None:
        whole[kind.full_name] = {str(field.number): _described(field) for field in kind.fields}
        for nested in kind.nested_types:
            describe(nested)

    for message in pb.DESCRIPTOR.message_types_by_name.values():
        describe(message)
    for service in pb.DESCRIPTOR.services_by_name.values():
        whole[service.full_name] = {
            method.name: f"{method.input_type.name} -> {method.output_type.name}"
            f"{' (client streams)' * method.client_streaming}{' (server streams)' * method.server_streaming}"
            for method in service.methods
        }
    return whole


def _described(field: FieldDescriptor) -> str:
    kind = field.message_type.name if field.message_type is not None else f"type {field.type}"
    return f"{field.name}: {'repeated ' * field.is_repeated}{kind}"


def test_no_field_number_changes_its_meaning() -> None:
    """Numbers of the last release stay what they were; new ones may come. After a release: python -m tests.protocols.test_wire"""
    now, released = described(), json.loads(FIELDS.read_text())
    for name, fields in released.items():
        assert name in now, f"{name} was removed: peers of the last release still send it"
        for number, meaning in fields.items():
            assert now[name].get(number) == meaning, f"{name}, field {number}"


def test_fields_removed_since_the_release_would_be_noticed() -> None:
    released = json.loads(FIELDS.read_text())
    assert len(released) >= 40
    assert released["dugnad.v1.Ballot"]["2"] == "parent: type 9"
    assert released["dugnad.v1.Peer"]["Control"] == "MemberMessage -> LeaderMessage (client streams) (server streams)"


def test_convert_reads_and_writes_nothing_but_what_the_records_name() -> None:
    assert convert._fields(Ballot) == {"epoch": int, "parent": str, "attempt": int, "leader": str}


if __name__ == "__main__":
    FIELDS.write_text(json.dumps(described(), indent=1) + "\n")

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
from protocols import ban_list, messages, observations
from protocols.ban_list import BanList, KnownBans, SignedBanList
from protocols.errors import BadMessageError
from protocols.messages import MAX_CHUNK_BYTES, MAX_CHUNKS, Manifest
from protocols.observations import Absence, Committed, Evaluation, Failure, PeerView, Seen, Swarm
from protocols.reasons import Reason
from protocols.round import member, records
from protocols.round import plans as round_plans
from protocols.round.drift_votes import Drifted, DriftVerdict
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
    Vote,
)
from protocols.wire import convert
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.calls import CALL_OF, CALLS, Call, Envelope, Single
from protocols.wire.convert import (
    MAX_REPEATED,
    MAX_TEXT,
    from_bytes,
    from_wire,
    to_bytes,
    to_wire,
)

WIRE = Path(protocols.wire.__path__[0])
FIELDS = Path(__file__).with_name("wire_fields.json")

digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
texts = st.text(max_size=20)
peers = st.from_regex(r"[0-9a-f]{32}", fullmatch=True)
counts = st.integers(0, records.MAX_COUNT)
epochs = st.integers(0, records.MAX_EPOCHS)
elements = st.integers(0, 2**40)
rates = st.floats(0, 1e5)
finite = st.floats(-records.MAX_LOSS, records.MAX_LOSS)

ballots = st.builds(Ballot, epoch=st.integers(1, records.MAX_EPOCHS), parent=digests, attempt=st.integers(1, 2**20), leader=peers)
codecs = st.sampled_from(sorted(CODEC_NAMES))
candidates = st.builds(Candidate, peer=peers, address=texts)
contributions = st.integers(0, 2**40).flatmap(
    lambda first: st.builds(
        Contribution,
        peer=peers,
        incarnation=counts,
        first=st.just(first),
        end=st.integers(first + 1, first + records.MAX_SAMPLES),
        base=digests,
        loss=finite,
    )
)
results = st.builds(
    lambda start, size, sha, squares: ShardResult(start, start + size, sha, squares),
    elements,
    st.integers(1, 2**40),
    digests,
    st.floats(0, records.MAX_SUM_OF_SQUARES),
)
standings = st.builds(Standing, epoch=epochs, lineage=digests, total_samples=counts)


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
    shards = tuple(
        ShardResult(s.start, s.stop, draw(digests), draw(st.floats(0, records.MAX_SUM_OF_SQUARES))) for s in plan.shards
    )
    total = sum(c.weight for c in made) + draw(st.integers(0, 2**52))
    leader = Candidate(plan.ballot.leader, draw(texts))
    succession = tuple(draw(st.lists(candidates, max_size=3)))
    return Commit(plan.ballot, plan.digest, made, plan.members, shards, plan.codec, total, leader, succession, draw(codecs))


votes = st.builds(Vote, peer=peers, key=st.binary(max_size=33), signature=st.binary(min_size=1, max_size=72))
refusals = st.builds(
    Drifted, plan_digest=digests, reducers=st.lists(peers, min_size=1, max_size=4).map(tuple), vote=st.none() | votes
)
verdicts = refusals.filter(lambda refusal: refusal.vote is not None).map(
    lambda refusal: DriftVerdict((refusal.vote.peer,), (refusal,))
)
signed_commits = st.builds(
    SignedCommit,
    commit=commits(),
    signature=st.binary(max_size=80),
    certificate=st.binary(max_size=300),
    votes=st.lists(votes, max_size=3, unique_by=lambda vote: vote.peer).map(tuple),
)
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
ban_lists = st.builds(BanList, version=counts, peers=st.lists(peers, max_size=3).map(tuple))
peer_views = st.builds(
    PeerView,
    peer=peers,
    name=texts,
    role=st.sampled_from(("contributor", "auxiliary")),
    reachable=st.booleans(),
    epoch=epochs,
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
    Vote: votes,
    Standing: standings,
    Report: st.builds(
        Report,
        standing=standings,
        samples=st.integers(0, records.MAX_SAMPLES),
        samples_per_second=rates,
        step_s=st.floats(0, 3599),
        promised_attempt=st.integers(0, 2**20),
        moved_bytes=counts,
        caught_up=st.booleans(),
        phase=texts,
        upload_bytes_s=rates,
        download_bytes_s=rates,
        ready_for=st.none() | ready_fors,
        unreached=st.lists(peers, max_size=3).map(tuple),
        planned_with=st.lists(peers, max_size=3).map(tuple),
    ),
    Hello: (texts.filter(bool) | st.just("")).flatmap(
        lambda at: st.builds(
            Hello, incarnation=counts, auxiliary=st.booleans(), address=st.just(at), bulk_address=st.just(at), name=texts
        )
    ),
    member.Accept: st.builds(member.Accept, plan_digest=digests, contribution=st.none() | contributions),
    member.Refuse: st.builds(
        member.Refuse,
        plan_digest=digests,
        reason=st.sampled_from(sorted(member.REFUSALS)),
        promised_attempt=st.integers(0, 2**20),
    ),
    member.Ready: st.builds(member.Ready, result=round_results, vote=st.none() | votes),
    Drifted: refusals,
    member.Failed: st.builds(
        member.Failed, plan_digest=digests, reason=st.sampled_from(sorted(member.FAILURES)), member=peers, reducer=peers
    ),
    PeerView: peer_views,
    Swarm: st.builds(
        Swarm,
        standing=st.none() | standings,
        samples=counts,
        phase=texts.filter(bool),
        peers=st.lists(peer_views, max_size=3).map(tuple),
        follows=st.none() | candidates,
        committed_samples_per_second=rates,
        epoch_s=rates,
    ),
    Absence: st.builds(Absence, peer=peers, reason=reasons),
    Committed: st.builds(
        Committed,
        signed_commit=signed_commits,
        seconds=rates,
        attempts=counts,
        absent=st.lists(st.builds(Absence, peer=peers, reason=reasons), max_size=3).map(tuple),
    ),
    Failure: st.builds(Failure, ballot=ballots, reason=reasons, peer=st.just("") | peers, seconds=rates),
    Evaluation: st.builds(Evaluation, epoch=epochs, loss=finite),
    Seen: st.builds(Seen, peer=peer_views, present=st.just(True))
    | st.builds(Seen, peer=peer_views, present=st.just(False), reason=reasons.map(lambda reason: reason.value)),
    Manifest: st.builds(
        lambda epoch, lineage, chunk_bytes, chunks: Manifest(epoch, lineage, chunk_bytes * len(chunks), chunk_bytes, chunks),
        epoch=epochs,
        lineage=digests,
        chunk_bytes=st.integers(1, MAX_CHUNK_BYTES),
        chunks=st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=5).map(tuple),
    ),
    messages.Leave: st.just(messages.Leave()),
    messages.NotLeader: st.builds(messages.NotLeader, follows=st.just("") | peers, address=texts, able=st.booleans()),
    messages.Heartbeat: st.builds(
        messages.Heartbeat, standing=standings, samples=counts, samples_per_second=rates, peers=st.integers(0, 2**20)
    ),
    messages.Abort: st.builds(
        messages.Abort,
        plan_digest=digests,
        reason=reasons,
        sound=st.lists(peers, max_size=4).map(tuple),
        peer=st.just("") | peers,
        verdict=st.none() | verdicts,
    ),
    DriftVerdict: verdicts,
    messages.NeedState: st.just(messages.NeedState()),
    messages.AskRequest: st.just(messages.AskRequest()),
    messages.AskReply: st.builds(
        messages.AskReply,
        standing=standings,
        caught_up=st.booleans(),
        follows=candidates | st.just(messages.NOBODY),
        bulk_address=texts,
    ),
    messages.DialBackRequest: st.builds(messages.DialBackRequest, address=texts, bulk_address=texts),
    messages.DialBackReply: st.builds(messages.DialBackReply, problem=texts),
    messages.OfferRequest: st.builds(
        messages.OfferRequest, digest=st.just("") | digests, at_least=st.none() | standings, strictly=st.booleans()
    ),
    messages.SnapshotRequest: st.builds(
        messages.SnapshotRequest, digest=digests, first_chunk=st.integers(0, 2**20), chunks=st.integers(0, 2**10)
    ),
    messages.CommitsRequest: st.builds(messages.CommitsRequest, after=digests),
    messages.Chunk: st.builds(messages.Chunk, offset=counts, data=st.binary(max_size=3 * MAX_TEXT)),
    messages.PushReply: st.just(messages.PushReply()),
    messages.BulkHello: st.builds(messages.BulkHello, protocol=st.integers(0, 2**20), run_digest=digests),
    messages.ReduceOpen: st.builds(
        messages.ReduceOpen, plan_digest=digests, shard=st.integers(0, 63), contribution=st.none() | contributions
    ),
    messages.Averaged: st.builds(messages.Averaged, contributions=st.lists(contributions, max_size=4).map(tuple)),
    messages.Probe: st.builds(messages.Probe, up=st.booleans()),
    messages.Probed: st.builds(messages.Probed, bytes_s=st.floats(0, 1e11)),
    messages.Refused: st.builds(messages.Refused, reason=reasons.map(lambda reason: reason.value), sentence=texts),
    messages.ObserveRequest: st.builds(messages.ObserveRequest, after_epoch=counts, once=st.booleans()),
    KnownBans: st.builds(KnownBans, version=counts),
    BanList: ban_lists,
    SignedBanList: st.builds(SignedBanList, bans=ban_lists, signature=st.binary(max_size=72)),
}
MESSAGES = {kind for kind in vars(messages).values() if isinstance(kind, type) and kind.__module__ == messages.__name__}
# Records whose every field may be absent, empty or zero.
MAY_BE_EMPTY = {
    Hello,
    Evaluation,
    Candidate,
    member.Accept,
    KnownBans,
    BanList,
    *(kind for kind in MESSAGES if kind not in (messages.Heartbeat, messages.Abort, messages.AskReply, Manifest)),
}
WITHOUT_DIGEST = {
    SignedBanList,
    SignedCommit,
    Vote,
    member.Ready,
    Drifted,
    DriftVerdict,
    messages.Abort,
    Committed,
    Manifest,
    messages.Chunk,
}  # they hold bytes, which no digest is taken of


def test_what_may_be_empty_is_named_right() -> None:
    for kind in MAY_BE_EMPTY:
        from_wire(kind, getattr(pb, kind.__name__)())


@pytest.mark.parametrize("kind", EVERY_RECORD, ids=lambda kind: kind.__name__)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=30, deadline=None)
@given(data=st.data())
def test_a_record_comes_back_from_the_wire_as_it_went_with_the_same_digest(kind: type[Any], data: st.DataObject) -> None:
    record = data.draw(EVERY_RECORD[kind])
    message = to_wire(record)
    back = from_wire(kind, type(message).FromString(message.SerializeToString()))
    assert back == record
    assert records.digest_of(back) == records.digest_of(record) if kind not in WITHOUT_DIGEST else True


def test_every_record_that_has_a_message_is_put_to_the_test() -> None:
    here = {
        name
        for module in (records, round_plans, member, observations, messages, ban_list)
        for name, kind in vars(module).items()
        if dataclasses.is_dataclass(kind) and name in pb.DESCRIPTOR.message_types_by_name
    }
    assert here <= {kind.__name__ for kind in EVERY_RECORD}
    assert {kind for call in CALLS for stream in (call.up, call.down) for kind in kinds_of(stream)} <= EVERY_RECORD.keys()
    assert EVERY_RECORD.keys() >= MESSAGES


def kinds_of(stream: Single | Envelope) -> set[type[Any]]:
    """The records that a stream carries."""
    return {stream._record} if isinstance(stream, Single) else set(stream._kinds.values())


@pytest.mark.parametrize("kind", EVERY_RECORD, ids=lambda kind: kind.__name__)
def test_record_and_message_have_the_same_fields(kind: type[Any]) -> None:
    described = {field.name for field in pb.DESCRIPTOR.message_types_by_name[kind.__name__].fields}
    assert {field.name for field in dataclasses.fields(kind)} == described


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(signed=signed_commits)
def test_a_signed_commit_has_one_encoding(signed: SignedCommit) -> None:
    data = to_bytes(signed)
    assert from_bytes(SignedCommit, data) == signed
    assert to_bytes(from_bytes(SignedCommit, data)) == data


@settings(deadline=None)
@given(noise=st.binary(max_size=200))
def test_noise_is_a_bad_message_and_nothing_else(noise: bytes) -> None:
    with pytest.raises(BadMessageError):
        from_bytes(SignedCommit, noise)


@pytest.mark.parametrize("kind", [kind for kind in EVERY_RECORD if kind not in MAY_BE_EMPTY], ids=lambda kind: kind.__name__)
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


@pytest.mark.parametrize(("size", "fits"), [(MAX_TEXT + 1, True), (MAX_CHUNK_BYTES, True), (MAX_CHUNK_BYTES + 1, False)])
def test_a_chunk_is_longer_than_a_text_and_not_longer_than_a_chunk(size: int, fits: bool) -> None:
    message = to_wire(messages.Chunk(7, bytes(size)))
    if fits:
        assert from_wire(messages.Chunk, message) == messages.Chunk(7, bytes(size))
    else:
        with pytest.raises(BadMessageError):
            from_wire(messages.Chunk, message)


@pytest.mark.parametrize(("items", "fits"), [(MAX_REPEATED, True), (MAX_REPEATED + 1, False)])
def test_a_list_has_so_many_items_at_most(items: int, fits: bool) -> None:
    contributions = (Contribution("ann", 1, 0, 4, "a" * 64, 1.0),) * items
    message = to_wire(messages.Averaged(contributions))
    if fits:
        assert from_wire(messages.Averaged, message).contributions == contributions
    else:
        with pytest.raises(BadMessageError, match=f"{items} items"):
            from_wire(messages.Averaged, message)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0, 1e12])
def test_a_probed_rate_out_of_all_bounds_is_a_bad_message(rate: float) -> None:
    with pytest.raises(BadMessageError):
        from_wire(messages.Probed, pb.Probed(bytes_s=rate))


@pytest.mark.parametrize("change", [{"total_bytes": 1 << 23}, {"chunk_bytes": 0}, {"chunk_bytes": MAX_CHUNK_BYTES + 1}])
def test_a_manifest_that_contradicts_itself_is_a_bad_message(change: dict[str, int]) -> None:
    message = to_wire(Manifest(3, "c" * 64, 2048, 1024, (b"x" * 32, b"y" * 32)))
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(BadMessageError, match="Manifest"):
        from_wire(Manifest, message)


# -- calls -----------------------------------------------------------------------------------------------------------------------

STREAMS = [
    pytest.param(stream, kind, id=f"{call.name} {way} {kind.__name__}")
    for call in CALLS
    for way, stream in (("up", call.up), ("down", call.down))
    for kind in sorted(kinds_of(stream), key=lambda kind: kind.__name__)
]


@pytest.mark.parametrize(("stream", "kind"), STREAMS)
@settings(max_examples=5)
@given(data=st.data())
def test_a_record_comes_through_each_call_that_carries_its_kind(
    stream: Single | Envelope, kind: type[Any], data: st.DataObject
) -> None:
    record = data.draw(EVERY_RECORD[kind])
    assert stream.from_bytes(stream.to_bytes(record)) == record


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
@given(noise=st.binary(max_size=200))
def test_noise_in_a_call_is_a_bad_message_or_a_record_of_the_call_and_nothing_else(call: Call, noise: bytes) -> None:
    for stream in (call.up, call.down):
        try:
            record = stream.from_bytes(noise)
        except BadMessageError:
            continue
        assert type(record) in kinds_of(stream)


@pytest.mark.parametrize("call", [call for call in CALLS if isinstance(call.down, Envelope)], ids=lambda call: call.name)
def test_an_envelope_without_content_is_a_bad_message(call: Call) -> None:
    with pytest.raises(BadMessageError, match="unknown kind"):
        call.down.from_bytes(b"")


def test_every_call_is_one_of_the_service_in_the_proto_file_and_every_opening_has_one_call() -> None:
    methods = pb.DESCRIPTOR.services_by_name["Peer"].methods_by_name
    assert {call.name for call in CALLS} == set(methods)
    assert len(CALL_OF) == len(CALLS)
    for call in CALLS:
        assert call.opening in kinds_of(call.up)
        assert message_of(call.up) == methods[call.name].input_type.name
        assert message_of(call.down) == methods[call.name].output_type.name


def message_of(stream: Single | Envelope) -> str:
    return stream._record.__name__ if isinstance(stream, Single) else stream._message.DESCRIPTOR.name


@pytest.mark.parametrize(
    "stream",
    [stream for call in CALLS for stream in (call.up, call.down) if isinstance(stream, Envelope)],
    ids=lambda stream: message_of(stream),
)
def test_every_field_of_an_envelope_has_its_record(stream: Envelope) -> None:
    (kinds,) = stream._message.DESCRIPTOR.oneofs
    assert {field.name: field.message_type.name for field in kinds.fields} == {
        name: kind.__name__ for name, kind in stream._kinds.items()
    }


def test_a_member_can_send_every_answer_and_its_reports() -> None:
    assert {*typing.get_args(member.Answer), Hello, Report, messages.Leave} == kinds_of(CALL_OF[Hello].up)


def test_an_observer_can_be_told_every_observation() -> None:
    assert set(typing.get_args(observations.Observation)) == kinds_of(CALL_OF[messages.ObserveRequest].down)


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
    most = (MAX_TEXT, MAX_REPEATED)
    fields = {"epoch": (int, *most), "parent": (str, *most), "attempt": (int, *most), "leader": (str, *most)}
    assert convert._fields(Ballot) == fields
    assert convert._fields(messages.Chunk) == {"offset": (int, *most), "data": (bytes, MAX_CHUNK_BYTES, MAX_REPEATED)}
    assert convert._fields(Manifest)["chunk_sha256"] == (tuple[bytes, ...], MAX_TEXT, MAX_CHUNKS)


if __name__ == "__main__":
    FIELDS.write_text(json.dumps(described(), indent=1) + "\n")

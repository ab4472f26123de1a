from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Ballot(_message.Message):
    __slots__ = ("epoch", "parent", "attempt", "leader")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    parent: str
    attempt: int
    leader: str
    def __init__(self, epoch: _Optional[int] = ..., parent: _Optional[str] = ..., attempt: _Optional[int] = ..., leader: _Optional[str] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("peer", "address")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    peer: str
    address: str
    def __init__(self, peer: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("peer", "incarnation", "first", "end", "base", "loss", "norm")
    PEER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    peer: str
    incarnation: int
    first: int
    end: int
    base: str
    loss: float
    norm: float
    def __init__(self, peer: _Optional[str] = ..., incarnation: _Optional[int] = ..., first: _Optional[int] = ..., end: _Optional[int] = ..., base: _Optional[str] = ..., loss: _Optional[float] = ..., norm: _Optional[float] = ...) -> None: ...

class Shard(_message.Message):
    __slots__ = ("reducer", "address", "start", "stop")
    REDUCER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    reducer: str
    address: str
    start: int
    stop: int
    def __init__(self, reducer: _Optional[str] = ..., address: _Optional[str] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class ShardResult(_message.Message):
    __slots__ = ("start", "stop", "digest", "sum_of_squares")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SUM_OF_SQUARES_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    digest: str
    sum_of_squares: float
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ..., digest: _Optional[str] = ..., sum_of_squares: _Optional[float] = ...) -> None: ...

class Standing(_message.Message):
    __slots__ = ("epoch", "lineage", "total_samples")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lineage: str
    total_samples: int
    def __init__(self, epoch: _Optional[int] = ..., lineage: _Optional[str] = ..., total_samples: _Optional[int] = ...) -> None: ...

class MemberPlan(_message.Message):
    __slots__ = ("run_digest", "ballot", "contributors", "members", "shards", "codec", "patience_s", "incarnation", "finishes", "contributors_digest", "members_digest", "planned_s", "sends")
    RUN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTORS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_S_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    FINISHES_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTORS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PLANNED_S_FIELD_NUMBER: _ClassVar[int]
    SENDS_FIELD_NUMBER: _ClassVar[int]
    run_digest: str
    ballot: Ballot
    contributors: _containers.RepeatedScalarFieldContainer[str]
    members: _containers.RepeatedScalarFieldContainer[str]
    shards: _containers.RepeatedCompositeFieldContainer[Shard]
    codec: str
    patience_s: float
    incarnation: int
    finishes: Averages
    contributors_digest: str
    members_digest: str
    planned_s: float
    sends: bool
    def __init__(self, run_digest: _Optional[str] = ..., ballot: _Optional[_Union[Ballot, _Mapping]] = ..., contributors: _Optional[_Iterable[str]] = ..., members: _Optional[_Iterable[str]] = ..., shards: _Optional[_Iterable[_Union[Shard, _Mapping]]] = ..., codec: _Optional[str] = ..., patience_s: _Optional[float] = ..., incarnation: _Optional[int] = ..., finishes: _Optional[_Union[Averages, _Mapping]] = ..., contributors_digest: _Optional[str] = ..., members_digest: _Optional[str] = ..., planned_s: _Optional[float] = ..., sends: _Optional[bool] = ...) -> None: ...

class Averages(_message.Message):
    __slots__ = ("contributions", "shards")
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    contributions: _containers.RepeatedCompositeFieldContainer[Contribution]
    shards: _containers.RepeatedCompositeFieldContainer[ShardResult]
    def __init__(self, contributions: _Optional[_Iterable[_Union[Contribution, _Mapping]]] = ..., shards: _Optional[_Iterable[_Union[ShardResult, _Mapping]]] = ...) -> None: ...

class ReadyFor(_message.Message):
    __slots__ = ("ballot", "averages")
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    AVERAGES_FIELD_NUMBER: _ClassVar[int]
    ballot: Ballot
    averages: Averages
    def __init__(self, ballot: _Optional[_Union[Ballot, _Mapping]] = ..., averages: _Optional[_Union[Averages, _Mapping]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("plan_digest", "contributions_digest", "shards")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    plan_digest: str
    contributions_digest: str
    shards: _containers.RepeatedCompositeFieldContainer[ShardResult]
    def __init__(self, plan_digest: _Optional[str] = ..., contributions_digest: _Optional[str] = ..., shards: _Optional[_Iterable[_Union[ShardResult, _Mapping]]] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("ballot", "plan_digest", "contributions", "members", "shards", "codec", "total_samples", "leader", "succession", "next_codec")
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    SUCCESSION_FIELD_NUMBER: _ClassVar[int]
    NEXT_CODEC_FIELD_NUMBER: _ClassVar[int]
    ballot: Ballot
    plan_digest: str
    contributions: _containers.RepeatedCompositeFieldContainer[Contribution]
    members: _containers.RepeatedScalarFieldContainer[str]
    shards: _containers.RepeatedCompositeFieldContainer[ShardResult]
    codec: str
    total_samples: int
    leader: Candidate
    succession: _containers.RepeatedCompositeFieldContainer[Candidate]
    next_codec: str
    def __init__(self, ballot: _Optional[_Union[Ballot, _Mapping]] = ..., plan_digest: _Optional[str] = ..., contributions: _Optional[_Iterable[_Union[Contribution, _Mapping]]] = ..., members: _Optional[_Iterable[str]] = ..., shards: _Optional[_Iterable[_Union[ShardResult, _Mapping]]] = ..., codec: _Optional[str] = ..., total_samples: _Optional[int] = ..., leader: _Optional[_Union[Candidate, _Mapping]] = ..., succession: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., next_codec: _Optional[str] = ...) -> None: ...

class Vote(_message.Message):
    __slots__ = ("peer", "key", "signature")
    PEER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    peer: str
    key: bytes
    signature: bytes
    def __init__(self, peer: _Optional[str] = ..., key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SignedCommit(_message.Message):
    __slots__ = ("commit", "signature", "certificate", "votes")
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    commit: Commit
    signature: bytes
    certificate: bytes
    votes: _containers.RepeatedCompositeFieldContainer[Vote]
    def __init__(self, commit: _Optional[_Union[Commit, _Mapping]] = ..., signature: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., votes: _Optional[_Iterable[_Union[Vote, _Mapping]]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("incarnation", "auxiliary", "address", "name", "bulk_address", "memory_bytes")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BULK_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    auxiliary: bool
    address: str
    name: str
    bulk_address: str
    memory_bytes: int
    def __init__(self, incarnation: _Optional[int] = ..., auxiliary: _Optional[bool] = ..., address: _Optional[str] = ..., name: _Optional[str] = ..., bulk_address: _Optional[str] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("standing", "samples", "samples_per_second", "step_s", "promised_attempt", "moved_bytes", "caught_up", "phase", "upload_bytes_s", "download_bytes_s", "ready_for", "planned_with", "unreached")
    STANDING_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    PROMISED_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_BYTES_S_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_BYTES_S_FIELD_NUMBER: _ClassVar[int]
    READY_FOR_FIELD_NUMBER: _ClassVar[int]
    PLANNED_WITH_FIELD_NUMBER: _ClassVar[int]
    UNREACHED_FIELD_NUMBER: _ClassVar[int]
    standing: Standing
    samples: int
    samples_per_second: float
    step_s: float
    promised_attempt: int
    moved_bytes: int
    caught_up: bool
    phase: str
    upload_bytes_s: float
    download_bytes_s: float
    ready_for: ReadyFor
    planned_with: _containers.RepeatedScalarFieldContainer[str]
    unreached: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, standing: _Optional[_Union[Standing, _Mapping]] = ..., samples: _Optional[int] = ..., samples_per_second: _Optional[float] = ..., step_s: _Optional[float] = ..., promised_attempt: _Optional[int] = ..., moved_bytes: _Optional[int] = ..., caught_up: _Optional[bool] = ..., phase: _Optional[str] = ..., upload_bytes_s: _Optional[float] = ..., download_bytes_s: _Optional[float] = ..., ready_for: _Optional[_Union[ReadyFor, _Mapping]] = ..., planned_with: _Optional[_Iterable[str]] = ..., unreached: _Optional[_Iterable[str]] = ...) -> None: ...

class Accept(_message.Message):
    __slots__ = ("plan_digest", "contribution")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    plan_digest: str
    contribution: Contribution
    def __init__(self, plan_digest: _Optional[str] = ..., contribution: _Optional[_Union[Contribution, _Mapping]] = ...) -> None: ...

class Refuse(_message.Message):
    __slots__ = ("plan_digest", "reason", "promised_attempt")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROMISED_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    plan_digest: str
    reason: str
    promised_attempt: int
    def __init__(self, plan_digest: _Optional[str] = ..., reason: _Optional[str] = ..., promised_attempt: _Optional[int] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("result", "vote")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    result: Result
    vote: Vote
    def __init__(self, result: _Optional[_Union[Result, _Mapping]] = ..., vote: _Optional[_Union[Vote, _Mapping]] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("plan_digest", "reason", "member", "reducer")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    REDUCER_FIELD_NUMBER: _ClassVar[int]
    plan_digest: str
    reason: str
    member: str
    reducer: str
    def __init__(self, plan_digest: _Optional[str] = ..., reason: _Optional[str] = ..., member: _Optional[str] = ..., reducer: _Optional[str] = ...) -> None: ...

class Drifted(_message.Message):
    __slots__ = ("plan_digest", "reducers", "vote")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REDUCERS_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    plan_digest: str
    reducers: _containers.RepeatedScalarFieldContainer[str]
    vote: Vote
    def __init__(self, plan_digest: _Optional[str] = ..., reducers: _Optional[_Iterable[str]] = ..., vote: _Optional[_Union[Vote, _Mapping]] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MemberMessage(_message.Message):
    __slots__ = ("hello", "report", "accept", "refuse", "ready", "failed", "leave", "drifted")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    REFUSE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    DRIFTED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    report: Report
    accept: Accept
    refuse: Refuse
    ready: Ready
    failed: Failed
    leave: Leave
    drifted: Drifted
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., accept: _Optional[_Union[Accept, _Mapping]] = ..., refuse: _Optional[_Union[Refuse, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., drifted: _Optional[_Union[Drifted, _Mapping]] = ...) -> None: ...

class NotLeader(_message.Message):
    __slots__ = ("follows", "address", "able")
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ABLE_FIELD_NUMBER: _ClassVar[int]
    follows: str
    address: str
    able: bool
    def __init__(self, follows: _Optional[str] = ..., address: _Optional[str] = ..., able: _Optional[bool] = ...) -> None: ...

class DriftVerdict(_message.Message):
    __slots__ = ("members", "refusals")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedScalarFieldContainer[str]
    refusals: _containers.RepeatedCompositeFieldContainer[Drifted]
    def __init__(self, members: _Optional[_Iterable[str]] = ..., refusals: _Optional[_Iterable[_Union[Drifted, _Mapping]]] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("plan_digest", "reason", "sound", "peer", "verdict")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SOUND_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    plan_digest: str
    reason: str
    sound: _containers.RepeatedScalarFieldContainer[str]
    peer: str
    verdict: DriftVerdict
    def __init__(self, plan_digest: _Optional[str] = ..., reason: _Optional[str] = ..., sound: _Optional[_Iterable[str]] = ..., peer: _Optional[str] = ..., verdict: _Optional[_Union[DriftVerdict, _Mapping]] = ...) -> None: ...

class NeedState(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DialBackRequest(_message.Message):
    __slots__ = ("address", "bulk_address")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BULK_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    address: str
    bulk_address: str
    def __init__(self, address: _Optional[str] = ..., bulk_address: _Optional[str] = ...) -> None: ...

class DialBackReply(_message.Message):
    __slots__ = ("problem",)
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    problem: str
    def __init__(self, problem: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("standing", "samples", "samples_per_second", "peers")
    STANDING_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    standing: Standing
    samples: int
    samples_per_second: float
    peers: int
    def __init__(self, standing: _Optional[_Union[Standing, _Mapping]] = ..., samples: _Optional[int] = ..., samples_per_second: _Optional[float] = ..., peers: _Optional[int] = ...) -> None: ...

class LeaderMessage(_message.Message):
    __slots__ = ("not_leader", "heartbeat", "abort", "signed_commit", "need_state", "member_plan")
    NOT_LEADER_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    SIGNED_COMMIT_FIELD_NUMBER: _ClassVar[int]
    NEED_STATE_FIELD_NUMBER: _ClassVar[int]
    MEMBER_PLAN_FIELD_NUMBER: _ClassVar[int]
    not_leader: NotLeader
    heartbeat: Heartbeat
    abort: Abort
    signed_commit: SignedCommit
    need_state: NeedState
    member_plan: MemberPlan
    def __init__(self, not_leader: _Optional[_Union[NotLeader, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., signed_commit: _Optional[_Union[SignedCommit, _Mapping]] = ..., need_state: _Optional[_Union[NeedState, _Mapping]] = ..., member_plan: _Optional[_Union[MemberPlan, _Mapping]] = ...) -> None: ...

class BulkHello(_message.Message):
    __slots__ = ("protocol", "run_digest")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run_digest: str
    def __init__(self, protocol: _Optional[int] = ..., run_digest: _Optional[str] = ...) -> None: ...

class ReduceOpen(_message.Message):
    __slots__ = ("plan_digest", "shard", "contribution")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    plan_digest: str
    shard: int
    contribution: Contribution
    def __init__(self, plan_digest: _Optional[str] = ..., shard: _Optional[int] = ..., contribution: _Optional[_Union[Contribution, _Mapping]] = ...) -> None: ...

class Averaged(_message.Message):
    __slots__ = ("contributions",)
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    contributions: _containers.RepeatedCompositeFieldContainer[Contribution]
    def __init__(self, contributions: _Optional[_Iterable[_Union[Contribution, _Mapping]]] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("up",)
    UP_FIELD_NUMBER: _ClassVar[int]
    up: bool
    def __init__(self, up: _Optional[bool] = ...) -> None: ...

class Probed(_message.Message):
    __slots__ = ("bytes_s",)
    BYTES_S_FIELD_NUMBER: _ClassVar[int]
    bytes_s: float
    def __init__(self, bytes_s: _Optional[float] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason", "sentence")
    REASON_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    sentence: str
    def __init__(self, reason: _Optional[str] = ..., sentence: _Optional[str] = ...) -> None: ...

class AskRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AskReply(_message.Message):
    __slots__ = ("standing", "caught_up", "follows", "bulk_address")
    STANDING_FIELD_NUMBER: _ClassVar[int]
    CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    BULK_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    standing: Standing
    caught_up: bool
    follows: Candidate
    bulk_address: str
    def __init__(self, standing: _Optional[_Union[Standing, _Mapping]] = ..., caught_up: _Optional[bool] = ..., follows: _Optional[_Union[Candidate, _Mapping]] = ..., bulk_address: _Optional[str] = ...) -> None: ...

class OfferRequest(_message.Message):
    __slots__ = ("digest", "at_least", "strictly")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    STRICTLY_FIELD_NUMBER: _ClassVar[int]
    digest: str
    at_least: Standing
    strictly: bool
    def __init__(self, digest: _Optional[str] = ..., at_least: _Optional[_Union[Standing, _Mapping]] = ..., strictly: _Optional[bool] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("digest", "first_chunk", "chunks")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    first_chunk: int
    chunks: int
    def __init__(self, digest: _Optional[str] = ..., first_chunk: _Optional[int] = ..., chunks: _Optional[int] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("epoch", "lineage", "total_bytes", "chunk_bytes", "chunk_sha256")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SHA256_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lineage: str
    total_bytes: int
    chunk_bytes: int
    chunk_sha256: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, epoch: _Optional[int] = ..., lineage: _Optional[str] = ..., total_bytes: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., chunk_sha256: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SnapshotPart(_message.Message):
    __slots__ = ("manifest", "chunk")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    manifest: Manifest
    chunk: Chunk
    def __init__(self, manifest: _Optional[_Union[Manifest, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class PushReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CommitsRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: str
    def __init__(self, after: _Optional[str] = ...) -> None: ...

class CommitPart(_message.Message):
    __slots__ = ("signed_commit", "chunk")
    SIGNED_COMMIT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    signed_commit: SignedCommit
    chunk: Chunk
    def __init__(self, signed_commit: _Optional[_Union[SignedCommit, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class ObserveRequest(_message.Message):
    __slots__ = ("after_epoch", "once")
    AFTER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ONCE_FIELD_NUMBER: _ClassVar[int]
    after_epoch: int
    once: bool
    def __init__(self, after_epoch: _Optional[int] = ..., once: _Optional[bool] = ...) -> None: ...

class PeerView(_message.Message):
    __slots__ = ("peer", "name", "role", "reachable", "epoch", "samples", "samples_per_second", "state", "is_leader")
    PEER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    IS_LEADER_FIELD_NUMBER: _ClassVar[int]
    peer: str
    name: str
    role: str
    reachable: bool
    epoch: int
    samples: int
    samples_per_second: float
    state: str
    is_leader: bool
    def __init__(self, peer: _Optional[str] = ..., name: _Optional[str] = ..., role: _Optional[str] = ..., reachable: _Optional[bool] = ..., epoch: _Optional[int] = ..., samples: _Optional[int] = ..., samples_per_second: _Optional[float] = ..., state: _Optional[str] = ..., is_leader: _Optional[bool] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("ballot", "reason", "peer", "seconds")
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    ballot: Ballot
    reason: str
    peer: str
    seconds: float
    def __init__(self, ballot: _Optional[_Union[Ballot, _Mapping]] = ..., reason: _Optional[str] = ..., peer: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class Absence(_message.Message):
    __slots__ = ("peer", "reason")
    PEER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    peer: str
    reason: str
    def __init__(self, peer: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("signed_commit", "seconds", "attempts", "absent")
    SIGNED_COMMIT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    signed_commit: SignedCommit
    seconds: float
    attempts: int
    absent: _containers.RepeatedCompositeFieldContainer[Absence]
    def __init__(self, signed_commit: _Optional[_Union[SignedCommit, _Mapping]] = ..., seconds: _Optional[float] = ..., attempts: _Optional[int] = ..., absent: _Optional[_Iterable[_Union[Absence, _Mapping]]] = ...) -> None: ...

class Seen(_message.Message):
    __slots__ = ("peer", "present", "reason")
    PEER_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    peer: PeerView
    present: bool
    reason: str
    def __init__(self, peer: _Optional[_Union[PeerView, _Mapping]] = ..., present: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class Swarm(_message.Message):
    __slots__ = ("standing", "samples", "phase", "peers", "follows", "committed_samples_per_second", "epoch_s")
    STANDING_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    EPOCH_S_FIELD_NUMBER: _ClassVar[int]
    standing: Standing
    samples: int
    phase: str
    peers: _containers.RepeatedCompositeFieldContainer[PeerView]
    follows: Candidate
    committed_samples_per_second: float
    epoch_s: float
    def __init__(self, standing: _Optional[_Union[Standing, _Mapping]] = ..., samples: _Optional[int] = ..., phase: _Optional[str] = ..., peers: _Optional[_Iterable[_Union[PeerView, _Mapping]]] = ..., follows: _Optional[_Union[Candidate, _Mapping]] = ..., committed_samples_per_second: _Optional[float] = ..., epoch_s: _Optional[float] = ...) -> None: ...

class Observation(_message.Message):
    __slots__ = ("swarm", "committed", "failure", "seen")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    swarm: Swarm
    committed: Committed
    failure: Failure
    seen: Seen
    def __init__(self, swarm: _Optional[_Union[Swarm, _Mapping]] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., seen: _Optional[_Union[Seen, _Mapping]] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("protocol", "secret", "request")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    secret: bytes
    request: bytes
    def __init__(self, protocol: _Optional[int] = ..., secret: _Optional[bytes] = ..., request: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("certificate", "run_toml", "genesis", "discovery", "peers", "standing")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    RUN_TOML_FIELD_NUMBER: _ClassVar[int]
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    DISCOVERY_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    run_toml: str
    genesis: Genesis
    discovery: _containers.RepeatedScalarFieldContainer[str]
    peers: _containers.RepeatedCompositeFieldContainer[Candidate]
    standing: Standing
    def __init__(self, certificate: _Optional[bytes] = ..., run_toml: _Optional[str] = ..., genesis: _Optional[_Union[Genesis, _Mapping]] = ..., discovery: _Optional[_Iterable[str]] = ..., peers: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., standing: _Optional[_Union[Standing, _Mapping]] = ...) -> None: ...

class Genesis(_message.Message):
    __slots__ = ("leader", "parameters_sha256")
    LEADER_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_SHA256_FIELD_NUMBER: _ClassVar[int]
    leader: str
    parameters_sha256: str
    def __init__(self, leader: _Optional[str] = ..., parameters_sha256: _Optional[str] = ...) -> None: ...

class AssetRequest(_message.Message):
    __slots__ = ("secret", "name")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    secret: bytes
    name: str
    def __init__(self, secret: _Optional[bytes] = ..., name: _Optional[str] = ...) -> None: ...

class AssetPart(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("peer", "incarnation", "address", "name", "auxiliary", "discovery", "number", "expires_ms")
    PEER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_FIELD_NUMBER: _ClassVar[int]
    DISCOVERY_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_MS_FIELD_NUMBER: _ClassVar[int]
    peer: str
    incarnation: int
    address: str
    name: str
    auxiliary: bool
    discovery: _containers.RepeatedScalarFieldContainer[str]
    number: int
    expires_ms: int
    def __init__(self, peer: _Optional[str] = ..., incarnation: _Optional[int] = ..., address: _Optional[str] = ..., name: _Optional[str] = ..., auxiliary: _Optional[bool] = ..., discovery: _Optional[_Iterable[str]] = ..., number: _Optional[int] = ..., expires_ms: _Optional[int] = ...) -> None: ...

class AnnounceReply(_message.Message):
    __slots__ = ("peers", "held_out", "names", "standing", "bans", "certificate")
    class NamesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PEERS_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    BANS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    peers: _containers.RepeatedCompositeFieldContainer[Candidate]
    held_out: Evaluation
    names: _containers.ScalarMap[str, str]
    standing: Standing
    bans: SignedBanList
    certificate: bytes
    def __init__(self, peers: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., held_out: _Optional[_Union[Evaluation, _Mapping]] = ..., names: _Optional[_Mapping[str, str]] = ..., standing: _Optional[_Union[Standing, _Mapping]] = ..., bans: _Optional[_Union[SignedBanList, _Mapping]] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("epoch", "loss")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    loss: float
    def __init__(self, epoch: _Optional[int] = ..., loss: _Optional[float] = ...) -> None: ...

class SignedAnnouncement(_message.Message):
    __slots__ = ("announcement", "signature", "certificate", "bans_version")
    ANNOUNCEMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    BANS_VERSION_FIELD_NUMBER: _ClassVar[int]
    announcement: bytes
    signature: bytes
    certificate: bytes
    bans_version: int
    def __init__(self, announcement: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., bans_version: _Optional[int] = ...) -> None: ...

class BanList(_message.Message):
    __slots__ = ("version", "peers")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    version: int
    peers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., peers: _Optional[_Iterable[str]] = ...) -> None: ...

class SignedBanList(_message.Message):
    __slots__ = ("bans", "signature")
    BANS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    bans: BanList
    signature: bytes
    def __init__(self, bans: _Optional[_Union[BanList, _Mapping]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class KnownBans(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class BansMessage(_message.Message):
    __slots__ = ("known_bans", "signed_ban_list")
    KNOWN_BANS_FIELD_NUMBER: _ClassVar[int]
    SIGNED_BAN_LIST_FIELD_NUMBER: _ClassVar[int]
    known_bans: KnownBans
    signed_ban_list: SignedBanList
    def __init__(self, known_bans: _Optional[_Union[KnownBans, _Mapping]] = ..., signed_ban_list: _Optional[_Union[SignedBanList, _Mapping]] = ...) -> None: ...

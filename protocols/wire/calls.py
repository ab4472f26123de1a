"""Every call of the `Peer` service: which record opens it, and which records go up and come down after that.

A call carries one stream of records each way. On the wire each record lies in a message; where several kinds share a stream, in
one field of an envelope.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from protocols import messages, observations
from protocols.errors import BadMessageError
from protocols.messages import Manifest
from protocols.round import member
from protocols.round.plans import MemberPlan
from protocols.round.records import Hello, Report, SignedCommit
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_wire, to_wire


class Single:
    """A stream of one kind of record."""

    def __init__(self, record: type[Any]) -> None:
        self._record = record
        self._message: type[Message] = getattr(pb, record.__name__)

    def to_bytes(self, record: Any) -> bytes:
        data: bytes = to_wire(record).SerializeToString()
        return data

    def from_bytes(self, data: bytes) -> Any:
        """Raises BadMessageError."""
        return from_wire(self._record, _parsed(self._message, data))


class Envelope:
    """A stream of several kinds of records, each in the field of `message` that `kinds` names."""

    def __init__(self, message: type[Message], kinds: Mapping[str, type[Any]]) -> None:
        self._message = message
        self._kinds = kinds
        self._fields = {kind: name for name, kind in kinds.items()}

    def to_bytes(self, record: Any) -> bytes:
        data: bytes = self._message(**{self._fields[type(record)]: to_wire(record)}).SerializeToString()
        return data

    def from_bytes(self, data: bytes) -> Any:
        """Raises BadMessageError."""
        message: Any = _parsed(self._message, data)
        kind = message.WhichOneof("kind")
        if kind not in self._kinds:
            raise BadMessageError(f"a {self._message.__name__} of an unknown kind")
        return from_wire(self._kinds[kind], getattr(message, kind))


def _parsed(kind: type[Message], data: bytes) -> Message:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise BadMessageError(f"a {kind.__name__} cannot be decoded") from error


@dataclass(frozen=True)
class Call:
    """One call of the service."""

    name: str
    opening: type[Any]  # the record that opens it
    up: Single | Envelope
    down: Single | Envelope


_FROM_MEMBER = Envelope(
    pb.MemberMessage,
    {
        "hello": Hello,
        "report": Report,
        "accept": member.Accept,
        "refuse": member.Refuse,
        "ready": member.Ready,
        "failed": member.Failed,
        "leave": messages.Leave,
        "drifted": member.Drifted,
    },
)
_FROM_LEADER = Envelope(
    pb.LeaderMessage,
    {
        "not_leader": messages.NotLeader,
        "heartbeat": messages.Heartbeat,
        "abort": messages.Abort,
        "signed_commit": SignedCommit,
        "need_state": messages.NeedState,
        "member_plan": MemberPlan,
    },
)
_SNAPSHOT = Envelope(pb.SnapshotPart, {"manifest": Manifest, "chunk": messages.Chunk})
_COMMITS = Envelope(pb.CommitPart, {"signed_commit": SignedCommit, "chunk": messages.Chunk})
_OBSERVATIONS = Envelope(
    pb.Observation,
    {
        "swarm": observations.Swarm,
        "committed": observations.Committed,
        "failure": observations.Failure,
        "seen": observations.Seen,
    },
)

CALLS = (
    Call("Control", Hello, _FROM_MEMBER, _FROM_LEADER),
    Call("Ask", messages.AskRequest, Single(messages.AskRequest), Single(messages.AskReply)),
    Call("Offer", messages.OfferRequest, Single(messages.OfferRequest), Single(Manifest)),
    Call("Snapshot", messages.SnapshotRequest, Single(messages.SnapshotRequest), _SNAPSHOT),
    Call("Commits", messages.CommitsRequest, Single(messages.CommitsRequest), _COMMITS),
    Call("Push", Manifest, _SNAPSHOT, Single(messages.PushReply)),
    Call("Observe", messages.ObserveRequest, Single(messages.ObserveRequest), _OBSERVATIONS),
)
CALL_OF = {call.opening: call for call in CALLS}

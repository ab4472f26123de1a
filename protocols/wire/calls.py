"""Every call of the `Peer` service: which record opens it, and which records go up and come down after that.

A call carries one stream of records each way. On the wire each record lies in a message; where several kinds share a stream, in
one field of an envelope.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from protocols import messages, observations
from protocols.ban_list import KnownBans, SignedBanList
from protocols.errors import BadMessageError
from protocols.messages import Manifest
from protocols.round import member
from protocols.round.plans import MemberPlan
from protocols.round.records import Hello, Report, SignedCommit
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_bytes, from_wire, parsed, to_bytes, to_wire


class Single:
    """A stream of one kind of record."""

    def __init__(self, record: type[Any]) -> None:
        self._record = record

    def to_bytes(self, record: Any) -> bytes:
        return to_bytes(record)

    def from_bytes(self, data: bytes) -> Any:
        """Raises BadMessageError."""
        return from_bytes(self._record, data)


class Envelope:
    """A stream of several kinds of records, each in the field of `message` that has its type."""

    def __init__(self, message: type[Message], records: Iterable[type[Any]]) -> None:
        self._message = message
        names = {field.message_type.name: field.name for field in message.DESCRIPTOR.fields if field.message_type is not None}
        self._fields = {record: names[record.__name__] for record in records}
        self._kinds = {name: record for record, name in self._fields.items()}

    def to_bytes(self, record: Any) -> bytes:
        return self._message(**{self._fields[type(record)]: to_wire(record)}).SerializeToString()

    def from_bytes(self, data: bytes) -> Any:
        """Raises BadMessageError."""
        message: Any = parsed(self._message, data)
        kind = message.WhichOneof("kind")
        if kind not in self._kinds:
            raise BadMessageError(f"a {self._message.__name__} of an unknown kind")
        return from_wire(self._kinds[kind], getattr(message, kind))


@dataclass(frozen=True)
class Call:
    """One call of the service."""

    name: str
    opening: type[Any]  # the record that opens it
    up: Single | Envelope
    down: Single | Envelope


_FROM_MEMBER = Envelope(pb.MemberMessage, [Hello, Report, *typing.get_args(member.Answer), messages.Leave])
_FROM_LEADER = Envelope(
    pb.LeaderMessage,
    [messages.NotLeader, messages.Heartbeat, messages.Abort, messages.NeedState, SignedCommit, MemberPlan],
)
_SNAPSHOT = Envelope(pb.SnapshotPart, [Manifest, messages.Chunk])
_COMMITS = Envelope(pb.CommitPart, [SignedCommit, messages.Chunk])
_BANS = Envelope(pb.BansMessage, [KnownBans, SignedBanList])
_OBSERVATIONS = Envelope(pb.Observation, typing.get_args(observations.Observation))

CALLS = (
    Call("Control", Hello, _FROM_MEMBER, _FROM_LEADER),
    Call("Ask", messages.AskRequest, Single(messages.AskRequest), Single(messages.AskReply)),
    Call("Offer", messages.OfferRequest, Single(messages.OfferRequest), Single(Manifest)),
    Call("Snapshot", messages.SnapshotRequest, Single(messages.SnapshotRequest), _SNAPSHOT),
    Call("DialBack", messages.DialBackRequest, Single(messages.DialBackRequest), Single(messages.DialBackReply)),
    Call("Commits", messages.CommitsRequest, Single(messages.CommitsRequest), _COMMITS),
    Call("Push", Manifest, _SNAPSHOT, Single(messages.PushReply)),
    Call("Observe", messages.ObserveRequest, Single(messages.ObserveRequest), _OBSERVATIONS),
    Call("Bans", KnownBans, _BANS, _BANS),
)
CALL_OF = {call.opening: call for call in CALLS}

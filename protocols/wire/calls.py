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
from protocols.messages import MAX_CHUNK_BYTES, Manifest
from protocols.round import member
from protocols.round.plans import MemberPlan
from protocols.round.records import Hello, Report, SignedCommit
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_bytes, from_wire, parsed, to_bytes, to_wire

# What one message may have, by kind. A megabyte of records takes 0.08 s to read, and the network thread has others to hear.
SMALL_BYTES = 16 << 10  # a few numbers, names and addresses
MEMBER_BYTES = 384 << 10  # a report with averages of MAX_PEERS contributors, and the names of as many members
LEADER_BYTES = 768 << 10  # a commit with as many contributors, members, successors and votes
BANS_BYTES = 384 << 10  # MAX_BANNED ids of peers, and a signature
MANIFEST_BYTES = 768 << 10  # MAX_CHUNKS digests, which are no records
STATE_BYTES = MAX_CHUNK_BYTES + SMALL_BYTES  # a chunk, which is no record either


class Single:
    """A stream of one kind of record. A message has at most `max_bytes` bytes."""

    def __init__(self, record: type[Any], max_bytes: int = SMALL_BYTES) -> None:
        self._record = record
        self.max_bytes = max_bytes

    @property
    def is_state(self) -> bool:
        """It carries chunks."""
        return self.max_bytes >= STATE_BYTES

    def to_bytes(self, record: Any) -> bytes:
        return to_bytes(record)

    def from_bytes(self, data: bytes) -> Any:
        """Raises BadMessageError."""
        _check_size(data, self.max_bytes)
        return from_bytes(self._record, data)


class Envelope:
    """A stream of several kinds of records, each in the field of `message` that has its type. A message has at most `max_bytes`
    bytes."""

    def __init__(self, message: type[Message], records: Iterable[type[Any]], max_bytes: int) -> None:
        self._message = message
        self.max_bytes = max_bytes
        names = {field.message_type.name: field.name for field in message.DESCRIPTOR.fields if field.message_type is not None}
        self._fields = {record: names[record.__name__] for record in records}
        self._kinds = {name: record for record, name in self._fields.items()}

        self._last: tuple[Any, bytes] = (None, b"")

    @property
    def is_state(self) -> bool:
        """It carries chunks."""
        return self.max_bytes >= STATE_BYTES

    def to_bytes(self, record: Any) -> bytes:
        if self._last[0] is not record:  # the same record often goes to many peers, one after another
            self._last = (record, self._message(**{self._fields[type(record)]: to_wire(record)}).SerializeToString())
        return self._last[1]

    def from_bytes(self, data: bytes) -> Any:
        """Raises BadMessageError."""
        _check_size(data, self.max_bytes)
        message: Any = parsed(self._message, data)
        kind = message.WhichOneof("kind")
        if kind not in self._kinds:
            raise BadMessageError(f"a {self._message.__name__} of an unknown kind")
        return from_wire(self._kinds[kind], getattr(message, kind))


def _check_size(data: bytes, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise BadMessageError(f"a message of {len(data)} bytes, where {max_bytes} are allowed")


@dataclass(frozen=True)
class Call:
    """One call of the service."""

    name: str
    opening: type[Any]  # the record that opens it
    up: Single | Envelope
    down: Single | Envelope


_FROM_MEMBER = Envelope(pb.MemberMessage, [Hello, Report, *typing.get_args(member.Answer), messages.Leave], MEMBER_BYTES)
_FROM_LEADER = Envelope(
    pb.LeaderMessage,
    [messages.NotLeader, messages.Heartbeat, messages.Abort, messages.NeedState, SignedCommit, MemberPlan],
    LEADER_BYTES,
)
_SNAPSHOT = Envelope(pb.SnapshotPart, [Manifest, messages.Chunk], STATE_BYTES)
_COMMITS = Envelope(pb.CommitPart, [SignedCommit, messages.Chunk], STATE_BYTES)
_BANS = Envelope(pb.BansMessage, [KnownBans, SignedBanList], BANS_BYTES)
_OBSERVATIONS = Envelope(pb.Observation, typing.get_args(observations.Observation), LEADER_BYTES)

CALLS = (
    Call("Control", Hello, _FROM_MEMBER, _FROM_LEADER),
    Call("Ask", messages.AskRequest, Single(messages.AskRequest), Single(messages.AskReply)),
    Call("Offer", messages.OfferRequest, Single(messages.OfferRequest), Single(Manifest, MANIFEST_BYTES)),
    Call("Snapshot", messages.SnapshotRequest, Single(messages.SnapshotRequest), _SNAPSHOT),
    Call("DialBack", messages.DialBackRequest, Single(messages.DialBackRequest), Single(messages.DialBackReply)),
    Call("Commits", messages.CommitsRequest, Single(messages.CommitsRequest), _COMMITS),
    Call("Push", Manifest, _SNAPSHOT, Single(messages.PushReply)),
    Call("Observe", messages.ObserveRequest, Single(messages.ObserveRequest), _OBSERVATIONS),
    Call("Bans", KnownBans, _BANS, _BANS),
)
CALL_OF = {call.opening: call for call in CALLS}
